"""Inspection + parallelism + engine → Plan: where every module goes, what it weighs, and how it is launched.

A plan is a JSON document that a person can read, diff and review, and that `reshard` takes on another machine. It is
made from headers and rules alone, so it can be made again: that is how an edited or a foreign plan is found out.
"""

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from dsv4_shard.catalog.gpus import GPUS, say_memory
from dsv4_shard.checkpoint.fingerprint import Origin, origin_of
from dsv4_shard.checkpoint.formats import NVFP4
from dsv4_shard.checkpoint.inventory import Inventory, refuse_errors
from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.choosing import TARGET, Load, choose, fits, loads, nearest, options_of, rank_nbytes
from dsv4_shard.engines import engine_for
from dsv4_shard.engines.base import (
    ANY_ENGINE,
    ASSUMED_GPU,
    UNCLAIMED,
    UNKNOWN_GPU,
    Breach,
    Context,
    Deployment,
    Divides,
    Engine,
    Launch,
    LeftOut,
    Request,
    say_placement,
)
from dsv4_shard.engines.common import fewest_nodes
from dsv4_shard.errors import InfeasiblePlan
from dsv4_shard.kvcache import bytes_per_token
from dsv4_shard.models.dialects import NATIVE
from dsv4_shard.models.roles import Module, Part, Role, Stage
from dsv4_shard.remedies import ways_out
from dsv4_shard.version import __version__

SCHEMA_VERSION: Literal[1] = 1

_ALTERNATIVES = 3

_ALONE = "One rank holds all of it: nothing is added up between ranks."

MEMORY_RULE = "memory"
"""The rule that weights fit, which no engine states."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlanBreach(_Document):
    """A rule that breaks, of one module or of the whole model: `reason` is the arithmetic, `remedies` are ways out that
    help, as options.

    `engine_says` is what the engine itself prints, None where it prints nothing, its words are not known, or it has
    stopped at another rule, which then is the first; `consequence` says which.
    """

    rule: str
    module: Module | None
    reason: str
    engine_says: str | None
    consequence: str
    remedies: tuple[str, ...]

    @property
    def unknown(self) -> bool:
        """Whether it says that nothing is known, and not that it does not run."""
        return self.consequence == UNCLAIMED

    def __str__(self) -> str:
        return f"{self.module}: {self.reason}" if self.module else self.reason

    @classmethod
    def of(cls, breach: Breach, remedies: tuple[str, ...] = ()) -> "PlanBreach":
        """The breach of an engine's rule, with those of its remedies that help."""
        return cls(
            rule=breach.rule,
            module=breach.module,
            reason=breach.reason,
            engine_says=breach.quote,
            consequence=breach.consequence,
            remedies=remedies,
        )


class PlanCheck(_Document):
    """A rule that was checked, with its arithmetic: `size` / `parts` must be whole and a multiple of `unit`."""

    rule: str
    module: Module
    arithmetic: str
    holds: bool
    size: int
    size_name: str
    parts: int
    parts_name: str
    unit: int
    unit_name: str


class PlanModule(_Document):
    """A role's placement. Shapes in elements; bytes of weights and scales on the heaviest rank.

    `block` is the rows and columns that share one scale, None where there are no scales.
    """

    part_of: Literal["target", "draft"]
    module: Module
    role: str
    format: str
    block: tuple[int, int] | None
    placement: str
    shape: tuple[int, ...]
    rank_shape: tuple[int, ...]
    rank_dtype: str
    tensors_per_rank: int
    bytes_per_rank: int
    padding_per_rank: int


class PlanTotals(_Document):
    """Bytes on a rank, exactly those of its files' tensors. `target` and `draft` (MTP) apart.

    `other` (in no module's row: constants, the draft's own embedding and head), `replicated` and `padding` are within
    them.
    """

    ranks: int
    target_bytes_per_rank_min: int
    target_bytes_per_rank_max: int
    draft_bytes_per_rank: int
    other_target_bytes_per_rank: int
    other_draft_bytes_per_rank: int
    replicated_bytes_per_rank: int
    padding_bytes_per_rank: int
    shared_experts_bytes_per_rank: int
    shared_experts_weight_bytes_per_layer: int


class PlanMemory(_Document):
    """Whether the weights fit on the named GPU, in bytes.

    `kv_bytes_per_token` is what a token of context costs at the least, in all layers' caches, and `kv_tokens_at_most`
    how many would fill all that is left, in each attention group; None where that is not known.
    """

    gpu: str
    capacity: int
    weights: int
    left: int
    fits: bool
    kv_bytes_per_token: float | None
    kv_tokens_at_most: int | None


