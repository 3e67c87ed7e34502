"""vLLM 0.33.0's KV cache of DeepSeek-V4: its default share of memory, and its groups of blocks.

Formulas: `models/deepseek_v4/{attention,compressor}.py` (`get_kv_cache_spec`) and `v1/kv_cache_interface.py` for pages
and for the blocks of a request; `v1/core/kv_cache_planning.py` (`_get_packed_kv_cache_groups`, `_approximate_gcd`) for
groups; `engine/arg_utils.py` (`get_batch_defaults`) and `config/vllm.py` (`max_in_flight_tokens`) for tokens in flight;
`v1/worker/gpu_worker.py` (`determine_available_memory`) for the room. `--block-size 256` and `--kv-cache-dtype fp8` are
as in the launch command. The blocks of a draft model have windows alone.

All groups take blocks of one size from one pool. A window or a state keeps blocks for all tokens in flight, which
dominate the cache of short sessions.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from dsv4_shard.catalog.gpus import Gpu
from dsv4_shard.catalog.options import VLLM_VERSIONS
from dsv4_shard.catalog.sms import SM_10X, SM_90
from dsv4_shard.engines.deployment import Context, Deployment
from dsv4_shard.engines.kv_cache import (
    GIB,
    Bounds,
    Cache,
    MemoryShare,
    indexer_row,
    is_compared_model,
    latent_row,
    padded_rows,
)
from dsv4_shard.models import OVERLAP_RATIO, V4Config

OPTION = "--gpu-memory-utilization"

SHARE = 0.92

BLOCK = 256
"""Tokens of a block of compressed rows."""

BESIDE = Bounds(4 * GIB, 8 * GIB, 12 * GIB)
"""Activations, communicators and graphs. Logs: 4.6 GiB (H20, TP 2), 8.2 and 7.9 (B200, TP 8 and DP 8), 11 (GH200)."""

NOTHING = Bounds(0, 0, 0)

SMS = SM_90 | SM_10X

_BATCHES = 2
"""Steps in flight under asynchronous scheduling, which is on by default."""


def cache_of(context: Context) -> Cache | None:
    """The KV cache of a V4 model; None for other families, GPUs and versions, which were not compared."""
    if not is_compared_model(context):
        return None
    gpu = context.deployment.gpu
    if not (gpu.verified and gpu.sm in SMS and context.deployment.version == VLLM_VERSIONS[0]):
        return None
    drafted = context.inventory.draft.blocks if context.deployment.serves_draft else 0
    groups = tuple(_groups([*_layers(context.v4), *[_window(context.v4)] * drafted]))
    return Cache(OPTION, SHARE, NOTHING, BESIDE, VllmPool(groups, in_flight_tokens(gpu)))


def memory_share(deployment: Deployment) -> MemoryShare:
    """The share of memory, the same for every deployment."""
    return MemoryShare(OPTION, SHARE, NOTHING, BESIDE)


def in_flight_tokens(gpu: Gpu) -> int:
    """Tokens that may be scheduled and not settled: two steps of `max_num_batched_tokens` of `vllm serve`."""
    gib = gpu.memory / GIB
    return _BATCHES * (16384 if gib >= 160 else 8192 if gib >= 70 and gpu.sm != 121 else 2048)


@dataclass(frozen=True, slots=True)
class LayerCache:
    """A layer's cache: tokens of a block, bytes of its page, and the window that it keeps (0: all tokens)."""

    block: int
    page: int
    window: int


def _window(config: V4Config) -> LayerCache:
    """The window of a layer, or of a block of the draft model."""
    return LayerCache(64, padded_rows(64, latent_row(config)), config.sliding_window)


def _layers(config: V4Config) -> Iterator[LayerCache]:
    """Yield the caches of all layers: windows, compressed rows and states, and those of indexers."""
    row, head, index = latent_row(config), config.head_dim, config.index_head_dim
    for ratio in config.compress_ratios[: config.num_hidden_layers]:
        yield _window(config)
        if ratio == OVERLAP_RATIO:
            yield LayerCache(BLOCK, padded_rows(BLOCK // ratio, indexer_row(index)), 0)
            yield LayerCache(4, padded_rows(4, 4 * index * 4), 2 * ratio)
            yield LayerCache(BLOCK, padded_rows(BLOCK // ratio, row), 0)
            yield LayerCache(4, padded_rows(4, 4 * head * 4), 2 * ratio)
        elif ratio:
            yield LayerCache(BLOCK, padded_rows(BLOCK // ratio, row), 0)
            yield LayerCache(8, padded_rows(8, 2 * head * 4), ratio)


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share blocks: tokens of a block, the window, and the bytes of all their pages."""

    block: int
    window: int
    nbytes: int

    def blocks(self, length: int, in_flight: int) -> int:
        """Most blocks that a request of `length` tokens takes."""
        if not self.window:
            return -(-length // self.block)
        return -(-min(self.window - 1 + in_flight, length) // self.block) + 1


def _groups(layers: list[LayerCache]) -> Iterator[Group]:
    """Yield the groups into which vLLM packs layers.

    Layers of one block size and window are a kind. A kind with as many layers of each page size is a repeating pattern,
    and is split into groups of about equal numbers of repeats; other kinds stay whole.
    """
    kinds: dict[tuple[int, int], Counter[int]] = {}
    for layer in layers:
        kinds.setdefault((layer.block, layer.window), Counter())[layer.page] += 1
    repeats = {kind: max(pages.values()) for kind, pages in kinds.items() if len(set(pages.values())) == 1}
    least = max((repeats[kind] for kind in repeats if len(kinds[kind]) > 1), default=0)
    size = _common_size(list(repeats.values()), least) if least else 0
    for kind, pages in kinds.items():
        parts = -(-repeats[kind] // size) if size and kind in repeats else 1
        for part in range(parts):
            yield Group(*kind, sum(len(range(part, count, parts)) * page for page, count in pages.items()))


def _common_size(counts: list[int], least: int) -> int:
    """The number of repeats per group, from `least` on, that wastes least; the largest of several."""
    sizes = range(least, max(counts) + 1)
    return min(sizes, key=lambda size: (sum(-count % size for count in counts), -size))


@dataclass(frozen=True, slots=True)
class VllmPool:
    """vLLM's pool of blocks, from which every group of layers takes its own."""

    groups: tuple[Group, ...]
    in_flight: int

    @property
    def block_bytes(self) -> int:
        """Bytes of a block: those of the widest group."""
        return max(group.nbytes for group in self.groups)

    def request_blocks(self, length: int) -> int:
        """Most blocks that a request of `length` tokens takes, in all groups."""
        return sum(group.blocks(length, self.in_flight) for group in self.groups)

    def tokens(self, room: int, length: int) -> int:
        """`GPU KV cache size`: vLLM's maximum concurrency at this length, times the length."""
        return max(0, room // self.block_bytes) * length // self.request_blocks(length)

    def sessions(self, room: int, length: int) -> int:
        """Sessions that vLLM counts for certain: each with all its blocks in flight."""
        return max(0, room // self.block_bytes - 1) // self.request_blocks(length)

    def needs(self, length: int) -> int:
        """Blocks of one request, and the null block."""
        return (self.request_blocks(length) + 1) * self.block_bytes
