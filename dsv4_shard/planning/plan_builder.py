"""Checkpoint + request → Plan: the placement of every module, bytes per rank, and the launch.

A plan is a JSON document that a person can read, diff and review, and that `reshard` reads on another machine. It
follows from headers and rules alone, so `check_plan` can make it again and detect an edited or a foreign plan.
"""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dsv4_shard.catalog.gpus import GPUS, say_memory
from dsv4_shard.checkpoint import NVFP4, Checkpoint, Inventory, origin_of, refuse_errors
from dsv4_shard.engines import (
    ANY_ENGINE,
    ASSUMED_GPU,
    NOT_VERIFIED,
    UNKNOWN_GPU,
    Change,
    Context,
    Deployment,
    Divides,
    Engine,
    Request,
    StartStage,
    Verdict,
    engine_for,
    pick_nodes,
    say_placement,
)
from dsv4_shard.errors import InfeasiblePlan, LayoutNotVerified
from dsv4_shard.models import NATIVE, TARGET, Module, Part, Stage
from dsv4_shard.planning.cache_changes import cache_breach, cache_changes
from dsv4_shard.planning.choice import Choice, changes_of, choose
from dsv4_shard.planning.document import (
    SCHEMA_VERSION,
    Plan,
    PlanAlternative,
    PlanBreach,
    PlanChange,
    PlanCheck,
    PlanDeployment,
    PlanLoss,
    PlanMemory,
    PlanModule,
)
from dsv4_shard.planning.draft import draft_notes
from dsv4_shard.planning.host_memory import plan_host
from dsv4_shard.planning.nearby import nearest
from dsv4_shard.planning.remedies import ways_out
from dsv4_shard.planning.request import options_of
from dsv4_shard.planning.ways import ways_of
from dsv4_shard.planning.weights import GroupLoad, beyond_roles, fits, loads, memory_of, rank_nbytes, totals_of
from dsv4_shard.version import __version__

_ALTERNATIVES = 3

_ALONE = "One rank holds all of it: nothing is added up between ranks."

MEMORY_RULE = "memory"
"""Name of the rule that the weights fit, which no engine states."""


def _modules(engine: Engine, weights: list[GroupLoad], context: Context) -> Iterator[PlanModule]:
    """Yield a row per role, weights and scales together; shapes are the weight's in the most common kind of layer."""
    rows: dict[tuple[str, str], list[GroupLoad]] = {}
    for load in weights:
        part_of = "draft" if load.group.stage is Stage.MTP else "target"
        rows.setdefault((part_of, load.group.role), []).append(load)
    order = list(Module)
    for (part_of, _), members in sorted(rows.items(), key=lambda row: order.index(row[1][0].group.role.module)):
        main = max((m for m in members if m.group.part is Part.WEIGHT), key=lambda m: m.count)
        group = main.group
        fmt = context.inventory.format(group.role, group.stage)
        yield PlanModule(
            part_of="draft" if part_of == "draft" else "target",
            module=group.role.module,
            role=str(group.role),
            format=str(fmt) if fmt else group.dtype,
            block=(fmt.block.rows, fmt.block.cols) if fmt and fmt.block else None,
            placement=say_placement(engine.place(group.role, context), group, main.stored, context.deployment),
            shape=group.shape,
            rank_shape=main.stored.shape,
            rank_dtype=main.stored.dtype,
            tensors_per_rank=sum(m.per_rank[1] for m in members),
            bytes_per_rank=sum(m.stored.nbytes * m.per_rank[1] for m in members),
            padding_per_rank=sum(m.stored.padding * m.per_rank[1] for m in members),
        )


def memory_breach(memory: PlanMemory | None, remedies: tuple[str, ...] = ()) -> list[PlanBreach]:
    """Return the breach for weights that do not fit; empty if they fit."""
    if memory is None or memory.fits:
        return []
    reason = say_memory(memory.weights, memory.gpu, memory.capacity)
    return [_whole(MEMORY_RULE, reason, "out of memory while the weights load", *remedies, stage=StartStage.LOADING)]


def _whole(rule: str, reason: str, consequence: str, *remedies: str, stage: StartStage | None = None) -> PlanBreach:
    """Return a breach that belongs to no engine's rule and no single module."""
    return PlanBreach(
        rule=rule, module=None, reason=reason, stage=stage, is_first_stop=stage is not None, engine_says=None,
        consequence=consequence, remedies=remedies,
    )  # fmt: skip


def _larger_gpu(inventory: Inventory, request: Request, memory: PlanMemory | None) -> tuple[str, ...]:
    """Remedy for weights that do not fit: the smallest GPU on which the request runs. Empty if they fit."""
    if memory is None or memory.fits:
        return ()
    larger = _running_gpu(inventory, request, memory.capacity + 1)
    return () if larger is None else (f"--gpu {larger}, the smallest that holds them",)


