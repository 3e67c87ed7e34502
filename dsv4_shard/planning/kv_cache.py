"""A deployment's weights and GPU → whether a context fits, and with how many sessions (`PlanCache`)."""

from dsv4_shard.engines import Context, engine_for
from dsv4_shard.planning.cache_room import advised_share
from dsv4_shard.planning.memory_documents import PlanCache


def plan_cache(context: Context, weights: int) -> PlanCache | None:
    """Return what the engine makes of the memory beside `weights` bytes; None if its code was not compared.

    Sessions are as long as asked for, else as the model's longest context.
    """
    deployment, longest = context.deployment, context.longest_session
    length = context.session or longest
    cache = engine_for(deployment.engine, context.inventory.family).kv_cache(context)
    if cache is None or length is None or not deployment.gpu_named or deployment.pp > 1:
        return None
    memory, possible = deployment.gpu.memory, longest is None or length <= longest
    room = cache.room(memory, weights)
    tokens = cache.tokens(room, length)
    tokens = tokens if possible or tokens == 0 else None
    fits = cache.fits(room, length) if possible else False
    needed = advised_share(cache.share_for(memory, weights, cache.pool.needs(length))) if possible else None
    shortest = min(length, longest or length, _SHORTEST)
    return PlanCache(
        option=cache.option,
        share=cache.share,
        room=room.likely,
        room_least=room.least,
        room_most=room.most,
        session=length,
        longest_session=longest,
        session_bytes=cache.pool.needs(length),
        fits=fits,
        certain_session=cache.longest(room.least, min(length, longest or length)) if fits is not True else length,
        share_needed=None if fits else needed,
        share_least=advised_share(cache.share_for(memory, weights, cache.pool.needs(shortest))),
        never_fits=cache.never_fits(memory, weights),
        groups=deployment.world // deployment.attention_tp,
        tokens=tokens,
        sessions=cache.pool.sessions(room.likely, length) if tokens else tokens,
    )


_SHORTEST = 32768
"""Tokens of a session for which the least share of memory must have room."""
