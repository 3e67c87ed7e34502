"""How many tokens fit into the room that weights leave: bytes of KV cache that a token costs a rank.

DeepSeek-V4 (its own `inference/model.py`, `Attention` and `Compressor`) keeps, for each layer, a window of the last
`sliding_window` tokens, and one row of `head_dim` for every `ratio` tokens before (`compress_ratios`; 0: none). Layers
of ratio 4 also keep a key of `index_head_dim` for each of these rows. There is one KV head, so that every rank of an
attention TP group has all of it. What grows with the context is then, for a token:

    sum over layers of (row + key, if ratio 4) / ratio

The window, and the states of what is not compressed yet, are of a fixed size for each request. What is moved to the
host's memory (SGLang's HiSparse) is not looked at. Bytes of a row and a key:

    engine                       row                                                        key
    SGLang, vLLM on Hopper       head_dim - rope in FP8, rope in BF16, 8 of scales: 584     FP8, F32 scale / 128: 132
    SGLang, vLLM on Blackwell    may be head_dim in FP8: 512                                may be FP4, E8M0 / 32: 68
    DeepSeek's reference         head_dim in BF16: 1024                                     BF16: 256

(SGLang: `DeepSeekV4SingleKVPool`, `DeepSeekV4UniformFP8KVPool`, `get_dsv4_indexer_bytes_per_token`; vLLM:
`models/deepseek_v4/attention.py`.) Hopper's bytes are held in the tests against what SGLang printed; vLLM has the same
rows and fills up its pages, and prints tokens that depend on `max_model_len`, so they only have to stay below. Those of
Blackwell and of the reference are arithmetic from the code. DeepSeek-V3 keeps `kv_lora_rank + qk_rope_head_dim` in BF16
for each token and layer, which is arithmetic too. Of other families and engines nothing is said.
"""

from dataclasses import dataclass
from fractions import Fraction

from dsv4_shard.engines.deployment import Context
from dsv4_shard.models.v3 import V3
from dsv4_shard.models.v4 import OVERLAP_RATIO, V4, V4Config

_SERVING = ("sglang", "vllm", "node")

_SCALE_BYTES = 8
"""Of a row: an E8M0 byte for each 64 of the part in FP8, filled up to 8."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """Bytes of a compressed row, and of the indexer's key beside it."""

    row: int
    key: int


def entry_of(context: Context) -> CacheEntry | None:
    """The smallest entry that the engine may keep for a V4 model on the deployment's GPU; None where not known."""
    config, deployment = context.v4, context.deployment
    if deployment.engine == "reference":
        return CacheEntry(2 * config.head_dim, 2 * config.index_head_dim)
    rope = config.qk_rope_head_dim
    if deployment.engine not in _SERVING or rope is None or rope > config.head_dim:
        return None
    if deployment.gpu.sm >= 100:
        return CacheEntry(config.head_dim, config.index_head_dim // 2 + config.index_head_dim // 32)
    return CacheEntry(config.head_dim + rope + _SCALE_BYTES, config.index_head_dim + config.index_head_dim // 128 * 4)


def growth(config: V4Config, entry: CacheEntry) -> Fraction:
    """Bytes that one more token of context costs in all layers of the target model."""
    total = Fraction(0)
    for ratio in config.compress_ratios[: config.num_hidden_layers]:
        if ratio:
            total += Fraction(entry.row + (entry.key if ratio == OVERLAP_RATIO else 0), ratio)
    return total


def bytes_per_token(context: Context) -> Fraction | None:
    """Bytes of KV cache that a token costs a rank at the least, in all layers; None where that is not known."""
    family, deployment = context.inventory.family, context.deployment
    if deployment.gpu.unverified:
        return None
    if family is V4:
        entry = entry_of(context)
        return growth(context.v4, entry) or None if entry else None
    if family is V3 and deployment.engine in _SERVING:
        config = context.v3
        return Fraction(2 * (config.kv_lora_rank + config.qk_rope_head_dim) * config.num_hidden_layers)
    return None
