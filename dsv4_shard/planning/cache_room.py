"""Weights and KV cache → why the engine stops for want of room, and settings without which it would."""

from dsv4_shard.engines import Change, Context, engine_for
from dsv4_shard.engines.kv_cache import GIB, MemoryShare
from dsv4_shard.planning.memory_documents import PlanCache, PlanMemory
from dsv4_shard.text.units import gib

MOST_SHARE = 0.98
"""Largest share of memory that is advised: engines need the rest for activations."""

_UNKNOWN_CACHE = 4 * GIB
"""Bytes left for a KV cache whose size is not known; a session of 32,768 tokens takes 2 to 9 GiB where it is."""

_LONGEST = {"--gpu-memory-utilization": "--max-model-len"}
"""Option for the longest session, of engines that stop if it does not fit, by their option for the share of memory."""


def advised_share(share: float) -> float | None:
    """Return a share rounded up to hundredths; None if it is over `MOST_SHARE`."""
    rounded = -int(-share * 100 // 1) / 100
    return rounded if rounded <= MOST_SHARE else None


def no_cache(context: Context, weights: int, cache: PlanCache | None) -> str | None:
    """Return why the engine stops beside `weights` bytes; None if some share of memory is certain to leave room.

    Where the engine's cache was not compared, its share of memory alone decides.
    """
    if cache is not None and cache.never_fits:
        return f"no {cache.option} leaves room for KV cache"
    if cache is not None:
        return _no_share(cache.option, cache.share) if cache.stops else None
    rules = _share_rules(context)
    if rules is None or not _stops(rules, context, weights) or _share_for(rules, context, weights) is not None:
        return None
    return _no_share(rules.option, rules.share)


def cache_changes(context: Context, memory: PlanMemory | None) -> tuple[Change, ...]:
    """Return the share of memory, or the longest session, without which the engine stops."""
    if memory is None or memory.no_cache is not None:
        return ()
    cache = memory.kv_cache
    if cache is None:
        return _unknown_cache_changes(context, memory)
    share = cache.share_needed or cache.share_least
    if cache.stops_by_default and share is not None:
        return (_larger_share(cache.option, cache.share, share),)
    option = _LONGEST.get(cache.option)
    if option is not None and cache.fits is False and cache.certain_session and _is_default(cache):
        length = cache.certain_session // 1024 * 1024 or cache.certain_session
        reason = f"the model's longest, {cache.session:,} tokens, takes {gib(cache.session_bytes)} of room"
        return (Change("longest session", (f"{option} {length}",), reason),)
    return ()


def _unknown_cache_changes(context: Context, memory: PlanMemory) -> tuple[Change, ...]:
    """Return the share that leaves room for a cache whose size is not known, if the default leaves none."""
    rules = _share_rules(context)
    if rules is None or not memory.fits or not _stops(rules, context, memory.weights):
        return ()
    share = _share_for(rules, context, memory.weights)
    return () if share is None else (_larger_share(rules.option, rules.share, share),)


def _share_rules(context: Context) -> MemoryShare | None:
    """The engine's share of memory; None if it has none, or is not verified for the GPU."""
    if not context.deployment.gpu.verified:
        return None
    share = engine_for(context.deployment.engine, context.inventory.family).memory_share
    return share(context.deployment) if share is not None else None


def _stops(rules: MemoryShare, context: Context, weights: int) -> bool:
    """Whether the default share is certain to leave no room."""
    return rules.room(context.deployment.gpu.memory, weights).most <= 0


def _share_for(rules: MemoryShare, context: Context, weights: int) -> float | None:
    """The share that leaves room for a cache whose size is not known; None if none is certain to."""
    return advised_share(rules.share_for(context.deployment.gpu.memory, weights, _UNKNOWN_CACHE))


def _no_share(option: str, share: float) -> str:
    return f"{option} {share:g} leaves no room for KV cache, nor does {MOST_SHARE} for certain"


def _larger_share(option: str, default: float, share: float) -> Change:
    reason = f"the default {default:g} leaves no room for KV cache beside the weights"
    return Change("share of memory", (f"{option} {share:g}",), reason)


def _is_default(cache: PlanCache) -> bool:
    """Whether the session is the model's longest, which the engine takes if no other is asked for."""
    return cache.session == cache.longest_session
