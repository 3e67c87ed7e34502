"""Checkpoint → the fewest GPUs of each known kind that hold its weights, with the best layout on them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from dsv4_shard.catalog.gpus import GPUS, Gpu
from dsv4_shard.catalog.option import words_of
from dsv4_shard.catalog.request import FewestOptions, Narrowing, Target
from dsv4_shard.checkpoint import Checkpoint, Inventory, outside_layers, refuse_errors
from dsv4_shard.engines import Request, engine_for, find_engine, pick_gpu
from dsv4_shard.models import TARGET
from dsv4_shard.planning.layouts import ALL, FoundLayout
from dsv4_shard.planning.reach import MOST_GPUS, Bound, Reach, bounds_of, fewest_on, say_counts
from dsv4_shard.planning.request import check_request, refuse_unknown_names
from dsv4_shard.planning.search import command_of, engines_to_search, names_of_engines, say_reach
from dsv4_shard.text.document import Document, html_table
from dsv4_shard.text.units import counted
from dsv4_shard.version import __version__

SCHEMA_VERSION: Literal[2] = 2


class FewestGpus(Document):
    """The fewest GPUs of one kind whose memory holds the weights, and the best layout on them.

    `gpus`, `layout` and `command` are null if no number that was tried holds them: `reach` says which were tried, and
    why. `verified` is False if no engine's rules are verified on the kind, or for this model: then the layout is that
    of the rules of another architecture, and says only that the weights fit. `unverified` is the best layout on the
    fewest GPUs of engines that are not verified for the checkpoint; null if none of these is known to hold the weights.
    """

    gpu: str
    title: str
    memory_bytes: int
    verified: bool
    gpus: int | None
    layout: FoundLayout | None
    unverified: FoundLayout | None
    command: str | None
    reach: str


class Fewest(Document):
    """The fewest GPUs of each kind, the kinds with verified rules and the fewest GPUs first.

    `engines` are those that were searched; `unknown` says why others are not verified for the checkpoint. `tried` is
    the number of requests that were weighed, `narrowed_by` has the options that narrow the search, and `counts` says
    which numbers of GPUs may be tried.
    """

    kind: Literal["fewest"] = "fewest"
    schema_version: Literal[2]
    tool_version: str
    checkpoint: str
    context: int | None
    narrowed_by: str
    engines: tuple[str, ...]
    unknown: tuple[str, ...]
    tried: int
    counts: str
    kinds: tuple[FewestGpus, ...]

    def in_short(self) -> str:
        """The number of kinds, and the fewest GPUs of all."""
        held = [f"{kind.gpus} {kind.gpu}" for kind in self.kinds if kind.gpus is not None]
        return f"{counted(len(self.kinds), 'kind')} of GPUs: {f'at least {held[0]}' if held else 'none holds it'}"

    def _repr_html_(self) -> str:
        """HTML for notebooks: a row for each kind."""
        rows = [(kind.gpu, kind.gpus or "", kind.layout.options if kind.layout else kind.reach) for kind in self.kinds]
        return html_table(self.in_short(), ("GPU", "fewest", "layout"), rows)


def fewest(
    checkpoint: Checkpoint,
    inventory: Inventory,
    asked: Request,
    engines: Iterable[str] | None = None,
    session: int | None = None,
    narrowing: Narrowing = ALL,
) -> Fewest:
    """Find the fewest GPUs of the kind that `asked` names, or of each known kind.

    Raises:
        IncompleteCheckpoint: As `make_plan`.
        UsageError: The request is invalid, or an engine does not run models.
    """
    refuse_errors(inventory)
    check_request(asked)
    verified, unknown = engines_to_search(inventory, None, engines)
    inventory = outside_layers(inventory)
    kinds = [replace(asked, gpu=name) for name in GPUS] if not asked.names_gpu else [asked]
    found = _reaches(checkpoint, inventory, kinds, verified, session, narrowing, verified=True)
    weighed = tuple(name for name in unknown if not engine_for(name, inventory.family).is_bound)
    others = _reaches(checkpoint, inventory, kinds, weighed, session, narrowing, verified=False)
    rows = [
        _row(checkpoint, inventory, request, reach, other, session)
        for request, reach, other in zip(kinds, found, others, strict=True)
    ]
    rows.sort(key=lambda row: (not row.verified, row.gpus is None, row.gpus or 0, row.memory_bytes))
    return Fewest(
        schema_version=SCHEMA_VERSION,
        tool_version=__version__,
        checkpoint=checkpoint.source.label,
        context=session,
        narrowed_by=" ".join(words_of(narrowing)),
        engines=verified,
        unknown=tuple(unknown.values()),
        tried=sum(reach.tried for reach in (*found, *others)),
        counts=say_counts(1, MOST_GPUS),
        kinds=tuple(rows),
    )


def _reaches(
    checkpoint: Checkpoint,
    inventory: Inventory,
    kinds: list[Request],
    engines: tuple[str, ...],
    session: int | None,
    narrowing: Narrowing,
    *,
    verified: bool,
) -> list[Reach]:
    """Return how few GPUs of each kind hold the weights with `engines`."""
    known: dict[object, tuple[dict[str, Bound], dict[int, float]]] = {}
    found = []
    for request in kinds:
        gpu = pick_gpu(request)
        rules = _rules_of(gpu)
        if rules not in known:
            there = tuple(name for name in engines if engine_for(name, inventory.family).is_for(gpu))
            known[rules] = bounds_of(inventory, request, there), {}
        bounds, lightest = known[rules]
        reach = fewest_on(checkpoint, inventory, request, bounds, session, 0, lightest, narrowing, verified=verified)
        found.append(reach)
    return found


def _rules_of(gpu: Gpu) -> object:
    """Return what rules and bytes depend on, of a GPU: its architecture, whether it is verified, and its maker."""
    return gpu.sm, gpu.verified, gpu.maker


def _row(
    checkpoint: Checkpoint, inventory: Inventory, request: Request, reach: Reach, other: Reach, session: int | None
) -> FewestGpus:
    gpu = pick_gpu(request)
    best = reach.layouts[0].layout if reach.layouts else None
    return FewestGpus(
        gpu=gpu.name,
        title=gpu.title,
        memory_bytes=gpu.memory,
        verified=gpu.verified,
        gpus=reach.gpus,
        layout=best,
        unverified=other.layouts[0].layout if other.layouts else None,
        command=command_of(checkpoint, best, session) if best else None,
        reach=say_reach(reach, request) or _by_bytes(inventory, gpu),
    )


def _by_bytes(inventory: Inventory, gpu: Gpu) -> str:
    """Say how many GPUs the bytes of the checkpoint need, where no engine's rules are verified for it."""
    nbytes = sum(group.nbytes * count for group, count in inventory.groups.items() if group.stage in TARGET)
    return f"at least {nbytes // gpu.memory + 1} for the bytes alone: no engine that was asked for is verified here"


def fewest_for(checkpoint: Checkpoint, inventory: Inventory, options: FewestOptions) -> Fewest:
    """Return the fewest GPUs for the options of a verb."""
    asked = options.part(Target).part(Request, tp=1)
    refuse_unknown_names(options, find_engine(asked.engine))
    narrowing, engines = options.part(Narrowing), names_of_engines(options.engine)
    return fewest(checkpoint, inventory, asked, engines, options.context, narrowing)
