"""Request → `LayoutOutcome`: the layout that is chosen, its memory, what it breaks, and the verdict.

Plans, searches, nearby layouts, `inspect` and `explain` all ask here, so that a layout has one verdict everywhere.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dsv4_shard.catalog.gpus import say_memory
from dsv4_shard.checkpoint import Checkpoint, Inventory
from dsv4_shard.engines import (
    NOT_VERIFIED,
    UNKNOWN_GPU,
    Change,
    Context,
    Deployment,
    Engine,
    Request,
    StartStage,
    Verdict,
    engine_for,
)
from dsv4_shard.planning.cache_room import cache_changes, no_cache
from dsv4_shard.planning.choice import Choice, changes_of, choose
from dsv4_shard.planning.kv_cache import plan_cache
from dsv4_shard.planning.memory_documents import PlanMemory, PlanTotals
from dsv4_shard.planning.stages import WeighedStage, fullest_loads, totals_over, weigh_stages
from dsv4_shard.planning.verdict_documents import PlanBreach
from dsv4_shard.planning.weights import GroupLoad, beyond_roles, weights_of
from dsv4_shard.text.units import gib

MEMORY_RULE: Literal["memory"] = "memory"
"""Name of the rule that the weights fit, which no engine states."""

MAKER_RULE: Literal["maker"] = "maker"
"""Name of the rule that the engine has code for the GPU's maker."""

CACHE_RULE: Literal["kv-cache"] = "kv-cache"
"""Name of the rule that some KV cache fits beside the weights."""


@dataclass(frozen=True, slots=True)
class LayoutOutcome:
    """What a request comes to.

    Attributes:
        request: The request.
        choice: The deployment, and the engine's rules that it breaks.
        engine: The engine's table for the model.
        context: The deployment on the checkpoint.
        stages: The pipeline stages, one without pipeline parallelism. Empty if a rule breaks for certain.
        totals: Bytes per rank; None if a rule breaks for certain.
        memory: Whether the weights fit on the named GPU; None without one.
        breaches: What speaks against the layout, without remedies. Empty if nothing does.
    """

    request: Request
    choice: Choice
    engine: Engine
    context: Context
    stages: tuple[WeighedStage, ...]
    totals: PlanTotals | None
    memory: PlanMemory | None
    breaches: tuple[PlanBreach, ...]

    @property
    def deployment(self) -> Deployment:
        """The deployment that is chosen."""
        return self.context.deployment

    @property
    def loads(self) -> tuple[GroupLoad, ...]:
        """Every group of tensors as the ranks of its fullest stage hold it."""
        return fullest_loads(self.stages) if self.stages else ()

    @property
    def weights(self) -> int | None:
        """Bytes of weights on the fullest rank; None if they are of no use."""
        return weights_of(self.totals, self.deployment) if self.totals else None

    @property
    def keeps_rules(self) -> bool:
        """Whether the layout keeps the engine's rules, on a GPU that they are verified on. Its memory may be short."""
        return self.choice.feasible and self.deployment.gpu.verified

    @property
    def changes(self) -> tuple[Change, ...]:
        """Differences from the engine's defaults; none if a rule breaks."""
        if not self.keeps_rules:
            return ()
        return (*changes_of(self.context.inventory, self.request, self.choice), *self.cache_changes)

    @property
    def cache_changes(self) -> tuple[Change, ...]:
        """Those of `changes` that make room for KV cache, which no launch of the engine's table has."""
        return cache_changes(self.context, self.memory)

    @property
    def runs(self) -> bool:
        """Whether the layout runs, with or without changes. Costs less than the verdict."""
        return not self.breaches and self.engine.is_verified_for(self.deployment)

    @property
    def verdict(self) -> Verdict:
        """Whether the layout runs, in one of four answers."""
        return verdict_of(self.engine, self.deployment, self.breaches, self.changes)


def outcome_of(
    inventory: Inventory, request: Request, session: int | None = None, checkpoint: Checkpoint | None = None
) -> LayoutOutcome:
    """Choose a layout for `request`, and judge it.

    Args:
        inventory: The checkpoint's inventory. Only its names outside of layers are read.
        request: The request.
        session: Tokens of a session that must fit.
        checkpoint: The checkpoint itself. Without it, the totals lack the draft's own embedding and head, which are in
            no verdict.

    Raises:
        UsageError: A number or a name in the request is invalid.
    """
    return judge(inventory, request, choose(inventory, request), session, checkpoint)


