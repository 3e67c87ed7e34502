"""Layouts that public recipes run, planned: verdict, files and evidence of each, in docs/deployments/recipes.md.

    python tools/recipe_table.py     # plans all of them, and writes the table into the document

tests/data/recipes.json has the layouts with the number of worker roles that have each; it does not say which size is on
which GPU, so those whose weights do not fit are left out. All are planned on the headers of V4-Pro. Files count only
where every GPU and size of a line has them. The evidence is a case of `conformance/` with the
same ways of cutting, whose files were compared with the engine's own load.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import search_path  # noqa: F401 - first, for what is imported from the repository
from support.checkpoints.full_size import PRO, inventory_of
from support.paths import ROOT

from conformance.cases import CASES, Case
from dsv4_shard.engines.deployment import Deployment, Request
from dsv4_shard.engines.expert_locations import IDENTITY
from dsv4_shard.engines.registry import find_engine
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.outcome import MEMORY_RULE
from dsv4_shard.planning.plan_builder import make_plan

DOCUMENT = ROOT / "docs" / "deployments" / "recipes.md"
RECIPES = ROOT / "tests" / "data" / "recipes.json"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


@dataclass(frozen=True)
class Line:
    """A line of the table: a layout of recipes, and the plan for each of its GPUs and sizes."""

    entry: dict[str, Any]
    plans: tuple[Plan, ...]

    @property
    def has_files(self) -> bool:
        """Whether every plan writes shards."""
        return all(plan.layout for plan in self.plans)

    @property
    def verdicts(self) -> str:
        """The verdict, or verdicts, of the plans."""
        return ", ".join(dict.fromkeys(map(str, (plan.verdict for plan in self.plans))))

    @property
    def files(self) -> str:
        """Whether there are files; else why not."""
        if self.has_files:
            return "yes"
        reasons = (plan.unwritten or next(iter(map(str, plan.breaches)), "") for plan in self.plans if not plan.layout)
        return f"no: {next(filter(None, reasons), 'none are written for this engine')}"

    @property
    def layout(self) -> str:
        """The layout in the words of `plan`."""
        entry = self.entry
        words = [f"TP {_several(entry['tp'])}"]
        words += [f"DP {'= TP' if entry['dp'] == 'all' else _several(entry['dp'])}"] if "dp" in entry else []
        words += ["EP"] if "ep" in entry else []
        words += [f"`{entry[name]}`" for name in ("a2a", "asked", "runner") if name in entry][:1]
        words += ["`--dp-lm-head`"] if entry.get("dp_lm_head") else []
        words += [f"{entry['redundant_experts']} redundant experts"] if "redundant_experts" in entry else []
        return ", ".join(words)

    @property
    def evidence(self) -> str:
        """The case of the comparison with the engine; empty without files."""
        found = {_case_like(plan) for plan in self.plans} if self.has_files else set()
        return ", ".join(f"`{name}`" for name in sorted(name or "none" for name in found))


def _several(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes))


def lines() -> Iterator[Line]:
    """Every layout of the recipes with its plans."""
    for entry in json.loads(RECIPES.read_text())["layouts"]:
        sizes = itertools.product(entry["gpus"], entry["tp"], _sizes_of(entry))
        plans = [_plan(entry, gpu, tp, dp or tp) for gpu, tp, dp in sizes]
        yield Line(entry, tuple(plan for plan in plans if [one.rule for one in plan.breaches] != [MEMORY_RULE]))


def _sizes_of(entry: dict[str, Any]) -> list[int]:
    """DP sizes; 0 stands for TP."""
    dp = entry.get("dp", [1])
    return [0] if dp == "all" else dp


def _plan(entry: dict[str, Any], gpu: str, tp: int, dp: int) -> Plan:
    names = ("a2a", "runner", "dp_lm_head", "redundant_experts")
    engine, options = entry["engine"], {name: entry[name] for name in names if name in entry}
    gpus = tp * dp if find_engine(engine).dp_multiplies else tp
    ep = None if "a2a" in entry or "ep" not in entry else gpus
    return make_plan(*inventory_of(PRO), Request(tp, dp=dp, ep=ep, engine=engine, gpu=gpu, **options), PRO)


def _case_like(plan: Plan) -> str | None:
    """The name of a case whose files are cut in the same ways as the plan's."""
    (inventory, request) = (inventory_of(PRO)[1], plan.request)
    wanted = _ways(choose(inventory, request).deployment)
    return next((f"{case.name}" for case in CASES if _ways_of(case) == wanted), None)


def _ways_of(case: Case) -> tuple[Any, ...] | None:
    """The ways in which a case cuts the model; None for cases of other experts."""
    if case.variant not in ("fp4", "fp4-thirds") or case.draft:
        return None
    request = Request(**case.request)
    return _ways(choose(inventory_of(PRO)[1], request).deployment)


def _ways(at: Deployment) -> tuple[Any, ...]:
    """What decides how files are cut: sizes only as far as they are 1 or more."""
    several = (
        at.redundant_experts > 0,
        at.expert_locations != IDENTITY,
        at.attention_tp > 1,
        at.moe_tp > 1,
        at.ep > 1,
        at.dp > 1,
        at.shared_parts > 1,
    )
    return (at.engine, at.runner, at.a2a, at.gpu.family, at.head_group, *several)


def render() -> str:
    """The table, and the sum of the roles."""
    rows = ["| engine | GPUs | layout | roles | verdict | shards | compared as |", "|---" * 7 + "|"]
    written = total = 0
    for line in lines():
        entry = line.entry
        engine, gpus = find_engine(entry["engine"]).title, ", ".join(entry["gpus"])
        cells = (engine, gpus, line.layout, str(entry["roles"]), line.verdicts, line.files, line.evidence)
        rows.append(f"| {' | '.join(cells)} |")
        total += entry["roles"]
        written += entry["roles"] if line.has_files else 0
    return "\n".join([*rows, "", f"Shards are written for {written} of {total} roles."]) + "\n"


def table_in_document() -> str:
    """The table as the document has it."""
    return DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]


def _write() -> None:
    head, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(head + BEGIN + render() + END + rest.partition(END)[2])


if __name__ == "__main__":
    _write()
