"""vLLM 0.33.0's KV cache of DeepSeek-V3, V3.1, R1 and V3.2: one latent row for each token and layer, in BF16.

All layers share blocks, so there is one group (`v1/core/kv_cache_planning.py`). V3.2 also caches a key of its indexer.
The room has the measured bounds of V4, beside copies of kv_b in BF16 (`process_weights_after_loading`). No
`--kv-cache-dtype` is given, as in the launch command, and draft models were not compared.
"""

from dsv4_shard.catalog.options import VLLM_VERSIONS
from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.kv_cache import Cache
from dsv4_shard.engines.latent_rows import is_compared_geometry, row_bytes, with_copies
from dsv4_shard.engines.vllm.kv_cache import BESIDE, NOTHING, OPTION, SHARE, SMS, Group, VllmPool, in_flight_tokens

BLOCK = 16
"""Tokens of a block; attention backends take larger ones, which hold as much."""


def cache_of(context: Context) -> Cache | None:
    """The KV cache of a model of V3's generation; None for GPUs, versions and sizes that were not compared."""
    deployment, config, gpu = context.deployment, context.v3, context.deployment.gpu
    is_compared = (
        not deployment.serves_draft and gpu.verified and gpu.sm in SMS and deployment.version == VLLM_VERSIONS[0]
    )
    if not is_compared or not is_compared_geometry(config):
        return None
    group = Group(BLOCK, 0, BLOCK * row_bytes(config) * config.num_hidden_layers)
    return Cache(OPTION, SHARE, NOTHING, with_copies(BESIDE, context), VllmPool((group,), in_flight_tokens(gpu)))
