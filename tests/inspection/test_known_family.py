"""Inspections of the real checkpoints: dimensions, matrix, findings."""

import json
import re
from functools import cache
from typing import Any

import pytest
from support.checkpoints.full_size import FLASH, PRO, PRO_FP8, REAL_MODELS, in_memory, inventory_of
from support.checkpoints.skeletons import DATA
from support.command_line import root_of, run

from dsv4_shard.checkpoint.findings import Severity
from dsv4_shard.checkpoint.inventory import Inventory, take_inventory
from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, tensors_of
from dsv4_shard.engines.registry import serving
from dsv4_shard.errors import ExitCode, UsageError
from dsv4_shard.inspection.known_family import (
    DEFAULT_TPS,
    SCHEMA_VERSION,
    DimensionRow,
    Inspection,
    MatrixCell,
    inspect,
)
from dsv4_shard.version import __version__

DIVISIBILITY = json.loads((DATA / "divisibility.json").read_text())
"""Units per rank of every dimension, computed from the released configs and written down by hand."""


@cache
def inspection_of(model: str, tps: tuple[int, ...] = DEFAULT_TPS) -> Inspection:
    return inspect(*inventory_of(model), tps)


def cell_of(model: str, tp: int, engine: str) -> MatrixCell:
    tps = DEFAULT_TPS if tp in DEFAULT_TPS else (tp,)
    (cell,) = [c for c in inspection_of(model, tps).matrix if (c.tp, c.engine) == (tp, engine)]
    return cell


def demo(**changes: Any) -> tuple[Checkpoint, Inventory]:
    tensors = tensors_of(DEMO_CONFIG)
    for name, tensor in changes.get("tensors", {}).items():
        tensors.pop(name) if tensor is None else tensors.update({name: tensor})
    checkpoint = in_memory(DEMO_CONFIG, tensors)
    return checkpoint, take_inventory(checkpoint)


# --- the matrix ----------------------------------------------------------------------------------------------------

