"""Checkpoint and deployment → what a node holds on its disk, and in its memory while the engine loads (`PlanHost`)."""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.engines import Context, Expert, Pad, Placement, Shares, Split, engine_for
from dsv4_shard.models import TARGET, Module
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


def direct_node_bytes(context: Context, weights: Iterable[GroupLoad]) -> int:
    """Return the bytes of a checkpoint that a node reads if each rank loads the rows that it needs of the target model.

    Of columns these are whole rows, once for all ranks of the node, which share the page cache. The plan's count of
    `sharding.reading.readings`, which the tests compare.
    """
    target = (load for load in weights if load.group.stage in TARGET)
    return sum(math.ceil(load.group.nbytes * load.count * _part_read(load.placement, context)) for load in target)


def _part_read(placement: Placement | None, context: Context) -> Fraction:
    """The part of the rows of a role's tensors that the first node's ranks need."""
    deployment = context.deployment
    ranks = -(-deployment.world // deployment.nodes)
    match placement:
        case Expert(inner):
            blocks, experts = -(-ranks // deployment.moe_tp), context.config.n_routed_experts
            held = Fraction(blocks * (experts + deployment.redundant_experts), deployment.ep * experts)
            return min(Fraction(1), held) * _part_read(inner, context)
        case Split(axis=0) | Pad(axis=0) | Shares():
            parts = deployment.group(placement.group)
            return Fraction(min(ranks, parts), parts)
        case _:
            return Fraction(1)


def _node_subset(context: Context) -> int:
    """Bytes of a node's own checkpoint: everything but the experts of other nodes."""
    nbytes = {True: 0, False: 0}
    for group, count in context.inventory.groups.items():
        nbytes[group.role.module is Module.ROUTED] += group.nbytes * count
    return nbytes[False] + -(-nbytes[True] // context.deployment.nodes)
