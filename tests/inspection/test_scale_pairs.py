"""Which scale belongs to which weight, and what shares a scale, in the conventions of all families."""

from typing import Any

import pytest

from dsv4_shard.inspection.scale_pairs import Scaled, Scales, Sharing, find_scales, template_of
from dsv4_shard.tensors.geometry import Block
from dsv4_shard.tensors.header import Tensor, nbytes_of

FP8 = "F8_E4M3"


def scales_of(tensors: dict[str, Any], declared: tuple[int, int] | None = None, bits: int | None = None) -> Scales:
    placed = {
        name: Tensor(name, dtype, shape, "model.safetensors", 0, nbytes_of(dtype, shape))
        for name, (dtype, shape) in tensors.items()
    }
    return find_scales(placed, declared, bits)


def only(tensors: dict[str, Any], declared: tuple[int, int] | None = None, bits: int | None = None) -> Scaled:
    (scaled,) = scales_of(tensors, declared, bits).scaled
    return scaled


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("model.layers.12.mlp.experts.127.up_proj.weight", "model.layers.{N}.mlp.experts.{E}.up_proj.weight"),
        ("layers.0.ffn.shared_experts.0.w1.weight", "layers.{N}.ffn.shared_experts.{E}.w1.weight"),
        ("visual.blocks.3.mlp.0.weight", "visual.blocks.{N}.mlp.{N}.weight"),
        ("model.layers.1.mlp.experts.gate_up_proj", "model.layers.{N}.mlp.experts.gate_up_proj"),
        ("7", "{N}"),
        ("a.w1.weight", "a.w1.weight"),
        ("experts.3a.weight", "experts.3a.weight"),
        ("layers.٣.weight", "layers.٣.weight"),
        ("", ""),
    ],
)
def test_whole_numbers_between_dots_are_replaced(name: str, template: str) -> None:
    assert template_of(name) == template


@pytest.mark.parametrize(
    ("weight", "scale"),
    [
        ("w1.weight", "w1.weight_scale_inv"),
        ("w1.weight", "w1.weight_scale"),
        ("w1.weight", "w1.scale"),
        ("experts.gate_up_proj", "experts.gate_up_proj_scale_inv"),
        ("experts.down_proj", "experts.down_proj_scale"),
        ("w1.weight_packed", "w1.weight_scale"),
        ("experts.down_proj_blocks", "experts.down_proj_scales"),
    ],
)
def test_a_weight_is_paired_with_its_scale_in_every_convention(weight: str, scale: str) -> None:
    scales = scales_of({weight: (FP8, (256, 128)), scale: ("F32", (2, 1)), "norm.weight": ("BF16", (128,))})
    (scaled,) = scales.scaled
    assert (scaled.kind.template, scaled.kind.scale) == (weight, scale)
    assert scales.without_scale == scales.without_weight == ()
    assert sum(scales.counts.values()) == 3


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8", "U8"])
def test_a_weight_of_a_quantized_dtype_without_a_scale_is_told(dtype: str) -> None:
    (kind,) = scales_of({"a.weight": (dtype, (4, 4)), "b.weight": ("BF16", (4, 4))}).without_scale
    assert kind.template == "a.weight"


def test_packed_words_of_gptq_have_no_scale_that_is_known() -> None:
    tensors = {"a.qweight": ("I32", (4, 4)), "a.scales": ("F16", (4, 4))}
    assert [kind.template for kind in scales_of(tensors).without_scale] == ["a.qweight"]


@pytest.mark.parametrize("name", ["a.weight_scale_inv", "a.weight_scale", "a.gate_up_proj_scale_inv"])
@pytest.mark.parametrize("shape", [(), (2,), (2, 2)])
def test_a_scale_without_a_weight_is_told(name: str, shape: tuple[int, ...]) -> None:
    (kind,) = scales_of({name: ("F32", shape)}).without_weight
    assert kind.template == name


@pytest.mark.parametrize("name", ["norm.scale", "attn.k_scale", "w1.input_scale", "w1.weight_scale_2", "w1.bias"])
def test_vectors_that_may_be_no_scale_of_a_weight_are_not_missed_one(name: str) -> None:
    scales = scales_of({name: ("F32", (2,))})
    assert scales.without_weight == scales.without_scale == ()


def test_a_scale_in_a_quantized_dtype_is_no_weight_without_scale() -> None:
    tensors = {"w.weight": ("U8", (4, 32)), "w.weight_scale": (FP8, (4, 4)), "w.weight_scale_2": ("F32", ())}
    assert scales_of(tensors).without_scale == ()


# --- shapes --------------------------------------------------------------------------------------------------------

