"""Bytes that all GPUs together send for one token in one layer, by formula.

The formulas count hidden states h = 2 × hidden_size (BF16), in DeepSeek's reference 4 × hidden_size (F32):

    all-reduce over n ranks (ring)                       2 (n - 1) h, which is 2 (n - 1) / n h per rank
    gather the tokens of n ranks and reduce again        the same
    all-to-all over n ranks, with k experts per token    2 k (n - 1) / n h: there and back, at most

Attention reduces over attention TP. Routed experts reduce over all GPUs of a pipeline stage, or an all-to-all backend
reaches them. Shared experts that are cut share the sum of the routed ones. Engines that quantize what they send, or
overlap it, send less or wait less. The formulas leave out terms that grow with the context (scores of the reference's
indexer).
"""

from dsv4_shard.engines.deployment import Context

BF16_BYTES, F32_BYTES = 2, 4


def added_up(context: Context, element_bytes: int = BF16_BYTES) -> int:
    """Bytes if attention and routed experts both use an all-reduce: over attention TP, and over all GPUs."""
    return _attention(context, element_bytes) + 2 * (context.deployment.stage_world - 1) * _state(
        context, element_bytes
    )


def all_to_all(context: Context, element_bytes: int = BF16_BYTES) -> int:
    """Bytes if attention uses an all-reduce, and tokens travel to their experts and back."""
    world, experts = context.deployment.stage_world, context.config.num_experts_per_tok
    return _attention(context, element_bytes) + 2 * experts * (world - 1) * _state(context, element_bytes) // world


def by_backend(context: Context) -> int:
    """Bytes of an all-to-all if the deployment has such a backend, else of all-reduces."""
    return all_to_all(context) if context.deployment.a2a else added_up(context)


def added_up_in_f32(context: Context) -> int:
    """Bytes as in `added_up`, with states in F32."""
    return added_up(context, F32_BYTES)


def not_known(context: Context) -> int | None:
    """None: the engine's sources were not read for the bytes that it sends."""
    return None


def _attention(context: Context, element_bytes: int) -> int:
    return 2 * (context.deployment.attention_tp - 1) * _state(context, element_bytes)


def _state(context: Context, element_bytes: int) -> int:
    return element_bytes * context.config.hidden_size
