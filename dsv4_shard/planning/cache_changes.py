"""KV cache → settings without which the engine would stop in KV planning."""

from dsv4_shard.engines import Change
from dsv4_shard.planning.memory_documents import PlanCache, PlanMemory
from dsv4_shard.text.units import gib

_LONGEST = {"--gpu-memory-utilization": "--max-model-len"}
"""Option for the longest session, of engines that stop if it does not fit, by their option for the share of memory."""


def cache_changes(memory: PlanMemory | None) -> tuple[Change, ...]:
    """Return the share of memory, or the longest session, without which the engine stops."""
    cache = memory.kv_cache if memory else None
    if cache is None or cache.never_fits:
        return ()
    share = cache.share_needed or cache.share_least
    if cache.room_most <= 0 and share is not None:
        reason = f"the default {cache.share:g} leaves no room for KV cache beside the weights"
        return (Change("share of memory", (f"{cache.option} {share:g}",), reason),)
    option = _LONGEST.get(cache.option)
    if option is not None and cache.fits is False and cache.certain_session and _is_default(cache):
        length = cache.certain_session // 1024 * 1024 or cache.certain_session
        reason = f"the model's longest, {cache.session:,} tokens, takes {gib(cache.session_bytes)} of room"
        return (Change("longest session", (f"{option} {length}",), reason),)
    return ()


def _is_default(cache: PlanCache) -> bool:
    """Whether the session is the model's longest, which the engine takes if no other is asked for."""
    return cache.session == cache.longest_session
