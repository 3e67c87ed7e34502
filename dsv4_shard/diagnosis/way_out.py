"""The plan for the layout of a message: how it runs, or the nearest layouts that do."""

import shlex
from collections.abc import Iterator
from dataclasses import replace

from dsv4_shard.catalog.gpus import Gpu, gpus_with, say_memory
from dsv4_shard.diagnosis.cases import Hit, engines_of
from dsv4_shard.diagnosis.document import WayOut
from dsv4_shard.diagnosis.known_model import KnownModel
from dsv4_shard.diagnosis.log_scan import EngineLog, FoundMessage
from dsv4_shard.engines import ENGINES, Launch, Request, Verdict, on_every_node
from dsv4_shard.errors import UsageError
from dsv4_shard.planning import LayoutOutcome, nearest, options_of, outcome_of
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
    outcome = outcome_of(model.inventory, request)
    label, verdict = shlex.quote(model.label), outcome.verdict
    launch = Launch({})
    if outcome.runs:
        launch = outcome.engine.launch(outcome.context, label, False).with_changes(outcome.cache_changes)
    command, elsewhere = on_every_node(launch.launcher, launch.program, launch.node_options, {})
    near = nearest(model.inventory, request, _NEAREST) if verdict is Verdict.FAILS else ()
    return WayOut(
        options=options_of(request),
        verdict=verdict,
        notes=tuple(_notes(outcome)),
        environment=launch.environment,
        command=command or None,
        elsewhere=elsewhere,
        nearest=tuple(options_of(one.request) for one in near),
        next=f"dsv4-shard plan {label} {options_of(request)}",
    )


def _notes(outcome: LayoutOutcome) -> Iterator[str]:
    """Yield the changes that a layout needs, and its memory; or what speaks against it, and what its bytes rest on."""
    if not outcome.breaches:
        yield from map(str, outcome.changes)
        if outcome.memory is not None:
            yield say_memory(outcome.memory.weights, outcome.memory.gpu, outcome.memory.capacity)
        yield from outcome.engine.notes(outcome.context)
    yield from dict.fromkeys(map(str, outcome.breaches))
    assumption = outcome.engine.assumption(outcome.context, is_known=outcome.choice.feasible)
    if outcome.weights is not None and assumption is not None:
        yield f"{gib(outcome.weights)} of weights per rank; {assumption}"