class PlanLaunch(_Document):
    """How to start the engine on this plan, empty where it does not run. `draft_options` are added to the commands to
    use the MTP draft model."""

    environment: dict[str, str]
    commands: tuple[str, ...]
    files: dict[str, str]
    draft_options: str


class PlanAlternative(_Document):
    """A layout near the one asked for that works."""

    options: str
    gpus: int
    bytes_per_rank: int
    notes: tuple[str, ...]


class Plan(_Document):
    """The whole plan.

    `choices` says what the plan chose instead of the engine's default and why, and what the engine pads. `unwritten`
    says why no shards can be written for it, where they cannot; then the commands serve the checkpoint itself.
    """

    schema_version: Literal[1]
    tool_version: str
    source: Origin
    request: dict[str, int | str | None]
    engine_version: str
    deployment: dict[str, Any]
    feasible: bool
    breaches: tuple[PlanBreach, ...]
    checks: tuple[PlanCheck, ...]
    choices: tuple[str, ...]
    assumptions: tuple[str, ...]
    modules: tuple[PlanModule, ...]
    totals: PlanTotals | None
    memory: PlanMemory | None
    shared_expert_addition: str
    launch: PlanLaunch
    layout: str | None
    unwritten: str | None
    reshard: str | None
    alternatives: tuple[PlanAlternative, ...]

    @property
    def unknown(self) -> bool:
        """Whether nothing is known of the layout, so that it is not called unable to run."""
        return any(breach.unknown for breach in self.breaches)

    @property
    def verdict(self) -> str:
        """What is said of the layout: that it "runs", or less."""
        if not self.feasible:
            return "is not known to run" if self.unknown else "does not run"
        served = self.engine_version != ANY_ENGINE and self.deployment["experts"] != NVFP4
        return "runs" if served else "can be written"

    @property
    def title(self) -> str:
        """The verdict as a heading."""
        return self.verdict.removeprefix("is ").capitalize()

    def to_json(self) -> str:
        """The document as `-o plan.json` writes it."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def beyond_roles(checkpoint: Checkpoint, engine: Engine, context: Context) -> tuple[int, int]:
    """Bytes of (target, draft) files that no role's placement counts: constants, and tensors that the draft has too."""
    if engine.layout is None:
        return 0, 0
    nbytes = {False: 0, True: 0}
    for constant in engine.layout.constants(context):
        if constant.rank <= 0:
            nbytes[bool(constant.folder)] += len(constant.data)
    groups = {group.role: group for group in context.inventory.groups if group.stage is Stage.MODEL}
    for name, where in context.inventory.names.items():
        if where.stage is not Stage.MODEL:
            continue
        fate = engine.layout.fate(checkpoint.tensors[name], where, context)
        held = engine.held(groups[where.role], context)
        if held is not None and not isinstance(fate, LeftOut):
            for kept in fate[1:]:
                nbytes[bool(kept.folder)] += held.nbytes
    return nbytes[False], nbytes[True]


def totals_of(weights: list[Load], context: Context, beyond: tuple[int, int]) -> PlanTotals:
    """What a rank holds; `beyond` is what `beyond_roles` counts."""
    target = [load for load in weights if load.group.stage in TARGET]
    draft = [load for load in weights if load.group.stage not in TARGET]
    shared = [load for load in target if load.group.role.module is Module.SHARED]
    weights_of_layer = [load for load in shared if load.group.part is Part.WEIGHT]
    shared_layers = sum(load.count for load in weights_of_layer if load.group.role is Role.SHARED_GATE)
    shared_weights = sum(load.held.nbytes * load.count for load in weights_of_layer)
    return PlanTotals(
        ranks=context.at.world,
        target_bytes_per_rank_min=beyond[0] + sum(load.held.nbytes * load.per_rank[0] for load in target),
        target_bytes_per_rank_max=beyond[0] + sum(load.held.nbytes * load.per_rank[1] for load in target),
        other_target_bytes_per_rank=beyond[0],
        other_draft_bytes_per_rank=beyond[1],
        draft_bytes_per_rank=beyond[1] + sum(load.held.nbytes * load.per_rank[1] for load in draft),
        replicated_bytes_per_rank=sum(load.held.nbytes * load.count for load in target if load.replicated),
        padding_bytes_per_rank=sum(load.held.padding * load.per_rank[1] for load in target),
        shared_experts_bytes_per_rank=sum(load.held.nbytes * load.count for load in shared),
        shared_experts_weight_bytes_per_layer=shared_weights // max(1, shared_layers),
    )


