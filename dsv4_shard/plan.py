"""Inspection + parallelism + engine → Plan: where every module goes, what it weighs, and how it is launched.

A plan is a JSON document that a person can read, diff and review, and that `reshard` takes on another machine. It is
made from headers and rules alone, so it can be made again: that is how an edited or a foreign plan is found out.
"""

import hashlib
import itertools
import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dsv4_shard import __version__
from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.engines import find_engine
from dsv4_shard.engines.base import Breach, Context, Deployment, Engine, Expert, Held, Placement, Request
from dsv4_shard.errors import BadPlan, ForeignPlan, IncompleteCheckpoint, InfeasiblePlan, UsageError
from dsv4_shard.inventory import Group, Inventory
from dsv4_shard.roles import MODULE, Module, Part, Stage

SCHEMA_VERSION: Literal[1] = 1
MAX_PLAN_BYTES = 64 << 20
MAX_RANKS = 4096
_ALTERNATIVES = 3


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlanFile(_Document):
    """A weight file of the checkpoint that the plan was made for."""

    name: str
    nbytes: int
    header_digest: str


class PlanSource(_Document):
    """Which checkpoint the plan was made for. Digests are xxh3-128 of headers and SHA-256 of config.json's content."""

    label: str
    revision: str | None
    config_digest: str
    files: tuple[PlanFile, ...]


class PlanBreach(_Document):
    """A rule that breaks; see `engines.base.Breach`."""

    rule: str
    module: Module
    reason: str
    engine_says: str | None
    consequence: str
    remedies: tuple[str, ...]


class PlanCheck(_Document):
    """A rule that was checked, with its arithmetic."""

    rule: str
    module: Module
    arithmetic: str
    holds: bool


class PlanModule(_Document):
    """A role's placement. Shapes in elements; bytes of weights and scales on the heaviest rank."""

    part_of: Literal["target", "draft"]
    module: Module
    role: str
    format: str
    placement: str
    shape: tuple[int, ...]
    rank_shape: tuple[int, ...]
    rank_dtype: str
    tensors_per_rank: int
    bytes_per_rank: int
    padding_per_rank: int


class PlanTotals(_Document):
    """Bytes on a rank. `target` and `draft` (MTP) apart; `replicated` and `padding` are within them."""

    ranks: int
    target_bytes_per_rank_min: int
    target_bytes_per_rank_max: int
    draft_bytes_per_rank: int
    replicated_bytes_per_rank: int
    padding_bytes_per_rank: int
    shared_experts_bytes_per_rank: int
    shared_experts_weight_bytes_per_layer: int


class PlanMemory(_Document):
    """Whether the weights fit on the named GPU, in bytes."""

    gpu: str
    capacity: int
    weights: int
    left: int
    fits: bool


class PlanLaunch(_Document):
    """How to start the engine on this plan. `draft_options` are added to the commands to use the MTP draft model."""

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
    source: PlanSource
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

    def to_json(self) -> str:
        """The document as `-o plan.json` writes it."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


# --- choosing a deployment -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """The deployment that a request comes to: the first candidate that breaks no rule, else the one nearest to it."""

    at: Deployment
    breaches: tuple[Breach, ...]
    rejected: tuple[tuple[Deployment, tuple[Breach, ...]], ...]

    @property
    def feasible(self) -> bool:
        return not self.breaches

    def notes(self) -> tuple[str, ...]:
        """What was chosen instead of the engine's own first choice, and the arithmetic that ruled that out."""
        if not self.rejected:
            return ()
        first = self.rejected[0][0]
        notes = []
        if self.at.shared != first.shared:
            reason = self._reason(Module.SHARED, first)
            notes.append(f"shared experts {_WAYS[self.at.shared]}: if {_WAYS[first.shared]}, {reason}")
        if self.at.runner != first.runner:
            reason = self._reason(Module.ROUTED, first)
            notes.append(f"runner {self.at.runner}: with the engine's default {first.runner}, {reason}")
        return tuple(notes)

    def _reason(self, module: Module, first: Deployment) -> str:
        reasons = [breach.reason for at, breaches in self.rejected for breach in breaches
                   if breach.module is module and (at.shared, at.runner) != (self.at.shared, self.at.runner)
                   and (at.shared == first.shared or at.runner == first.runner)]  # fmt: skip
        return reasons[0] if reasons else "another rule breaks"


_WAYS = {"whole": "whole on every rank", "split": "split", "pad": "padded", "subgroup": "split over a subgroup"}


