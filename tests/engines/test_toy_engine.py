"""A sixth engine is one table: every verb takes it without another edit, and no module asks for an engine's name."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from typer.testing import CliRunner

import dsv4_shard
from dsv4_shard.checkpoint.inventory import Inventory
from dsv4_shard.cli import app
from dsv4_shard.diagnosis.log_scan import read_log
from dsv4_shard.engines.deployment import Deployment, Request, resolve
from dsv4_shard.engines.engine import Engine
from dsv4_shard.engines.parallelism import pairs
from dsv4_shard.engines.placement import Expert, Replicate
from dsv4_shard.engines.registry import ENGINES
from dsv4_shard.engines.remedies import MORE_DP
from dsv4_shard.engines.rules import Divides, Symptom
from dsv4_shard.models.roles import Module
from dsv4_shard.models.v4 import V4
from dsv4_shard.reporting.page import to_html


def candidates(inventory: Inventory, request: Request) -> Iterator[Deployment]:
    """One way: DP replicas have GPUs of their own, EP spans the GPUs of one."""
    yield resolve(
        request, inventory, engine="toy", version="7", ep=request.ep or request.tp, runner=request.runner or "abacus",
        shared="whole", shared_parts=1, world=request.tp * request.dp, attention_tp=request.tp, moe_tp=1,
    )  # fmt: skip


HEADS = Divides(
    "toy-heads", Module.ATTENTION, lambda c: c.config.num_attention_heads, "num_attention_heads",
    lambda c: c.deployment.attention_tp, "attention TP",
    uneven=Symptom("ToyError: {size} heads cannot be shared by {parts} children", remedies=(MORE_DP,)),
)  # fmt: skip

TOY = Engine(
    name="toy",
    title="Toy Engine",
    version="7",
    candidates=candidates,
    rules=(HEADS,),
    place=lambda role, context: Expert(Replicate()) if role.module is Module.ROUTED else Replicate(),
    short_title="toy",
    families=(V4,),
    runners=("abacus", "fingers"),
    versions=("7",),
    draft_in_model=True,
    dp_multiplies=True,
    parallelism=lambda world: pairs((dp for dp in (1, 2) if world % dp == 0), (1,)),
    bytes_sent=lambda context: 42,
    log_word="toy",
)


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sixth engine in the registry."""
    monkeypatch.setitem(ENGINES, TOY.name, TOY)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def heads(tiny_checkpoint: Path) -> Any:
    """How many heads the small checkpoint has; 3 does not divide them."""
    heads = dsv4_shard.inspect(tiny_checkpoint, tp=[1]).identity.attention_heads
    assert heads % 4 == 0
    assert heads % 3
    return heads


# --- the verbs -------------------------------------------------------------------------------------------------------


def test_a_sixth_engine_plans(tiny_checkpoint: Path) -> None:
    plan = dsv4_shard.plan(tiny_checkpoint, tp=2, dp=2, engine="toy", gpu="h200")
    assert plan.feasible
    assert (plan.deployment.world, plan.deployment.runner, plan.deployment.version) == (4, "abacus", "7")
    assert plan.totals is not None
    assert plan.memory is not None
    assert plan.memory.weights == plan.totals.target_bytes_per_rank_max + plan.totals.draft_bytes_per_rank
    assert plan.memory.kv_cache is None
    assert (plan.layout, plan.launch.commands) == (None, ())


def test_names_of_another_engine_are_refused_and_those_of_the_sixth_taken(tiny_checkpoint: Path) -> None:
    assert dsv4_shard.plan(tiny_checkpoint, tp=2, engine="toy", runner="fingers").deployment.runner == "fingers"
    with pytest.raises(dsv4_shard.errors.UsageError) as refused:
        dsv4_shard.plan(tiny_checkpoint, tp=2, engine="toy", runner="toes")
    assert refused.value.hint == "Known: abacus, fingers."


def test_layouts_near_one_that_breaks_have_its_dp_and_ep(tiny_checkpoint: Path, heads: Any) -> None:
    plan = dsv4_shard.plan(tiny_checkpoint, tp=3, engine="toy")
    assert [breach.rule for breach in plan.breaches] == ["toy-heads"]
    assert plan.breaches[0].engine_says == f"ToyError: {heads} heads cannot be shared by 3 children"
    assert plan.alternatives
    assert all("--engine toy" in near.options and "--ep" not in near.options for near in plan.alternatives)


def test_a_search_tries_its_search_space_and_nothing_else(tiny_checkpoint: Path) -> None:
    found = dsv4_shard.search(tiny_checkpoint, gpus=4, engine="toy")
    tried = {(layout.request.tp, layout.request.dp, layout.request.ep) for layout in found.layouts}
    assert tried == {(4, 1, None), (2, 2, None)}
    every = {options for layout in found.layouts for options in (layout.options, *layout.also)}
    assert "--tp 2 --dp 2 --engine toy --runner fingers" in every
    assert {layout.sent_bytes_per_token_and_layer for layout in found.layouts} == {42}
    assert "toy" in dsv4_shard.search(tiny_checkpoint, gpus=2).engines


