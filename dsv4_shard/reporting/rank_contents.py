"""Bytes of each layer and module on the ranks, and the parts of a rank's memory: the data of the charts.

A plan adds up over layers; here each layer is separate. The tests check that the sums equal the plan's.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from dsv4_shard.checkpoint import Checkpoint, TensorGroup
from dsv4_shard.engines import Context, Engine, Expert, Placement, RankTensor, say_placement
from dsv4_shard.models import Module, Role, Stage, TensorName
from dsv4_shard.planning import beyond_roles, loads
from dsv4_shard.tensors.header import Tensor


class Holding(StrEnum):
    """How a module is placed, for the colours of the charts. `BREAKS`: a rule of the module breaks."""

    EXPERTS = "experts"
    SPLIT = "split"
    PADDED = "padded"
    WHOLE = "whole"
    BREAKS = "breaks"


# --- by layer --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """The part of a module with one placement: `placement` in words, and its `roles`."""

    module: Module
    kind: Holding
    placement: str
    roles: tuple[Role, ...]


@dataclass(frozen=True, slots=True)
class LayerCell:
    """Bytes of a column in a row on the heaviest rank, `padding` included; `row` and `column` index the map."""

    row: int
    column: int
    nbytes: int
    padding: int


class LayerRow(NamedTuple):
    """A layer, or a part of the model outside of the layers."""

    stage: Stage
    layer: int

    @property
    def number(self) -> int | None:
        """The layer's number; None outside of the layers."""
        return self.layer if self.stage is Stage.LAYER else None

    @property
    def is_draft(self) -> bool:
        """Whether it is an MTP block."""
        return self.stage is Stage.MTP

    @property
    def title(self) -> str:
        """Title in charts: a layer's number alone."""
        names = {Stage.MODEL: "model", Stage.LAYER: str(self.layer), Stage.MTP: f"MTP {self.layer}"}
        return names.get(self.stage, "vision")


@dataclass(frozen=True, slots=True)
class LayerMap:
    """The model by layers and modules."""

    rows: tuple[LayerRow, ...]
    columns: tuple[Column, ...]
    cells: tuple[LayerCell, ...]


_Where = tuple[Stage, int, Role, TensorGroup]


def layer_map(checkpoint: Checkpoint, engine: Engine, context: Context, broken: frozenset[Module]) -> LayerMap:
    """Return the map of a deployment; modules in `broken` are marked as broken and count no bytes."""
    held: defaultdict[tuple[tuple[Stage, int], tuple[Module, Holding, str]], list[tuple[Role, int, int]]]
    held = defaultdict(list)
    for (stage, layer, role, group), count in _count(checkpoint, context).items():
        found = _stored(engine, context, group, broken)
        if found is None:
            continue
        kind, placement, one = found
        how = say_placement(placement, group, one, context.deployment) if one is not None else "nowhere"
        each = _most(placement, count, context) if one is not None else 0
        nbytes, padding = (one.nbytes * each, one.padding * each) if one is not None else (0, 0)
        held[(stage, layer), (role.module, kind, how)].append((role, nbytes, padding))
    places = sorted({place for place, _ in held}, key=_place_order)
    keys = sorted({key for _, key in held}, key=_column_order)
    roles = {key: {role: None for at, members in held.items() if at[1] == key for role, *_ in members} for key in keys}
    return LayerMap(
        rows=tuple(LayerRow(*place) for place in places),
        columns=tuple(Column(*key, tuple(sorted(roles[key], key=list(Role).index))) for key in keys),
        cells=tuple(
            LayerCell(places.index(place), keys.index(key), sum(m[1] for m in members), sum(m[2] for m in members))
            for (place, key), members in held.items()
        ),
    )


def _count(checkpoint: Checkpoint, context: Context) -> dict[_Where, int]:
    """Number of tensors of each group at each place."""
    kinds: Counter[tuple[TensorName, str, tuple[int, ...]]] = Counter()
    sample: dict[tuple[TensorName, str, tuple[int, ...]], Tensor] = {}
    for name, at in context.inventory.names.items():
        tensor = checkpoint.tensors[name]
        kind = (at._replace(layer=-1 if at.stage is Stage.VISION else at.layer, expert=-1), tensor.dtype, tensor.shape)
        kinds[kind] += 1
        sample.setdefault(kind, tensor)
    counted: Counter[_Where] = Counter()
    for kind, count in kinds.items():
        at = kind[0]
        counted[at.stage, at.layer, at.role, context.inventory.group(sample[kind], at)] += count
    return counted


