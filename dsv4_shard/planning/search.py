"""Checkpoint + number of GPUs → every layout that the engines' rules allow on this number, best first.

The order follows from headers and rules: whether the weights fit; the weights of the heaviest rank; the tokens of KV
cache by the engine's own accounting (`engines/kv_cache`), in all attention groups together; the bytes that every rank
holds whole, and zeros for padding; the bytes sent. None of these is a speed. `rank_by` puts tokens or bytes sent before
the weights. By tokens, layouts whose tokens are not known come last, by their weights.

`engines/bytes_sent.py` has the formulas for bytes sent.
"""

import math
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from dsv4_shard.catalog.gpus import GPUS, Gpu
from dsv4_shard.catalog.rank_ranges import MAX_RANKS
from dsv4_shard.catalog.request import SearchOptions
from dsv4_shard.checkpoint import Checkpoint, Inventory, outside_layers, refuse_errors
from dsv4_shard.engines import Context, Deployment, Request, engine_for, find_engine, pick_gpu, serving
from dsv4_shard.errors import UsageError
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.document import DeploymentDocument, Plan
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.planning.request import check_request, options_of, refuse_unknown_names
from dsv4_shard.planning.weights import beyond_roles, loads, memory_of, totals_of, weights_of
from dsv4_shard.text.document import Document, html_table
from dsv4_shard.text.units import counted, gib
from dsv4_shard.version import __version__

SCHEMA_VERSION: Literal[2] = 2


_HTML_ROWS = 20


class FoundLayout(Document):
    """A layout that the rules allow. Bytes are of the heaviest rank, except those sent, which are of all GPUs together.

    `options` are those of `plan`; `also` has the options of layouts with the same numbers. `tokens` and `sessions`
    are per attention group, and there are `groups` of them; None if they are not known within 15 % (`PlanCache`).
    `sent_bytes_per_token_and_layer` is by formula; None if not known for the engine.
    """

    options: str
    also: tuple[str, ...]
    request: Request
    deployment: DeploymentDocument
    fits: bool
    weight_bytes: int
    left_bytes: int | None
    groups: int
    tokens: int | None
    sessions: int | None
    replicated_bytes: int
    padding_bytes: int
    sent_bytes_per_token_and_layer: int | None


class Elsewhere(Document):
    """A layout that runs on other GPUs than requested: their number and name, and the options of `plan`."""

    gpus: int
    gpu: str | None
    options: str


