"""Shapes that do not match are told apart as the engines' own classes declare them, in two dtypes and at two TP."""

from itertools import product

import pytest

from conformance.compact import read_contracts
from dsv4_shard.diagnosis.known_model import KnownModel
from dsv4_shard.diagnosis.releases import NAMED_RELEASES, inventory_of
from dsv4_shard.diagnosis.tensor_shapes import held_by, pairs

SGLANG = read_contracts("sglang")

EXPERTS = ["w13_weight", "w13_weight_scale_inv", "w2_weight", "w2_weight_scale_inv"]

CUT = {
    "self_attn.wq_b.weight": "q_b",
    "self_attn.wq_b.weight_scale_inv": "q_b",
    "self_attn.wo_b.weight": "o_b",
    "self_attn.wo_b.weight_scale_inv": "o_b",
    "mlp.shared_experts.down_proj.weight": "shared_expert.down",
    "mlp.experts.w2_weight": "routed_expert.down",
    "mlp.experts.w13_weight_scale_inv": "routed_expert.gate",
}


def model(title: str) -> KnownModel:
    release = next(one for one in NAMED_RELEASES if one.title == title)
    return KnownModel(release.repo, inventory_of(release), True, release)


def declared(layout: str, name: str) -> tuple[int, ...]:
    return tuple(SGLANG[layout][f"model.layers.3.{name}"][1])


def fp4(tp: int) -> str:
    return f"flash-fp4-marlin-tp{tp}-sharedtp1-0-rank0"


def fp8(tp: int) -> str:
    return f"flash-fp8-auto-tp{tp}-sharedtp1-0-rank0"


@pytest.mark.parametrize("tp", [1, 4, 8])
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_in_two_dtypes_are_told_as_such(name: str, tp: int) -> None:
    """As SGLang declares them for FP4 and for FP8, the whole shapes and each axis on which they differ."""
    mine, theirs = declared(fp4(tp), f"mlp.experts.{name}"), declared(fp8(tp), f"mlp.experts.{name}")
    base = model("DeepSeek-V4-Flash-Base")
    wanted: list[tuple[tuple[int, ...], tuple[int, ...], int | None]] = [(mine[-2:], theirs[-2:], None)]
    wanted += [((a,), (b,), axis) for axis, (a, b) in enumerate(zip(mine[-2:], theirs[-2:], strict=True)) if a != b]
    for one, other, axis in wanted:
        best = pairs([base], "sglang", one, other, axis, tp)[0]
        assert (best.engine.dtype, best.files.dtype, best.by_dtype) == ("FP4", "FP8", True)
        assert str(best.engine.role).startswith("routed_expert")


@pytest.mark.parametrize(("mine", "theirs"), [(4, 8), (8, 4), (8, 1), (16, 8)])
@pytest.mark.parametrize("name", CUT)
def test_files_of_another_tp_are_told_as_such(name: str, mine: int, theirs: int) -> None:
    if mine == 16 and "shared" in name:
        pytest.skip("SGLang keeps it whole there")
    shapes = declared(fp4(mine), name), declared(fp4(theirs), name)
    found = pairs([model("DeepSeek-V4-Flash")], "sglang", *shapes, tp=mine)
    by_ranks = [pair for pair in found if not pair.by_dtype]
    assert CUT[name] in {str(pair.engine.role) for pair in by_ranks}
    assert (by_ranks[0].engine.parts, by_ranks[0].files.parts) == (mine, theirs)


@pytest.mark.parametrize("tp", [1, 4, 8])
def test_every_quantized_parameter_of_sglang_is_among_the_known_shapes(tp: int) -> None:
    """But those of fused q_a and kv, which no rank cuts."""
    release = model("DeepSeek-V4-Flash")
    known = {one.shape for one in held_by(release, "sglang")}
    for layout, (name, (dtype, shape)) in product([fp4(tp), fp8(tp)], SGLANG[fp4(tp)].items()):
        if dtype in ("F8_E4M3", "I8") and "wqkv_a" not in name:
            assert tuple(declared(layout, name.split(".", 3)[3])[-2:]) in known if ".3." in name else True, (
                name,
                shape,
            )


def test_shapes_that_are_no_tensors_of_the_model_give_no_pair() -> None:
    assert pairs([model("DeepSeek-V4-Pro")], "vllm", (1000,), (77,)) == []
