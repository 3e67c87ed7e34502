"""Placements + layout → which bytes of which source tensor go where in which rank's file.

Every offset is known before the first byte moves. A recipe knows nothing of engines: it holds output files with their
finished headers, and steps in the order of the source's bytes. A step takes one source tensor (or a weight and its
scale, if they are decoded together) and says for each rank which rectangle of it lands at which offset.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dsv4_shard.blocks import PACKED_FP4, Rectangle, slice_rectangle, split, whole_rectangle
from dsv4_shard.checkpoint import Checkpoint, Tensor
from dsv4_shard.engines.base import Context, Deployment, Engine, Expert, Kept, LeftOut, Pad, Placement, Split
from dsv4_shard.header import TensorInfo, build_header
from dsv4_shard.inventory import Inventory
from dsv4_shard.roles import Part, TensorName
from dsv4_shard.transforms import TRANSFORMS, Transform


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One rank's file: its header's bytes, and each tensor's place counted from the end of the header."""

    name: str
    rank: int
    header: bytes
    tensors: dict[str, TensorInfo]

    @property
    def nbytes(self) -> int:
        return len(self.header) + max((info.stop for info in self.tensors.values()), default=0)

    @property
    def payload(self) -> int:
        """Bytes of tensors."""
        return self.nbytes - len(self.header)


class Target(NamedTuple):
    """Where a rectangle of the source lands: densely from byte `offset` of file number `file`, within `tensor`.

    For a decoded weight the rectangle's rows count and `scale_offset` is where the new scales of these rows land, -1
    if there are none.
    """

    file: int
    tensor: str
    offset: int
    rectangle: Rectangle
    scale_offset: int = -1


@dataclass(frozen=True, slots=True)
class Step:
    """One source tensor and everywhere it goes. With a `transform`, `scale` is decoded together with it."""

    source: Tensor
    targets: tuple[Target, ...]
    transform: Transform | None = None
    scale: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """Output files, steps in the order of the source's bytes, and the source tensors that no rank gets, with why."""

    files: tuple[OutputFile, ...]
    steps: tuple[Step, ...]
    left_out: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all output files."""
        return sum(file.nbytes for file in self.files)


class _Part(NamedTuple):
    """What one rank gets of one source tensor, before its offset is known."""

    rank: int
    shape: tuple[int, ...]
    rectangle: Rectangle


def make_recipe(
    checkpoint: Checkpoint, inventory: Inventory, engine: Engine, at: Deployment, ranks: tuple[int, ...]
) -> Recipe:
    """The recipe for `ranks` of a feasible deployment.

    Raises ValueError where a placement does not divide, which the rules must have refused.
    """
    layout = engine.layout
    if layout is None:
        raise ValueError(f"{engine.name} has no file layout")
    context = Context(inventory, at)
    placements = {role: engine.place(role, context) for role in {name.role for name in inventory.names.values()}}
    specs: dict[int, dict[str, tuple[str, tuple[int, ...]]]] = {rank: {} for rank in ranks}
    wanted = frozenset(ranks)
    kept: list[tuple[Tensor, Kept, list[_Part]]] = []
    left_out: dict[str, str] = {}
    for name, where in inventory.names.items():
        tensor = checkpoint.tensors[name]
        fate = layout.fate(tensor, where, inventory, at)
        if isinstance(fate, LeftOut):
            left_out[name] = fate.reason
            continue
        parts = list(_parts(tensor, where, placements[where.role], context, wanted))
        kept.append((tensor, fate, parts))
        for part in parts:
            specs[part.rank][fate.name] = (fate.dtype, _stored_shape(tensor, fate, part, where))
    files = tuple(_output_file(layout.file_name(rank, at), rank, specs[rank]) for rank in ranks)
    return Recipe(files, tuple(_steps(checkpoint, kept, files)), left_out)


def _output_file(name: str, rank: int, spec: dict[str, tuple[str, tuple[int, ...]]]) -> OutputFile:
    header, tensors = build_header(spec)
    return OutputFile(name, rank, header, tensors)


def _parts(
    tensor: Tensor, where: TensorName, placement: Placement, context: Context, ranks: frozenset[int]
) -> Iterator[_Part]:
    """What each of `ranks` gets of `tensor`."""
    at = context.at
    inner = placement.inner if isinstance(placement, Expert) else placement
    for rank in _owners(where, placement, context):
        if rank not in ranks:
            continue
        if isinstance(inner, Pad):
            raise ValueError(f"{where.role}: padding is not written by any layout yet")
        if isinstance(inner, Split):
            parts = at.group(inner.group)
            start, stop = split(tensor.shape[inner.axis], parts, rank % parts)
            shape = (*tensor.shape[: inner.axis], stop - start, *tensor.shape[inner.axis + 1 :])
            yield _Part(rank, shape, slice_rectangle(tensor.dtype, tensor.shape, inner.axis, start, stop))
        else:
            yield _Part(rank, tensor.shape, whole_rectangle(tensor.dtype, tensor.shape))


def _owners(where: TensorName, placement: Placement, context: Context) -> range:
    """The ranks that get something of a tensor: all, or the MoE-TP ranks of the expert's EP rank."""
    at = context.at
    if not isinstance(placement, Expert):
        return range(at.world)
    block = where.expert // (context.config.n_routed_experts // at.ep)
    return range(block * at.moe_tp, (block + 1) * at.moe_tp)


def _stored_shape(tensor: Tensor, fate: Kept, part: _Part, where: TensorName) -> tuple[int, ...]:
    """Shape in the output's header, which counts F4 in values and not in bytes."""
    if fate.transform is None:
        doubled = fate.dtype == "F4" and tensor.dtype in PACKED_FP4
        return (*part.shape[:-1], part.shape[-1] * 2) if doubled else part.shape
    transform = TRANSFORMS[fate.transform]
    return transform.weight_shape(part.shape) if where.part is Part.WEIGHT else transform.scale_shape(part.shape)


def _steps(
    checkpoint: Checkpoint, kept: list[tuple[Tensor, Kept, list[_Part]]], files: tuple[OutputFile, ...]
) -> list[Step]:
    number = {file.rank: index for index, file in enumerate(files)}
    steps: list[Step] = []
    for tensor, fate, parts in kept:
        if fate.transform is not None and tensor.name.endswith(".scale"):
            continue  # goes with its weight
        transform = TRANSFORMS[fate.transform] if fate.transform else None
        scale = checkpoint.tensors[_scale_name(tensor.name)] if transform else None
        targets = []
        for part in parts:
            file = files[number[part.rank]]
            base = len(file.header)
            offset = base + file.tensors[fate.name].start
            scale_offset = -1
            if transform is not None and transform.scale_dtype is not None:
                scale_offset = base + file.tensors[_scale_name(fate.name)].start
            targets.append(Target(number[part.rank], fate.name, offset, part.rectangle, scale_offset))
        if targets:
            steps.append(Step(tensor, tuple(targets), transform, scale))
    return sorted(steps, key=lambda step: (step.source.file, step.source.start))


def _scale_name(weight_name: str) -> str:
    return weight_name.removesuffix(".weight") + ".scale"