class Search(Document):
    """Every layout, the best by `rank_by` first.

    `context` is the number of tokens of a session, None if none was asked for: then sessions have the model's
    longest context. `command` plans the best layout if it fits; if not, `elsewhere` lists other GPUs that fit.
    `engines` are those that were searched; `unknown` says why other requested engines are not verified.
    """

    schema_version: Literal[2]
    tool_version: str
    gpus: int
    gpu: str | None
    context: int | None
    rank_by: str
    engines: tuple[str, ...]
    layouts: tuple[FoundLayout, ...]
    command: str | None
    unknown: tuple[str, ...]
    elsewhere: tuple[Elsewhere, ...]

    @property
    def best(self) -> FoundLayout | None:
        """The first layout, if it fits."""
        return self.layouts[0] if self.layouts and self.layouts[0].fits else None

    def in_short(self) -> str:
        """The GPUs, the number of layouts, and the best one."""
        best = f"best {self.best.options}" if self.best is not None else "none fits"
        gpus = f"{self.gpus} {self.gpu or 'Hopper'} GPUs"
        return f"{gpus}: {counted(len(self.layouts), 'layout')} by {self.rank_by}, {best}"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the first layouts."""
        head = ("options", "fits", "weights per GPU", "tokens", "whole and padding", "sent per token and layer")
        rows = [(one.options, "yes" if one.fits else "no", gib(one.weight_bytes), _known(one.tokens),
                 gib(one.replicated_bytes + one.padding_bytes), _known(one.sent_bytes_per_token_and_layer))
                for one in self.layouts[:_HTML_ROWS]]  # fmt: skip
        more = len(self.layouts) - len(rows)
        return html_table(f"{self.in_short()}{f' ({more:,} more)' if more else ''}", head, rows)


def _known(number: int | None) -> int | str:
    return number if number is not None else "not known"


@dataclass(frozen=True, slots=True)
class _Candidate:
    request: Request
    deployment: Deployment
    layout: FoundLayout


def search(
    checkpoint: Checkpoint,
    inventory: Inventory,
    asked: Request,
    engines: Iterable[str] | None = None,
    rank_by: str = "weights",
    session: int | None = None,
) -> Search:
    """Search the layouts on `asked.tp` GPUs; `session` is the number of tokens of a session.

    Raises:
        IncompleteCheckpoint: As `make_plan`.
        UsageError: The request is invalid, or an engine does not run models.
    """
    if rank_by == "tokens" and not asked.names_gpu:
        raise UsageError("{rank_by}: room is not known without {gpu} or {gpu_memory}", hint="Add one of these.",
                         parameters={"rank_by": rank_by, "gpu": ..., "gpu_memory": ...})  # fmt: skip
    refuse_errors(inventory)
    check_request(asked)
    if asked.nodes is not None and asked.tp % asked.nodes:
        raise UsageError.about("nodes", asked.nodes, f"{asked.tp} GPUs do not fall into so many equal nodes")
    engines = tuple(dict.fromkeys(_serving(name) for name in (serving() if engines is None else engines)))
    unknown = tuple(_unknown(inventory, pick_gpu(asked), engines))
    verified = tuple(name for name in engines if name not in dict(unknown))
    inventory = outside_layers(inventory)
    found = _search(checkpoint, inventory, asked, verified, session)
    found.sort(key=lambda one: _rank(one.layout, rank_by))
    best = found[0].layout if found and found[0].layout.fits else None
    return Search(
        schema_version=SCHEMA_VERSION,
        tool_version=__version__,
        gpus=asked.tp,
        gpu=asked.gpu or asked.gpu_memory,
        context=session,
        rank_by=rank_by,
        engines=verified,
        layouts=tuple(one.layout for one in found),
        command=_command(checkpoint, best, session) if best else None,
        unknown=tuple(reason for _, reason in unknown),
        elsewhere=() if best else tuple(_elsewhere(checkpoint, inventory, asked, verified)),
    )


def _command(checkpoint: Checkpoint, best: FoundLayout, session: int | None) -> str:
    context = f" --context {session}" if session else ""
    return f"dsv4-shard plan {shlex.quote(checkpoint.source.label)} {best.options}{context}"


def _unknown(inventory: Inventory, gpu: Gpu, engines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the engines that are not verified for this GPU, family or format of experts, with the reason."""
    for name in engines:
        engine = engine_for(name, inventory.family)
        breaches = choose(inventory, Request(1, engine=name)).breaches
        reason = next((one.reason for one in breaches if one.unknown), None)
        if reason is None and not gpu.verified:
            reason = f"not verified on {gpu.full_title}; `plan --tp N` shows whether the weights fit"
        if reason is not None:
            yield name, f"{engine.title}: {reason}"


def plan_best(checkpoint: Checkpoint, inventory: Inventory, found: Search) -> Plan:
    """Return the plan of the best layout; the search must have one."""
    assert found.best is not None
    return make_plan(checkpoint, inventory, found.best.request, session=found.context)


def _serving(name: str) -> str:
    engine = find_engine(name.strip())
    if not engine.serves:
        raise UsageError.about("engine", engine.name, "runs no model", hint=f"Searched are {', '.join(serving())}.")
    return engine.name


def _search(
    checkpoint: Checkpoint,
    inventory: Inventory,
    asked: Request,
    engines: Iterable[str],
    session: int | None = None,
    *,
    briefly: bool = False,
) -> list[_Candidate]:
    """Every layout on `asked.tp` GPUs, best first; `briefly`: the engines' own choices up to the first that fits."""
    found: dict[tuple[Any, ...], list[_Candidate]] = {}
    seen: set[Deployment] = set()
    for request in _requests(inventory, asked, engines):
        own = request.runner is None and request.shared_experts == "auto"
        choice = choose(inventory, request) if own or not briefly else None
        if choice is None or not choice.feasible or choice.deployment in seen:
            continue
        seen.add(choice.deployment)
        context = Context(inventory, choice.deployment, session)
        one = _Candidate(request, choice.deployment, _weigh(checkpoint, request, context))
        if briefly and one.layout.fits:
            return [one]
        found.setdefault(_likeness(one), []).append(one)
    return sorted(map(_merged, found.values()), key=lambda one: _rank(one.layout))


def _merged(alike: list[_Candidate]) -> _Candidate:
    """Return one of several equal layouts, with the options of the others; the engine's own choice if present."""
    first = min(alike, key=lambda one: (one.request.runner is not None, one.request.shared_experts != "auto"))
    also = tuple(one.layout.options for one in alike if one is not first)
    return replace(first, layout=first.layout.model_copy(update={"also": also}))


