"""Bytes of weights per rank, and their totals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dsv4_shard.checkpoint import Checkpoint, Inventory, TensorGroup
from dsv4_shard.engines import (
    Context,
    Deployment,
    Engine,
    Expert,
    Layout,
    LeftOut,
    Placement,
    RankTensor,
    TargetTensor,
    counts_on,
    engine_for,
    find_engine,
)
from dsv4_shard.models import TARGET, Module, Part, Role, Stage
from dsv4_shard.planning.memory_documents import PlanTotals


@dataclass(frozen=True, slots=True)
class GroupLoad:
    """A group on the ranks: the part of one tensor on a rank, and the least and most tensors per rank.

    `placement` is None for a role that no rule places.
    """

    group: TensorGroup
    count: int
    stored: RankTensor
    per_rank: tuple[int, int]
    replicated: bool
    placement: Placement | None = None


def loads(engine: Engine, context: Context, stage: int = 0) -> Iterator[GroupLoad]:
    """Yield every group as the ranks of a pipeline stage hold it; groups that are on other stages have no tensors."""
    deployment = context.deployment
    groups = context.inventory.groups
    if deployment.pp > 1:
        groups = counts_on(context, stage, engine.on_every_stage)
    for group, count in groups.items():
        placement, stored = engine.held(group, context)
        if stored is None:
            continue
        per_rank = (count, count)
        if isinstance(placement, Expert):
            experts = context.config.experts_in(group.stage)
            layers, slots = count // experts, experts + (deployment.redundant_experts if group.stage in TARGET else 0)
            per_rank = (layers * (slots // deployment.ep), layers * -(-slots // deployment.ep))
        whole = stored.shape == group.shape and not isinstance(placement, Expert)
        yield GroupLoad(group, count, stored, per_rank, whole and deployment.stage_world > 1, placement)


def rank_nbytes(inventory: Inventory, deployment: Deployment, stages: tuple[Stage, ...] = tuple(Stage)) -> int:
    """Bytes of the heaviest rank, over the tensors of `stages`."""
    engine, context = engine_for(deployment.engine, inventory.family), Context(inventory, deployment)
    return max(
        sum(
            load.stored.nbytes * load.per_rank[1]
            for load in loads(engine, context, number)
            if load.group.stage in stages
        )
        for number in range(deployment.pp)
    )


def beyond_roles(checkpoint: Checkpoint | None, engine: Engine, context: Context) -> tuple[int, int]:
    """Bytes of (target, draft) files that no role counts: constants, and copies that the draft has of tensors.

    The latter are only known with the checkpoint.
    """
    if engine.layout is None:
        return 0, 0
    nbytes = {False: 0, True: 0}
    for constant in engine.layout.constants(context):
        if constant.rank <= 0:
            nbytes[bool(constant.folder)] += len(constant.data)
    copies = _copies(checkpoint, engine, engine.layout, context) if checkpoint is not None else ()
    for kept, size in copies:
        nbytes[bool(kept.folder)] += size
    return nbytes[False], nbytes[True]


def _copies(
    checkpoint: Checkpoint, engine: Engine, layout: Layout, context: Context
) -> Iterator[tuple[TargetTensor, int]]:
    """Yield every further place of a tensor of the draft or outside of layers, with the bytes of a rank's part."""
    groups = {(group.stage, group.role, group.part): group for group in context.inventory.groups}
    for name, where in context.inventory.names.items():
        if where.stage not in (Stage.MODEL, Stage.MTP) or where.expert >= 0:
            continue
        fate = layout.fate(checkpoint.tensors[name], where, context)
        stored = engine.rank_tensor_of(groups[where.stage, where.role, where.part], context)
        if stored is not None and not isinstance(fate, LeftOut):
            yield from ((kept, stored.nbytes) for kept in fate[1:])


def totals_of(weights: Sequence[GroupLoad], context: Context, beyond: tuple[int, int]) -> PlanTotals:
    """Return the totals of a rank of one stage; `beyond` are the bytes from `beyond_roles`, `weights` from `loads`."""
    target = [load for load in weights if load.group.stage in TARGET]
    draft = [load for load in weights if load.group.stage not in TARGET]
    shared = [load for load in target if load.group.role.module is Module.SHARED]
    weights_of_layer = [load for load in shared if load.group.part is Part.WEIGHT]
    shared_layers = sum(load.count for load in weights_of_layer if load.group.role is Role.SHARED_GATE)
    shared_weights = sum(load.stored.nbytes * load.count for load in weights_of_layer)
    least = sum((load.stored.nbytes - load.stored.fewer) * load.per_rank[0] for load in target)
    return PlanTotals(
        ranks=context.deployment.world,
        target_bytes_per_rank_min=beyond[0] + least,
        target_bytes_per_rank_max=beyond[0] + sum(load.stored.nbytes * load.per_rank[1] for load in target),
        other_target_bytes_per_rank=beyond[0],
        other_draft_bytes_per_rank=beyond[1],
        draft_bytes_per_rank=beyond[1] + sum(load.stored.nbytes * load.per_rank[1] for load in draft),
        replicated_bytes_per_rank=sum(load.stored.nbytes * load.count for load in target if load.replicated),
        padding_bytes_per_rank=sum(load.stored.padding * load.per_rank[1] for load in target),
        shared_experts_bytes_per_rank=sum(load.stored.nbytes * load.count for load in shared),
        shared_experts_weight_bytes_per_layer=shared_weights // max(1, shared_layers),
    )


def weights_of(totals: PlanTotals, deployment: Deployment) -> int:
    """Bytes of weights on the heaviest rank: the target, plus the draft if it is served, or in one model with it.

    A draft served by its own is counted without the copies of embedding and head that vLLM replaces by the target's.
    """
    draft = 0
    if find_engine(deployment.engine).draft_in_model:
        draft = totals.draft_bytes_per_rank
    elif deployment.serves_draft:
        draft = totals.draft_bytes_per_rank - totals.other_draft_bytes_per_rank
    return totals.target_bytes_per_rank_max + draft
