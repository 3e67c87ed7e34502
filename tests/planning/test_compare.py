"""`plan --compare`: what differs between two plan files, and that nothing that differs is left out."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from pydantic import ValidationError
from rich.console import Console
from support.checkpoints.full_size import FLASH, PRO, inventory_of
from typer.testing import CliRunner, Result

from dsv4_shard.cli import app
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import ExitCode
from dsv4_shard.planning.compare import Difference, PlanComparison, compare_plans
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.terminal.screens.compare import show_comparison

SECTIONS = ("checkpoint", "request", "deployment", "verdicts", "placements", "bytes_per_rank", "environment", "options",
            "commands", "rest")  # fmt: skip


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def run(*arguments: Path | str) -> Result:
    return CliRunner().invoke(app, ["plan", "--compare", *map(str, arguments)])


def plan_of(model: str = PRO, **wanted: Any) -> Plan:
    return make_plan(*inventory_of(model), Request(**wanted), model)


@pytest.fixture(scope="module")
def split() -> Plan:
    """Pro's routed experts cut over 16 ranks."""
    return plan_of(tp=16, gpu="h20-96")


@pytest.fixture(scope="module")
def spread() -> Plan:
    """The same GPUs, experts whole."""
    return plan_of(tp=16, ep=16, gpu="h20-96")


@pytest.fixture
def files(split: Plan, spread: Plan, tmp_path: Path) -> tuple[Path, Path]:
    for name, plan in (("a.json", split), ("b.json", spread)):
        (tmp_path / name).write_text(plan.to_json())
    return tmp_path / "a.json", tmp_path / "b.json"


def compared(a: Plan, b: Plan) -> PlanComparison:
    return compare_plans(a, b, ("a.json", "b.json"))


def found(differences: tuple[Difference, ...]) -> dict[str, Any]:
    return {row.name: (row.a, row.b) for row in differences}


@pytest.mark.slow
def test_a_plan_and_itself_are_the_same_and_exit_with_0(files: tuple[Path, Path]) -> None:
    result = run(files[0], files[0])
    assert (result.exit_code, "".join(result.stdout.split())) == (0, f"{files[0]}and{files[0]}:thesameplan")
    document = json.loads(run(files[0], files[0], "--json").stdout)
    assert document["same"] is True
    assert not any(document[section] for section in SECTIONS)


def test_plans_that_differ_exit_with_0_for_that_is_an_answer(files: tuple[Path, Path]) -> None:
    result = run(*files)
    assert result.exit_code == 0
    assert max(len(line.rstrip()) for line in result.stdout.splitlines() if "sglang serve" not in line) <= 80


def test_request_and_what_it_comes_to_are_told_apart(split: Plan, spread: Plan) -> None:
    comparison = compared(split, spread)
    assert found(comparison.request) == {"ep": (None, 16)}
    assert found(comparison.deployment) == {"moe_tp": (16, 1), "runner": ("marlin", "flashinfer_mxfp4")}


def test_a_placement_that_differs_is_named_with_both_ways(split: Plan, spread: Plan) -> None:
    rows = {(row.part_of, row.role): (row.a, row.b) for row in compared(split, spread).placements}
    layers, experts, ranks, draft = 61, 384, 16, 1
    one = f"rows over MoE TP: {layers * experts * 2:,} of {3072 // ranks}×7168 FP4"
    other = f"experts over EP: {layers * experts // ranks * 2:,} of 3072×7168 FP4"
    assert rows["target", "routed_expert.gate"] == (one, other)
    assert ("draft", "routed_expert.gate") in rows
    assert len(rows) == 3 * (1 + draft)  # gate, up and down of the target and of the draft


def test_bytes_come_with_their_difference_and_add_up(split: Plan) -> None:
    other = plan_of(tp=8, gpu="h20-141")
    rows = {row.name: row for row in compared(split, other).bytes_per_rank}
    assert all(row.difference == row.b - row.a != 0 for row in rows.values())
    assert rows["weights"].a == split.totals.target_bytes_per_rank_max
    assert rows["weights"].b == other.totals.target_bytes_per_rank_max
    modules = [row.difference for name, row in rows.items() if name in {str(m.module) for m in other.modules}]
    shared = rows["shared experts"]
    assert sum(modules) == rows["weights"].difference
    assert shared.a == split.totals.shared_experts_bytes_per_rank  # its module has the same name and bytes


def test_environment_options_and_commands_of_the_launch_are_compared(split: Plan) -> None:
    other = plan_of(tp=16, ep=16, dp=2, a2a="deepep", gpu="h20-96")
    comparison = compared(split, other)
    assert found(comparison.environment) == {"SGLANG_SHARED_EXPERT_TP1": ("1", None)}
    options = found(comparison.options)
    assert options["--moe-a2a-backend"] == (None, "deepep")
    assert options["--attn-dp-size"] == (None, "2")
    assert options["--moe-runner-backend"] == ("marlin", None)
    assert "--nnodes" not in options
    assert comparison.commands == (split.launch.commands, other.launch.commands)


