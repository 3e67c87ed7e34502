"""Checkpoint + number of GPUs → every layout that the engines' rules allow on this number, best first.

The order follows from headers and rules: whether the weights fit; the weights of the heaviest rank; the tokens of KV
cache by the engine's own accounting (`engines/kv_cache`), in all attention groups together; the bytes that every rank
holds whole, and zeros for padding; the bytes sent. These numbers do not predict speed. `rank_by` puts tokens or bytes
sent before the weights. By tokens, layouts whose tokens are not known come last, by their weights.
"""

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal

from dsv4_shard.catalog.gpus import GPUS, Gpu
from dsv4_shard.catalog.option import words_of
from dsv4_shard.catalog.request import Narrowing, SearchOptions, Target
from dsv4_shard.checkpoint import Checkpoint, Inventory, outside_layers, refuse_errors
from dsv4_shard.engines import Request, engine_for, find_engine, pick_gpu, serving
from dsv4_shard.errors import UsageError
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.layouts import ALL, FoundLayout, layouts_on, rank_of
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.planning.reach import MOST_GPUS, NOT_TRIED, Reach, bounds_of, fewest_on
from dsv4_shard.planning.request import check_request, refuse_unknown_names
from dsv4_shard.text.document import Document, html_table
from dsv4_shard.text.units import counted, gib
from dsv4_shard.version import __version__

SCHEMA_VERSION: Literal[4] = 4

_HTML_ROWS = 20

_BELOW = 16
"""Numbers of GPUs below the one asked for that are tried where no layout divides."""


class Elsewhere(Document):
    """A layout that runs on other GPUs than requested: their number and name, and the options of `plan`."""

    gpus: int
    gpu: str | None
    options: str


class Search(Document):
    """Every layout, the best by `rank_by` first.

    `narrowed_by` has the options that narrow the search; empty if there are none.
    `context` is the number of tokens of a session, None if none was asked for: then sessions have the model's
    longest context. `command` plans the best layout if it fits; if not, `elsewhere` lists other GPUs that fit.
    `engines` are those that were searched, `tried` is the number of requests that were weighed on so many GPUs, and
    `reach` says how far other numbers were looked at; `unknown` says why other requested engines are not verified, and
    `unverified` has the lightest layout of each of them that may run.
    """

    kind: Literal["search"] = "search"
    schema_version: Literal[4]
    tool_version: str
    checkpoint: str
    gpus: int
    gpu: str | None
    context: int | None
    rank_by: str
    narrowed_by: str
    engines: tuple[str, ...]
    layouts: tuple[FoundLayout, ...]
    command: str | None
    unknown: tuple[str, ...]
    unverified: tuple[FoundLayout, ...]
    elsewhere: tuple[Elsewhere, ...]
    tried: int
    reach: str

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


def search(
    checkpoint: Checkpoint,
    inventory: Inventory,
    asked: Request,
    engines: Iterable[str] | None = None,
    rank_by: str = "weights",
    session: int | None = None,
    narrowing: Narrowing = ALL,
) -> Search:
    """Search the layouts on `asked.tp` GPUs that `narrowing` leaves; `session` is the number of tokens of a session.

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
    verified, unknown = engines_to_search(inventory, pick_gpu(asked), engines)
    inventory = outside_layers(inventory)
    found, tried = layouts_on(checkpoint, inventory, asked, verified, session, narrowing)
    found.sort(key=lambda one: rank_of(one.layout, rank_by))
    best = found[0].layout if found and found[0].layout.fits else None
    more = _more_gpus(checkpoint, inventory, asked, verified, narrowing) if best is None else NOT_TRIED
    return Search(
        schema_version=SCHEMA_VERSION,
        tool_version=__version__,
        checkpoint=checkpoint.source.label,
        gpus=asked.tp,
        gpu=asked.gpu or asked.gpu_memory,
        context=session,
        rank_by=rank_by,
        narrowed_by=" ".join(words_of(narrowing)),
        engines=verified,
        layouts=tuple(one.layout for one in found),
        command=command_of(checkpoint, best, session) if best else None,
        unknown=tuple(unknown.values()),
        unverified=tuple(_lightest(checkpoint, inventory, asked, unknown, narrowing)),
        elsewhere=()
        if best
        else tuple(_elsewhere(checkpoint, inventory, asked, verified, more, narrowing, is_uneven=not found)),
        tried=tried,
        reach=say_reach(more, asked),
    )


def _more_gpus(
    checkpoint: Checkpoint, inventory: Inventory, asked: Request, engines: tuple[str, ...], narrowing: Narrowing
) -> Reach:
    """Return how many more GPUs of the same kind hold the weights, on any number of nodes."""
    if not engines:
        return NOT_TRIED
    free = replace(asked, nodes=None)
    bounds = bounds_of(inventory, free, engines)
    return fewest_on(checkpoint, inventory, free, bounds, above=asked.tp, narrowing=narrowing)


def engines_to_search(
    inventory: Inventory, gpu: Gpu | None, engines: Iterable[str] | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the engines to search that are verified, and each other one with a sentence about it.

    Raises:
        UsageError: An engine that was asked for runs no model, or has no code for the GPU.
    """
    names = tuple(dict.fromkeys(_serving(name) for name in (serving() if engines is None else engines)))
    if gpu is not None:
        strangers = [name for name in names if not engine_for(name, inventory.family).is_for(gpu)]
        if strangers and engines is not None:
            raise UsageError.about("engine", strangers[0], f"has no code for GPUs of {gpu.maker}")
        names = tuple(name for name in names if name not in strangers)
    unknown = dict(_unknown(inventory, gpu, names))
    return tuple(name for name in names if name not in unknown), unknown


