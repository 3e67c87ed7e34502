"""Pipeline stages: the layers of each, and which stages hold what is outside of the layers.

A stage is a group of ranks of its own: TP, EP and attention DP stay within it. Both engines number the ranks of the
first stage first. The embedding is on the first stage, head and norm on the last, which also runs the draft model.
"""

from collections import Counter
from collections.abc import Callable
from itertools import accumulate

from dsv4_shard.checkpoint import TensorGroup
from dsv4_shard.engines.deployment import Context
from dsv4_shard.models import Role, Stage

HYPER_HEAD = frozenset({Role.HC_HEAD_FN, Role.HC_HEAD_BASE, Role.HC_HEAD_SCALE})
"""Roles that vLLM has on every stage, and SGLang on the last."""

_LAST = HYPER_HEAD | {Role.FINAL_NORM, Role.HEAD}


def rest_to_the_last(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each stage as SGLang divides them: the last stages have one more (`distributed/utils.py`)."""
    least, more = divmod(layers, stages)
    return (*(least for _ in range(stages - more)), *(least + 1 for _ in range(more)))


def rest_before_the_last(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each stage as vLLM divides them: stages before the last have one more (`distributed/utils.py`)."""
    least, more = divmod(layers, stages)
    return (*(least for _ in range(stages - more - 1)), *(least + 1 for _ in range(more)), least)


def layers_on(context: Context, stage: int) -> range:
    """The layers of a pipeline stage."""
    ends = [0, *accumulate(context.deployment.stage_layers)]
    return range(ends[stage], ends[stage + 1])


def stages_of(context: Context, stage: Stage, layer: int, role: Role, everywhere: frozenset[Role]) -> tuple[int, ...]:
    """The pipeline stages that hold a tensor; `everywhere` are the roles that the engine has on every stage."""
    pp = context.deployment.pp
    if pp == 1:
        return (0,)
    match stage:
        case Stage.LAYER:
            return tuple(number for number in range(pp) if layer in layers_on(context, number))
        case Stage.MODEL if role in everywhere:
            return tuple(range(pp))
        case Stage.MODEL if role not in _LAST:
            return (0,)
        case _:
            return (pp - 1,)


def counts_on(context: Context, stage: int, everywhere: frozenset[Role]) -> dict[TensorGroup, int]:
    """The number of tensors of each group on a pipeline stage, the draft's on the last."""
    inventory = context.inventory
    held = Counter[TensorGroup]()
    for layer in layers_on(context, stage):
        held.update(inventory.layers.get(layer, {}))
    return {
        group: held[group]
        if group.stage is Stage.LAYER
        else count * (stage in stages_of(context, group.stage, -1, group.role, everywhere))
        for group, count in inventory.groups.items()
    }


def partition_variable(context: Context, name: str, split: Callable[[int, int], tuple[int, ...]]) -> dict[str, str]:
    """The variable `name` with the layers of each stage, unless the engine's own `split` is the same."""
    at = context.deployment
    usual = at.pp == 1 or at.stage_layers == split(context.config.num_hidden_layers, at.pp)
    return {} if usual else {name: at.partition}
