"""Remedies of a breach that help: those with which the plan runs, if necessary together with others."""

from collections.abc import Iterable, Iterator

from dsv4_shard.checkpoint import Inventory
from dsv4_shard.engines import Breach, Remedy, Request
from dsv4_shard.errors import UsageError
from dsv4_shard.planning.choice import choose

_TOGETHER = 2
"""Number of further remedies that a running plan may need."""


def ways_out(inventory: Inventory, request: Request, breach: Breach) -> tuple[str, ...]:
    """The remedies of `breach` that help `request`, in words; remedies outside of this tool are unchanged."""
    return tuple(dict.fromkeys(_ways_out(inventory, request, breach)))


def _ways_out(inventory: Inventory, request: Request, breach: Breach) -> Iterator[str]:
    for remedy in breach.remedies:
        if not isinstance(remedy, Remedy):
            yield remedy
            continue
        for asked in remedy.tries(request):
            if asked != request and _mends(inventory, asked, breach.rule, {request}):
                yield remedy.say(asked)
                break


def _mends(inventory: Inventory, request: Request, rule: str, seen: set[Request]) -> bool:
    """Whether a request keeps the rule, and few remedies lead from it to a plan that runs."""
    breaches = _breaches(inventory, request)
    if breaches is None or any(breach.rule == rule for breach in breaches):
        return False
    return _runs(inventory, request, seen, _TOGETHER)


def _runs(inventory: Inventory, request: Request, seen: set[Request], more: int) -> bool:
    if request in seen:
        return False
    seen.add(request)
    breaches = _breaches(inventory, request)
    if not breaches or not more:
        return breaches == ()
    remedies = (remedy for remedy in breaches[0].remedies if isinstance(remedy, Remedy))
    return any(_runs(inventory, asked, seen, more - 1) for remedy in remedies for asked in remedy.tries(request))


def _breaches(inventory: Inventory, request: Request) -> tuple[Breach, ...] | None:
    """What a request breaks; None if it is beyond all bounds, such as the number of GPUs of a remedy."""
    try:
        return choose(inventory, request).breaches
    except UsageError:
        return None


def words(remedies: Iterable[Remedy | str]) -> tuple[str, ...]:
    """Remedies in general words, if there is no request to try them on."""
    return tuple(dict.fromkeys(remedy if isinstance(remedy, str) else remedy.words for remedy in remedies))