def _modules(engine: Engine, weights: list[Load], context: Context) -> Iterator[PlanModule]:
    """One row for each role, weights and scales together; shapes are the weight's, of the commonest kind of layer."""
    rows: dict[tuple[str, str], list[Load]] = {}
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
            placement=say_placement(engine.place(group.role, context), group, main.held, context.at),
            shape=group.shape,
            rank_shape=main.held.shape,
            rank_dtype=main.held.dtype,
            tensors_per_rank=sum(m.per_rank[1] for m in members),
            bytes_per_rank=sum(m.held.nbytes * m.per_rank[1] for m in members),
            padding_per_rank=sum(m.held.padding * m.per_rank[1] for m in members),
        )


def weights_of(totals: PlanTotals, at: Deployment) -> int:
    """The reference keeps the MTP block in the same model; other engines load it only as a draft model."""
    return totals.target_bytes_per_rank_max + (totals.draft_bytes_per_rank if at.engine == "reference" else 0)


def memory_of(totals: PlanTotals, context: Context) -> PlanMemory | None:
    """Whether the weights fit, and what they leave; None where no GPU is named."""
    at = context.at
    if not at.gpu_named:
        return None
    weights = weights_of(totals, at)
    left = at.gpu.memory - weights
    token = bytes_per_token(context)
    return PlanMemory(
        gpu=at.gpu.title,
        capacity=at.gpu.memory,
        weights=weights,
        left=left,
        fits=left > 0,
        kv_bytes_per_token=float(token) if token else None,
        kv_tokens_at_most=int(max(0, left) / token) if token else None,
    )


def memory_breach(memory: PlanMemory | None, remedies: tuple[str, ...] = ()) -> list[PlanBreach]:
    """That the weights do not fit, where they do not."""
    if memory is None or memory.fits:
        return []
    reason = say_memory(memory.weights, memory.gpu, memory.capacity)
    return [_whole(MEMORY_RULE, reason, "out of memory while the weights load", *remedies)]


def _whole(rule: str, reason: str, consequence: str, *remedies: str) -> PlanBreach:
    """A breach of no engine's rule and no single module."""
    return PlanBreach(
        rule=rule, module=None, reason=reason, engine_says=None, consequence=consequence, remedies=remedies
    )


def _larger_gpu(inventory: Inventory, request: Request, memory: PlanMemory | None) -> tuple[str, ...]:
    """The smallest GPU on which the same request runs, where the weights do not fit on the one asked for."""
    if memory is None or memory.fits:
        return ()
    for gpu in sorted(GPUS.values(), key=lambda gpu: gpu.memory):
        if gpu.memory > memory.capacity and not gpu.unheld:
            choice = choose(inventory, replace(request, gpu=gpu.name, gpu_memory=None))
            if choice.feasible and fits(inventory, choice.at):
                return (f"--gpu {gpu.name}, the smallest that holds them",)
    return ()


def unknown_gpu(engine: Engine, at: Deployment) -> list[PlanBreach]:
    """That nothing is claimed of the GPU's kernels, where the engine's rules were never held on it."""
    if not at.gpu.unheld:
        return []
    reason = f"what {engine.title} {engine.version} runs on {at.gpu.full_title} was never held against its own classes"
    other = "--gpu rtx-pro-6000, which is sm_120"
    if at.gpu.stands_for == "Hopper":
        other = "--gpu-memory in place of --gpu, for a Hopper GPU of that size"
    return [_whole(UNKNOWN_GPU, reason, UNCLAIMED, other)]


def make_plan(checkpoint: Checkpoint, inventory: Inventory, request: Request, label: str | None = None) -> Plan:
    """The plan for `request`, feasible or not.

    `label` is how commands name the checkpoint. Raises IncompleteCheckpoint where the checkpoint has errors, and
    UsageError for a request that means nothing.
    """
    refuse_errors(inventory)
    label = checkpoint.source.label if label is None else label
    choice = choose(inventory, request)
    engine = engine_for(request.engine, inventory.family)
    context = Context(inventory, choice.at)
    weights = list(loads(engine, context)) if choice.feasible else []
    totals = totals_of(weights, context, beyond_roles(checkpoint, engine, context)) if choice.feasible else None
    memory = memory_of(totals, context) if totals else None
    unknown = unknown_gpu(engine, choice.at)
    ruled = unknown or [PlanBreach.of(breach, ways_out(inventory, request, breach)) for breach in choice.breaches]
    breaches = (*ruled, *memory_breach(memory, _larger_gpu(inventory, request, memory)))
    claimed = not any(breach.unknown for breach in breaches)
    refusal = engine.layout.refusal(context) if engine.layout and choice.feasible and not unknown else None
    layout = engine.layout.name if engine.layout and refusal is None and not breaches else None
    out = folder_of(inventory, request, choice.at, label) if layout else label
    launch = Launch({}, ()) if breaches else engine.launch(context, shlex.quote(out), layout is not None)
    return Plan(
        schema_version=SCHEMA_VERSION,
        tool_version=__version__,
        source=origin_of(checkpoint, label),
        request=asdict(request),
        engine_version=engine.version,
        deployment=_deployment(choice.at, claimed),
        feasible=not breaches,
        breaches=breaches,
        checks=() if unknown else tuple(_checks(engine, context)),
        choices=(*choice.notes(), *engine.notes(context)) if choice.feasible and not unknown else (),
        unwritten=refusal,
        assumptions=_assumptions(choice.at, request, checkpoint.dialect if layout is None else NATIVE),
        modules=tuple(_modules(engine, weights, context)),
        totals=totals,
        memory=memory,
        shared_expert_addition=engine.addition(context) if choice.at.world > 1 else _ALONE,
        launch=PlanLaunch(
            environment=launch.environment,
            commands=launch.commands,
            files=launch.files,
            draft_options=launch.draft_options if inventory.mtp_blocks and not inventory.draft.dspark else "",
        ),
        layout=layout,
        reshard=f"dsv4-shard reshard {shlex.quote(label)} {shlex.quote(out)} {options_of(request)}" if layout else None,
        alternatives=()
        if not breaches or any(breach.unknown for breach in breaches)
        else tuple(_alternatives(inventory, request)),
    )


