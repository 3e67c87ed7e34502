"""Bytes of KV cache that one more token of context needs per rank.

DeepSeek-V4 (its own `inference/model.py`, `Attention` and `Compressor`) keeps, for each layer, a window of the last
`sliding_window` tokens, and one row of `head_dim` for every `ratio` tokens before (`compress_ratios`; 0: none). Layers
of ratio 4 also keep a key of `index_head_dim` for each of these rows. There is one KV head, so every rank of an
attention TP group holds all of it. Growth per token of context:

    sum over layers of (row + key, if ratio 4) / ratio

The window, and the states that are not compressed yet, have a fixed size per request. The formula ignores what SGLang's
HiSparse moves to the host's memory. Bytes of a row and a key:

    engine                       row                                                        key
    SGLang, vLLM on Hopper       head_dim - rope in FP8, rope in BF16, 8 of scales: 584     FP8, F32 scale / 128: 132
    SGLang, vLLM on Blackwell    may be head_dim in FP8: 512                                may be FP4, E8M0 / 32: 68
    DeepSeek's reference         head_dim in BF16: 1024                                     BF16: 256

Sources: `DeepSeekV4SingleKVPool`, `DeepSeekV4UniformFP8KVPool` and `get_dsv4_indexer_bytes_per_token` in SGLang;
`models/deepseek_v4/attention.py` in vLLM. The tests compare Hopper's bytes with the numbers that SGLang printed. vLLM
has the same rows and fills up its pages, and prints tokens that depend on `max_model_len`; the tests check only that
its numbers stay below. The bytes for Blackwell and the reference are arithmetic from the code. DeepSeek-V3 keeps
`kv_lora_rank + qk_rope_head_dim` in BF16 for each token and layer, which is arithmetic too. Other families and engines
are not known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from dsv4_shard.engines.deployment import Context
from dsv4_shard.models import OVERLAP_RATIO, V3, V4Config

_SCALE_BYTES = 8
"""Bytes of scales in a row: an E8M0 byte for each 64 elements of the part in FP8, padded to 8."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """Bytes of a compressed row, and of the indexer's key for it."""

    row: int
    key: int


def fp8_entry(context: Context) -> CacheEntry | None:
    """The smallest entry that SGLang and vLLM may keep for a V4 model on the deployment's GPU; None if not known."""
    config = context.v4
    rope = config.qk_rope_head_dim
    if rope is None or rope > config.head_dim:
        return None
    if context.deployment.gpu.sm >= 100:
        return CacheEntry(config.head_dim, config.index_head_dim // 2 + config.index_head_dim // 32)
    return CacheEntry(config.head_dim + rope + _SCALE_BYTES, config.index_head_dim + config.index_head_dim // 128 * 4)


def bf16_entry(context: Context) -> CacheEntry:
    """The entry of DeepSeek's reference for a V4 model."""
    return CacheEntry(2 * context.v4.head_dim, 2 * context.v4.index_head_dim)


def growth(config: V4Config, entry: CacheEntry) -> Fraction:
    """Bytes that one more token of context needs in all layers of the target model."""
    total = Fraction(0)
    for ratio in config.compress_ratios[: config.num_hidden_layers]:
        if ratio:
            total += Fraction(entry.row + (entry.key if ratio == OVERLAP_RATIO else 0), ratio)
    return total


def rows_of(entry_of: Callable[[Context], CacheEntry | None]) -> Callable[[Context], Fraction | None]:
    """Return the function for bytes per token of a V4 model; it gives None if nothing grows or is known."""

    def nbytes(context: Context) -> Fraction | None:
        entry = entry_of(context)
        return growth(context.v4, entry) or None if entry else None

    return nbytes


def latents(context: Context) -> Fraction | None:
    """Bytes per token of a V3 model, which keeps a latent vector per layer; None for V3.2, which is not known."""
    if context.inventory.family is not V3:
        return None
    config = context.v3
    return Fraction(2 * (config.kv_lora_rank + config.qk_rope_head_dim) * config.num_hidden_layers)


def not_known(context: Context) -> Fraction | None:
    """None: the engine's cache code was not read."""
    return None