def _requests(inventory: Inventory, asked: Request, engines: Iterable[str]) -> Iterator[Request]:
    """Yield every combination that an engine has options for."""
    for name in engines:
        yield from engine_for(name, inventory.family).requests(asked)


def _likeness(one: _Candidate) -> tuple[Any, ...]:
    """Key of layouts with equal numbers: they differ only in the runner, the all-to-all backend's name or EP."""
    deployment, layout = one.deployment, one.layout
    return (deployment.engine, deployment.tp, deployment.dp, deployment.shared, layout.weight_bytes,
    layout.replicated_bytes, layout.padding_bytes,
            layout.sent_bytes_per_token_and_layer, layout.tokens, layout.sessions)  # fmt: skip


def _sent(layout: FoundLayout) -> float:
    sent = layout.sent_bytes_per_token_and_layer
    return math.inf if sent is None else sent


RANKINGS: dict[str, Callable[[FoundLayout], float]] = {
    "weights": lambda layout: layout.weight_bytes,
    "tokens": lambda layout: -(layout.tokens or 0) * layout.groups,
    "sent": _sent,
}
"""Orders by name: the first key, smaller is better; the usual order follows."""


def _rank(layout: FoundLayout, by: str = "weights") -> tuple[float, ...]:
    whole = layout.replicated_bytes + layout.padding_bytes
    weights, tokens, sent = (ranking(layout) for ranking in RANKINGS.values())
    return (not layout.fits, RANKINGS[by](layout), weights, tokens, whole, sent)


def _weigh(checkpoint: Checkpoint, request: Request, context: Context) -> FoundLayout:
    deployment, engine = context.deployment, engine_for(context.deployment.engine, context.inventory.family)
    totals = totals_of(list(loads(engine, context)), context, beyond_roles(checkpoint, engine, context))
    memory = memory_of(totals, context)
    cache = memory.kv_cache if memory else None
    return FoundLayout(
        options=options_of(request),
        also=(),
        request=request,
        deployment=DeploymentDocument.of(deployment),
        fits=memory is None or memory.fits,
        weight_bytes=weights_of(totals, deployment),
        left_bytes=memory.left if memory else None,
        groups=deployment.world // deployment.attention_tp,
        tokens=cache.tokens if cache else None,
        sessions=cache.sessions if cache else None,
        replicated_bytes=totals.replicated_bytes_per_rank,
        padding_bytes=totals.padding_bytes_per_rank,
        sent_bytes_per_token_and_layer=engine.bytes_sent(context),
    )


def _elsewhere(
    checkpoint: Checkpoint, inventory: Inventory, asked: Request, engines: tuple[str, ...]
) -> Iterator[Elsewhere]:
    """Yield the nearest layouts that run: more GPUs of the same kind, fewer if the number breaks a rule, other GPUs."""

    def first(request: Request) -> Elsewhere | None:
        found = _search(checkpoint, inventory, request, engines, briefly=True)
        if not found or not found[0].layout.fits:
            return None
        return Elsewhere(gpus=request.tp, gpu=request.gpu or request.gpu_memory, options=found[0].layout.options)

    free = replace(asked, nodes=None)
    power = 1 << asked.tp.bit_length()
    more = (first(replace(free, tp=number)) for number in (power, power * 2, power * 4) if number <= MAX_RANKS)
    fewer = (first(replace(free, tp=number)) for number in (power // 2, power // 4) if 0 < number < asked.tp)
    named = () if asked.gpu is None else sorted(GPUS.values(), key=lambda gpu: gpu.memory)
    others = (
        first(replace(free, gpu=gpu.name)) for gpu in named if gpu.verified and gpu.memory > pick_gpu(asked).memory
    )
    for ways in (more, fewer, others):
        nearest = next((way for way in ways if way is not None), None)
        if nearest is not None:
            yield nearest


def search_for(checkpoint: Checkpoint, inventory: Inventory, options: SearchOptions) -> Search:
    """Return the search for the options of a verb."""
    engines = options.engine.split(",") if isinstance(options.engine, str) else options.engine
    asked = options.part(Request, tp=options.gpus, engine=Request(1).engine)
    refuse_unknown_names(options, find_engine(asked.engine))
    return search(checkpoint, inventory, asked, engines, options.rank_by, options.context)
