"""Weight–scale pairs and their blocks, from names and shapes alone, for any family.

Families name their scales differently: `weight_scale_inv` in DeepSeek-V3, Qwen3 and MiniMax-M2, `weight_scale` in
compressed-tensors and ModelOpt, `scale` in DeepSeek-V4, `_scales` beside `_blocks` in gpt-oss. But the shape of a
scale is `ceil(weight / block)` on both axes, which gives the block. No weight is read.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from dsv4_shard.tensors.geometry import PACKED_FP4, Block, agree_on_unit, scale_shape
from dsv4_shard.tensors.header import Tensor

_EXPERT = re.compile(r"(?<=experts\.)\d+(?![^.])", re.ASCII)

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])", re.ASCII)

_WEIGHT_ENDINGS = (
    ("_scale_inv", ("",)),
    ("_scale", ("", "_packed")),
    (".scale", (".weight",)),
    ("_scales", ("_blocks",)),
)
"""(ending of a scale's name, endings of its weight's name that may replace it)."""

_SURE_ENDINGS = ("_scale_inv", ".weight_scale")
"""Endings that only a weight's scale has. A name with another ending may belong to a cache, an activation or a norm."""

_QUANTIZED = PACKED_FP4 | {"F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}

_FP4_SCALES = frozenset({"F8_E8M0", "F8_E4M3", "U8"})
"""Dtypes of the scales of MXFP4 and NVFP4. Beside one of these, a byte is two FP4 values; else it is one INT8 value."""

MAX_AXES = 4
"""Largest number of axes of a weight: experts, rows, columns, and gpt-oss's groups."""

_WORD_BITS = 32


class ScaleKind(NamedTuple):
    """Tensors that differ only in layer and expert.

    Attributes:
        template: Name with {N} and {E} for the numbers.
        dtype: Dtype as stored.
        shape: Shape as stored.
        scale: Template of the scale beside a weight, if there is one.
        scale_dtype: Dtype of the scale.
        scale_shape: Shape of the scale; empty without a scale.
    """

    template: str
    dtype: str
    shape: tuple[int, ...]
    scale: str | None
    scale_dtype: str | None
    scale_shape: tuple[int, ...]


class Sharing(StrEnum):
    """The elements of a matrix that share a scale."""

    BLOCK = "block"
    ROW = "row"
    TENSOR = "tensor"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Scaled:
    """A kind of weight that has a scale.

    Attributes:
        kind: The kind.
        shape: Shape in elements. The last two axes are the matrix; axes before them are experts.
        packed: Elements per stored element.
        sharing: Which elements share a scale.
        scale_sizes: Size of the scale along rows and columns.
        block: The block; None unless `sharing` is BLOCK.
        usual: Whether most weights of these dtypes have the same block.
    """

    kind: ScaleKind
    shape: tuple[int, ...]
    packed: int
    sharing: Sharing
    scale_sizes: tuple[int, int] | None = None
    block: Block | None = None
    usual: bool = True


@dataclass(frozen=True, slots=True)
class Scales:
    """All kinds of tensors with their numbers, and the facts about their scales.

    Attributes:
        counts: Kind -> number of tensors.
        scaled: Weights that have scales.
        without_scale: Weights that look quantized and have no scale.
        without_weight: Scales that have no weight.
    """

    counts: dict[ScaleKind, int]
    scaled: tuple[Scaled, ...]
    without_scale: tuple[ScaleKind, ...]
    without_weight: tuple[ScaleKind, ...]


def template_of(name: str) -> str:
    """The name with {E} for an expert's number and {N} for every other number between dots."""
    return _NUMBER.sub("{N}", _EXPERT.sub("{E}", name))


def find_scales(tensors: Mapping[str, Tensor], declared: tuple[int, int] | None, bits: int | None) -> Scales:
    """Pair weights with scales and judge each kind once.

    `declared` is the block in config.json; `bits` is the size of a value in the 32-bit words of `weight_packed`.
    """
    pairs = _pair(tensors)
    scales = frozenset(pairs.values())
    kinds: Counter[ScaleKind] = Counter()
    lone: Counter[ScaleKind] = Counter()
    for name, tensor in tensors.items():
        scale = tensors[pairs[name]] if name in pairs else None
        kind = ScaleKind(
            template_of(name),
            tensor.dtype,
            tensor.shape,
            template_of(scale.name) if scale else None,
            scale.dtype if scale else None,
            scale.shape if scale else (),
        )
        kinds[kind] += 1
        if not scale and name not in scales:
            lone[kind] += 1
    orphans = tuple(kind for kind in lone if _is_orphan(kind))
    bare = tuple(kind for kind in lone if _is_bare(kind) and not _is_orphan(kind))
    return Scales(dict(kinds), _judge(kinds, declared, bits), bare, orphans)


def _pair(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Weight -> its scale, for each weight that has one."""
    pairs: dict[str, str] = {}
    for name in tensors:
        for ending, weight_endings in _WEIGHT_ENDINGS:
            if name.endswith(ending):
                stem = name.removesuffix(ending)
                weight = next((stem + end for end in weight_endings if stem + end in tensors), None)
                if weight is not None:
                    pairs.setdefault(weight, name)
                break
    return pairs


def _is_orphan(kind: ScaleKind) -> bool:
    """Whether a tensor without a weight beside it is named like a scale that needs one."""
    return kind.template.endswith(_SURE_ENDINGS) or (
        len(kind.shape) > 1 and kind.template.endswith(tuple(ending for ending, _ in _WEIGHT_ENDINGS))
    )


def _is_bare(kind: ScaleKind) -> bool:
    """Whether a tensor without a scale beside it is stored as only quantized weights are."""
    return len(kind.shape) > 1 and (kind.dtype in _QUANTIZED or kind.template.endswith((".qweight", "_packed")))


def _judge(kinds: Iterable[ScaleKind], declared: tuple[int, int] | None, bits: int | None) -> tuple[Scaled, ...]:
    """The sharing of each kind, preferring the block that most kinds of the same dtypes have."""
    measured = [_measure(kind, bits) for kind in kinds if kind.scale is not None]
    votes: dict[tuple[str, str | None], list[Scaled]] = {}
    for scaled in measured:
        if scaled.sharing is Sharing.BLOCK:
            votes.setdefault((scaled.kind.dtype, scaled.kind.scale_dtype), []).append(scaled)
    blocks = {dtypes: _agree(group, declared) for dtypes, group in votes.items()}
    fallback = Block(*declared) if declared else None
    return tuple(
        _with_block(scaled, blocks.get((scaled.kind.dtype, scaled.kind.scale_dtype), fallback), declared)
        for scaled in measured
    )


def _measure(kind: ScaleKind, bits: int | None) -> Scaled:
    """A kind with the sizes of its matrix and its scale. BLOCK stands for any sizes that are neither ROW nor TENSOR."""
    packed = _values_stored(kind, bits)
    if packed is None or not 2 <= len(kind.shape) <= MAX_AXES:
        return Scaled(kind, kind.shape, 1, Sharing.UNCLEAR)
    if kind.template.endswith("_blocks") and len(kind.shape) > 2:
        shape = (*kind.shape[:-2], kind.shape[-2] * kind.shape[-1] * packed)
    else:
        shape = (*kind.shape[:-1], kind.shape[-1] * packed)
    sizes = _scale_sizes(shape, kind.scale_shape)
    if sizes is None:
        return Scaled(kind, shape, packed, Sharing.UNCLEAR)
    sharing = {(1, 1): Sharing.TENSOR, (shape[-2], 1): Sharing.ROW}.get(sizes, Sharing.BLOCK)
    return Scaled(kind, shape, packed, sharing, sizes)


def _values_stored(kind: ScaleKind, bits: int | None) -> int | None:
    """Values per stored element; None if unknown."""
    if kind.dtype == "I32" and kind.template.endswith("_packed"):
        return _WORD_BITS // bits if bits else None
    if kind.dtype in PACKED_FP4 and (kind.scale_dtype in _FP4_SCALES or kind.template.endswith("_blocks")):
        return 2
    return 1


def _scale_sizes(shape: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, int] | None:
    """Size of the scale along rows and columns of the weight; None if its axes are not the weight's."""
    *experts, rows, _ = shape
    if len(scale) == len(shape) and list(scale[:-2]) == experts:
        return scale[-2], scale[-1]
    if list(scale) == [*experts, rows]:
        return rows, 1
    if list(scale) == experts or all(size == 1 for size in scale):
        return 1, 1
    return None


def _agree(group: Iterable[Scaled], declared: tuple[int, int] | None) -> Block:
    """The block that fits most kinds of `group`. Each kind counts once, because experts would outvote all others."""
    units = []
    for axis in (0, 1):
        pairs = Counter((s.shape[axis - 2], s.scale_sizes[axis]) for s in group if s.scale_sizes is not None)
        units.append(agree_on_unit(pairs, declared[axis] if declared else None))
    return Block(*units)


def _with_block(scaled: Scaled, usual: Block | None, declared: tuple[int, int] | None) -> Scaled:
    """`scaled` with the usual block if it fits, else with the block that its own sizes give, if there is one."""
    if scaled.scale_sizes is None:
        return scaled
    own = _agree([scaled], declared) if scaled.sharing is Sharing.BLOCK else None
    for block in (usual, own):
        if block is not None and scale_shape((scaled.shape[-2], scaled.shape[-1]), block) == scaled.scale_sizes:
            return Scaled(
                scaled.kind, scaled.shape, scaled.packed, Sharing.BLOCK, scaled.scale_sizes, block, block == usual
            )
    if own is None:
        return scaled
    return Scaled(scaled.kind, scaled.shape, scaled.packed, Sharing.UNCLEAR, scaled.scale_sizes)