SHARING = {
    # weight and scale as stored; then the shape in elements, what shares a scale, and the block
    "block": ((FP8, (1536, 4096)), ("F32", (12, 32)), (1536, 4096), Sharing.BLOCK, (128, 128)),
    "last block not full": ((FP8, (576, 7168)), ("F32", (5, 56)), (576, 7168), Sharing.BLOCK, (128, 128)),
    "one full block": ((FP8, (128, 128)), ("F32", (1, 1)), (128, 128), Sharing.BLOCK, (128, 128)),
    "less than a block": ((FP8, (64, 512)), ("F32", (1, 4)), (64, 512), Sharing.BLOCK, (128, 128)),
    "row": ((FP8, (1536, 4096)), ("BF16", (1536, 1)), (1536, 4096), Sharing.ROW, None),
    "row as a vector": ((FP8, (1536, 4096)), ("F32", (1536,)), (1536, 4096), Sharing.ROW, None),
    "INT8 row": (("I8", (1536, 4096)), ("BF16", (1536, 1)), (1536, 4096), Sharing.ROW, None),
    "tensor": ((FP8, (1536, 4096)), ("F32", ()), (1536, 4096), Sharing.TENSOR, None),
    "tensor as a vector": ((FP8, (1536, 4096)), ("F32", (1,)), (1536, 4096), Sharing.TENSOR, None),
    "stacked block": ((FP8, (3, 512, 256)), ("F32", (3, 4, 2)), (3, 512, 256), Sharing.BLOCK, (128, 128)),
    "stacked row": ((FP8, (3, 512, 256)), ("F32", (3, 512, 1)), (3, 512, 256), Sharing.ROW, None),
    "stacked tensor": ((FP8, (3, 512, 256)), ("F32", (3,)), (3, 512, 256), Sharing.TENSOR, None),
    "MXFP4": (("U8", (512, 128)), ("F8_E8M0", (512, 8)), (512, 256), Sharing.BLOCK, (1, 32)),
    "NVFP4": (("U8", (512, 128)), (FP8, (512, 16)), (512, 256), Sharing.BLOCK, (1, 16)),
    "MXFP8": ((FP8, (512, 256)), ("F8_E8M0", (512, 8)), (512, 256), Sharing.BLOCK, (1, 32)),
}


@pytest.mark.parametrize(("weight", "scale", "shape", "sharing", "block"), SHARING.values(), ids=SHARING)
def test_shapes_say_what_shares_a_scale(
    weight: tuple[str, tuple[int, ...]],
    scale: tuple[str, tuple[int, ...]],
    shape: tuple[int, ...],
    sharing: Sharing,
    block: tuple[int, int] | None,
) -> None:
    scaled = only({"w.weight": weight, "w.weight_scale": scale}, declared=(128, 128) if block == (128, 128) else None)
    assert (scaled.shape, scaled.sharing, scaled.block) == (shape, sharing, block)
    assert scaled.usual


def test_int4_in_words_is_measured_in_values() -> None:
    tensors = {"w.weight_packed": ("I32", (2048, 896)), "w.weight_scale": ("BF16", (2048, 224))}
    scaled = only(tensors, bits=4)
    assert (scaled.shape, scaled.packed, scaled.block) == ((2048, 7168), 8, Block(1, 32))
    assert only(tensors).sharing is Sharing.UNCLEAR, "nothing says how many values a word has"


def test_groups_of_gpt_oss_are_along_the_columns() -> None:
    scaled = only({"w_blocks": ("U8", (2, 512, 8, 16)), "w_scales": ("U8", (2, 512, 8))})
    assert (scaled.shape, scaled.block) == ((2, 512, 256), Block(1, 32))


@pytest.mark.parametrize(
    ("weight", "scale"),
    [
        ((1536, 4096), (12, 32, 1)),
        ((3, 512, 256), (2, 4, 2)),
        ((1536, 4096), (0, 0)),
        ((1536, 4096), (2000, 32)),
        ((4096,), (32,)),
        ((1, 1, 1, 512, 256), (1, 1, 1, 4, 2)),
        ((512, 256), (512, 8, 16, 4)),
    ],
)
def test_a_scale_whose_shape_gives_no_block_is_unclear(weight: tuple[int, ...], scale: tuple[int, ...]) -> None:
    assert only({"w.weight": (FP8, weight), "w.weight_scale": ("F32", scale)}).sharing is Sharing.UNCLEAR


def test_the_weights_of_a_checkpoint_decide_together() -> None:
    """5 scales of 576 rows fit every block from 116 to 143; the other weights leave one."""
    tensors = {
        "a.weight": (FP8, (576, 256)), "a.weight_scale": ("F32", (5, 2)),
        "b.weight": (FP8, (256, 512)), "b.weight_scale": ("F32", (2, 4)),
        "c.weight": (FP8, (512, 512)), "c.weight_scale": ("F32", (4, 4)),
    }  # fmt: skip
    assert {scaled.block for scaled in scales_of(tensors, declared=(64, 64)).scaled} == {Block(128, 128)}


def test_a_weight_in_other_blocks_than_most_keeps_its_own() -> None:
    tensors: dict[str, Any] = {}
    for name, scale in (("a", (4, 4)), ("b", (4, 4)), ("c", (8, 8))):
        tensors |= {f"{name}.weight": (FP8, (512, 512)), f"{name}.weight_scale": ("F32", scale)}
        tensors |= {f"{name}2.weight": (FP8, (1024, 512)), f"{name}2.weight_scale": ("F32", (scale[0] * 2, scale[1]))}
    unusual = [(s.kind.template, s.block) for s in scales_of(tensors, declared=(128, 128)).scaled if not s.usual]
    assert unusual == [("c.weight", Block(64, 64)), ("c2.weight", Block(64, 64))]


def test_two_formats_in_one_checkpoint_are_judged_apart() -> None:
    tensors = {
        "a.weight": (FP8, (512, 512)), "a.weight_scale": ("F32", (4, 4)),
        "b.weight": ("U8", (512, 256)), "b.weight_scale": ("F8_E8M0", (512, 16)),
    }  # fmt: skip
    found = {scaled.kind.template: (scaled.block, scaled.usual) for scaled in scales_of(tensors).scaled}
    assert found == {"a.weight": (Block(128, 128), True), "b.weight": (Block(1, 32), True)}


@pytest.mark.slow
def test_ten_thousand_shapes_are_judged_in_reasonable_work() -> None:
    """The candidates for a block are limited: all sizes against all would be ten thousand times ten thousand."""
    tensors: dict[str, Any] = {}
    for n in range(1, 10_001):
        tensors |= {f"w{n}x.weight": (FP8, (n, n)), f"w{n}x.weight_scale": ("F32", (1 + n // 7, 1 + n // 7))}
    assert len(scales_of(tensors).scaled) == 10_000