def test_it_stands_in_the_matrix_and_the_report(tiny_checkpoint: Path, tmp_path: Path) -> None:
    matrix = {(cell.engine, cell.tp): cell.verdict for cell in dsv4_shard.inspect(tiny_checkpoint, tp=[2, 3]).matrix}
    assert (matrix["toy", 2], matrix["toy", 3]) == ("runs", "does not run")
    page = to_html(dsv4_shard.report(tiny_checkpoint, tp=2, engine="toy"))
    assert "Toy Engine 7, TP 2" in page
    assert "MTP draft, if loaded" not in page
    assert "<th>Toy Engine</th>" in page


def test_its_messages_and_logs_are_explained() -> None:
    text = "ToyError: 64 heads cannot be shared by 48 children"
    explained = dsv4_shard.explain(text)
    assert explained.recognised
    assert explained.engines == ("Toy Engine",)
    assert explained.meaning == (f"attention: num_attention_heads 64 / attention TP 48 = {64 / 48:.3g}: not whole",)
    assert explained.cases[0].engine == "toy"
    log = read_log([(1, "toy starts with --tp 4 --dp-size 2")])
    assert (log.clues.engine, log.clues.tp, log.clues.dps) == ("toy", 4, (2,))


@pytest.mark.parametrize("arguments", [("plan", "--tp", "2", "--engine", "toy"), ("plan", "--gpus", "4"), ("inspect",)])
def test_the_commands_show_it(tiny_checkpoint: Path, arguments: Any) -> None:
    command, *options = arguments
    shown = CliRunner().invoke(app, [command, str(tiny_checkpoint), *options])
    assert shown.exit_code == 0
    assert "toy" in shown.stdout.lower()


# --- no module outside engines/ knows an engine ----------------------------------------------------------------------

PACKAGE = ROOT / "dsv4_shard"

NAMES = set(ENGINES)

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "engines")

OF_ONE_ENGINE = {"sglang_plugin/loader.py", "sglang_plugin/running.py", "vllm_plugin/running.py"}
"""They run inside an engine, and are of this one alone."""

CATALOG = "catalog/options.py"
"""Lists names for completion, which must not import the engines. The engines take their names from it."""

OF_COMMAND_LINES = {
    "configurations/meanings.py",
    "configurations/option_table.py",
    "configurations/pair.py",
    "configurations/programs.py",
    "configurations/recipes.py",
    "configurations/translation.py",
    "launch_files/manifests.py",
}
"""They read and write the command lines of particular programs, whose names and options are their subject."""

ENGINE_MODULES = {"sglang", "vllm", "reference", "trtllm", "node"}


def strings(node: ast.AST) -> Iterator[str]:
    """Every string constant within a node."""
    return (one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str))


def decided_by(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Strings by which code decides: in comparisons, membership tests, cases, keys of tables and subscripts.

    Values are not among them: a default such as `engine="sglang"`, the dialect "sglang" (whose names a checkpoint has),
    help and documentation may name an engine. Sets and tuples count where they are assigned to a name, since a later
    membership test may use them.
    """
    found: list[ast.expr | ast.Compare | ast.MatchValue]
    for node in ast.walk(tree):
        match node:
            case ast.Compare():
                found = [node]
            case ast.MatchValue():
                found = [node]
            case ast.Dict():
                found = [key for key in node.keys if key is not None]
            case ast.Subscript():
                found = [node.slice]
            case ast.Assign(value=ast.Tuple() | ast.Set() | ast.List() as value):
                found = [value]
            case ast.Call(func=ast.Attribute(attr="get" | "index" | "startswith" | "endswith")):
                found = list(node.args)
            case _:
                found = []
        yield from ((one.lineno, text) for one in found for text in strings(one) if text in NAMES)


def engine_imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Imports of one engine's modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "dsv4_shard.engines":
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in ENGINE_MODULES)
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.startswith("dsv4_shard.engines.") and name.split(".")[2] in ENGINE_MODULES:
                yield node.lineno, name  # type: ignore[attr-defined]


Find = Callable[[ast.AST], Iterator[tuple[int, str]]]


def found_in(modules: list[Path], find: Find, left_out: set[str]) -> list[tuple[str, int, str]]:
    """What `find` finds in the modules, by module, line and text."""
    found: list[tuple[str, int, str]] = []
    for path in modules:
        name = str(path.relative_to(PACKAGE))
        if name not in left_out:
            found += [(name, *one) for one in find(ast.parse(path.read_text()))]
    return found


def test_no_module_decides_by_an_engines_name() -> None:
    assert NAMES >= ENGINE_MODULES
    assert len(MODULES) > 100
    assert found_in(MODULES, decided_by, {CATALOG, *OF_COMMAND_LINES}) == []


@pytest.mark.slow
def test_no_module_imports_one_engine() -> None:
    assert found_in(MODULES, engine_imports, OF_ONE_ENGINE) == []
    assert {name for name, *_ in found_in(MODULES, engine_imports, set())} == OF_ONE_ENGINE


@pytest.mark.parametrize("code", [
    'x == "vllm"', 'x in ("sglang", "vllm")', 'match x:\n    case "node": pass', '{"trtllm": f}[x]', 'T = ("vllm",)',
    'table["reference"]', 'table.get("sglang")', 'x if engine.name != "node" else y',
])  # fmt: skip
def test_a_decision_by_name_is_found(code: Any) -> None:
    assert list(decided_by(ast.parse(code)))


@pytest.mark.parametrize("code", ['def f(engine="sglang"): pass', 'Option(help="as sglang", default="vllm")'])
def test_a_default_is_no_decision(code: Any) -> None:
    assert not list(decided_by(ast.parse(code)))
