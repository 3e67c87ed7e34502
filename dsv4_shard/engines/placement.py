"""Placements of a tensor on the ranks: `Replicate`, `Split`, `Pad`, `Shares`, `Expert`; and one rank's part."""

import math
from dataclasses import dataclass
from itertools import pairwise

from dsv4_shard.checkpoint import PACKED, TensorGroup
from dsv4_shard.engines.deployment import Context, Deployment
from dsv4_shard.models import Part
from dsv4_shard.tensors.header import DTYPE_BITS

AXIS_NAMES = ("rows", "columns")

GROUP_NAMES = {"tp": "TP", "attention": "attention TP", "moe": "MoE TP", "shared": "a TP subgroup", "one": "one rank"}
"""Groups of ranks over which a module is split; `one` holds whole tensors that are padded."""


@dataclass(frozen=True, slots=True)
class Replicate:
    """The whole tensor on every rank."""

    def __str__(self) -> str:
        return "whole on every rank"


@dataclass(frozen=True, slots=True)
class Split:
    """Equal parts along `axis` over the ranks of `group`, each rounded up to a multiple of `fill_to` elements."""

    axis: int
    group: str
    fill_to: int = 1

    def __str__(self) -> str:
        filled = f", filled up to {self.fill_to}" if self.fill_to > 1 else ""
        return f"{AXIS_NAMES[self.axis]} over {GROUP_NAMES[self.group]}{filled}"


@dataclass(frozen=True, slots=True)
class Pad:
    """Whole units of `unit` elements along `axis`: `ceil(units / ranks)` on each rank of `group`, zeros at the end."""

    axis: int
    group: str
    unit: int

    def __str__(self) -> str:
        how = f"padded to {self.unit}" if self.unit > 1 else "rounded up"
        return f"{AXIS_NAMES[self.axis]} over {GROUP_NAMES[self.group]}, {how}"


@dataclass(frozen=True, slots=True)
class Shares:
    """Consecutive rows of unequal number over the ranks of `group`; `starts` has those of each table's parts.

    A table is found by its number of rows, the last of its starts. Bytes and shape are of the rank with the most rows.
    """

    group: str
    starts: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        return f"rows over {GROUP_NAMES[self.group]}, in unequal parts"

    def sizes(self, rows: int) -> tuple[int, ...]:
        """Rows of each rank, of a table of `rows`."""
        return next(tuple(stop - start for start, stop in pairwise(one)) for one in self.starts if one[-1] == rows)


@dataclass(frozen=True, slots=True)
class Expert:
    """Routed experts: a contiguous block of experts for each EP rank, each placed as `inner` over the MoE-TP ranks."""

    inner: "Replicate | Split | Pad"

    def __str__(self) -> str:
        return "experts over EP" if isinstance(self.inner, Replicate) else f"experts over EP, {self.inner}"


Placement = Replicate | Split | Pad | Shares | Expert


@dataclass(frozen=True, slots=True)
class RankTensor:
    """What a rank holds of a tensor.

    Attributes:
        dtype: Dtype of the elements; FP4 for packed FP4.
        shape: Shape in elements.
        nbytes: Size in bytes, padding included.
        padding: Bytes of padding.
        fewer: Bytes that the rank with the least has less, where ranks differ.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    padding: int = 0
    fewer: int = 0


def say_placement(placement: Placement, group: TensorGroup, stored: RankTensor, deployment: Deployment) -> str:
    """Describe in words how the ranks hold a tensor of `group`.

    A split over one rank is shown as whole; experts over one EP rank show only their inner split.
    """
    if isinstance(placement, Expert) and deployment.ep == 1:
        placement = placement.inner
    whole = stored.shape == group.shape and not isinstance(placement, Expert)
    return str(Replicate() if whole else placement)


def local_size(size: int, placement: Split | Pad, parts: int, block: int) -> int:
    """Return a rank's elements along the axis on which `placement` cuts `size`, padding included.

    Args:
        size: Elements of the whole tensor along the axis.
        placement: The split.
        parts: Number of ranks.
        block: 1 for weights; for scales the block's size along the axis, since one scale covers that many weights.

    Raises:
        ValueError: If a Split does not divide; the engine's rules refuse this earlier.
    """
    if isinstance(placement, Pad):
        unit = max(1, placement.unit // block)
        return -(-size // (unit * parts)) * unit
    if size % parts:
        raise ValueError(f"{size} does not divide by {parts}")
    unit = max(1, placement.fill_to // block)
    return -(-(size // parts) // unit) * unit


def rank_tensor(group: TensorGroup, placement: Placement, context: Context, dtype: str | None = None) -> RankTensor:
    """Return what a rank holds of one tensor of `group` under `placement`, in `dtype` if given.

    Raises:
        ValueError: As `local_size`.
    """
    shape, padded, fewer = list(group.shape), 1.0, 0
    inner = placement.inner if isinstance(placement, Expert) else placement
    if isinstance(inner, Split | Pad) and not group.part.is_scalar:
        axis, parts = inner.axis, context.deployment.group(inner.group)
        block = context.block(group.role, group.stage)[axis] if group.part is Part.SCALE else 1
        local = local_size(shape[axis], inner, parts, block)
        padded = local * parts / shape[axis]
        shape[axis] = local
    elif isinstance(inner, Shares):
        sizes = inner.sizes(shape[0])
        shape[0], fewer = max(sizes), max(sizes) - min(sizes)
    elements = math.prod(shape)
    nbytes = elements * element_bits(group, dtype) // 8
    fmt = context.inventory.format(group.role, group.stage)
    packed = fmt is not None and fmt.name in PACKED and group.part is Part.WEIGHT
    shown = dtype or (fmt.name if fmt and packed else group.dtype)
    return RankTensor(
        shown, tuple(shape), nbytes, round(nbytes * (1 - 1 / padded)), nbytes // shape[0] * fewer if fewer else 0
    )


def element_bits(group: TensorGroup, dtype: str | None) -> int:
    """Bits per element of `group` in `dtype` (None: the stored dtype)."""
    if dtype is not None:
        return 4 if dtype == "FP4" else DTYPE_BITS[dtype]
    elements = math.prod(group.shape)
    return group.nbytes * 8 // elements if elements else 0
