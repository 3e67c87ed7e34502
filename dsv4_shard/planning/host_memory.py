"""Checkpoint and deployment → what a node holds on its disk, and in its memory while the engine loads (`PlanHost`)."""

import math
from collections.abc import Sequence
from fractions import Fraction

from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.engines import Context, Expert, Pad, Shares, Split, engine_for
from dsv4_shard.models import TARGET, Module, Part
from dsv4_shard.planning.memory_documents import PlanHost
from dsv4_shard.planning.stages import WeighedStage, ranks_of_node, ranks_on_nodes
from dsv4_shard.planning.weights import GroupLoad


def plan_host(
    checkpoint: Checkpoint, context: Context, stages: Sequence[WeighedStage], sharded: bool
) -> PlanHost | None:
    """Return what the fullest node holds; None if the engine's loader is not known.

    `stages` are empty if the layout does not run. `sharded`: the engine loads shards, else the checkpoint.
    """
    engine, deployment = engine_for(context.deployment.engine, context.inventory.family), context.deployment
    if engine.host is None:
        return None
    rules, sizes = engine.host, [file.nbytes for file in checkpoint.files]
    disk = sum(sizes)
    own = [stage.totals.target_bytes_per_rank_max + stage.totals.draft_bytes_per_rank for stage in stages]
    if sharded and stages:
        shared = [sum(one.stored.nbytes * one.count for one in stage.loads if one.replicated) for stage in stages]
        disk = _node_subset(context) if engine.by_node else _on_fullest_node(context, own, shared)
    if sharded and stages and not engine.by_node:
        largest = [max(one.stored.nbytes for one in stage.loads if one.count) for stage in stages]
        window = _on_fullest_node(context, own if rules.whole_shards else largest, [0] * len(stages))
    elif rules.files_at_once:
        window = min(disk, rules.files_at_once * max(sizes))
    else:
        window = max(group.nbytes for group in context.inventory.groups)
    return PlanHost(
        nodes=deployment.nodes,
        reads="shards" if sharded else "checkpoint",
        disk_bytes=disk,
        checkpoint_bytes=sum(sizes),
        window_bytes=window,
        pinned_bytes=rules.pinned(context),
        pinned=rules.pinned_note if rules.pinned(context) else None,
        source=rules.shard_source if sharded and not engine.by_node else rules.source,
    )


def node_bytes(checkpoint: Checkpoint, context: Context, stages: Sequence[WeighedStage], sharded: bool) -> int:
    """Return the bytes that the fullest node reads at each start: of shards, else of the whole checkpoint.

    Of shards it reads the target model alone, and once what all its ranks share in one file.
    """
    engine = engine_for(context.deployment.engine, context.inventory.family)
    if not sharded or not stages:
        return sum(file.nbytes for file in checkpoint.files)
    if engine.by_node:
        return _node_subset(context)
    own = [stage.totals.target_bytes_per_rank_max for stage in stages]
    return _on_fullest_node(context, own, [stage.totals.replicated_bytes_per_rank for stage in stages])


def loader_bytes(reads: str, nbytes: int, context: Context, stages: Sequence[WeighedStage]) -> int:
    """Return the bytes that the fullest node reads with a `StockLoader` that reads `reads`, in place of `nbytes`."""
    if reads == "experts of the node":
        return nbytes - _weights_of_others(context)
    own = [stage.totals.target_bytes_per_rank_max for stage in stages]
    return _on_fullest_node(context, own, [0] * len(stages))


def _weights_of_others(context: Context) -> int:
    """Bytes of the weights, without scales, of experts that no rank of the first node holds.

    It holds most if experts do not divide. A draft's are counted by the same numbers of experts.
    """
    held = _experts_held(context, ranks_of_node(context.deployment))
    skipped = 0
    for group, count in context.inventory.groups.items():
        if group.role.module is Module.ROUTED and group.part is Part.WEIGHT:
            experts = context.config.experts_in(group.stage)
            skipped += group.nbytes * count * (experts - min(held, experts)) // experts
    return skipped


def _experts_held(context: Context, ranks: int) -> int:
    """Experts of a layer that the first `ranks` of a stage hold; the first EP ranks hold one more if uneven."""
    deployment = context.deployment
    least, more = divmod(context.slots, deployment.ep)
    blocks = -(-min(ranks, deployment.stage_world) // deployment.moe_tp)
    return min(context.config.n_routed_experts, blocks * least + min(blocks, more))


def _on_fullest_node(context: Context, own: Sequence[int], shared: Sequence[int]) -> int:
    """Bytes of the node whose ranks have most: `own` of a rank of each stage, of which `shared` count once a stage.

    Where the layout shares no files, they count for each rank.
    """
    engine = engine_for(context.deployment.engine, context.inventory.family)
    links = engine.layout is not None and engine.layout.shares_files
    return max(
        sum(
            ranks * nbytes - (ranks - 1) * (common if links else 0)
            for ranks, nbytes, common in zip(counts, own, shared, strict=True)
            if ranks
        )
        for counts in ranks_on_nodes(context.deployment)
    )


def direct_node_bytes(context: Context, stages: Sequence[WeighedStage]) -> int:
    """Return the bytes of a checkpoint that a node reads if each rank loads the rows that it needs of the target model.

    Of columns these are whole rows, once for all ranks of the node, which share the page cache. The plan's count of
    `sharding.reading.readings`, which the tests compare.
    """
    return max(
        sum(
            math.ceil(load.group.nbytes * load.count * _part_read(load, context, ranks))
            for ranks, stage in zip(counts, stages, strict=True)
            for load in stage.loads
            if ranks and load.group.stage in TARGET
        )
        for counts in ranks_on_nodes(context.deployment)
    )


def _part_read(load: GroupLoad, context: Context, ranks: int) -> Fraction:
    """The part of the rows of a role's tensors that the first `ranks` of a stage need."""
    placement, held = load.placement, Fraction(1)
    if isinstance(placement, Expert):
        held = Fraction(_experts_held(context, ranks), context.config.n_routed_experts)
        placement = placement.inner
    match placement:
        case Pad(axis=0, group=group):
            own, rows = (math.prod(one.shape[:1]) for one in (load.stored, load.group))
            return held * min(Fraction(1), Fraction(min(ranks, context.deployment.group(group)) * own, rows))
        case Split(axis=0, group=group) | Shares(group=group):
            parts = context.deployment.group(group)
            return held * Fraction(min(ranks, parts), parts)
        case _:
            return held


def _node_subset(context: Context) -> int:
    """Bytes of a node's own checkpoint: everything but the experts of other nodes."""
    nbytes = {True: 0, False: 0}
    for group, count in context.inventory.groups.items():
        nbytes[group.role.module is Module.ROUTED] += group.nbytes * count
    return nbytes[False] + -(-nbytes[True] // context.deployment.nodes)
