"""Bytes of KV cache per token and rank, for the tokens that fit in the memory left by the weights.

Each engine has its own formula (`Engine.kv_bytes_per_token`); `engines/kv_cache.py` derives them.
"""

from fractions import Fraction

from dsv4_shard.engines import Context, engine_for


def bytes_per_token(context: Context) -> Fraction | None:
    """Minimum bytes of KV cache that a token needs per rank, in all layers; None if not known."""
    if not context.deployment.gpu.verified:
        return None
    return engine_for(context.deployment.engine, context.inventory.family).kv_bytes_per_token(context)
