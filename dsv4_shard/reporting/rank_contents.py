"""Bytes of each layer and of each rank, by class of modules: the data of the charts.

A plan adds up over layers; here each layer is separate. The tests check that the sums equal the plan's.
"""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from dsv4_shard.checkpoint import Checkpoint, TensorGroup
from dsv4_shard.engines import Context, Engine, Expert
from dsv4_shard.models import Stage
from dsv4_shard.planning import beyond_roles, loads
from dsv4_shard.reporting.colours import DRAFT, REST, kind_of

# --- by layer --------------------------------------------------------------------------------------------------------


class LayerRow(NamedTuple):
    """A layer, or a part of the model outside of the layers."""

    stage: Stage
    layer: int

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
class LayerBytes:
    """Bytes of a layer on the heaviest rank, padding included, by kind (`colours.KINDS`)."""

    row: LayerRow
    kinds: dict[str, int]


def layer_bytes(checkpoint: Checkpoint, engine: Engine, context: Context) -> tuple[LayerBytes, ...]:
    """Bytes of each layer in a deployment that breaks no rule: the target's layers, then the draft model's."""
    held: dict[LayerRow, Counter[str]] = {}
    for (row, group), count in _count(checkpoint, context).items():
        stored = engine.rank_tensor_of(group, context)
        if stored is not None:
            is_expert = isinstance(engine.place(group.role, context), Expert)
            each = -(-count // context.deployment.ep) if is_expert else count
            kind = DRAFT if row.is_draft else kind_of(group.role.module)
            held.setdefault(row, Counter())[kind] += stored.nbytes * each
    return tuple(LayerBytes(row, dict(held[row])) for row in sorted(held, key=_place_order))


def _count(checkpoint: Checkpoint, context: Context) -> Counter[tuple[LayerRow, TensorGroup]]:
    """Number of tensors of each group in each row."""
    counted: Counter[tuple[LayerRow, TensorGroup]] = Counter()
    groups: dict[object, TensorGroup] = {}
    for name, at in context.inventory.names.items():
        tensor = checkpoint.tensors[name]
        layer = -1 if at.stage is Stage.VISION else at.layer
        key = (at._replace(layer=layer, expert=-1), tensor.dtype, tensor.shape)
        if key not in groups:
            groups[key] = context.inventory.group(tensor, at)
        counted[LayerRow(at.stage, layer), groups[key]] += 1
    return counted


def _place_order(place: LayerRow) -> tuple[int, int]:
    return list(Stage).index(place.stage), place.layer


# --- by rank ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RankBytes:
    """Bytes on the ranks from `first` to `last`, which are equal.

    Attributes:
        first, last: The ranks.
        kinds: Bytes without padding by kind (`colours.KINDS`). The draft model is only among them if the engine loads
            it with the target. The engine's own constants belong to the other modules.
        padding: Bytes of zeros.
        free: Rest of the GPU's memory: negative if the weights do not fit, None if no GPU is named.
    """

    first: int
    last: int
    kinds: dict[str, int]
    padding: int
    free: int | None

    @property
    def weights(self) -> int:
        """All bytes that are loaded."""
        return sum(self.kinds.values()) + self.padding


def rank_bytes(checkpoint: Checkpoint, engine: Engine, context: Context) -> tuple[RankBytes, ...]:
    """Bytes on the ranks of a deployment that breaks no rule: the target, and the draft if the engine loads both.

    If the experts do not divide evenly, the first EP ranks hold one more: vLLM's linear placement, the only such case.
    """
    deployment, each = context.deployment, context.deployment.stage_world
    heavy = each * (context.config.n_routed_experts % deployment.ep) // deployment.ep
    spans = [(first, last) for first, last in ((0, heavy - 1), (heavy, each - 1)) if first <= last]
    return tuple(
        _rank_bytes(checkpoint, engine, context, stage, (first, last), is_heavy=first < heavy)
        for stage in range(deployment.pp)
        for first, last in spans
    )


def _rank_bytes(
    checkpoint: Checkpoint, engine: Engine, context: Context, stage: int, span: tuple[int, int], *, is_heavy: bool
) -> RankBytes:
    """Bytes on the ranks `span` of a pipeline stage, which are counted within it."""
    deployment, stages = context.deployment, engine.loaded_stages()
    kinds: Counter[str] = Counter()
    padding = 0
    for load in loads(engine, context, stage):
        if load.group.stage in stages:
            count = load.per_rank[1 if is_heavy else 0]
            kind = DRAFT if load.group.stage is Stage.MTP else kind_of(load.group.role.module)
            kinds[kind] += count * (load.stored.nbytes - load.stored.padding)
            padding += count * load.stored.padding
    target, draft = beyond_roles(checkpoint, engine, context)
    kinds[REST] += target
    kinds[DRAFT] += draft if engine.draft_in_model else 0
    free = deployment.gpu.memory - kinds.total() - padding if deployment.gpu_named else None
    first, last = (stage * deployment.stage_world + rank for rank in span)
    return RankBytes(first, last, {kind: nbytes for kind, nbytes in kinds.items() if nbytes}, padding, free=free)