def _running_gpu(inventory: Inventory, request: Request, least: int) -> str | None:
    """The smallest verified GPU of at least `least` bytes on which the request runs."""
    for gpu in sorted(GPUS.values(), key=lambda gpu: gpu.memory):
        if gpu.memory >= least and gpu.verified:
            choice = choose(inventory, replace(request, gpu=gpu.name, gpu_memory=None))
            if choice.feasible and fits(inventory, choice.deployment):
                return gpu.name
    return None


def unknown_gpu(
    engine: Engine, deployment: Deployment, inventory: Inventory | None = None, request: Request | None = None
) -> list[PlanBreach]:
    """Return the breach for a GPU that the engine's rules are not verified on; empty if they are.

    Its remedy is a verified GPU of at least its memory, on which `request` runs; none without a request.
    """
    if deployment.gpu.verified:
        return []
    reason = f"{engine.title} {engine.version}'s own classes were not run for {deployment.gpu.full_title}"
    other = None
    if inventory is not None and request is not None:
        other = _running_gpu(inventory, request, deployment.gpu.memory)
    ways = () if other is None else (f"--gpu {other}, the smallest of its memory whose rules are verified",)
    return [_whole(UNKNOWN_GPU, reason, NOT_VERIFIED, *ways)]


def make_plan(
    checkpoint: Checkpoint,
    inventory: Inventory,
    request: Request,
    label: str | None = None,
    session: int | None = None,
) -> Plan:
    """Return the plan for `request`, feasible or not.

    `label` is the name of the checkpoint in commands, `session` the tokens of a session that must fit.

    Raises:
        IncompleteCheckpoint: The checkpoint has errors.
        UsageError: The request is invalid.
    """
    refuse_errors(inventory)
    label = checkpoint.source.label if label is None else label
    choice = choose(inventory, request)
    engine = engine_for(request.engine, inventory.family)
    context = Context(inventory, choice.deployment, session)
    is_weighed = choice.is_weighed or not choice.deployment.gpu.verified
    weights = list(loads(engine, context)) if is_weighed else []
    beyond = beyond_roles(checkpoint, engine, context) if choice.feasible else (0, 0)
    totals = totals_of(weights, context, beyond) if is_weighed else None
    memory = memory_of(totals, context) if totals else None
    if memory is not None and not choice.feasible:
        memory = memory.model_copy(update={"kv_cache": None})
    unknown = unknown_gpu(engine, choice.deployment, inventory, request)
    ruled = unknown or [PlanBreach.of(breach, ways_out(inventory, request, breach)) for breach in choice.breaches]
    too_large = () if engine.is_bound else memory_breach(memory, _larger_gpu(inventory, request, memory))
    breaches = (*ruled, *too_large, *cache_breach(memory))
    verified = not any(breach.unknown for breach in breaches)
    refusal = engine.layout.refusal(context) if engine.layout and choice.feasible and not unknown else None
    layout = engine.layout.name if engine.layout and refusal is None and not breaches else None
    runs = choice.feasible and not unknown
    changes = (*changes_of(inventory, request, choice), *cache_changes(memory)) if runs else ()
    out = folder_of(inventory, request, choice.deployment, label) if layout else None
    reshard = f"dsv4-shard reshard {shlex.quote(label)} {shlex.quote(out)} {options_of(request)}" if out else None
    shards = (out, reshard) if out and reshard else None
    return Plan(
        kind="plan",
        schema_version=SCHEMA_VERSION,
        tool_version=__version__,
        source=origin_of(checkpoint, label),
        request=request,
        context=session,
        engine_version=engine.version,
        deployment=PlanDeployment.of(choice.deployment, is_verified=verified),
        verdict=_verdict(engine, context, breaches, changes),
        breaches=breaches,
        checks=() if unknown else tuple(_checks(engine, context)),
        changes=tuple(map(PlanChange.of, changes)),
        losses=tuple(map(PlanLoss.of, engine.losses(context))) if layout else (),
        notes=(*engine.notes(context), *draft_notes(inventory, request, context)) if runs else (),
        unwritten=refusal,
        assumptions=(
            *_assumptions(choice.deployment, request, checkpoint.dialect if layout is None else NATIVE),
            *_unverified(engine, context, choice),
        ),
        modules=tuple(_modules(engine, weights, context)),
        totals=totals,
        memory=memory,
        host=plan_host(checkpoint, context, weights, totals, layout is not None),
        shared_expert_addition=engine.addition(context) if choice.deployment.world > 1 else _ALONE,
        ways=()
        if breaches
        else tuple(ways_of(checkpoint, engine, context, totals, label, shards, cache_changes(memory))),
        layout=layout,
        out=out,
        alternatives=() if not breaches or not verified else tuple(_alternatives(inventory, request)),
    )


