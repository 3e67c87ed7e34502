"""KV cache of V3's generation: what SGLang and vLLM have in common, one latent row for each token and layer.

V3.2 also caches a key of its indexer. Beside weights and cache, both engines hold copies of kv_b in BF16.
"""

from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.kv_cache import Bounds, indexer_row
from dsv4_shard.models import V3Config, V32Config

_GEOMETRY = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}


def is_compared_geometry(config: V3Config) -> bool:
    """Whether rows and keys are of the sizes that were compared with the engines' code."""
    is_usual = all(getattr(config, key) == size for key, size in _GEOMETRY.items())
    return is_usual and (not isinstance(config, V32Config) or config.index_head_dim == 128)


def row_bytes(config: V3Config, width: int = 2) -> int:
    """Bytes of a token in one layer, with `width` bytes per element of the latent row."""
    row = width * (config.kv_lora_rank + config.qk_rope_head_dim)
    return row + (indexer_row(config.index_head_dim) if isinstance(config, V32Config) else 0)


def with_copies(beside: Bounds, context: Context) -> Bounds:
    """Bytes beside weights and cache, with the copies of kv_b of all layers; the least is without them."""
    config = context.v3
    rows = config.kv_rows // context.deployment.attention_tp
    copies = 2 * rows * config.kv_lora_rank * config.num_hidden_layers
    return Bounds(beside.least, beside.likely + copies, beside.most + copies)