def choose(inventory: Inventory, request: Request) -> Choice:
    """Weigh the engine's candidates. Raises UsageError for numbers that mean nothing and unknown names."""
    check_request(request)
    engine = find_engine(request.engine)
    rejected: list[tuple[Deployment, tuple[Breach, ...]]] = []
    for at in engine.candidates(inventory, request):
        breaches = tuple(engine.breaches(Context(inventory, at)))
        if not breaches:
            return Choice(at, (), tuple(rejected))
        rejected.append((at, breaches))
    at, breaches = min(rejected, key=lambda one: len(one[1]))
    return Choice(at, breaches, ())


def check_request(request: Request) -> None:
    """Refuse numbers, names and choices that mean nothing, also those of an edited plan. Raises UsageError."""
    for name, value in (("tp", request.tp), ("ep", request.ep), ("dp", request.dp), ("nodes", request.nodes)):
        if value is not None and not 1 <= value <= MAX_RANKS:
            raise UsageError(f"--{name} {value}: must be from 1 to {MAX_RANKS}")
    names = {"engine": request.engine, "runner": request.runner, "a2a": request.a2a, "gpu": request.gpu,
             "engine-version": request.engine_version}  # fmt: skip
    for name, text in names.items():
        if not (isinstance(text, str) or (text is None and name != "engine")):
            raise UsageError(f"--{name} {text!r}: must be a name")
    if request.shared not in ("auto", "whole", "split", "pad"):
        raise UsageError(f"--shared-experts {request.shared!r}", hint="Choose auto, whole, split or pad.")
    if request.expert_dtype not in (None, "fp4", "fp8"):
        raise UsageError(f"--expert-dtype {request.expert_dtype!r}", hint="Choose fp4 or fp8.")


# --- weighing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Load:
    """A group on the ranks: what one tensor is there, and how many a rank has at least and at most."""

    group: Group
    count: int
    held: Held
    per_rank: tuple[int, int]
    replicated: bool


