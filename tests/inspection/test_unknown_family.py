"""Checkpoints of families that are not known: what inspect says of them, and that nothing else takes them."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.other_families import (
    BLOCK,
    FAMILIES,
    FP8,
    GLM,
    KIMI,
    KIMI_INT4,
    MINIMAX,
    QWEN3,
    QWEN3_CODER,
    blocks,
    plain,
    write_family,
)
from support.checkpoints.small import least_config, reshard_folder
from typer.testing import CliRunner, Result

from dsv4_shard.checkpoint.findings import Severity
from dsv4_shard.checkpoint.reader import UnknownCheckpoint, read_unknown
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.cli import app
from dsv4_shard.errors import ExitCode, IndexMismatch, MissingFile, UsageError
from dsv4_shard.inspection.axes import Axis, module_of
from dsv4_shard.inspection.known_family import DEFAULT_TPS
from dsv4_shard.inspection.scale_pairs import Sharing
from dsv4_shard.inspection.unknown_family import SCHEMA_VERSION, UnknownInspection, inspect_unknown
from dsv4_shard.opening import open_source
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.version import __version__


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoints of `FAMILIES`, by name. Only to be read."""
    root = tmp_path_factory.mktemp("families")
    return {name: write_family(root / name, *family) for name, family in FAMILIES.items()}


@pytest.fixture(scope="module")
def inspections(folders: dict[str, Path]) -> dict[str, UnknownInspection]:
    return {name: inspect_unknown(read_unknown(open_source(str(folder)))) for name, folder in folders.items()}


def run(*arguments: str | Path | int) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def inspect_tensors(
    tmp_path: Path, tensors: dict[str, Any], document: dict[str, Any] | None = None, tps: tuple[int, ...] = DEFAULT_TPS
) -> UnknownInspection:
    """The inspection of a checkpoint of a family that nobody knows."""
    folder = write_family(tmp_path / "model", {"model_type": "mystery"} | (document or {}), tensors)
    return inspect_unknown(read_unknown(open_source(str(folder))), tps)


def axis_of(inspection: UnknownInspection, weight: str, axis: str) -> Axis:
    """An axis of the only quantized weight whose name ends so."""
    (found,) = [a for row in inspection.quantized if row.template.endswith(weight) for a in row.axes if a.axis == axis]
    return found


# --- families ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "family"),
    [
        (QWEN3, "Qwen3 MoE"),
        (QWEN3_CODER, "Qwen3 MoE"),
        (KIMI, "Kimi-K2"),
        (KIMI_INT4, "Kimi-K2"),
        (GLM, "GLM-4 MoE"),
        (MINIMAX, "MiniMax-M2"),
    ],
)
def test_a_family_is_named_by_its_model_type_whatever_its_architecture(
    inspections: dict[str, UnknownInspection], model: str, family: str
) -> None:
    """Kimi-K2's architecture is DeepseekV3ForCausalLM, and it is not DeepSeek-V3."""
    identity, document = inspections[model].identity, FAMILIES[model][0]
    assert (identity.family, identity.model_type) == (family, document["model_type"])
    assert list(identity.architectures) == document["architectures"]


@pytest.mark.parametrize(
    ("model", "experts", "width", "heads", "kv_heads"),
    [
        (QWEN3, 128, 1536, 64, 4),
        (QWEN3_CODER, 160, 2560, 96, 8),
        (KIMI, 384, 2048, 64, 64),
        (GLM, 160, 1536, 96, 8),
        (MINIMAX, 256, 1536, 48, 8),
    ],
)
def test_sizes_are_read_under_the_names_of_each_family(
    inspections: dict[str, UnknownInspection], model: str, experts: int, width: int, heads: int, kv_heads: int
) -> None:
    identity = inspections[model].identity
    found = (identity.routed_experts, identity.intermediate_size, identity.attention_heads, identity.key_value_heads)
    assert found == (experts, width, heads, kv_heads)


@pytest.mark.parametrize("model", FAMILIES)
def test_every_tensor_and_byte_is_in_the_table_and_nothing_is_odd(
    inspections: dict[str, UnknownInspection], model: str
) -> None:
    inspection = inspections[model]
    assert sum(row.tensors for row in inspection.templates) == inspection.identity.tensors == len(FAMILIES[model][1])
    assert sum(row.bytes for row in inspection.templates) == inspection.identity.bytes
    assert [finding.severity for finding in inspection.findings] in ([], [Severity.NOTE])
    assert all("compressed-tensors" in finding.message for finding in inspection.findings)