def test_plans_of_different_engines_say_so(split: Plan) -> None:
    comparison = compared(split, plan_of(tp=16, engine="vllm", gpu="h20-96"))
    assert found(comparison.request)["engine"] == ("sglang", "vllm")
    assert found(comparison.options)["command"] == ("sglang serve", f"vllm serve {PRO}-vllm-tp16")


@pytest.mark.slow
def test_plans_for_different_checkpoints_say_that_first(split: Plan, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(split.to_json())
    (tmp_path / "b.json").write_text(plan_of(FLASH, tp=8).to_json())
    lines = run(tmp_path / "a.json", tmp_path / "b.json").stdout.split("\n\n")
    assert lines[1].startswith("Not the same checkpoint\n")
    assert f"called {PRO} in one, {FLASH} in the other" in lines[1]


def test_a_plan_that_does_not_run_is_told_by_the_rule_and_has_no_placements(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(plan_of(FLASH, tp=8).to_json())
    (tmp_path / "b.json").write_text(plan_of(FLASH, tp=16).to_json())
    result = run(tmp_path / "a.json", tmp_path / "b.json")
    assert result.exit_code == 0
    assert "A runs" in result.stdout
    assert "B does not run\n  attention: o_groups 8 / attention TP 16 = 0.5: not whole" in result.stdout
    assert "Placement and bytes are only in A" in result.stdout
    assert "Commands of A" in result.stdout
    assert "Commands of B" not in result.stdout
    assert "\nLaunch\n" not in result.stdout


@pytest.mark.slow
@given(st.data())
def test_whatever_differs_stands_in_some_section(split: Plan, data: DataObject) -> None:
    """Also what only an edited file has: one value anywhere in the document."""
    document = split.model_dump(mode="json")
    place, key = document, data.draw(st.sampled_from(sorted(set(document) - {"schema_version", "tool_version"})))
    while isinstance(place[key], dict | list) and place[key]:
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))  # type: ignore[assignment]
    value = place[key]
    if isinstance(value, bool):
        place[key] = not value
    elif isinstance(value, int):
        place[key] = value + 1
    elif isinstance(value, str) and key not in ("kind", "verdict", "part_of", "module", "serves"):
        place[key] = value + "x"
    else:
        return
    ways = zip(document["ways"], split.model_dump(mode="json")["ways"], strict=True)
    parts = ("commands", "launcher", "program", "node_options")
    if any(way["launch"][part] != own["launch"][part] for way, own in ways for part in parts):
        with pytest.raises(ValidationError, match="commands are not those of program"):
            Plan.model_validate_json(json.dumps(document))
        return
    edited = Plan.model_validate_json(json.dumps(document))
    comparison = compared(split, edited)
    assert comparison.same is False
    assert any(getattr(comparison, section) for section in SECTIONS)


@pytest.mark.parametrize("option", [("--tp", "16"), ("--ep", "1"), ("--gpu", "h200"), ("-o", "x.json"), ("--refresh",)])
def test_options_of_plan_are_refused_beside_compare(option: tuple[str, ...], files: tuple[Path, Path]) -> None:
    result = run(*files, *option)
    assert result.exit_code == ExitCode.USAGE
    assert "--compare and --" in result.stderr
    assert "plan files are taken as they are" in result.stderr


def test_a_checkpoint_is_refused_beside_compare(files: tuple[Path, Path]) -> None:
    result = run(*files, "DeepSeek-V4-Pro")
    assert result.exit_code == ExitCode.USAGE
    assert "--compare and REPO" in result.stderr


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("schema_version", 0, "plan schema 0: there is no such version"),
        ("layout", 5, "layout: must be text"),
    ],
)
def test_a_file_that_is_not_as_plans_are_is_refused_as_everywhere(
    key: str, value: Any, said: str, files: tuple[Path, Path]
) -> None:
    document = json.loads(files[1].read_text()) | {key: value}
    files[1].write_text(json.dumps(document))
    result = run(*files)
    assert result.exit_code == ExitCode.USAGE
    assert said in result.stderr


def test_a_file_that_is_no_plan_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("{}")
    assert "not a plan of dsv4-shard" in run(files[0], tmp_path / "no.json").stderr
    assert run(files[0], tmp_path / "nowhere.json").exit_code == ExitCode.USAGE


def test_what_a_hostile_plan_says_is_shown_escaped(split: Plan) -> None:
    text = split.to_json().replace(PRO, "\\u001b[31mred[/bold]")
    console = Console(width=80, record=True, file=io.StringIO())
    show_comparison(console, compare_plans(split, Plan.model_validate_json(text), ("a", "\x1b[2J")))
    shown = console.export_text()
    assert "\x1b" not in shown
    assert "\\x1b[31mred[/bold]" in re.sub(r"\s", "", shown)