WORKS = ("runs", None, None)
MATRIX = {
    # by model and TP: verdict, options and first broken rule for each engine
    (PRO, 16): {
        "sglang": ("runs with changes", "shared experts whole, runner marlin", None),
        "vllm": WORKS,
        "reference": WORKS,
        "trtllm": WORKS,
    },
    (PRO, 32): {
        "sglang": ("does not run", "--tp 32 --dp 2", "o_groups"),
        "vllm": ("does not run", "--tp 16 --dp 2", "o_groups"),
        "reference": ("does not run", None, "o_groups"),
        "trtllm": ("does not run", "--tp 32 --dp 32", "o_groups"),
    },
    (PRO, 64): {
        "sglang": ("does not run", "--tp 64 --ep 2 --dp 4", "routed-blocks"),
        "vllm": ("does not run", "--tp 16 --ep 64 --dp 4", "o_groups"),
        "reference": ("does not run", None, "o_groups"),
        "trtllm": ("does not run", "--tp 64 --ep 2 --dp 64", "routed-blocks"),
    },
    (PRO, 3): {
        "sglang": ("does not run", "--tp 3 --dp 3", "q_b-blocks"),
        "vllm": ("does not run", "--tp 1 --dp 3", "heads"),
        "reference": ("does not run", None, "vocab"),
        "trtllm": ("does not run", "--tp 3 --dp 3", "vocab"),
    },
    (PRO, 6): {
        "sglang": ("does not run", "--tp 6 --dp 3", "q_b-blocks"),
        "vllm": ("does not run", "--tp 2 --dp 3", "heads"),
        "reference": ("does not run", None, "vocab"),
        "trtllm": ("does not run", "--tp 6 --dp 6", "vocab"),
    },
    (PRO, 12): {
        "sglang": ("does not run", "--tp 12 --dp 3", "q_b-blocks"),
        "vllm": ("does not run", "--tp 4 --dp 3", "heads"),
        "reference": ("does not run", None, "vocab"),
        "trtllm": ("does not run", "--tp 12 --dp 12", "vocab"),
    },
    (PRO, 24): {
        "sglang": ("does not run", "--tp 24 --dp 3", "q_b-blocks"),
        "vllm": ("does not run", "--tp 8 --dp 3", "heads"),
        "reference": ("does not run", None, "vocab"),
        "trtllm": ("does not run", "--tp 24 --dp 24", "vocab"),
    },
    (FLASH, 16): {
        "sglang": ("does not run", "--tp 16 --dp 2", "o_groups"),
        "vllm": ("does not run", "--tp 8 --dp 2", "o_groups"),
        "reference": ("does not run", None, "o_groups"),
        "trtllm": ("does not run", "--tp 16 --dp 16", "o_groups"),
    },
    (FLASH, 32): {
        "sglang": ("does not run", "--tp 32 --dp 4", "o_groups"),
        "vllm": ("does not run", "--tp 8 --dp 4", "o_groups"),
        "reference": ("does not run", None, "o_groups"),
        "trtllm": ("does not run", "--tp 32 --dp 32", "o_groups"),
    },
    (FLASH, 64): {
        "sglang": ("does not run", "--tp 64 --dp 8", "o_groups"),
        "vllm": ("does not run", "--tp 8 --dp 8", "o_groups"),
        "reference": ("does not run", None, "o_groups"),
        "trtllm": ("does not run", "--tp 64 --dp 64", "o_groups"),
    },
    (PRO_FP8, 8): {
        "sglang": ("runs with changes", "FP8 experts", None),
        "vllm": ("does not run", None, "o_a-format"),
        "reference": WORKS,
        "trtllm": WORKS,
    },
    (PRO_FP8, 16): {
        "sglang": ("does not run", "--tp 16 --ep 2", "routed-blocks"),
        "vllm": ("does not run", None, "o_a-format"),
        "reference": WORKS,
        "trtllm": ("does not run", "--tp 16 --ep 2", "routed-blocks"),
    },
}
MATRIX |= {(model, tp): dict.fromkeys(serving(), WORKS) for model in (PRO, FLASH) for tp in (1, 2, 4, 8)}
MATRIX |= {
    (FLASH, tp): {
        "sglang": ("does not run", None, "q_b-blocks"),
        "vllm": ("does not run", f"--tp {tp // 3} --ep {tp} --dp 3", "heads"),
        "reference": ("does not run", None, "experts"),
        "trtllm": ("does not run", None, "vocab"),
    }
    for tp in (3, 6, 12, 24)
}


@pytest.mark.parametrize(
    ("model", "tp", "engine", "due"),
    [(model, tp, engine, due) for (model, tp), row in MATRIX.items() for engine, due in row.items()],  # type: ignore[attr-defined]
)
def test_the_matrix_says_what_each_engine_can_do(
    model: str, tp: int, engine: str, due: tuple[str, str | None, str | None]
) -> None:
    cell = cell_of(model, tp, engine)
    assert (cell.verdict, cell.how, cell.rule) == due


@pytest.mark.parametrize(("model", "tp"), MATRIX)
def test_a_cell_says_why_where_the_engines_own_way_is_refused(model: str, tp: int) -> None:
    for engine in serving():
        cell = cell_of(model, tp, engine)
        assert (cell.rule is None) == (cell.module is None) == (cell.reason is None)
        if cell.verdict == "runs":
            assert cell.changes == ()
        if cell.verdict == "does not run":
            assert cell.reason is not None


@pytest.mark.slow
def test_a_cell_quotes_the_engine_where_it_says_something_itself() -> None:
    assert cell_of(PRO, 12, "sglang").engine_says == "AssertionError: 65536 is not divisible by 12"
    assert cell_of(FLASH, 24, "sglang").engine_says == "AssertionError: 32768 is not divisible by 24"
    assert cell_of(FLASH, 16, "sglang").engine_says is None


def test_the_cell_of_pro_on_sixteen_gpus_gives_the_arithmetic() -> None:
    shared, runner = map(str, cell_of(PRO, 16, "sglang").changes)
    assert "3072 / TP 16 = 192, which is 1.5 blocks of 128" in shared
    assert "3072 / MoE TP 16 = 192, which is 1.5 tiles of 128" in runner