def _stored(
    engine: Engine, context: Context, group: TensorGroup, broken: frozenset[Module]
) -> tuple[Holding, Placement, RankTensor | None] | None:
    """How a rank holds one tensor of `group`; None if it holds none."""
    placement = engine.place(group.role, context)
    if isinstance(placement, Expert) and context.deployment.ep == 1:
        placement = placement.inner
    if group.role.module in broken:
        return Holding.BREAKS, placement, None
    stored = engine.store(group, placement, context)
    return (_kind(placement, stored, group), placement, stored) if stored is not None else None


def _kind(placement: Placement, stored: RankTensor, group: TensorGroup) -> Holding:
    if isinstance(placement, Expert):
        return Holding.EXPERTS
    if stored.shape == group.shape:
        return Holding.WHOLE
    return Holding.PADDED if stored.padding else Holding.SPLIT


def _most(placement: Placement, count: int, context: Context) -> int:
    """Number of `count` tensors that the heaviest rank has."""
    return -(-count // context.deployment.ep) if isinstance(placement, Expert) else count


def _place_order(place: tuple[Stage, int]) -> tuple[int, int]:
    return list(Stage).index(place[0]), place[1]


def _column_order(key: tuple[Module, Holding, str]) -> tuple[int, int, str]:
    module, kind, placement = key
    return list(Module).index(module), list(Holding).index(kind), placement


# --- by rank ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RankBytes:
    """Bytes on the ranks from `first` to `last`, which are equal.

    Attributes:
        experts: Bytes of routed experts, without padding.
        split: Bytes of other tensors that are cut over ranks, without padding.
        whole: Bytes of other tensors that each rank has whole, without padding.
        padding: Bytes of padding.
        other: Bytes without a placement (the engine's own constants).
        free: Rest of the GPU's memory: negative if the weights do not fit, None if no GPU is named.
    """

    first: int
    last: int
    experts: int
    split: int
    whole: int
    padding: int
    other: int
    free: int | None

    @property
    def weights(self) -> int:
        """All bytes that are loaded."""
        return self.experts + self.split + self.whole + self.padding + self.other


def rank_bytes(checkpoint: Checkpoint, engine: Engine, context: Context) -> tuple[RankBytes, ...]:
    """Bytes on the ranks of a deployment that breaks no rule: the target, and the draft if the engine loads both.

    If the experts do not divide evenly, the first EP ranks hold one more: vLLM's linear placement, the only such case.
    """
    deployment = context.deployment
    heavy = deployment.world * (context.config.n_routed_experts % deployment.ep) // deployment.ep
    spans = [(first, last) for first, last in ((0, heavy - 1), (heavy, deployment.world - 1)) if first <= last]
    return tuple(_rank_bytes(checkpoint, engine, context, first, last, first < heavy) for first, last in spans)


def _rank_bytes(
    checkpoint: Checkpoint, engine: Engine, context: Context, first: int, last: int, is_heavy: bool
) -> RankBytes:
    deployment, stages = context.deployment, engine.loaded_stages()
    nbytes: Counter[str] = Counter()
    for load in loads(engine, context):
        if load.group.stage in stages:
            count = load.per_rank[1 if is_heavy else 0]
            nbytes[_share(load.group, load.stored)] += count * (load.stored.nbytes - load.stored.padding)
            nbytes["padding"] += count * load.stored.padding
    beyond = beyond_roles(checkpoint, engine, context)
    nbytes["other"] = beyond[0] + (beyond[1] if engine.draft_in_model else 0)
    free = deployment.gpu.memory - nbytes.total() if deployment.gpu_named else None
    shares = {share: nbytes[share] for share in ("experts", "split", "whole", "padding", "other")}
    return RankBytes(first, last, **shares, free=free)


def _share(group: TensorGroup, stored: RankTensor) -> str:
    if group.role.module is Module.ROUTED:
        return "experts"
    return "whole" if stored.shape == group.shape else "split"
