"""Inventories of the real checkpoints, and of small ones with one thing wrong."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints.full_size import (
    FLASH,
    PRO,
    PRO_FP8,
    REAL_MODELS,
    V3,
    V32,
    V41,
    in_memory,
    inventory_of,
    to_fp8_experts,
)
from support.checkpoints.skeletons import DATA
from support.command_line import run

from dsv4_shard.checkpoint.findings import Severity
from dsv4_shard.checkpoint.formats import Format
from dsv4_shard.checkpoint.inventory import Inventory, take_inventory
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, tensors_of
from dsv4_shard.errors import ExitCode
from dsv4_shard.models.roles import Part, Role, Stage
from dsv4_shard.tensors.geometry import Block

FP4 = Format("FP4", Block(1, 32), "F8_E8M0")
FP8 = Format("FP8", Block(128, 128), "F8_E8M0")

ALL = tensors_of(DEMO_CONFIG)
NAMES = sorted(ALL)


def take(tensors: dict[str, Any], document: dict[str, Any] = DEMO_CONFIG) -> Inventory:
    return take_inventory(in_memory(document, tensors))


def without(*names: str) -> dict[str, Any]:
    return {name: tensor for name, tensor in ALL.items() if name not in names}


def codes(inventory: Inventory) -> set[str]:
    return {finding.code for finding in inventory.errors}


def message(inventory: Inventory, code: str) -> str:
    (finding,) = [finding for finding in inventory.findings if finding.code == code]
    return finding.message


# --- the real ones -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", REAL_MODELS)
def test_a_real_checkpoint_has_no_errors(model: str) -> None:
    assert inventory_of(model)[1].errors == ()


@pytest.mark.parametrize(
    ("model", "tensors"),
    [
        (PRO, 145_116),
        (FLASH, 69_187),
        (PRO_FP8, 145_054),
        ("DeepSeek-V4-Flash-0731", 72_317),
        ("DeepSeek-V4-Pro-0813", 149_782),
        ("DeepSeek-V4-Flash-FP8", 69_143),
        (V41, 96_085),
    ],
)
def test_an_inventory_counts_every_tensor_and_byte_of_a_real_checkpoint(model: str, tensors: int) -> None:
    checkpoint, inventory = inventory_of(model)
    summary = json.loads((DATA / model / "inventory.json").read_text())["summary"]
    assert len(checkpoint.tensors) == len(inventory.names) == sum(inventory.groups.values()) == tensors
    assert tensors == summary["tensors"]
    nbytes = dict.fromkeys(summary["bytes_by_dtype"], 0)
    for group, count in inventory.groups.items():
        nbytes[group.dtype] += group.nbytes * count
    assert nbytes == summary["bytes_by_dtype"]
    assert sum(nbytes.values()) == summary["bytes"]


@pytest.mark.parametrize(
    ("model", "tensors", "nbytes"), [(V3, 91_991, 688_574_839_360), (V32, 92_425, 689_471_107_200)]
)
def test_the_tables_of_v3_add_up_to_the_published_sums(model: str, tensors: int, nbytes: int) -> None:
    """Of R1 and V3.2: their shapes are written down in no inventory here, their sums are."""
    checkpoint, inventory = inventory_of(model)
    assert len(checkpoint.tensors) == tensors
    assert sum(group.nbytes * count for group, count in inventory.groups.items()) == nbytes


@pytest.mark.parametrize(
    ("model", "routed", "shared", "o_a"),
    [(PRO, FP4, FP8, FP8), (FLASH, FP4, FP8, FP8), (PRO_FP8, FP8, FP8, Format("BF16"))],
)
def test_formats_of_the_real_checkpoints_are_told_from_their_headers(
    model: str, routed: Format, shared: Format, o_a: Format
) -> None:
    inventory = inventory_of(model)[1]
    for stage in (Stage.LAYER, Stage.MTP):
        assert inventory.format(Role.ROUTED_DOWN, stage) == routed
        assert inventory.format(Role.SHARED_UP, stage) == shared
        assert inventory.format(Role.O_A, stage) == o_a
    assert inventory.routed == routed
    assert inventory.shared == shared
    assert inventory.format(Role.INDEXER_Q_B, Stage.MTP) is None
    assert inventory.mtp_blocks == 1


def test_the_first_revision_of_flash_does_not_say_that_its_experts_are_fp4() -> None:
    (finding,) = inventory_of(FLASH)[1].findings
    assert (finding.severity, finding.code) == (Severity.NOTE, "expert-dtype")


# --- complete small ones -------------------------------------------------------------------------------------------


def test_a_complete_checkpoint_has_no_findings() -> None:
    assert take(ALL).findings == ()


def test_fp8_experts_are_as_good() -> None:
    inventory = take(to_fp8_experts(ALL), DEMO_CONFIG | {"expert_dtype": "fp8"})
    assert inventory.findings == ()
    assert inventory.routed == FP8


def test_a_weight_and_its_scale_may_stand_in_different_files() -> None:
    checkpoint = in_memory(DEMO_CONFIG, ALL)
    apart = {
        name: tensor._replace(file="scales.safetensors") if name.endswith(".scale") else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    inventory = take_inventory(replace(checkpoint, tensors=apart))
    assert inventory.findings == ()
    assert inventory.groups == take(ALL).groups


def test_packed_fp4_may_be_stored_as_unsigned_bytes() -> None:
    unsigned = {name: ("U8", shape) if dtype == "I8" else (dtype, shape) for name, (dtype, shape) in ALL.items()}
    assert take(unsigned).findings == ()
    assert take(unsigned).routed == FP4


def test_the_mtp_block_of_a_base_checkpoint_may_hold_its_own_embedding_and_head() -> None:
    vocab = ("BF16", (DEMO_CONFIG["vocab_size"], DEMO_CONFIG["hidden_size"]))
    assert take(ALL | {"mtp.0.emb.tok_emb.weight": vocab, "mtp.0.head.weight": vocab}).findings == ()


def test_a_checkpoint_without_its_mtp_block_is_usable_and_says_what_it_cannot_do() -> None:
    inventory = take(tensors_of(DEMO_CONFIG, mtp_blocks=0))
    assert inventory.errors == ()
    assert "speculative decoding" in message(inventory, "no-mtp")
    assert inventory.mtp_blocks == 0


def test_two_shared_experts_are_one_of_twice_the_size() -> None:
    document = DEMO_CONFIG | {"n_shared_experts": 2}
    assert take(tensors_of(document), document).findings == ()
    assert codes(take(ALL, document)) == {"odd-shapes", "odd-scales"}


def test_a_model_without_shared_experts_needs_none() -> None:
    document = DEMO_CONFIG | {"n_shared_experts": 0}
    inventory = take(tensors_of(document), document)
    assert inventory.findings == ()
    assert inventory.shared is None


# --- unknown and missing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "layers.1.ffn.shared_experts.w4.weight",
        "vision.proj.weight",
        "layers.01.attn_norm.weight",
        "\x1b[2Jembed.weight",
    ],
)
def test_an_unknown_tensor_is_an_error_that_names_it(name: str) -> None:
    inventory = take(ALL | {name: ("BF16", (256,))})
    assert codes(inventory) == {"unknown-tensors"}
    assert repr(name)[1:-1] in message(inventory, "unknown-tensors")


def test_many_unknown_tensors_are_counted_and_a_few_named() -> None:
    inventory = take(ALL | {f"vision.{n}.weight": ("BF16", (1,)) for n in range(2000)})
    assert message(inventory, "unknown-tensors").startswith("2,000 tensors")
    assert "and 1,997 more" in message(inventory, "unknown-tensors")


@pytest.mark.parametrize(
    "name",
    [
        "embed.weight",
        "head.weight",
        "hc_head_scale",
        "layers.0.ffn.gate.tid2eid",
        "layers.3.ffn.gate.bias",
        "layers.2.attn_norm.weight",
        "layers.2.attn.indexer.compressor.norm.weight",
        "layers.1.attn.attn_sink",
        "mtp.0.enorm.weight",
    ],
)
def test_a_missing_plain_tensor_is_an_error_that_names_it(name: str) -> None:
    inventory = take(without(name))
    assert codes(inventory) == {"missing-tensors"}
    assert message(inventory, "missing-tensors") == f"1 tensor is missing: {name}"


@pytest.mark.parametrize("stem", ["layers.2.ffn.shared_experts.w2", "layers.3.attn.wo_a", "mtp.0.h_proj"])
def test_a_missing_quantized_tensor_is_an_error_that_names_it(stem: str) -> None:
    inventory = take(without(f"{stem}.weight", f"{stem}.scale"))
    assert codes(inventory) == {"missing-tensors"}
    assert f"{stem}.weight" in message(inventory, "missing-tensors")


def test_a_gap_among_the_experts_is_an_error_that_names_it() -> None:
    stem = "layers.3.ffn.experts.7.w2"
    inventory = take(without(f"{stem}.weight", f"{stem}.scale"))
    assert codes(inventory) == {"missing-tensors"}
    assert message(inventory, "missing-tensors") == f"1 tensor is missing, 1 of them of routed experts: {stem}.weight"


def test_missing_experts_are_counted_over_layers_and_projections() -> None:
    lost = {name for name in NAMES if ".ffn.experts.15." in name}
    inventory = take(without(*lost))
    layers = DEMO_CONFIG["num_hidden_layers"] + 1
    assert f"{3 * layers} tensors are missing, {3 * layers} of them" in message(inventory, "missing-tensors")


def test_a_layer_without_any_expert_misses_all_of_them() -> None:
    inventory = take(without(*(name for name in NAMES if name.startswith("layers.1.ffn.experts."))))
    assert f"{3 * DEMO_CONFIG['n_routed_experts']} tensors are missing" in message(inventory, "missing-tensors")


def test_an_expert_beyond_the_configs_number_is_an_error_that_names_it() -> None:
    extra = {name.replace(".0.w", ".16.w"): ALL[name] for name in NAMES if name.startswith("layers.1.ffn.experts.0.w")}
    inventory = take(ALL | extra)
    assert codes(inventory) == {"extra-experts"}
    assert "layers.1.ffn.experts.16." in message(inventory, "extra-experts")


def test_an_expert_beyond_the_configs_number_does_not_hide_a_gap() -> None:
    renamed = {name.replace("layers.1.ffn.experts.7.", "layers.1.ffn.experts.16."): ALL[name] for name in NAMES}
    inventory = take(renamed)
    assert "layers.1.ffn.experts.16." in message(inventory, "extra-experts")
    assert "layers.1.ffn.experts.7." in message(inventory, "missing-tensors")


def test_a_layer_beyond_the_configs_number_is_an_error_that_names_it() -> None:
    inventory = take(ALL | {"layers.4.attn_norm.weight": ALL["layers.3.attn_norm.weight"]})
    assert codes(inventory) == {"extra-layers"}
    assert "layers.4.attn_norm.weight" in message(inventory, "extra-layers")


def test_a_tensor_that_its_kind_of_layer_cannot_have_is_an_error() -> None:
    """Layer 1 of the demo is compressed 128:1, so it has no indexer; layer 3 is not hash-routed."""
    stray = {
        "layers.1.attn.indexer.weights_proj.weight": ALL["layers.2.attn.indexer.weights_proj.weight"],
        "layers.3.ffn.gate.tid2eid": ALL["layers.0.ffn.gate.tid2eid"],
    }
    for name, tensor in stray.items():
        inventory = take(ALL | {name: tensor})
        assert inventory.errors, name
        assert any(name in finding.message for finding in inventory.errors)


def test_mtp_blocks_must_be_numbered_from_zero() -> None:
    inventory = take({name.replace("mtp.0.", "mtp.1."): tensor for name, tensor in ALL.items()})
    assert codes(inventory) == {"mtp-gap"}


# --- weights and scales --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", ["layers.1.attn.wq_b", "layers.1.ffn.shared_experts.w1", "layers.1.ffn.experts.3.w1"])
def test_a_weight_without_its_scale_is_an_error_that_names_it(stem: str) -> None:
    inventory = take(without(f"{stem}.scale"))
    assert "missing-scales" in codes(inventory)
    assert f"{stem}.weight" in message(inventory, "missing-scales")


@pytest.mark.parametrize("stem", ["layers.1.attn.wq_b", "layers.1.ffn.shared_experts.w1", "layers.1.ffn.experts.3.w1"])
def test_a_scale_without_its_weight_is_an_error_that_names_it(stem: str) -> None:
    inventory = take(without(f"{stem}.weight"))
    assert codes(inventory) >= {"orphan-scales", "missing-tensors"}
    assert f"{stem}.scale" in message(inventory, "orphan-scales")


def test_a_scale_beside_an_unquantized_weight_is_an_error_that_names_it() -> None:
    name = "layers.1.attn.wo_a.weight"
    inventory = take(ALL | {name: ("BF16", ALL[name][1])})
    assert "needless-scales" in codes(inventory)
    assert "layers.1.attn.wo_a.scale" in message(inventory, "needless-scales")


@pytest.mark.parametrize(
    "name", ["layers.1.ffn.shared_experts.w1.scale", "layers.1.ffn.experts.3.w2.scale", "mtp.0.e_proj.scale"]
)
@pytest.mark.parametrize("more", [(1, 0), (0, 1), (-1, 0), (0, -1)])
def test_a_scale_of_another_shape_is_an_error_that_names_it(name: str, more: tuple[int, int]) -> None:
    dtype, (rows, cols) = ALL[name]
    inventory = take(ALL | {name: (dtype, (rows + more[0], cols + more[1]))})
    assert codes(inventory) == {"odd-scales"}
    assert name in message(inventory, "odd-scales")


@pytest.mark.parametrize(
    "name", ["layers.1.ffn.experts.3.w3.weight", "layers.1.ffn.shared_experts.w3.weight", "layers.1.attn.wq_b.weight"]
)
def test_a_projection_of_another_shape_is_an_error_that_names_it(name: str) -> None:
    dtype, (rows, cols) = ALL[name]
    inventory = take(ALL | {name: (dtype, (rows, cols // 2))})
    assert "odd-shapes" in codes(inventory)
    assert name in message(inventory, "odd-shapes")


@pytest.mark.parametrize("shape", [(), (1024,), (256, 1024), (1024, 256, 1), (1024, 255)])
def test_a_weight_of_any_other_rank_or_order_is_an_error(shape: tuple[int, ...]) -> None:
    assert codes(take(ALL | {"embed.weight": ("BF16", shape)})) == {"odd-shapes"}


@pytest.mark.parametrize("shape", [(), (7,), (1, 1, 1), (0, 0)])
def test_a_quantized_weight_of_any_rank_is_looked_at_without_an_exception(shape: tuple[int, ...]) -> None:
    for name in ("layers.1.ffn.experts.3.w2.weight", "layers.1.attn.wo_b.weight", "layers.1.attn.wo_b.scale"):
        assert take(ALL | {name: (ALL[name][0], shape)}).errors


def test_one_expert_in_another_format_is_an_error_that_counts_both() -> None:
    name = "layers.1.ffn.experts.3.w1"
    other = {key: tensor for key, tensor in to_fp8_experts(ALL).items() if key.startswith(name)}
    inventory = take(ALL | other)
    assert "mixed-formats" in codes(inventory)
    assert "63 × I8" in message(inventory, "mixed-formats")
    assert "1 × F8_E4M3" in message(inventory, "mixed-formats")


@pytest.mark.parametrize(
    ("weight", "scale"), [("I8", "F32"), ("F8_E4M3", "BF16"), ("F8_E5M2", "F8_E8M0"), ("I32", "F8_E8M0")]
)
def test_a_format_that_no_v4_checkpoint_has_is_an_error(weight: str, scale: str) -> None:
    changed = {
        name: ({"weight": weight, "scale": scale}[name.rpartition(".")[2]], shape)
        for name, (_, shape) in ALL.items()
        if ".ffn.shared_experts." in name
    }
    inventory = take(ALL | changed)
    assert "unknown-format" in codes(inventory)


@pytest.mark.slow
@given(st.sampled_from(NAMES))
def test_whatever_one_tensor_is_missing_is_named(name: str) -> None:
    inventory = take(without(name))
    assert any(name.removesuffix("scale").removesuffix("weight") in finding.message for finding in inventory.errors)


@pytest.mark.slow
@given(st.sampled_from(NAMES), st.integers(0, 1), st.sampled_from([-1, 1, 1000]))
def test_whatever_one_tensor_has_another_shape_is_named(name: str, axis: int, more: int) -> None:
    dtype, shape = ALL[name]
    axis %= len(shape)
    changed = (*shape[:axis], shape[axis] + more, *shape[axis + 1 :])
    inventory = take(ALL | {name: (dtype, changed)})
    assert any(name in finding.message for finding in inventory.errors)


# --- headers and config.json ---------------------------------------------------------------------------------------


def test_headers_win_over_an_expert_dtype_that_contradicts_them() -> None:
    inventory = take(ALL, DEMO_CONFIG | {"expert_dtype": "fp8"})
    (finding,) = inventory.findings
    assert (finding.severity, finding.code) == (Severity.WARNING, "expert-dtype")
    assert "FP4 1×32" in finding.message
    assert inventory.routed == FP4


def test_headers_win_over_a_config_that_says_fp4() -> None:
    inventory = take(to_fp8_experts(ALL))
    (finding,) = inventory.findings
    assert (finding.severity, finding.code) == (Severity.WARNING, "expert-dtype")
    assert inventory.routed == FP8


def test_fp4_experts_without_an_expert_dtype_are_a_note() -> None:
    document = {key: value for key, value in DEMO_CONFIG.items() if key != "expert_dtype"}
    (finding,) = take(ALL, document).findings
    assert (finding.severity, finding.code) == (Severity.NOTE, "expert-dtype")


def test_a_block_size_that_contradicts_the_headers_is_an_error() -> None:
    document = DEMO_CONFIG | {"quantization_config": {"weight_block_size": [64, 64]}}
    (finding,) = take(ALL, document).findings
    assert (finding.severity, finding.code) == (Severity.ERROR, "block-size")
    assert "weight_block_size [64, 64], but the scales' shapes give 128×128 for " in finding.message


@pytest.mark.parametrize("command", [("plan",), ("reshard", "out")])
def test_blocks_on_which_config_and_headers_disagree_are_planned_for_by_no_command(
    command: tuple[str, ...], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [64, 64]
    (model / "config.json").write_text(json.dumps(config))
    result = run(command[0], model, *(tmp_path / name for name in command[1:]), "--tp", "2")
    assert (result.exit_code, "weight_block_size [64, 64]" in result.stderr) == (ExitCode.CHECKPOINT, True)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_in_other_blocks_is_read_as_it_is() -> None:
    """Blocks of 64 in the headers and in config.json: nothing in the tool assumes 128."""
    halved = {}
    for name, (dtype, shape) in ALL.items():
        plain = dtype != "F8_E8M0" or ".ffn.experts." in name
        halved[name] = (dtype, shape if plain else (shape[0] * 2, shape[1] * 2))
    document = DEMO_CONFIG | {"quantization_config": {"weight_block_size": [64, 64]}}
    inventory = take(halved, document)
    assert inventory.findings == ()
    assert inventory.shared == Format("FP8", Block(64, 64), "F8_E8M0")


def test_f32_scales_are_noted_where_config_says_ue8m0() -> None:
    based = {
        name: ("F32", shape) if name.endswith(".scale") else (dtype, shape)
        for name, (dtype, shape) in to_fp8_experts(ALL).items()
    }
    inventory = take(based, DEMO_CONFIG | {"expert_dtype": "fp8"})
    (finding,) = inventory.findings
    assert (finding.severity, finding.code) == (Severity.NOTE, "scale-format")
    assert inventory.routed == Format("FP8", Block(128, 128), "F32")


def test_a_config_without_quantization_is_only_a_lack_of_claims() -> None:
    document = {key: value for key, value in DEMO_CONFIG.items() if key != "quantization_config"}
    assert take(ALL, document).findings == ()


def test_groups_count_in_elements_and_weigh_in_stored_bytes() -> None:
    groups = take(ALL).groups
    (down,) = [g for g in groups if (g.stage, g.role, g.part) == (Stage.LAYER, Role.ROUTED_DOWN, Part.WEIGHT)]
    assert down.shape == (256, 3072)
    assert down.nbytes == 256 * 3072 // 2
    assert groups[down] == 4 * 16


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("norm.weight", "F32"), ("layers.0.attn.attn_sink", "BF16"), ("layers.0.ffn.gate.tid2eid", "I32"),
     ("head.weight", "F8_E4M3")],
)  # fmt: skip
def test_a_plain_tensor_of_another_dtype_than_v4s_is_an_error(name: str, dtype: str) -> None:
    tensors = tensors_of(DEMO_CONFIG)
    assert name in tensors
    inventory = take_inventory(in_memory(DEMO_CONFIG, tensors | {name: (dtype, tensors[name][1])}))
    assert [finding.code for finding in inventory.errors] == ["odd-dtypes"]
    assert f"{name} {dtype}, due {tensors[name][0]}" in inventory.errors[0].message