@pytest.mark.slow
def test_the_matrix_tells_what_the_plan_takes_by_itself_from_what_has_to_be_asked_for() -> None:
    printed = run("inspect", root_of(PRO), "--tp", "8,16,32").stdout
    (marks,) = re.findall(r"^SGLang +(\S+) \S+ +(\S+) \S+ +(\S+) \S+$", printed, re.MULTILINE)
    assert marks == ("✓", "✓*", "✗*")
    for tp, mark in zip((8, 16, 32), marks, strict=True):
        assert run("plan", root_of(PRO), "--tp", tp).exit_code == (ExitCode.NO if mark == "✗*" else ExitCode.DONE)
    text = " ".join(printed.split())
    assert "✓* runs with changes" in text
    assert "✗* runs with the options below" in text
    assert "SGLang TP 32: --tp 32 --dp 2" in text


def test_the_matrix_has_a_cell_for_each_tp_and_engine_in_order() -> None:
    matrix = inspection_of(FLASH).matrix
    assert [(cell.tp, cell.engine) for cell in matrix] == [(tp, engine) for tp in DEFAULT_TPS for engine in serving()]


# --- dimensions ----------------------------------------------------------------------------------------------------

ROWS = [(model, row, cells) for model, table in DIVISIBILITY.items() for row, cells in table["units_per_rank"].items()]


def dimension_of(model: str, row: str) -> DimensionRow:
    """The dimension that a row of the table speaks of; what routed experts are in FP8 is seen in the re-release."""
    name, _, experts = row.partition(" in ")
    holder = PRO_FP8 if (model, experts) == (PRO, "FP8") else model
    name = "shared w1 rows" if (model, experts) == (FLASH, "FP8") else name
    tps = tuple(DIVISIBILITY[model]["tps"])
    (dimension,) = [d for d in inspection_of(holder, tps).dimensions if d.name == name]
    return dimension


@pytest.mark.parametrize(("model", "row", "cells"), ROWS)
def test_dimensions_divide_as_in_the_table(model: str, row: str, cells: list[str]) -> None:
    dimension = dimension_of(model, row)
    assert [share.tp for share in dimension.shares] == DIVISIBILITY[model]["tps"]
    for share, cell in zip(dimension.shares, cells, strict=True):
        units = cell.removeprefix("✗ ")
        digits = len(units.partition(".")[2])
        assert share.units_per_rank == pytest.approx(float(units), abs=0.51 * 10**-digits if digits else 0), share.tp
        assert share.whole == (not cell.startswith("✗")), share.tp
    assert dimension.units == int(cells[0])


@pytest.mark.parametrize("model", REAL_MODELS)
def test_units_are_as_many_as_scales_where_there_are_scales(model: str) -> None:
    for dimension in inspection_of(model).dimensions:
        assert dimension.units == -(-dimension.size // dimension.unit)
        assert dimension.scale_size in (None, dimension.units)


@pytest.mark.parametrize(("model", "unit"), [(PRO, 128), (FLASH, 128), (PRO_FP8, 1)])
def test_o_a_is_cut_in_blocks_only_where_it_is_stored_in_blocks(model: str, unit: int) -> None:
    (dimension,) = [d for d in inspection_of(model).dimensions if d.name == "o_a rows"]
    assert dimension.unit == unit
    assert (dimension.scale_size is None) == (unit == 1)


@pytest.mark.slow
def test_fp4_rows_may_be_cut_anywhere_and_columns_between_groups() -> None:
    units = {d.name: d.unit for d in inspection_of(PRO).dimensions}
    assert (units["routed w1 rows"], units["routed w3 rows"], units["routed w2 columns"]) == (1, 1, 32)
    units = {d.name: d.unit for d in inspection_of(PRO_FP8).dimensions}
    assert (units["routed w1 rows"], units["routed w3 rows"], units["routed w2 columns"]) == (128, 128, 128)


# --- identity, roles, findings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "tensors", "files", "nbytes", "layers", "experts"),
    [
        (PRO, 145_116, 64, 864_704_792_696, 61, 384),
        (FLASH, 69_187, 46, 159_609_485_896, 43, 256),
        (PRO_FP8, 145_054, 64, 1_606_194_096_248, 61, 384),
    ],
)
def test_an_inspection_tells_the_size_of_a_real_checkpoint(
    model: str, tensors: int, files: int, nbytes: int, layers: int, experts: int
) -> None:
    inspection = inspection_of(model)
    identity = inspection.identity
    assert (identity.tensors, identity.files, identity.bytes) == (tensors, files, nbytes)
    assert (identity.layers, identity.routed_experts, identity.mtp_blocks) == (layers, experts, 1)
    assert sum(row.tensors for row in inspection.roles) == tensors
    assert sum(row.bytes for row in inspection.roles) == nbytes


