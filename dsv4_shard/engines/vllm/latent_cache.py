"""vLLM 0.33.0's KV cache of DeepSeek-V3, V3.1, R1 and V3.2: one latent row for each token and layer, in BF16.

All layers share blocks, so there is one group (`v1/core/kv_cache_planning.py`). V3.2 also caches a key of its indexer.
The room has the measured bounds of V4, beside copies of kv_b in BF16 (`process_weights_after_loading`). No
`--kv-cache-dtype` is given, as in the launch command, and speculative decoding is off.
"""

from dsv4_shard.catalog.options import VLLM_VERSIONS
from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.kv_cache import Bounds, Cache, indexer_row
from dsv4_shard.engines.vllm.kv_cache import BESIDE, NOTHING, OPTION, SHARE, SMS, Group, VllmPool, in_flight_tokens
from dsv4_shard.models import V32Config

BLOCK = 16
"""Tokens of a block; attention backends take larger ones, which hold as much."""

_GEOMETRY = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}


def cache_of(context: Context) -> Cache | None:
    """The KV cache of a model of V3's generation; None for GPUs, versions and sizes that were not compared."""
    deployment, config = context.deployment, context.v3
    gpu = deployment.gpu
    if not (gpu.verified and gpu.sm in SMS and deployment.version == VLLM_VERSIONS[0]):
        return None
    if any(getattr(config, key) != size for key, size in _GEOMETRY.items()):
        return None
    token = 2 * (config.kv_lora_rank + config.qk_rope_head_dim)
    if isinstance(config, V32Config):
        if config.index_head_dim != 128:
            return None
        token += indexer_row(config.index_head_dim)
    copies = config.kv_rows // deployment.attention_tp * config.kv_lora_rank * 2 * config.num_hidden_layers
    beside = Bounds(BESIDE.least, BESIDE.likely + copies, BESIDE.most + copies)
    group = Group(BLOCK, 0, BLOCK * token * config.num_hidden_layers)
    return Cache(OPTION, SHARE, NOTHING, beside, VllmPool((group,), in_flight_tokens(gpu)))
