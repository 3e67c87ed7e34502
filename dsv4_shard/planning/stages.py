"""The pipeline stages of a deployment, each with its bytes per rank; without pipeline parallelism there is one."""

from collections.abc import Sequence
from dataclasses import dataclass

from dsv4_shard.engines import Context, Deployment, Engine, layers_on
from dsv4_shard.models import TARGET
from dsv4_shard.planning.memory_documents import PlanStage, PlanTotals
from dsv4_shard.planning.weights import GroupLoad, loads, totals_of


@dataclass(frozen=True, slots=True)
class WeighedStage:
    """What the ranks of a stage hold: every group of tensors, and the totals."""

    loads: tuple[GroupLoad, ...]
    totals: PlanTotals


def weigh_stages(engine: Engine, context: Context, beyond: tuple[int, int]) -> tuple[WeighedStage, ...]:
    """Return every stage. `beyond` are the bytes from `beyond_roles`, those of the draft on the last stage."""
    pp = context.deployment.pp
    every = [tuple(loads(engine, context, stage)) for stage in range(pp)]
    own = [beyond if stage == pp - 1 else (beyond[0], 0) for stage in range(pp)]
    return tuple(
        WeighedStage(weights, totals_of(weights, context, more)) for weights, more in zip(every, own, strict=True)
    )


def fullest_loads(stages: Sequence[WeighedStage]) -> tuple[GroupLoad, ...]:
    """Return the groups of the target on its fullest stage, and those of the draft on the last."""
    if len(stages) == 1:
        return stages[0].loads
    target = (load for load in _fullest(stages).loads if load.group.stage in TARGET)
    return (*target, *(load for load in stages[-1].loads if load.group.stage not in TARGET))


def totals_over(stages: Sequence[WeighedStage]) -> PlanTotals:
    """Return the totals of the fullest stage, with the least bytes of any stage, and the draft of the last."""
    last = stages[-1].totals
    return _fullest(stages).totals.model_copy(
        update={
            "target_bytes_per_rank_min": min(stage.totals.target_bytes_per_rank_min for stage in stages),
            "draft_bytes_per_rank": last.draft_bytes_per_rank,
            "other_draft_bytes_per_rank": last.other_draft_bytes_per_rank,
        }
    )


def _fullest(stages: Sequence[WeighedStage]) -> WeighedStage:
    return max(stages, key=lambda stage: stage.totals.target_bytes_per_rank_max)


def plan_stages(stages: Sequence[WeighedStage], context: Context) -> tuple[PlanStage, ...]:
    """Return the plan's rows of pipeline stages; none without pipeline parallelism."""
    at = context.deployment
    each = ranks_of_node(at)
    return tuple(
        PlanStage(
            stage=number,
            layers=(layers_on(context, number).start, layers_on(context, number).stop),
            ranks=(number * at.stage_world, (number + 1) * at.stage_world),
            nodes=(number * at.stage_world // each, ((number + 1) * at.stage_world - 1) // each + 1),
            target_bytes_per_rank_min=stage.totals.target_bytes_per_rank_min,
            target_bytes_per_rank_max=stage.totals.target_bytes_per_rank_max,
            draft_bytes_per_rank=stage.totals.draft_bytes_per_rank,
        )
        for number, stage in enumerate(stages)
        if at.pp > 1
    )


def ranks_of_node(deployment: Deployment) -> int:
    """Return the ranks of the fullest node."""
    return -(-deployment.world // deployment.nodes)


def ranks_on_nodes(deployment: Deployment) -> list[list[int]]:
    """Return, for each node, how many of its ranks are on each pipeline stage; ranks are numbered stage by stage."""
    each, of_stage = ranks_of_node(deployment), deployment.stage_world
    edges = [(node * each, min((node + 1) * each, deployment.world)) for node in range(deployment.nodes)]
    return [
        [max(0, min(stop, (stage + 1) * of_stage) - max(start, stage * of_stage)) for stage in range(deployment.pp)]
        for start, stop in edges
    ]