@pytest.mark.parametrize("model", FAMILIES)
def test_every_quantized_weight_has_both_axes_at_every_tp(
    inspections: dict[str, UnknownInspection], model: str
) -> None:
    inspection = inspections[model]
    quantized = [name for name, (dtype, _) in FAMILIES[model][1].items()
                 if dtype == "F8_E4M3" or name.endswith("_packed")]  # fmt: skip
    assert sum(row.tensors for row in inspection.quantized) == len(quantized) > 0
    for row in inspection.quantized:
        assert [axis.axis for axis in row.axes] == ["rows", "columns"]
        assert all([share.tp for share in axis.shares] == list(DEFAULT_TPS) for axis in row.axes)


SHARES = [
    # model, weight, axis that is cut, and at some TPs the units a rank gets; those in `not whole` do not divide
    (QWEN3, "experts.{E}.gate_proj.weight", "rows", {1: 12, 4: 3, 8: 1.5, 16: 0.75}, {8, 16, 32, 64}),
    (QWEN3, "experts.{E}.down_proj.weight", "columns", {4: 3, 8: 1.5}, {8, 16, 32, 64}),
    (QWEN3, "self_attn.q_proj.weight", "rows", {8: 8, 64: 1}, set()),
    (QWEN3, "self_attn.k_proj.weight", "rows", {4: 1, 8: 0.5}, {8, 16, 32, 64}),
    (QWEN3_CODER, "experts.{E}.up_proj.weight", "rows", {4: 5, 8: 2.5}, {8, 16, 32, 64}),
    (QWEN3_CODER, "self_attn.o_proj.weight", "columns", {32: 3, 64: 1.5}, {64}),
    (KIMI, "experts.{E}.gate_proj.weight", "rows", {16: 1, 32: 0.5}, {32, 64}),
    (KIMI, "self_attn.q_b_proj.weight", "rows", {32: 3, 64: 1.5}, {64}),
    (KIMI, "self_attn.kv_b_proj.weight", "rows", {64: 2}, set()),
    (KIMI_INT4, "experts.{E}.gate_proj.weight_packed", "rows", {64: 32}, set()),
    (KIMI_INT4, "experts.{E}.down_proj.weight_packed", "columns", {1: 64, 64: 1}, set()),
    (GLM, "experts.{E}.gate_proj.weight", "rows", {8: 192, 64: 24}, set()),
    (GLM, "experts.{E}.down_proj.weight", "columns", {8: 192}, set()),
    (MINIMAX, "experts.{E}.w1.weight", "rows", {4: 3, 8: 1.5}, {8, 16, 32, 64}),
    (MINIMAX, "experts.{E}.w2.weight", "columns", {4: 3, 8: 1.5}, {8, 16, 32, 64}),
]


@pytest.mark.parametrize(("model", "weight", "name", "units", "not_whole"), SHARES)
def test_the_axis_that_is_cut_divides_as_worked_out_by_hand(
    inspections: dict[str, UnknownInspection],
    model: str,
    weight: str,
    name: str,
    units: dict[int, float],
    not_whole: set[int],
) -> None:
    rows = [row for row in inspections[model].quantized if row.template.endswith(weight)]
    axis = next(axis for axis in rows[0].axes if axis.axis == name)
    assert axis.cut
    assert {share.tp: share.units_per_rank for share in axis.shares if share.tp in units} == units
    assert {share.tp for share in axis.shares if not share.whole} == not_whole


def test_per_row_scales_are_shown_as_such_and_leave_columns_free(inspections: dict[str, UnknownInspection]) -> None:
    row = next(row for row in inspections[GLM].quantized if row.template.endswith("experts.{E}.down_proj.weight"))
    assert (row.scales, row.block, row.scale_shape) == (Sharing.ROW, None, (5120, 1))
    rows, columns = row.axes
    assert (rows.scale_size, columns.scale_size) == (5120, None)


def test_the_part_that_nothing_is_known_of_is_not_called_cut(inspections: dict[str, UnknownInspection]) -> None:
    for weight in ("q_a_proj.weight", "kv_a_proj_with_mqa.weight"):
        (row,) = [row for row in inspections[KIMI].quantized if row.template.endswith(weight)]
        assert not any(axis.cut for axis in row.axes)


def test_a_last_block_that_is_not_full_is_whole_where_nothing_is_cut(inspections: dict[str, UnknownInspection]) -> None:
    rows = axis_of(inspections[KIMI], "kv_a_proj_with_mqa.weight", "rows")
    assert {share.tp: (share.units_per_rank, share.whole) for share in rows.shares if share.tp < 4} == {
        1: (4.5, True),
        2: (2.25, False),
    }


