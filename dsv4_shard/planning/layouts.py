"""The layouts on one number of GPUs: every combination of options that the rules allow, weighed, best first."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from dsv4_shard.catalog.request import Narrowing
from dsv4_shard.checkpoint import Checkpoint, Inventory
from dsv4_shard.engines import Context, Deployment, Request, engine_for
from dsv4_shard.models import Module
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.layout_documents import DeploymentDocument
from dsv4_shard.planning.outcome import CACHE_RULE, MEMORY_RULE, LayoutOutcome, judge
from dsv4_shard.planning.request import options_of
from dsv4_shard.planning.weights import weights_of
from dsv4_shard.text.document import Document


class FoundLayout(Document):
    """A layout that the rules allow. Bytes are of the heaviest rank, except those sent, which are of all GPUs together.

    `assumption` says what the bytes rest on if it is not verified that the layout runs; None if it is.

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
    assumption: str | None


ALL = Narrowing()
"""A search for every layout."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layout with what it comes to."""

    outcome: LayoutOutcome
    layout: FoundLayout

    @property
    def request(self) -> Request:
        """The request that leads to it."""
        return self.outcome.request

    @property
    def deployment(self) -> Deployment:
        """The deployment."""
        return self.outcome.deployment


def layouts_on(
    checkpoint: Checkpoint,
    inventory: Inventory,
    asked: Request,
    engines: Iterable[str],
    session: int | None = None,
    narrowing: Narrowing = ALL,
    *,
    verified: bool = True,
) -> tuple[list[Candidate], int]:
    """Return every layout on `asked.tp` GPUs that `narrowing` leaves, best first, and the number of requests tried.

    If not `verified`, these are layouts of engines that are not known to run the checkpoint.
    """
    found: dict[tuple[Any, ...], list[Candidate]] = {}
    seen: set[Deployment] = set()
    hopeless: set[tuple[Any, ...]] = set()
    tried = 0
    for request in _narrowed(requests_on(inventory, asked, engines), narrowing):
        tried += 1
        parallelism = (request.engine, request.tp, request.dp, request.ep, request.a2a)
        if parallelism in hopeless:
            continue
        choice = choose(inventory, request)
        if any(breach.module not in _OF_OPTIONS for breach in choice.breaches):
            hopeless.add(parallelism)
        is_taken = choice.feasible if verified else choice.is_weighed
        if not is_taken or choice.deployment in seen or not _admits(narrowing, choice.deployment):
            continue
        seen.add(choice.deployment)
        if not choice.feasible:
            hopeless.add(parallelism)  # runners and shared experts that are not verified differ in nothing known
            if not engine_for(request.engine, inventory.family).divides(Context(inventory, choice.deployment)):
                continue
        outcome = judge(inventory, request, choice, session, checkpoint)
        one = Candidate(outcome, _weigh(outcome))
        found.setdefault(_likeness(one), []).append(one)
    return sorted(map(_merged, found.values()), key=lambda one: rank_of(one.layout)), tried


def _narrowed(requests: Iterable[Request], narrowing: Narrowing) -> Iterator[Request]:
    """Yield requests with the runner, all-to-all backend and way of shared experts that are given, each once."""
    names = ("runner", "a2a", "shared_experts")
    given = {name: value for name in names if (value := getattr(narrowing, name)) is not None}
    yield from dict.fromkeys(replace(request, **given) for request in requests) if given else requests


def _admits(narrowing: Narrowing, deployment: Deployment) -> bool:
    """Whether a deployment has the EP and DP that are given."""
    return narrowing.ep in (None, deployment.ep) and narrowing.dp in (None, deployment.dp)


_OF_OPTIONS = (Module.ROUTED, Module.SHARED)
"""Modules whose rules depend on runner and shared experts; those of others break alike under each of these."""


def _merged(alike: list[Candidate]) -> Candidate:
    """Return one of several equal layouts, with the options of the others; the engine's own choice if present."""
    first = min(alike, key=lambda one: (one.request.runner is not None, one.request.shared_experts != "auto"))
    also = tuple(one.layout.options for one in alike if one is not first)
    return replace(first, layout=first.layout.model_copy(update={"also": also}))


def requests_on(inventory: Inventory, asked: Request, engines: Iterable[str]) -> Iterator[Request]:
    """Yield every combination that an engine has options for."""
    for name in engines:
        yield from engine_for(name, inventory.family).requests(asked)


def _likeness(one: Candidate) -> tuple[Any, ...]:
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


def rank_of(layout: FoundLayout, by: str = "weights") -> tuple[float, ...]:
    """Return the sort key of a layout: whether it fits, then by what is asked for, then the usual order."""
    whole = layout.replicated_bytes + layout.padding_bytes
    weights, tokens, sent = (ranking(layout) for ranking in RANKINGS.values())
    return (not layout.fits, RANKINGS[by](layout), weights, tokens, whole, sent)


def _weigh(outcome: LayoutOutcome) -> FoundLayout:
    totals, memory, deployment = outcome.totals, outcome.memory, outcome.deployment
    assert totals is not None, "only layouts that are weighed are found"
    cache = memory.kv_cache if memory else None
    return FoundLayout(
        options=options_of(outcome.request),
        also=(),
        request=outcome.request,
        deployment=DeploymentDocument.of(deployment),
        fits=not any(breach.rule in (MEMORY_RULE, CACHE_RULE) for breach in outcome.breaches),
        weight_bytes=weights_of(totals, deployment),
        left_bytes=memory.left if memory else None,
        groups=deployment.world // deployment.attention_tp,
        tokens=cache.tokens if cache else None,
        sessions=cache.sessions if cache else None,
        replicated_bytes=totals.replicated_bytes_per_rank,
        padding_bytes=totals.padding_bytes_per_rank,
        sent_bytes_per_token_and_layer=outcome.engine.bytes_sent(outcome.context),
        assumption=outcome.engine.assumption(outcome.context, is_known=outcome.choice.feasible),
    )