@pytest.mark.parametrize(("model", "dtype", "block"), [(PRO, "FP4 (I8)", "1×32"), (PRO_FP8, "F8_E4M3", "128×128")])
def test_an_inspection_tells_how_the_experts_are_stored(model: str, dtype: str, block: str) -> None:
    rows = [row for row in inspection_of(model).roles if (row.module, row.part) == ("routed experts", "weight")]
    assert [(row.dtype, row.block) for row in rows] == [(dtype, block)]
    assert rows[0].tensors == 62 * 384 * 3


@pytest.mark.parametrize("model", REAL_MODELS)
def test_an_inspection_comes_back_from_its_json(model: str) -> None:
    inspection = inspection_of(model)
    document = json.loads(inspection.model_dump_json())
    assert document["schema_version"] == SCHEMA_VERSION == 2
    assert document["tool_version"] == __version__
    assert Inspection.model_validate_json(inspection.model_dump_json()) == inspection
    assert not inspection.has_errors


@pytest.mark.parametrize(
    "tensors",
    [
        {"embed.weight": None},
        {"layers.1.attn.wq_b.scale": None},
        {"vision.weight": ("BF16", (1,))},
        {"layers.1.ffn.experts.0.w1.weight": ("I8", (1, 1))},
        dict.fromkeys(tensors_of(DEMO_CONFIG)),
        {name: None for name in tensors_of(DEMO_CONFIG) if ".experts." in name},
    ],
)
def test_a_checkpoint_with_errors_is_inspected_without_dimensions_and_matrix(tensors: dict[str, Any]) -> None:
    inspection = inspect(*demo(tensors=tensors))
    assert inspection.has_errors
    assert any(finding.severity is Severity.ERROR for finding in inspection.findings)
    assert inspection.matrix == ()
    assert inspection.dimensions == ()
    json.loads(inspection.model_dump_json())


@pytest.mark.slow
def test_a_warning_is_no_error() -> None:
    checkpoint = in_memory(DEMO_CONFIG | {"expert_dtype": "fp8"}, tensors_of(DEMO_CONFIG))
    inspection = inspect(checkpoint, take_inventory(checkpoint))
    assert [finding.severity for finding in inspection.findings] == [Severity.WARNING]
    assert not inspection.has_errors
    assert inspection.matrix


@pytest.mark.parametrize("tp", [0, -1, 5000])
def test_a_tp_that_means_nothing_is_refused(tp: int) -> None:
    with pytest.raises(UsageError, match=f"tp={tp}"):
        inspect(*demo(), (1, tp))


@pytest.mark.parametrize("tp", [5, 7, 48, 100, 1000, 4096])
def test_any_tp_has_its_cells(tp: int) -> None:
    assert [cell.engine for cell in inspect(*inventory_of(FLASH), (tp,)).matrix] == list(serving())


@pytest.mark.slow
def test_the_matrix_says_whether_memory_was_looked_at_and_what_a_rank_weighs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    model = root_of(PRO)
    blind = run("inspect", model).stdout
    assert "--gpu compares memory" in blind
    seen = run("inspect", model, "--gpu", "h20-96").stdout
    assert "What runs, and GiB of weights per GPU, by TP, on NVIDIA H20 96 GB" in seen
    assert "not compared" not in seen
    weights = re.findall(r"^SGLang .*GiB", seen) or re.findall(r"^SGLang +✗.*$", seen, re.MULTILINE)
    assert re.findall(r"[\d.]+", weights[0]) == ["796.1", "399.7", "201.5", "102.4", "56.4", "34.0", "22.0"]