# --- stacked experts -----------------------------------------------------------------------------------------------


def stacked(rows: int, cols: int, transposed: bool = False) -> dict[str, Any]:
    """Experts in one tensor, gate and up in one."""
    shapes = {"gate_up_proj": (2 * rows, cols), "down_proj": (cols, rows)}
    tensors = {}
    for name, shape in shapes.items():
        shape = (3, *reversed(shape)) if transposed else (3, *shape)  # type: ignore[assignment]
        tensors[f"model.layers.0.mlp.experts.{name}"] = ("F8_E4M3", shape)
        tensors[f"model.layers.0.mlp.experts.{name}_scale_inv"] = ("F32", (3, shape[1] // 128, shape[2] // 128))  # type: ignore[assignment, misc]
    return tensors


@pytest.mark.parametrize(("transposed", "up", "down"), [(False, "rows", "columns"), (True, "columns", "rows")])
def test_stacked_experts_divide_in_gate_and_in_up(tmp_path: Path, transposed: bool, up: str, down: str) -> None:
    """3072 rows of gate and up are 24 blocks, 3 for each of 8 ranks, but 1.5 of each of the two."""
    inspection = inspect_tensors(tmp_path, stacked(1536, 4096, transposed), {"hidden_size": 4096}, (4, 8))
    gate_up, down_axis = axis_of(inspection, "gate_up_proj", up), axis_of(inspection, "down_proj", down)
    assert (gate_up.parts, gate_up.size, gate_up.cut, down_axis.cut) == (2, 1536, True, True)
    for axis in (gate_up, down_axis):
        assert [(share.units_per_rank, share.whole) for share in axis.shares] == [(3, True), (1.5, False)]
    assert not axis_of(inspection, "gate_up_proj", "columns" if up == "rows" else "rows").cut


def test_gate_and_up_that_meet_within_a_block_divide_nowhere(tmp_path: Path) -> None:
    """640 rows are 5 blocks, but each of the two has 2.5."""
    inspection = inspect_tensors(tmp_path, stacked(320, 256), {"hidden_size": 256}, (1, 5))
    assert [share.whole for share in axis_of(inspection, "gate_up_proj", "rows").shares] == [True, False]


@pytest.mark.parametrize(
    ("template", "module"),
    [
        ("model.layers.{N}.mlp.experts.{E}.gate_proj.weight", "gate_proj"),
        ("model.layers.{N}.mlp.experts.down_proj", "down_proj"),
        ("experts.{E}.w2.weight_packed", "w2"),
        ("experts.gate_up_proj_blocks", "gate_up_proj"),
        ("weight", "weight"),
    ],
)
def test_a_module_is_the_last_part_that_says_what_it_is(template: str, module: str) -> None:
    assert module_of(template) == module


# --- findings ------------------------------------------------------------------------------------------------------


def codes(inspection: UnknownInspection) -> dict[str, str]:
    assert all(finding.severity is Severity.WARNING for finding in inspection.findings)
    return {finding.code: finding.message for finding in inspection.findings}


def test_a_lost_scale_and_a_lost_weight_are_found(tmp_path: Path) -> None:
    tensors = dict(FAMILIES[QWEN3][1])
    del tensors["model.layers.1.mlp.experts.2.up_proj.weight_scale_inv"]
    del tensors["model.layers.0.self_attn.o_proj.weight"]
    found = codes(inspect_tensors(tmp_path, tensors))
    assert found.keys() == {"no-scale", "no-weight"}
    assert found["no-scale"].startswith("1 tensors ")
    assert "experts.{E}.up_proj.weight" in found["no-scale"]
    assert "self_attn.o_proj.weight_scale_inv" in found["no-weight"]


def test_another_block_than_the_config_declares_is_found_and_the_headers_hold(tmp_path: Path) -> None:
    document = {"quantization_config": FP8 | {"weight_block_size": [64, 64]}}
    inspection = inspect_tensors(tmp_path, FAMILIES[QWEN3][1], document)
    message = codes(inspection)["block-size"]
    assert message.startswith("26 weights have scales that give blocks of 128×128, where config.json says ")
    assert "weight_block_size [64, 64]: going by the headers: " in message
    assert {row.block for row in inspection.quantized} == {BLOCK}


def test_a_weight_in_other_blocks_is_found(tmp_path: Path) -> None:
    tensors = FAMILIES[QWEN3][1] | {"model.layers.1.self_attn.o_proj.weight_scale_inv": ("BF16", (64, 128))}
    found = codes(inspect_tensors(tmp_path, tensors, {"quantization_config": FP8}))
    assert found.keys() == {"mixed-blocks", "block-size"}
    assert found["mixed-blocks"].startswith("1 weights ")
    assert "give blocks of 64×64, " in found["block-size"]


def test_scales_that_fit_nothing_are_found_and_divide_nowhere(tmp_path: Path) -> None:
    tensors = blocks("a.gate_proj", 512, 256) | {
        "b.weight": ("F8_E4M3", (512, 256)),
        "b.weight_scale_inv": ("F32", (9,)),
    }
    inspection = inspect_tensors(tmp_path, tensors)
    assert codes(inspection).keys() == {"unclear-scales"}
    assert [row.axes for row in inspection.quantized if row.template == "b.weight"] == [()]
    assert ("b.weight", "unclear") in [(row.template, row.scales) for row in inspection.templates]


def test_what_is_not_quantized_is_in_the_table_only(tmp_path: Path) -> None:
    inspection = inspect_tensors(tmp_path, plain("model.layers.0.mlp.gate_proj", 512, 256))
    assert [(row.dtype, row.scales) for row in inspection.templates] == [("BF16", None)]
    assert inspection.quantized == inspection.findings == ()  # type: ignore[comparison-overlap]


def test_templates_beyond_the_limit_are_counted_and_not_listed(tmp_path: Path) -> None:
    tensors = {f"w{n}x.weight": ("BF16", (1,)) for n in range(700)} | FAMILIES[QWEN3][1]
    inspection = inspect_tensors(tmp_path, tensors)
    assert len(inspection.templates) == 300
    assert "720 names that differ: only the 300 that most tensors have are listed" in codes(inspection)["left-out"]
    assert any(row.template.endswith("gate_proj.weight") for row in inspection.templates)


# --- the checks that every checkpoint has ----------------------------------------------------------------------------


def indexed(tmp_path: Path, weight_map: dict[str, str]) -> LocalSource:
    folder = write_family(tmp_path / "model", *FAMILIES[QWEN3])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    source = open_source(str(folder))
    assert isinstance(source, LocalSource)
    return source


def test_a_file_that_is_missing_is_refused_as_in_known_families(tmp_path: Path) -> None:
    names = FAMILIES[QWEN3][1]
    with pytest.raises(MissingFile):
        read_unknown(indexed(tmp_path, dict.fromkeys(names, "model.safetensors") | {"x": "lost.safetensors"}))


def test_an_index_that_does_not_fit_is_refused_as_in_known_families(tmp_path: Path) -> None:
    with pytest.raises(IndexMismatch):
        read_unknown(indexed(tmp_path, dict.fromkeys(list(FAMILIES[QWEN3][1])[1:], "model.safetensors")))


def test_what_reading_found_is_among_the_findings(tmp_path: Path) -> None:
    source = indexed(tmp_path, dict.fromkeys(FAMILIES[QWEN3][1], "model.safetensors"))
    (source.root / "other.safetensors").write_bytes(b"")
    assert [finding.code for finding in inspect_unknown(read_unknown(source)).findings] == ["unindexed-files"]


# --- config.json, whatever it is -----------------------------------------------------------------------------------

ODD: dict[str, Any] = [  # type: ignore[assignment]
    None,
    [],
    {},
    [[]],
    "x",
    -1,
    0,
    1.5,
    2**31,
    10**400,
    True,
    [128],
    [128, "x"],
    [0, 128],
    {"a": 1},
    [1, 2, 3],
]


@pytest.mark.parametrize("value", ODD, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize(
    "path",
    [
        ("hidden_size",), ("num_experts",), ("moe_intermediate_size",), ("architectures",), ("text_config",),
        ("text_config", "hidden_size"), ("quantization_config",), ("quantization_config", "weight_block_size"),
        ("quantization_config", "config_groups"), ("quantization_config", "config_groups", "group_0"),
        ("quantization_config", "config_groups", "group_0", "weights"),
        ("quantization_config", "config_groups", "group_0", "weights", "num_bits"),
        ("quantization_config", "config_groups", "group_0", "weights", "block_structure"),
    ],
    ids=".".join,
)  # fmt: skip
def test_fields_of_odd_types_are_as_good_as_absent(folders: dict[str, Path], path: tuple[str, ...], value: Any) -> None:
    document = value
    for name in reversed(path):
        document = {name: document}
    found = read_unknown(open_source(str(folders[QWEN3])))
    inspection = inspect_unknown(UnknownCheckpoint(found.source, document, found.files, found.tensors, ()), (8,))
    identity = inspection.identity
    sizes = (identity.hidden_size, identity.routed_experts, identity.intermediate_size, identity.declared_block)
    assert sizes == (None,) * 4
    assert len(inspection.quantized) == 7


def test_sizes_of_a_model_of_text_and_images_are_those_of_the_text(tmp_path: Path) -> None:
    nested = {"text_config": FAMILIES[QWEN3][0], "vision_config": {"hidden_size": 1}}
    identity = inspect_tensors(tmp_path, FAMILIES[QWEN3][1], nested).identity
    assert (identity.hidden_size, identity.routed_experts, identity.declared_block) == (4096, 128, (128, 128))


@pytest.mark.parametrize(
    ("document", "family"),
    [
        ({"model_type": "brand_new"}, "brand_new"),
        ({"architectures": ["BrandNewForCausalLM"]}, "BrandNewForCausalLM"),
        ({"model_type": 7, "architectures": [7, "A"]}, "A"),
        ({}, "a model without model_type"),
    ],
)
def test_a_family_without_a_name_is_called_by_what_there_is(
    tmp_path: Path, document: dict[str, Any], family: str
) -> None:
    folder = write_family(tmp_path / "model", document, plain("a", 1, 1))
    assert inspect_unknown(read_unknown(open_source(str(folder)))).identity.family == family


# --- the commands --------------------------------------------------------------------------------------------------


def test_inspect_shows_where_qwen3_breaks_at_tp8(folders: dict[str, Path]) -> None:
    result = run("inspect", folders[QWEN3])
    assert result.exit_code == ExitCode.DONE
    assert "Qwen3 MoE (qwen3_moe), a family that is not known: 61 tensors in 1 file," in result.stdout
    lines = result.stdout.splitlines()
    line = lines[lines.index("mlp.experts.{E}.up_proj") + 1]
    assert line.split() == ["1536", "rows", "/128", "12", "6", "3", "1.5!", "0.75!", "0.375!", "0.1875!"]
    assert "none; every quantized weight has its scale" in result.stdout
    assert "plan, reshard and verify --against refuse it" in " ".join(result.stdout.split())


@pytest.mark.parametrize("model", FAMILIES)
def test_inspect_json_is_one_document_with_its_own_schema(folders: dict[str, Path], model: str) -> None:
    result = run("inspect", folders[model], "--tp", "3,8", "--json")
    document = json.loads(result.stdout)
    assert document.keys() == {
        "kind", "schema_version", "tool_version", "family_known", "identity", "templates", "quantized", "findings",
        "not_known",
    }  # fmt: skip
    assert (document["schema_version"], document["tool_version"]) == (SCHEMA_VERSION, __version__) == (1, __version__)
    assert document["family_known"] is False
    assert {share["tp"] for row in document["quantized"] for axis in row["axes"] for share in axis["shares"]} == {3, 8}
    assert UnknownInspection.model_validate_json(result.stdout).model_dump(mode="json") == document


@pytest.fixture(scope="module")
def result_of_another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that reshard made, of a checkpoint that is known."""
    root = tmp_path_factory.mktemp("known")
    reshard_folder(write_checkpoint(root / "model", least_config(), 1, 0), root / "out", 2)
    return root / "out"


@pytest.mark.parametrize("command", ["plan", "reshard", "verify"])
def test_every_other_command_refuses_and_says_that_inspect_works(
    folders: dict[str, Path], command: str, result_of_another: Path, tmp_path: Path
) -> None:
    arguments = {
        "plan": (folders[KIMI], "--tp", 8),
        "reshard": (folders[KIMI], tmp_path / "out", "--tp", 8),
        "verify": (result_of_another, "--against", folders[KIMI]),
    }
    result = run(command, *arguments[command])
    assert result.exit_code == ExitCode.CHECKPOINT
    assert result.stdout == ""
    assert "a checkpoint of Kimi-K2 (model_type 'kimi_k2'" in result.stderr
    assert "a family that is not known" in result.stderr
    assert "`dsv4-shard inspect` shows what it holds" in result.stderr
    assert not (tmp_path / "out").exists()


def test_plan_of_the_checkpoint_last_inspected_is_refused_by_its_family(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("inspect", folders[MINIMAX])
    result = run("plan", "--tp", "8")
    assert result.exit_code == ExitCode.CHECKPOINT
    assert "a checkpoint of MiniMax-M2 " in result.stderr


@pytest.mark.parametrize("tp", [0, 5000])
def test_a_tp_that_means_nothing_is_refused(tmp_path: Path, tp: int) -> None:
    with pytest.raises(UsageError, match=f"tp={tp}"):
        inspect_tensors(tmp_path, plain("a", 1, 1), tps=(1, tp))