def folder_of(inventory: Inventory, request: Request, at: Deployment, label: str) -> str:
    """A folder name that no other layout gets. It leaves out what the engine chooses by itself on the assumed GPU."""
    engine = engine_for(request.engine, inventory.family)
    own = choose(inventory, replace(request, runner=None, shared="auto")).at
    own_ep = next(engine.candidates(inventory, replace(request, ep=None))).ep
    by_node, any_gpu = engine.layout is not None and engine.layout.by_node, engine.name == "reference"
    parts = (
        (f"tp{at.tp}", True),
        (f"ep{at.ep}", at.ep != own_ep),
        (f"dp{at.dp}", at.dp > 1),
        (at.a2a, at.a2a),
        (at.runner, at.runner != own.runner),
        (at.shared, at.shared != own.shared),
        (at.experts.lower(), at.experts != inventory.routed.name),
        (f"{at.nodes}nodes", by_node and at.nodes != fewest_nodes(at.world, ASSUMED_GPU)),
        (f"sm{at.gpu.sm}", at.gpu.sm != ASSUMED_GPU.sm and not by_node and not any_gpu),
        (at.version, at.version != engine.version),
    )
    return "-".join((Path(label).name, engine.name, *(str(part) for part, told in parts if told)))


def _deployment(at: Deployment, claimed: bool) -> dict[str, Any]:
    document = asdict(at)
    document["gpu"] = at.gpu.name if at.gpu_named else None
    document["architecture"] = at.gpu.family
    if not claimed:
        document["runner"] = "?"
    del document["gpu_named"]
    return document


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


def _assumptions(at: Deployment, request: Request, dialect: str) -> tuple[str, ...]:
    """What the plan takes for granted; `dialect` is whose names the engine's own loader has to read."""
    assumptions = []
    if not at.gpu_named and at.version != ANY_ENGINE:
        assumptions.append(
            "Hopper (sm_90) is assumed and memory is not looked at; name the GPU with --gpu to have both checked"
        )
    if request.gpu_memory is not None:
        assumptions.append(
            f"Hopper (sm_90) is assumed for a GPU of {at.gpu.memory / (1 << 30):.2f} GiB (--gpu-memory); "
            "name it with --gpu to have its own rules"
        )
    if at.gpu.unheld:
        assumptions.append(f"weights are reckoned as on {at.gpu.stands_for} (sm_{at.gpu.sm}): on {at.gpu.title} the "
                           "engine may hold them otherwise")  # fmt: skip
    if dialect != NATIVE:
        assumptions.append(f"whether the engine reads the checkpoint's own names ({dialect}) was not looked at")
    return tuple(assumptions)


def _alternatives(inventory: Inventory, request: Request) -> Iterator[PlanAlternative]:
    for variation, choice in nearest(inventory, request, _ALTERNATIVES):
        yield PlanAlternative(
            options=options_of(variation),
            gpus=choice.at.world,
            bytes_per_rank=rank_nbytes(inventory, choice.at, TARGET),
            notes=choice.notes(),
        )


def refuse_infeasible(plan: Plan) -> None:
    """Raise InfeasiblePlan with the first breach, where the plan has any."""
    if plan.breaches:
        breach = plan.breaches[0]
        ways = [f"`{alternative.options}`" for alternative in plan.alternatives]
        hint = f"These work: {', '.join(ways)}." if ways else "`dsv4-shard plan` shows what was weighed."
        raise InfeasiblePlan(f"{breach} ({breach.consequence})", hint=hint)
