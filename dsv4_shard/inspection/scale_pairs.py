"""Weights and scales of any family: by their names which belong together, by their shapes what shares a scale.

Families differ in what they call a scale (`weight_scale_inv` in DeepSeek-V3, Qwen3 and MiniMax-M2, `weight_scale` in
compressed-tensors and ModelOpt, `scale` in DeepSeek-V4, `_scales` beside `_blocks` in gpt-oss), but a scale that is
`ceil(weight / block)` on both axes says itself what its block is. Nothing here reads a weight.
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
"""How the name of a scale ends, and what its weight's name may have in place of that."""

_SURE_ENDINGS = ("_scale_inv", ".weight_scale")
"""Others may be no scales of a weight: those of a cache or of activations, or the vector of a norm."""

_QUANTIZED = PACKED_FP4 | {"F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}

_FP4_SCALES = frozenset({"F8_E8M0", "F8_E4M3", "U8"})
"""Beside bytes, those of MXFP4 and NVFP4: each byte is two values. With other scales a byte is one INT8 value."""

MAX_AXES = 4
"""Of the weights that are looked at: experts, rows, columns, and gpt-oss's groups."""

_WORD_BITS = 32


class ScaleKind(NamedTuple):
    """Tensors alike in all but layer and expert. `shape` as stored; `scale...` of the scale beside a weight, if any."""

    template: str
    dtype: str
    shape: tuple[int, ...]
    scale: str | None
    scale_dtype: str | None
    scale_shape: tuple[int, ...]


class Sharing(StrEnum):
    """Which elements of a matrix share a scale."""

    BLOCK = "block"
    ROW = "row"
    TENSOR = "tensor"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Scaled:
    """A kind of weight that has a scale.

    `shape` is in elements, `packed` of which are one stored element; the last two axes are the matrix, any before them
    experts. `scale_sizes` are those of the scale along rows and columns. `block` is None but where `sharing` is BLOCK,
    and `usual` says whether most weights of these dtypes have the same.
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
    """All kinds of tensors with their numbers, and what can be said of their scales."""

    counts: dict[ScaleKind, int]
    scaled: tuple[Scaled, ...]
    without_scale: tuple[ScaleKind, ...]
    without_weight: tuple[ScaleKind, ...]


def template_of(name: str) -> str:
    """The name with {E} for the number of an expert and {N} for every other number between dots."""
    return _NUMBER.sub("{N}", _EXPERT.sub("{E}", name))


def find_scales(tensors: Mapping[str, Tensor], declared: tuple[int, int] | None, bits: int | None) -> Scales:
    """Pair weights with scales and judge each kind once.

    `declared` is the block that config.json claims, `bits` of one value in the 32-bit words of `weight_packed`.
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


# --- names ---------------------------------------------------------------------------------------------------------


def _pair(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The scale of each weight that has one."""
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
    """Whether a tensor without a weight beside it is called like a scale, and is none of those that need no weight."""
    return kind.template.endswith(_SURE_ENDINGS) or (
        len(kind.shape) > 1 and kind.template.endswith(tuple(ending for ending, _ in _WEIGHT_ENDINGS))
    )


def _is_bare(kind: ScaleKind) -> bool:
    """Whether a tensor without a scale beside it is stored as only quantized weights are."""
    return len(kind.shape) > 1 and (kind.dtype in _QUANTIZED or kind.template.endswith((".qweight", "_packed")))


# --- shapes --------------------------------------------------------------------------------------------------------


def _judge(kinds: Iterable[ScaleKind], declared: tuple[int, int] | None, bits: int | None) -> tuple[Scaled, ...]:
    """What shares a scale in each kind, by the block that most kinds of the same dtypes have."""
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
    """A kind with the sizes of its matrix and of its scale; BLOCK where these look like neither ROW nor TENSOR."""
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
    """Values in one stored element, or None where nothing says it."""
    if kind.dtype == "I32" and kind.template.endswith("_packed"):
        return _WORD_BITS // bits if bits else None
    if kind.dtype in PACKED_FP4 and (kind.scale_dtype in _FP4_SCALES or kind.template.endswith("_blocks")):
        return 2
    return 1


def _scale_sizes(shape: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, int] | None:
    """Size of the scale along rows and columns of the weight, or None where its axes are not the weight's."""
    *experts, rows, _ = shape
    if len(scale) == len(shape) and list(scale[:-2]) == experts:
        return scale[-2], scale[-1]
    if list(scale) == [*experts, rows]:
        return rows, 1
    if list(scale) == experts or all(size == 1 for size in scale):
        return 1, 1
    return None


def _agree(group: Iterable[Scaled], declared: tuple[int, int] | None) -> Block:
    """The block that most kinds of `group` fit; each kind counts once, or experts would outvote all else."""
    units = []
    for axis in (0, 1):
        pairs = Counter((s.shape[axis - 2], s.scale_sizes[axis]) for s in group if s.scale_sizes is not None)
        units.append(agree_on_unit(pairs, declared[axis] if declared else None))
    return Block(*units)


def _with_block(scaled: Scaled, usual: Block | None, declared: tuple[int, int] | None) -> Scaled:
    """`scaled` in the usual block if it fits that, else in the block that its own sizes give, if they give one."""
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