def _verdict(
    engine: Engine, context: Context, breaches: tuple[PlanBreach, ...], changes: tuple[Change, ...]
) -> Verdict:
    """The verdict of a plan. Node folders of a family or format that no engine was run with are not verified."""
    if breaches:
        return Verdict.UNVERIFIED if any(breach.unknown for breach in breaches) else Verdict.FAILS
    if engine.version == ANY_ENGINE or context.deployment.experts == NVFP4:
        return Verdict.UNVERIFIED
    return Verdict.CHANGED if changes else Verdict.RUNS


def folder_of(inventory: Inventory, request: Request, deployment: Deployment, label: str) -> str:
    """Return a folder name that is unique to the layout. It omits the engine's own choices.

    Files for nodes of another size than the assumed GPU's have the GPU's name in place of the number of nodes.
    """
    engine = engine_for(request.engine, inventory.family)
    own = choose(inventory, replace(request, runner=None, shared_experts="auto")).deployment
    usual, own_nodes = (
        pick_nodes(replace(request, nodes=None), deployment.world, gpu) for gpu in (ASSUMED_GPU, deployment.gpu)
    )
    own_ep = next(engine.candidates(inventory, replace(request, ep=None))).ep
    parts = (
        (f"tp{deployment.tp}", True),
        (f"ep{deployment.ep}", deployment.ep != own_ep),
        (f"dp{deployment.dp}", deployment.dp > 1),
        (deployment.a2a, deployment.a2a),
        (deployment.runner, deployment.runner != own.runner),
        (deployment.shared, deployment.shared != own.shared),
        (deployment.experts.lower(), deployment.experts != inventory.routed.name),
        (deployment.gpu.name, engine.by_node and deployment.nodes == own_nodes != usual),
        (f"{deployment.nodes}nodes", engine.by_node and deployment.nodes != own_nodes),
        (f"sm{deployment.gpu.sm}", deployment.gpu.sm != ASSUMED_GPU.sm and not engine.files_for_any_gpu),
        (deployment.version, deployment.version != engine.version),
    )
    return "-".join((Path(label).name, engine.name, *(str(part) for part, told in parts if told)))


def _checks(engine: Engine, context: Context) -> Iterator[PlanCheck]:
    for rule in engine.rules:
        arithmetic = rule.explain(context)
        if arithmetic is not None and isinstance(rule, Divides):
            yield PlanCheck(
                rule=rule.name,
                module=rule.module,
                arithmetic=arithmetic,
                holds=rule.check(context) is None,
                size=rule.size(context),
                size_name=rule.size_name,
                parts=rule.parts(context),
                parts_name=rule.parts_name,
                unit=rule.unit(context),
                unit_name=rule.unit_word(context),
            )


def _assumptions(deployment: Deployment, request: Request, dialect: str) -> tuple[str, ...]:
    """Assumptions of the plan; `dialect` is the naming dialect that the engine's own loader has to read."""
    assumptions = []
    if not deployment.gpu_named and deployment.version != ANY_ENGINE:
        assumptions.append("Hopper (sm_90) is assumed and memory is not compared: name the GPU with --gpu")
    if request.gpu_memory is not None:
        assumptions.append(
            f"Hopper (sm_90) is assumed for a GPU of {deployment.gpu.memory / (1 << 30):.2f} GiB (--gpu-memory): "
            "name the GPU with --gpu"
        )
    if not deployment.gpu.verified:
        assumptions.append(f"bytes are those on {deployment.gpu.stands_for} (sm_{deployment.gpu.sm}); on "
                           f"{deployment.gpu.title} the engine may hold weights in other formats")  # fmt: skip
    if dialect != NATIVE:
        assumptions.append(f"whether the engine reads the checkpoint's own names ({dialect}) is not verified")
    return tuple(assumptions)


def _unverified(engine: Engine, context: Context, choice: Choice) -> tuple[str, ...]:
    """What bytes per rank rest on if the outcome is not verified for the model, its experts or the version."""
    if not choice.is_weighed or (choice.feasible and not engine.is_bound):
        return ()
    return (f"not verified: {engine.assumes(context)}",)


def _alternatives(inventory: Inventory, request: Request) -> Iterator[PlanAlternative]:
    for variation, choice in nearest(inventory, request, _ALTERNATIVES):
        yield PlanAlternative(
            options=options_of(variation),
            gpus=choice.deployment.world,
            bytes_per_rank=rank_nbytes(inventory, choice.deployment, TARGET),
            changes=tuple(map(PlanChange.of, changes_of(inventory, variation, choice))),
        )


def refuse_infeasible(plan: Plan) -> None:
    """Refuse a plan that has breaches.

    Raises:
        InfeasiblePlan, LayoutNotVerified: The plan has breaches; the message has the first one.
    """
    if plan.breaches:
        breach = plan.breaches[0]
        ways = [f"`{alternative.options}`" for alternative in plan.alternatives]
        hint = f"These work: {', '.join(ways)}." if ways else "`dsv4-shard plan` shows what was weighed."
        error = LayoutNotVerified if plan.verdict is Verdict.UNVERIFIED else InfeasiblePlan
        raise error(f"{breach} ({breach.consequence})", hint=hint)
