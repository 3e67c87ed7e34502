"""Checkpoint and deployment → what a node holds on its disk, and in its memory while the engine loads (`PlanHost`)."""

from collections.abc import Sequence

from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.engines import Context, engine_for
from dsv4_shard.models import Module
from dsv4_shard.planning.memory_documents import PlanHost, PlanTotals
from dsv4_shard.planning.weights import GroupLoad


def plan_host(
    checkpoint: Checkpoint, context: Context, weights: Sequence[GroupLoad], totals: PlanTotals | None, sharded: bool
) -> PlanHost | None:
    """Return what the fullest node holds; None if the engine's loader is not known.

    `weights` and `totals` are empty and None if the layout does not run. `sharded`: the engine loads shards, else the
    checkpoint.
    """
    engine, deployment = engine_for(context.deployment.engine, context.inventory.family), context.deployment
    if engine.host is None:
        return None
    rules, sizes = engine.host, [file.nbytes for file in checkpoint.files]
    ranks = -(-deployment.world // deployment.nodes)
    disk = sum(sizes)
    if sharded and totals is not None:
        own = totals.target_bytes_per_rank_max + totals.draft_bytes_per_rank
        shared = sum(load.stored.nbytes * load.count for load in weights if load.replicated)
        linked = (ranks - 1) * shared if engine.layout and engine.layout.shares_files else 0
        disk = _node_subset(context) if engine.by_node else ranks * own - linked
    if sharded and totals is not None and not engine.by_node:
        window = ranks * (own if rules.whole_shards else max(load.stored.nbytes for load in weights))
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


def node_bytes(checkpoint: Checkpoint, context: Context, totals: PlanTotals | None, sharded: bool) -> int:
    """Return the bytes that the fullest node reads at each start: of shards, else of the whole checkpoint.

    Of shards it reads the target model alone, and once what all its ranks share in one file.
    """
    deployment, engine = context.deployment, engine_for(context.deployment.engine, context.inventory.family)
    if not sharded or totals is None:
        return sum(file.nbytes for file in checkpoint.files)
    if engine.by_node:
        return _node_subset(context)
    ranks = -(-deployment.world // deployment.nodes)
    shared = totals.replicated_bytes_per_rank if engine.layout and engine.layout.shares_files else 0
    return ranks * totals.target_bytes_per_rank_max - (ranks - 1) * shared


def _node_subset(context: Context) -> int:
    """Bytes of a node's own checkpoint: everything but the experts of other nodes."""
    nbytes = {True: 0, False: 0}
    for group, count in context.inventory.groups.items():
        nbytes[group.role.module is Module.ROUTED] += group.nbytes * count
    return nbytes[False] + -(-nbytes[True] // context.deployment.nodes)