def judge(
    inventory: Inventory,
    request: Request,
    choice: Choice,
    session: int | None = None,
    checkpoint: Checkpoint | None = None,
) -> LayoutOutcome:
    """Judge the layout that was chosen for `request`. The parameters are those of `outcome_of`."""
    engine, context = engine_for(request.engine, inventory.family), Context(inventory, choice.deployment, session)
    is_weighed = choice.is_weighed or not choice.deployment.gpu.verified
    beyond = beyond_roles(checkpoint, engine, context) if choice.feasible else (0, 0)
    stages = weigh_stages(engine, context, beyond) if is_weighed else ()
    totals = totals_over(stages) if stages else None
    memory = memory_of(context, weights_of(totals, choice.deployment), choice) if totals else None
    breaches = breaches_of(engine, choice, memory)
    return LayoutOutcome(request, choice, engine, context, stages, totals, memory, breaches)


def memory_of(context: Context, weights: int, choice: Choice) -> PlanMemory | None:
    """Return whether `weights` bytes fit, and the KV cache in the memory that they and the engine's reserve leave.

    None if no GPU is named. The cache is counted only where the rules hold.
    """
    gpu = context.deployment.gpu
    if not context.deployment.gpu_named:
        return None
    left = gpu.memory - weights
    has_cache = left > 0 and choice.feasible
    cache = plan_cache(context, weights) if has_cache else None
    return PlanMemory(
        gpu=gpu.title,
        capacity=gpu.memory,
        weights=weights,
        left=left,
        fits=left > 0,
        kv_cache=cache,
        no_cache=no_cache(context, weights, cache) if has_cache else None,
    )


def breaches_of(engine: Engine, choice: Choice, memory: PlanMemory | None) -> tuple[PlanBreach, ...]:
    """Return what speaks against a layout, the first stop first: GPU or rules, then weights, then KV cache.

    On a GPU that the rules are not verified on, only that is said of them. A bound on the weights is not compared with
    the memory.
    """
    gpu = choice.deployment.gpu
    if not engine.is_for(gpu):
        reason = f"{engine.title} has no code for GPUs of {gpu.maker}"
        return (_of_no_module(MAKER_RULE, reason, "does not start", StartStage.CONFIGURATION),)
    if gpu.verified:
        ruled = tuple(map(PlanBreach.of, choice.breaches))
    else:
        reason = f"{engine.title} {engine.version}'s own classes were not run for {gpu.full_title}"
        ruled = (_of_no_module(UNKNOWN_GPU, reason, NOT_VERIFIED),)
    if memory is None or engine.is_bound:
        return ruled
    if not memory.fits:
        reason = say_memory(memory.weights, memory.gpu, memory.capacity)
        consequence = "out of memory while the weights load"
        return (*ruled, _of_no_module(MEMORY_RULE, reason, consequence, StartStage.LOADING))
    if memory.no_cache is None:
        return ruled
    reason = f"{gib(memory.left)} beside the weights: {memory.no_cache}"
    return (*ruled, _of_no_module(CACHE_RULE, reason, "out of memory before the first request", StartStage.KV_PLANNING))


def _of_no_module(rule: str, reason: str, consequence: str, stage: StartStage | None = None) -> PlanBreach:
    """Return a breach that belongs to no engine's rule and no single module."""
    return PlanBreach(
        rule=rule, module=None, reason=reason, stage=stage, is_first_stop=stage is not None, engine_says=None,
        consequence=consequence, remedies=(),
    )  # fmt: skip


def verdict_of(
    engine: Engine, deployment: Deployment, breaches: Iterable[PlanBreach], changes: Iterable[Change]
) -> Verdict:
    """Return the verdict of a layout with these breaches and changes from the engine's defaults."""
    found = tuple(breaches)
    if any(breach.unknown for breach in found):
        return Verdict.UNVERIFIED
    if found:
        return Verdict.FAILS
    if not engine.is_verified_for(deployment):
        return Verdict.UNVERIFIED
    return Verdict.CHANGED if tuple(changes) else Verdict.RUNS
