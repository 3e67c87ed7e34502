"""The plan for the layout of a message: how it runs, or the nearest layouts that do."""

import shlex
from dataclasses import replace

from dsv4_shard.catalog.gpus import Gpu, gpus_with, say_memory
from dsv4_shard.diagnosis.cases import Hit, engines_of
from dsv4_shard.diagnosis.document import WayOut
from dsv4_shard.diagnosis.known_model import KnownModel
from dsv4_shard.diagnosis.log_scan import EngineLog, FoundMessage
from dsv4_shard.engines import ENGINES, Context, Launch, Request, Verdict, engine_for, on_every_node
from dsv4_shard.errors import UsageError
from dsv4_shard.models import TARGET
from dsv4_shard.planning import changes_of, choose, nearest, options_of, rank_nbytes
from dsv4_shard.text.units import gib

_NEAREST = 3


def way_for(found: FoundMessage, hits: list[Hit], log: EngineLog, models: tuple[KnownModel, ...]) -> WayOut | None:
    """The plan for the likeliest case; without a case, for the layout that the log describes."""
    known, gpu = found.pattern.known, _gpu(found)
    if known is not None and (not known.planned or (found.groups.get("total") and gpu is None)):
        return None
    if hits:
        model, request = hits[0].model, asked(hits[0].request)
    elif log.clues.tp and len(models) == 1:
        model = models[0]
        request = Request(log.clues.tp, dp=max(log.clues.dps), engine=engines_of(found, log)[0])
        if log.clues.told_ep and log.clues.told_ep > 1:
            request = replace(request, ep=log.clues.told_ep)
    else:
        return None
    try:
        way = way_out(model, replace(request, gpu=gpu.name if gpu else None, engine_version=_version(log, request)))
    except UsageError:  # no layout has the numbers of the log
        return None
    return way.model_copy(update={"guessed": hits[0].guessed}) if hits else way


def _version(log: EngineLog, request: Request) -> str | None:
    """The log's version of the engine, if it has rules of its own."""
    engine, version = ENGINES[request.engine], log.clues.version
    is_other = version in engine.versions and version != engine.version
    return version if is_other and log.clues.engine == request.engine else None


def _gpu(found: FoundMessage) -> Gpu | None:
    """The GPU with the memory that an out-of-memory message names. H20 wins over RTX PRO 6000."""
    total = found.groups.get("total") if found.pattern.known else None
    return next(iter(gpus_with(float(total))), None) if total else None


def asked(request: Request) -> Request:
    """A request without the choices that the plan makes."""
    return replace(request, runner=None, shared_experts="auto", ep=None if request.ep == 1 else request.ep)


def way_out(model: KnownModel, request: Request) -> WayOut:
    """The plan for a request: how it runs, or the nearest layouts that run."""
    inventory = model.inventory
    choice = choose(inventory, request)
    engine = engine_for(request.engine, inventory.family)
    context = Context(inventory, choice.deployment)
    runs = choice.feasible
    changes = changes_of(inventory, request, choice) if runs else ()
    notes = [str(change) for change in changes]
    if runs and choice.deployment.gpu_named:
        weights, memory = rank_nbytes(inventory, choice.deployment, TARGET), choice.deployment.gpu.memory
        notes.append(say_memory(weights, choice.deployment.gpu.title, memory))
        runs = weights < memory
    label = shlex.quote(model.label)
    launch = engine.launch(context, label, False) if runs else None
    if runs:
        notes += engine.notes(context)
    else:
        notes += dict.fromkeys(f"{breach.module}: {breach.reason}" for breach in choice.breaches)
    verdict = Verdict.FAILS
    if runs:
        verdict = Verdict.CHANGED if changes else Verdict.RUNS
    elif not choice.feasible and choice.is_weighed:
        verdict = Verdict.UNVERIFIED
        weights = rank_nbytes(inventory, choice.deployment, TARGET)
        notes.append(f"{gib(weights)} of weights per rank; {engine.assumes(context)}")
    started = launch or Launch({})
    command, elsewhere = on_every_node(started.launcher, started.program, started.node_options, {})
    return WayOut(
        options=options_of(request),
        verdict=verdict,
        notes=tuple(notes),
        environment=started.environment,
        command=command or None,
        elsewhere=elsewhere,
        nearest=tuple(options_of(near) for near, _ in nearest(inventory, request, _NEAREST))
        if verdict is Verdict.FAILS
        else (),
        next=f"dsv4-shard plan {label} {options_of(request)}",
    )