def _loads(engine: Engine, context: Context) -> Iterator[_Load]:
    """Every group as the ranks hold it."""
    at = context.at
    for group, count in context.inventory.groups.items():
        placement = engine.place(group.role, context)
        held = engine.hold(group, placement, context)
        if held is None:
            continue
        per_rank = (count, count)
        if isinstance(placement, Expert):
            experts = context.config.n_routed_experts
            layers = count // experts
            per_rank = (layers * (experts // at.ep), layers * -(-experts // at.ep))
        whole = held.shape == group.shape and not isinstance(placement, Expert)
        yield _Load(group, count, held, per_rank, whole and at.world > 1)


def rank_nbytes(inventory: Inventory, at: Deployment, stages: tuple[Stage, ...] = tuple(Stage)) -> int:
    """Payload bytes of the heaviest rank, over the tensors of `stages`."""
    loads = _loads(find_engine(at.engine), Context(inventory, at))
    return sum(load.held.nbytes * load.per_rank[1] for load in loads if load.group.stage in stages)


_TARGET = (Stage.MODEL, Stage.LAYER)


def _totals(loads: list[_Load], context: Context) -> PlanTotals:
    target = [load for load in loads if load.group.stage in _TARGET]
    shared = [load for load in target if MODULE[load.group.role] is Module.SHARED]
    shared_weights = sum(load.held.nbytes * load.count for load in shared if load.group.part is Part.WEIGHT)
    return PlanTotals(
        ranks=context.at.world,
        target_bytes_per_rank_min=sum(load.held.nbytes * load.per_rank[0] for load in target),
        target_bytes_per_rank_max=sum(load.held.nbytes * load.per_rank[1] for load in target),
        draft_bytes_per_rank=sum(load.held.nbytes * load.per_rank[1] for load in loads if load not in target),
        replicated_bytes_per_rank=sum(load.held.nbytes * load.count for load in target if load.replicated),
        padding_bytes_per_rank=sum(load.held.padding * load.per_rank[1] for load in target),
        shared_experts_bytes_per_rank=sum(load.held.nbytes * load.count for load in shared),
        shared_experts_weight_bytes_per_layer=shared_weights // context.config.num_hidden_layers,
    )


def _modules(engine: Engine, loads: list[_Load], context: Context) -> Iterator[PlanModule]:
    """One row for each role, weights and scales together; shapes are the weight's, of the commonest kind of layer."""
    rows: dict[tuple[str, str], list[_Load]] = {}
    for load in loads:
        part_of = "draft" if load.group.stage is Stage.MTP else "target"
        rows.setdefault((part_of, load.group.role), []).append(load)
    order = list(Module)
    for (part_of, _), members in sorted(rows.items(), key=lambda row: order.index(MODULE[row[1][0].group.role])):
        main = max((m for m in members if m.group.part is Part.WEIGHT), key=lambda m: m.count)
        group = main.group
        fmt = context.inventory.format(group.role, group.stage)
        yield PlanModule(
            part_of="draft" if part_of == "draft" else "target",
            module=MODULE[group.role],
            role=str(group.role),
            format=str(fmt) if fmt else group.dtype,
            placement=_describe(engine.place(group.role, context), context.at),
            shape=group.shape,
            rank_shape=main.held.shape,
            rank_dtype=main.held.dtype,
            tensors_per_rank=sum(m.per_rank[1] for m in members),
            bytes_per_rank=sum(m.held.nbytes * m.per_rank[1] for m in members),
            padding_per_rank=sum(m.held.padding * m.per_rank[1] for m in members),
        )


def _describe(placement: Placement, at: Deployment) -> str:
    """A placement in words; without expert parallelism only the cut within experts is left of it."""
    if isinstance(placement, Expert) and at.ep == 1:
        return str(placement.inner)
    return str(placement)


def _memory(totals: PlanTotals, at: Deployment) -> PlanMemory | None:
    """The reference keeps the MTP block in the same model; other engines load it only as a draft model."""
    if not at.gpu_named:
        return None
    weights = totals.target_bytes_per_rank_max + (totals.draft_bytes_per_rank if at.engine == "reference" else 0)
    left = at.gpu.memory - weights
    return PlanMemory(gpu=at.gpu.title, capacity=at.gpu.memory, weights=weights, left=left, fits=left > 0)


def _memory_breach(memory: PlanMemory | None) -> list[Breach]:
    if memory is None or memory.fits:
        return []
    gib = 1 << 30
    reason = f"{memory.weights / gib:.1f} GiB of weights a rank, {memory.gpu} has {memory.capacity / gib:.1f} GiB"
    return [Breach("memory", Module.ROUTED, reason, None, "out of memory while the weights load",
                   ("more GPUs", "--ep or --tp that cut the routed experts further"))]  # fmt: skip


# --- alternatives --------------------------------------------------------------------------------------------------


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _variations(request: Request) -> Iterator[Request]:
    """Requests near `request`, nearest first: same GPUs with other DP and EP, then fewer and more GPUs."""
    free = replace(request, runner=None, a2a=None, shared="auto")
    gpus = request.tp * (request.dp if request.engine == "vllm" else 1)
    for world in dict.fromkeys((gpus, *(gpus // 2**n for n in range(1, 7)), gpus * 2)):
        if not 1 <= world <= MAX_RANKS:
            continue
        if request.engine == "vllm":
            for tp in reversed(_divisors(world)):
                yield from (replace(free, tp=tp, dp=world // tp, ep=ep, nodes=None) for ep in (None, world))
        elif request.engine == "sglang":
            pairs = itertools.product(_divisors(world), _divisors(world))
            for dp, ep in sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair[0])):
                yield replace(free, tp=world, dp=dp, ep=ep if ep > 1 else None, nodes=None)
        else:
            pairs = itertools.product(dict.fromkeys((1, world)), _divisors(world))
            if request.engine == "reference":
                pairs = itertools.product((1,), (world,))
            for dp, ep in pairs:
                yield replace(free, tp=world, dp=dp, ep=ep if 1 < ep < world else None, nodes=None)


def nearest(inventory: Inventory, request: Request, limit: int) -> Iterator[tuple[Request, Choice]]:
    """Layouts that work, nearest to `request` first: on as many GPUs, then on others; at most two of a size, and no two
    that weigh the same."""
    found: list[tuple[int, int]] = []
    for variation in _variations(request):
        world = variation.tp * (variation.dp if request.engine == "vllm" else 1)
        if len(found) >= limit:
            return
        if sum(gpus == world for gpus, _ in found) >= 2:
            continue
        choice = choose(inventory, variation)
        if not choice.feasible:
            continue
        weight = (world, rank_nbytes(inventory, choice.at, _TARGET))
        loaded = rank_nbytes(inventory, choice.at, tuple(Stage) if choice.at.engine == "reference" else _TARGET)
        if weight not in found and not (choice.at.gpu_named and loaded >= choice.at.gpu.memory):
            found.append(weight)
            yield variation, choice


def options_of(request: Request, *, engine: bool = True) -> str:
    """The request as options of `plan` and `reshard`."""
    options = [f"--tp {request.tp}"]
    if request.ep is not None:
        options.append(f"--ep {request.ep}")
    if request.dp != 1:
        options.append(f"--dp {request.dp}")
    if engine and request.engine != "sglang":
        options.append(f"--engine {request.engine}")
    for name, value in (("runner", request.runner), ("a2a", request.a2a), ("gpu", request.gpu),
                        ("nodes", request.nodes), ("expert-dtype", request.expert_dtype),
                        ("engine-version", request.engine_version)):  # fmt: skip
        if value is not None:
            options.append(f"--{name} {value}")
    if request.shared != "auto":
        options.append(f"--shared-experts {request.shared}")
    return " ".join(options)


# --- the plan ------------------------------------------------------------------------------------------------------


def make_plan(checkpoint: Checkpoint, inventory: Inventory, request: Request, label: str | None = None) -> Plan:
    """The plan for `request`, feasible or not.

    `label` is how commands name the checkpoint. Raises IncompleteCheckpoint where the checkpoint has errors, and
    UsageError for a request that means nothing.
    """
    refuse_errors(inventory)
    label = checkpoint.source.label if label is None else label
    choice = choose(inventory, request)
    engine = find_engine(request.engine)
    context = Context(inventory, choice.at)
    loads = list(_loads(engine, context)) if choice.feasible else []
    totals = _totals(loads, context) if choice.feasible else None
    memory = _memory(totals, choice.at) if totals else None
    breaches = [*choice.breaches, *_memory_breach(memory)]
    refusal = engine.layout.refusal(context) if engine.layout and choice.feasible else None
    layout = engine.layout.name if engine.layout and refusal is None else None
    out = f"{Path(label).name}-{engine.name}-tp{request.tp}"
    model_path = out if layout else label
    launch = engine.launch(context, shlex.quote(model_path), layout is not None)
    return Plan(
        schema_version=SCHEMA_VERSION,
        tool_version=__version__,
        source=_source(checkpoint, label),
        request=asdict(request),
        engine_version=engine.version,
        deployment=_deployment(choice.at),
        feasible=not breaches,
        breaches=tuple(_breach(breach) for breach in breaches),
        checks=tuple(_checks(engine, context)),
        choices=(*choice.notes(), *engine.notes(context)) if choice.feasible else (),
        unwritten=refusal,
        assumptions=_assumptions(choice.at),
        modules=tuple(_modules(engine, loads, context)),
        totals=totals,
        memory=memory,
        shared_expert_addition=engine.addition(context),
        launch=PlanLaunch(
            environment=launch.environment,
            commands=launch.commands,
            files=launch.files,
            draft_options=launch.draft_options if inventory.mtp_blocks else "",
        ),
        layout=layout,
        reshard=f"dsv4-shard reshard {shlex.quote(label)} {shlex.quote(out)} {options_of(request)}" if layout else None,
        alternatives=() if not breaches else tuple(_alternatives(inventory, request)),
    )


def refuse_errors(inventory: Inventory) -> None:
    """Raise IncompleteCheckpoint with the first error, where the inventory has any."""
    errors = inventory.errors
    if errors:
        more = f" ({len(errors) - 1} more findings)" if len(errors) > 1 else ""
        raise IncompleteCheckpoint(errors[0].message + more)


def _source(checkpoint: Checkpoint, label: str) -> PlanSource:
    files = tuple(PlanFile(name=f.name, nbytes=f.nbytes, header_digest=f.header_digest) for f in checkpoint.files)
    canonical = json.dumps(checkpoint.document, sort_keys=True).encode()
    return PlanSource(
        label=label,
        revision=checkpoint.source.revision,
        config_digest=hashlib.sha256(canonical).hexdigest(),
        files=files,
    )


def _deployment(at: Deployment) -> dict[str, Any]:
    document = asdict(at)
    document["gpu"] = at.gpu.name if at.gpu_named else None
    document["architecture"] = at.gpu.family
    del document["gpu_named"]
    return document


def _breach(breach: Breach) -> PlanBreach:
    return PlanBreach(
        rule=breach.rule,
        module=breach.module,
        reason=breach.reason,
        engine_says=breach.quote,
        consequence=breach.consequence,
        remedies=breach.remedies,
    )


def _checks(engine: Engine, context: Context) -> Iterator[PlanCheck]:
    for rule in engine.rules:
        arithmetic = rule.explain(context)
        if arithmetic is not None:
            yield PlanCheck(
                rule=rule.name, module=rule.module, arithmetic=arithmetic, holds=rule.check(context) is None
            )


def _assumptions(at: Deployment) -> tuple[str, ...]:
    if at.gpu_named:
        return ()
    return ("Hopper (sm_90) is assumed and memory is not looked at; name the GPU with --gpu to have both checked",)


def _alternatives(inventory: Inventory, request: Request) -> Iterator[PlanAlternative]:
    for variation, choice in nearest(inventory, request, _ALTERNATIVES):
        yield PlanAlternative(
            options=options_of(variation),
            gpus=choice.at.world,
            bytes_per_rank=rank_nbytes(inventory, choice.at, _TARGET),
            notes=choice.notes(),
        )


# --- plan files ----------------------------------------------------------------------------------------------------


def load_plan(path: Path) -> Plan:
    """Read a plan file. Raises BadPlan where it is not one that this version can take."""
    try:
        if path.stat().st_size > MAX_PLAN_BYTES:
            raise BadPlan(f"{path}: {path.stat().st_size} bytes, too large for a plan")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise BadPlan(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BadPlan(f"{path}: not JSON: {error}") from None
    if not isinstance(document, dict) or "schema_version" not in document:
        raise BadPlan(f"{path}: not a plan of dsv4-shard")
    if document["schema_version"] != SCHEMA_VERSION:
        raise BadPlan(f"{path}: plan schema {document['schema_version']!r}, this version reads {SCHEMA_VERSION}")
    if document.get("tool_version") != __version__:
        raise BadPlan(f"{path}: made by dsv4-shard {document.get('tool_version')}, this is {__version__}")
    try:
        return Plan.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise BadPlan(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def check_plan(plan: Plan, checkpoint: Checkpoint, inventory: Inventory) -> Plan:
    """Make the plan again from the checkpoint; return it where it is the same.

    Raises ForeignPlan where the checkpoint is another or changed, BadPlan where the plan was edited.
    """
    now = _source(checkpoint, plan.source.label)
    _compare_sources(plan.source, now)
    try:
        request = Request(**plan.request)  # type: ignore[arg-type]
        fresh = make_plan(checkpoint, inventory, request, plan.source.label)
    except (TypeError, UsageError) as error:
        raise BadPlan(f"the plan's request was edited: {error}") from None
    ours = fresh.model_copy(update={"source": plan.source})
    edits = list(_differences(plan.model_dump(mode="json"), ours.model_dump(mode="json"), ""))
    if edits:
        more = f" ({len(edits) - 1} more differences)" if len(edits) > 1 else ""
        raise BadPlan(f"the plan was edited: {edits[0]}{more}")
    return fresh


def _compare_sources(planned: PlanSource, now: PlanSource) -> None:
    theirs = {file.name: file for file in planned.files}
    ours = {file.name: file for file in now.files}
    if theirs.keys() != ours.keys():
        only = sorted(theirs.keys() ^ ours.keys())
        raise ForeignPlan(
            f"the plan is for {planned.label} with {len(theirs)} weight files, here are {len(ours)}: {only[0]} differs"
        )
    for name, file in theirs.items():
        if file.nbytes != ours[name].nbytes:
            raise ForeignPlan(f"{name}: {file.nbytes} bytes when the plan was made, {ours[name].nbytes} now")
        if file.header_digest != ours[name].header_digest:
            raise ForeignPlan(f"{name}: its header differs from the one that the plan was made for")
    if None not in (planned.revision, now.revision) and planned.revision != now.revision:
        raise ForeignPlan(f"the plan is for revision {planned.revision}, here is {now.revision}")
    if planned.config_digest != now.config_digest:
        raise ForeignPlan("config.json differs from the one that the plan was made for")


def _differences(theirs: Any, ours: Any, path: str) -> Iterator[str]:
    """Where two JSON values differ, as `path: theirs in the file, ours by the rules`."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            yield from _differences(theirs.get(key), ours.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for index, pair in enumerate(zip(theirs, ours, strict=True)):
            yield from _differences(*pair, f"{path}[{index}]")
    elif theirs != ours:
        yield f"{path}: {theirs!r} in the file, {ours!r} by the rules"


def refuse_infeasible(plan: Plan) -> None:
    """Raise InfeasiblePlan with the first breach, where the plan has any."""
    if plan.breaches:
        breach = plan.breaches[0]
        ways = [f"`{alternative.options}`" for alternative in plan.alternatives]
        hint = f"These work: {', '.join(ways)}." if ways else "`dsv4-shard plan` shows what was weighed."
        raise InfeasiblePlan(f"{breach.module}: {breach.reason} ({breach.consequence})", hint=hint)
