"""How many tokens fit into the room that weights leave: bytes of KV cache that a token costs a rank.

Each engine states its own bytes (`Engine.kv_bytes_per_token`); `engines/kv_cache.py` derives them.
"""

from fractions import Fraction

from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.registry import engine_for


def bytes_per_token(context: Context) -> Fraction | None:
    """Bytes of KV cache that a token costs a rank at the least, in all layers; None where that is not known."""
    if not context.deployment.gpu.verified:
        return None
    return engine_for(context.deployment.engine, context.inventory.family).kv_bytes_per_token(context)
