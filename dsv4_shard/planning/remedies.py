"""Remedies of a breach that help: those with which the plan runs, if necessary together with others."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from dsv4_shard.catalog.gpus import GPUS
from dsv4_shard.checkpoint import Inventory
from dsv4_shard.engines import UNKNOWN_GPU, Breach, Remedy, Request
from dsv4_shard.errors import UsageError
from dsv4_shard.planning.choice import Choice, choose
from dsv4_shard.planning.outcome import MEMORY_RULE, LayoutOutcome, judge
from dsv4_shard.planning.request import gpus_of, options_of
from dsv4_shard.planning.verdict_documents import PlanBreach

_TOGETHER = 2
"""Number of further remedies that a running plan may need."""


def with_remedies(outcome: LayoutOutcome) -> tuple[PlanBreach, ...]:
    """Return the breaches of an outcome with the remedies that help."""
    inventory, request, gpu = outcome.context.inventory, outcome.request, outcome.deployment.gpu
    ruled = {breach.rule: breach for breach in outcome.choice.breaches}
    found = []
    for breach in outcome.breaches:
        ways: tuple[str, ...] = ()
        if breach.rule == MEMORY_RULE:
            ways = _on_gpu(inventory, request, gpu.memory + 1, "the smallest that holds them")
        elif breach.rule == UNKNOWN_GPU:
            ways = _on_gpu(inventory, request, gpu.memory, "the smallest of its memory whose rules are verified")
        elif breach.rule in ruled:
            ways = ways_out(inventory, request, ruled[breach.rule])
        found.append(breach.model_copy(update={"remedies": ways}))
    return tuple(found)


def _on_gpu(inventory: Inventory, request: Request, least: int, why: str) -> tuple[str, ...]:
    """The remedy of the smallest verified GPU of at least `least` bytes on which the request runs; empty if none."""
    for gpu in sorted(GPUS.values(), key=lambda gpu: gpu.memory):
        if gpu.memory >= least and gpu.verified:
            asked = replace(request, gpu=gpu.name, gpu_memory=None)
            if _runs(inventory, asked, request.engine):
                return (f"--gpu {gpu.name}, {why}",)
    return ()


def ways_out(inventory: Inventory, request: Request, breach: Breach) -> tuple[str, ...]:
    """The remedies of `breach` that help `request`, in words; remedies outside of this tool are unchanged."""
    outside = (remedy for remedy in breach.remedies if isinstance(remedy, str))
    ways = (words for words, _ in running_ways(inventory, request, breach))
    return tuple(dict.fromkeys((*ways, *outside)))


def running_ways(inventory: Inventory, request: Request, breach: Breach) -> Iterator[tuple[str, Request]]:
    """Yield the remedies of `breach` that help `request`, in words, each with the request that runs.

    A remedy that helps only together with others, on as many GPUs, has all options of that request in its words.
    """
    gpus = gpus_of(request)
    for remedy in breach.remedies:
        if isinstance(remedy, str):
            continue
        tries = (asked for asked in remedy.tries(request) if asked != request)
        kept = [one for one in tries if one.engine != request.engine or _keeps(inventory, one, breach.rule)]
        alone = next((asked for asked in kept if _runs(inventory, asked, request.engine)), None)
        if alone is not None:
            yield remedy.say(alone, request), alone
            continue
        seen = {request}
        together = (
            (asked, end)
            for asked in kept
            if (end := _reach(inventory, asked, seen, request.engine, gpus, _TOGETHER)) is not None
        )
        for asked, end in together:
            yield f"{remedy.say(asked, request)}; together with the rest: {options_of(end)}", end
            break


def _keeps(inventory: Inventory, request: Request, rule: str) -> bool:
    """Whether a request is within all bounds, and keeps the rule."""
    choice = _choice(inventory, request)
    return choice is not None and all(breach.rule != rule for breach in choice.breaches)


def _runs(inventory: Inventory, request: Request, home: str) -> bool:
    """Whether a request runs, so that its files can be written if the engine only lays out files.

    Of the engine asked for, `home`, a request also counts that breaks nothing and is not verified: there is no better.
    """
    choice = _choice(inventory, request)
    if choice is None or not choice.feasible:
        return False
    outcome = judge(inventory, request, choice)
    if request.engine == home:
        return not outcome.breaches
    engine = outcome.engine
    return outcome.runs and (engine.serves or engine.layout is None or engine.layout.refusal(outcome.context) is None)


def _reach(
    inventory: Inventory, request: Request, seen: set[Request], home: str, gpus: int, more: int
) -> Request | None:
    """The first request that runs on `gpus` GPUs and that at most `more` remedies lead to; None if there is none.

    Remedies of another engine are not added: then that engine alone is the way out. `home` is the engine asked for.
    """
    if request in seen or gpus_of(request) != gpus:
        return None
    seen.add(request)
    choice = _choice(inventory, request)
    if choice is None or choice.feasible or not more:
        return request if choice is not None and _runs(inventory, request, home) else None
    remedies = (remedy for remedy in choice.breaches[0].remedies if isinstance(remedy, Remedy))
    tried = (asked for remedy in remedies for asked in remedy.tries(request) if asked.engine == request.engine)
    found = (_reach(inventory, asked, seen, home, gpus, more - 1) for asked in tried)
    return next((end for end in found if end is not None), None)


def _choice(inventory: Inventory, request: Request) -> Choice | None:
    """What a request comes to; None if it is beyond all bounds, such as the number of GPUs of a remedy."""
    try:
        return choose(inventory, request)
    except UsageError:
        return None


def words(remedies: Iterable[Remedy | str]) -> tuple[str, ...]:
    """Remedies in general words, if there is no request to try them on."""
    return tuple(dict.fromkeys(remedy if isinstance(remedy, str) else remedy.words for remedy in remedies))
