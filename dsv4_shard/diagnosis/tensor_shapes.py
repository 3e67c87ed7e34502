"""Two shapes that should be one: which tensor has both, under two dtypes or over two numbers of ranks.

The shapes are computed, not listed: a role's size in the model, the axis on which the engine cuts it, and the dtypes in
which checkpoints store it. FP4 is two values a byte with a scale for 32 columns of one row; FP8 has a scale for each
block; NVFP4 has one for 16 columns.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dsv4_shard.diagnosis.known_model import KnownModel
from dsv4_shard.engines import Context, Expert, Pad, Placement, Request, Split, engine_for
from dsv4_shard.models import Module, Part, Role, Stage

_PARTS = (1, 2, 4, 8, 16, 32, 64)

FP4, FP8, NVFP4, PLAIN = "FP4", "FP8", "NVFP4", "BF16"

_FUSED = {Role.ROUTED_GATE: 2, Role.ROUTED_UP: 2, Role.SHARED_GATE: 2, Role.SHARED_UP: 2}
"""Tensors that engines hold two of in one."""


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor of a role as one of `parts` ranks holds it, in a dtype; `fused` if it is two tensors in one."""

    model: KnownModel
    role: Role
    part: Part
    dtype: str
    parts: int
    fused: bool
    shape: tuple[int, ...]

    def __str__(self) -> str:
        fused = "gate and up of " if self.fused else ""
        what = "scale" if self.part is Part.SCALE else "weight"
        over = f", TP {self.parts}" if self.parts > 1 else ""
        return f"{fused}{self.role}'s {what} ({self.role.module}) in {self.dtype}{over}"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two tensors that are one but for dtype or ranks: as the engine has it, and as the files have it."""

    engine: Held
    files: Held

    @property
    def by_dtype(self) -> bool:
        return self.engine.dtype != self.files.dtype


def held_by(model: KnownModel, engine: str, parts: Iterable[int] = _PARTS) -> Iterator[Held]:
    """Every shape that the tensors of a model have, in any dtype and over any number of ranks."""
    inventory = model.inventory
    table = engine_for(engine, inventory.family)
    deployment = next(table.candidates(inventory, Request(2, engine=engine)))
    context = Context(inventory, deployment)
    seen = set()
    for group in inventory.groups:
        if group.part is not Part.WEIGHT or len(group.shape) != 2 or (group.role, group.shape) in seen:
            continue
        if group.stage is Stage.MTP and (Stage.LAYER, group.role) in inventory.formats:
            continue
        seen.add((group.role, group.shape))
        fmt = inventory.format(group.role, group.stage)
        stored = fmt.name if fmt else group.dtype
        dtypes = dict.fromkeys((FP4, FP8, stored) if group.role.module is Module.ROUTED else (stored,))
        axis = _axis(table.place(group.role, context))
        block = fmt.block if fmt is not None and fmt.block is not None and fmt.name == FP8 else None
        for count in dict.fromkeys(parts):
            if axis is not None and group.shape[axis] % count:
                continue
            for dtype in dtypes:
                for part, shape in _shapes(group.shape, dtype, (block.rows, block.cols) if block else (128, 128)):
                    local = _cut(shape, axis, count)
                    if local is not None:
                        yield Held(model, group.role, part, dtype, count, False, local)
                        if group.role in _FUSED:
                            yield Held(model, group.role, part, dtype, count, True, (2 * local[0], local[1]))
            if axis is None:
                break


def _axis(placement: Placement) -> int | None:
    inner = placement.inner if isinstance(placement, Expert) else placement
    return inner.axis if isinstance(inner, Split | Pad) else None


def _shapes(shape: tuple[int, ...], dtype: str, block: tuple[int, int]) -> Iterator[tuple[Part, tuple[int, int]]]:
    """Stored shapes of weight and scale, in elements of their own dtypes."""
    rows, cols = shape
    if dtype == FP8:
        yield Part.WEIGHT, (rows, cols)
        yield Part.SCALE, (-(-rows // block[0]), -(-cols // block[1]))
    elif dtype in (FP4, NVFP4):
        yield Part.WEIGHT, (rows, cols // 2)
        yield Part.SCALE, (rows, cols // (32 if dtype == FP4 else 16))
    else:
        yield Part.WEIGHT, (rows, cols)


def _cut(shape: tuple[int, int], axis: int | None, parts: int) -> tuple[int, ...] | None:
    if axis is None or parts == 1:
        return shape
    if shape[axis] % parts:
        return None
    return tuple(size // parts if at == axis else size for at, size in enumerate(shape))


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...], axis: int | None) -> bool:
    """Whether a shape is the wanted one, or has the wanted size on `axis` (of the last two; None: on any)."""
    if len(wanted) > 1:
        return shape == wanted[-2:]
    if axis is not None and axis < 2:
        return shape[axis] == wanted[0]
    return wanted[0] in shape


def pairs(
    models: Iterable[KnownModel], engine: str, mine: tuple[int, ...], theirs: tuple[int, ...],
    axis: int | None = None, tp: int | None = None, spread: bool = False,
) -> list[Pair]:  # fmt: skip
    """Every tensor that is `mine` as the engine has it and `theirs` in the files, the likeliest first.

    Args:
        models: The models that it may be of.
        engine: Name of the engine, whose placements decide what is cut.
        mine: The engine's shape, or its size on one axis.
        theirs: The files' shape, or its size on that axis.
        axis: The axis that the message names.
        tp: TP of the log: the engine's tensor is of that TP, or whole.
        spread: Whether the log spreads the routed experts over the ranks, which keeps each of them whole.
    """
    found: list[Pair] = []
    for model in models:
        parts = (*_PARTS, tp) if tp else _PARTS
        held = list(held_by(model, engine, parts))
        ours = [one for one in held if _fits(one.shape, mine, axis) and _is_cut(one, tp, spread)]
        for one in ours:
            for other in held:
                if (one.role, one.part, one.fused) != (other.role, other.part, other.fused):
                    continue
                if (one.dtype != other.dtype) == (one.parts != other.parts) or not _fits(other.shape, theirs, axis):
                    continue
                if other.dtype != _stored(other) or not _same_axis(one, other, mine, theirs):
                    continue
                found.append(Pair(one, other))
    order = {id(model): at for at, model in enumerate(models)}
    found.sort(
        key=lambda pair: (
            not pair.by_dtype,
            tp is not None and pair.engine.parts != tp,
            order[id(pair.engine.model)],
            pair.engine.fused,
            pair.engine.parts if pair.by_dtype else pair.files.parts,
        )
    )
    return found


def _is_cut(held: Held, tp: int | None, spread: bool) -> bool:
    """Whether the engine may cut a tensor so at `tp`: routed experts are cut unless they are spread."""
    if tp is None:
        return True
    return held.parts == tp or (held.parts == 1 and (spread or held.role.module is not Module.ROUTED))


def _stored(held: Held) -> str:
    """The dtype in which the checkpoint stores the role."""
    for stage in (Stage.LAYER, Stage.MODEL, Stage.MTP):
        fmt = held.model.inventory.format(held.role, stage)
        if fmt is not None:
            return fmt.name
    return held.dtype


def _same_axis(one: Held, other: Held, mine: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """Whether both numbers are on the same axis."""
    if len(mine) > 1:
        return True
    return any(a == mine[0] and b == theirs[0] for a, b in zip(one.shape, other.shape, strict=True))