def _lightest(
    checkpoint: Checkpoint, inventory: Inventory, asked: Request, engines: Iterable[str], narrowing: Narrowing
) -> Iterator[FoundLayout]:
    """Yield the lightest layout of each engine that is not verified; none of an engine that refuses them all."""
    for name in engines:
        found, _ = layouts_on(checkpoint, inventory, asked, (name,), narrowing=narrowing, verified=False)
        yield from (one.layout for one in found[:1])


def say_reach(more: Reach, asked: Request) -> str:
    """Say which other numbers of the GPUs were tried; empty if none had to be."""
    gpu = asked.gpu or asked.gpu_memory
    if more.gpus is not None:
        return f"{more.gpus} are the fewest that do: {more.counts} were tried"
    if more.last:
        return f"no other number does: {more.counts} were tried"
    if not more.whole_bytes or gpu is None:
        return ""
    if more.whole_bytes >= pick_gpu(asked).memory:
        return f"no number does: every GPU holds {gib(more.whole_bytes)} whole in any layout"
    return f"the weights need over {MOST_GPUS} {gpu} GPUs, which were not tried"


def command_of(checkpoint: Checkpoint, best: FoundLayout, session: int | None) -> str:
    """Return the command that plans a layout."""
    context = f" --context {session}" if session else ""
    return f"dsv4-shard plan {shlex.quote(checkpoint.source.label)} {best.options}{context}"


def _unknown(inventory: Inventory, gpu: Gpu | None, engines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the engines that are not verified for this GPU, family or format of experts, with the reason."""
    for name in engines:
        engine = engine_for(name, inventory.family)
        breaches = choose(inventory, Request(1, engine=name)).breaches
        reason = next((one.reason for one in breaches if one.unknown), None)
        if reason is None and gpu is not None and not gpu.verified:
            reason = f"not verified on {gpu.full_title}"
        if reason is not None:
            yield name, f"{engine.title}: {reason}"


def plan_best(checkpoint: Checkpoint, inventory: Inventory, found: Search) -> Plan:
    """Return the plan of the best layout; the search must have one."""
    assert found.best is not None
    return make_plan(checkpoint, inventory, found.best.request, session=found.context)


def _serving(name: str) -> str:
    engine = find_engine(name.strip())
    if not engine.serves:
        hint = f"Give the layout (--tp N), or leave --engine out: a search tries {', '.join(serving())}."
        raise UsageError.about("engine", engine.name, "writes folders for one layout, and is not searched", hint=hint)
    return engine.name


def _elsewhere(
    checkpoint: Checkpoint,
    inventory: Inventory,
    asked: Request,
    engines: tuple[str, ...],
    more: Reach,
    narrowing: Narrowing,
    *,
    is_uneven: bool,
) -> Iterator[Elsewhere]:
    """Yield the nearest layouts that run: more GPUs of the same kind, fewer if the number breaks a rule, other GPUs."""

    def first(request: Request) -> Elsewhere | None:
        found, _ = layouts_on(checkpoint, inventory, request, engines, narrowing=narrowing)
        if not found or not found[0].layout.fits:
            return None
        return Elsewhere(gpus=request.tp, gpu=request.gpu or request.gpu_memory, options=found[0].layout.options)

    free = replace(asked, nodes=None)
    if more.gpus is not None:
        yield Elsewhere(gpus=more.gpus, gpu=asked.gpu or asked.gpu_memory, options=more.layouts[0].layout.options)
    below = range(asked.tp - 1, max(0, asked.tp - 1 - _BELOW), -1) if is_uneven else ()
    named = () if asked.gpu is None else sorted(GPUS.values(), key=lambda gpu: gpu.memory)
    larger = (gpu.name for gpu in named if gpu.verified and gpu.memory > pick_gpu(asked).memory)
    for requests in ((replace(free, tp=gpus) for gpus in below), (replace(free, gpu=name) for name in larger)):
        nearest = next((way for way in map(first, requests) if way is not None), None)
        if nearest is not None:
            yield nearest


def search_for(checkpoint: Checkpoint, inventory: Inventory, options: SearchOptions) -> Search:
    """Return the search for the options of a verb."""
    asked = options.part(Target).part(Request, tp=options.gpus)
    refuse_unknown_names(options, find_engine(asked.engine))
    narrowing, engines = options.part(Narrowing), names_of_engines(options.engine)
    return search(checkpoint, inventory, asked, engines, options.rank_by, options.context, narrowing)


def names_of_engines(engine: str | Iterable[str] | None) -> Iterable[str] | None:
    """Return the engines of an option, which may be text with commas."""
    return engine.split(",") if isinstance(engine, str) else engine
