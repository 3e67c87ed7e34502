"""SGLang 0.5.23's KV cache of DeepSeek-V4: its default share of memory, and its pools.

Formulas: `arg_groups/memory_hook.py` (`handle_gpu_memory_settings`, `reserve_for_graph_mb`,
`reserve_for_deepep_a2a_mb`) for the share; `model_executor/pool_configurator.py` (`DSV4PoolConfigurator`,
`compute_swa_request_cap`) and `mem_cache/deepseek_v4_memory_pool.py` for the pools;
`mem_cache/kv_cache_configurator.py` (`_profile_available_bytes`) for the room. `arg_groups/model_overrides/deepseek_v4`
sets the ratio of the windows and the page size, `deepseek_v4_hook` the requests. With a draft model, of one block or
three, SGLang counts one layer more, and makes the rings of states twice as long.
"""

from dataclasses import dataclass
from fractions import Fraction

from dsv4_shard.catalog.gpus import Gpu
from dsv4_shard.catalog.options import VERSIONS
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
    up_to,
)
from dsv4_shard.models import OVERLAP_RATIO, V3, V32, Family

OPTION = "--mem-fraction-static"

WINDOW_RATIO = Fraction(1, 10)
"""`swa_full_tokens_ratio`: slots of sliding windows for each token of the pool."""

PAGE = 256

_MLA_PAGE = 64
"""Tokens of a page with V3 and V3.2, at most: kernels for Hopper may have pages of one token."""

_MAX_REQUESTS = 256

_EVICTION_TOKENS = 128
"""SGLANG_SWA_EVICTION_INTERVAL."""


@dataclass(frozen=True, slots=True)
class _Ring:
    """States that are not compressed yet: rows per page of windows (ratio 4), and per request (ratio 128)."""

    short: int
    long: int


_RINGS = {False: _Ring(8, 128), True: _Ring(16, 256)}
"""Without a draft model, and with one (`get_compress_state_ring_size`)."""

BEFORE = Bounds(int(1.2 * GIB), int(1.4 * GIB), 2 * GIB)
"""CUDA context and communicators. Logs: 93.58 of 95.00 GiB on H20, 77.80 of 79.18 on H800."""

BESIDE = Bounds(1 * GIB, int(1.7 * GIB), int(2.6 * GIB))
"""Beyond the weights after loading. Logs: 2.05 GiB (Flash-Base, TP 8), 1.32 (Pro, TP 16, EP 16), 1.05 (Flash, TP 8)."""

_SMS = SM_90 | SM_10X | {120}

_A2A = (None, "deepep")


def cache_of(context: Context) -> Cache | None:
    """The KV cache of a V4 model; None for other families, GPUs, versions and options, which were not compared."""
    if not is_compared_model(context):
        return None
    deployment, config = context.deployment, context.v4
    gpu, is_compared_version = deployment.gpu, deployment.version == VERSIONS["sglang"][0]
    if not (gpu.verified and gpu.sm in _SMS and deployment.a2a in _A2A and is_compared_version):
        return None
    ratios = config.compress_ratios[: config.num_hidden_layers]
    row, head, index = latent_row(config), config.head_dim, config.index_head_dim
    fours, longs = ratios.count(OVERLAP_RATIO), ratios.count(128)
    ring = _RINGS[deployment.serves_draft]
    states = Fraction(ring.short, PAGE) * 16 * (head + index)
    window = _padded_row(PAGE, row) * len(ratios) + states * fours
    compressed = fours * (_padded_row(PAGE // 4, row) + indexer_row(index)) / 4
    compressed += longs * _padded_row(PAGE // 128, row) / 128
    requests = _MAX_REQUESTS // deployment.dp or 1
    state_rows = up_to((requests + 1) * ring.long + ring.long + 1, 128)
    drafted = _drafted_tokens(context)
    more = Fraction(len(ratios) + 1, len(ratios)) if drafted else 1
    return Cache(
        OPTION,
        default_share(deployment),
        BEFORE,
        BESIDE,
        SglangPool(
            token=(WINDOW_RATIO * window + compressed) * more,
            fixed=state_rows * 2 * head * 4 * longs,
            requests=requests,
            slots=_window_slots(config.sliding_window, drafted),
            chunk=prefill_tokens(deployment.gpu, deployment.dp, PAGE) // deployment.dp,
        ),
    )


EAGLE_TOKENS = 4
"""`--speculative-num-draft-tokens` of the launch commands."""


def _drafted_tokens(context: Context) -> int:
    """`speculative_num_draft_tokens`; 0 without a draft model. DSpark verifies one more than the block it drafts."""
    if not context.deployment.serves_draft:
        return 0
    return context.v4.dspark_block_size + 1 if context.inventory.draft.dspark else EAGLE_TOKENS


def _window_slots(window: int, drafted: int) -> int:
    """Window slots of a request that decodes: its window, what is not evicted yet, a page, and what it allocates.

    It allocates a page, or with a draft model the drafted tokens of two steps.
    """
    return window + _EVICTION_TOKENS * max(drafted, 1) + PAGE + (2 * drafted or PAGE)


def _padded_row(rows: int, row: int) -> Fraction:
    """Bytes of a row with its share of the padding of a page of `rows` rows."""
    return Fraction(padded_rows(rows, row), rows)


@dataclass(frozen=True, slots=True)
class SglangPool:
    """SGLang's pool: pages of 256 tokens, each with its share of window slots, beside states per request.

    Attributes:
        token: Bytes of a token of the pool.
        fixed: Bytes of uncompressed states, for as many requests as SGLang admits.
        requests: Requests that SGLang admits per attention group.
        slots: Window slots of a request that decodes.
        chunk: Tokens of a step of prefill.
    """

    token: Fraction
    fixed: int
    requests: int
    slots: int
    chunk: int

    def tokens(self, room: int, length: int) -> int:
        """`max_total_num_tokens`, which does not depend on the length of sessions."""
        return max(0, int((room - self.fixed) / self.token)) // PAGE * PAGE

    def sessions(self, room: int, length: int) -> int:
        """Sessions by whole pages, by window slots, and by the requests that SGLang admits."""
        tokens = self.tokens(room, length)
        slots = int(tokens * WINDOW_RATIO) // PAGE * PAGE - self._prefill(length)
        return max(0, min(tokens // up_to(length, PAGE), slots // self.slots, self.requests))

    def needs(self, length: int) -> int:
        """Room for the pages of one session, or for its window slots if these need more."""
        slots = up_to(self.slots + self._prefill(length), PAGE)
        tokens = max(up_to(length, PAGE), up_to(int(slots / WINDOW_RATIO), PAGE))
        return self.fixed + -int(-tokens * self.token // 1)

    def _prefill(self, length: int) -> int:
        """Window slots of a step of prefill."""
        return min(length, self.chunk) + PAGE


def default_share(deployment: Deployment, more: int = 0) -> float:
    """SGLang's default for `--mem-fraction-static`; `more` is what it reserves for graphs of prefill, in MiB."""
    memory = smi_mib(deployment.gpu)
    reserved = 512 + max(prefill_tokens(deployment.gpu, deployment.dp, PAGE), 2048) * 1.5 + deployment.tp / 8 * 1024
    reserved += _graphs(deployment, graph_batch(deployment)) + more
    if memory > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    if deployment.a2a == "deepep":
        reserved += 2 * 1024
    return round((memory - reserved) / memory, 3)


def memory_share(deployment: Deployment) -> MemoryShare:
    """The share of memory, which depends on the deployment."""
    return MemoryShare(OPTION, default_share(deployment), BEFORE, BESIDE)


def _graphs(deployment: Deployment, batch: int) -> float:
    """MiB that SGLang reserves for decode graphs of `batch` requests, far more under attention DP."""
    dp = deployment.dp if deployment.dp > 1 else 0
    return batch * 2 + batch * dp * 3 + (batch * dp * 1.5 if batch > 300 else 0)


def smi_mib(gpu: Gpu) -> float:
    """The memory from which SGLang computes its defaults, in MiB: what nvidia-smi reports."""
    return gpu.smi_mib or gpu.memory / (1 << 20)


_TIERS = ((20, 2048, 8, 8), (35, 4096, 48, 160), (60, 4096, 32, 160), (160, 8192, 256, 512))
"""GiB below which a tier ends; tokens of a step of prefill; largest batch of a decode graph below TP 4, and from it."""

_LARGEST_TIER = (16384, 512, 512)


def _tier(gpu: Gpu) -> tuple[int, int, int]:
    memory = smi_mib(gpu)
    return next((tuple(rest) for end, *rest in _TIERS if memory < end * 1024), _LARGEST_TIER)  # type: ignore[return-value]


def page_of(family: Family) -> int:
    """Tokens of a page, by which a step of prefill must divide."""
    return _MLA_PAGE if family in (V3, V32) else PAGE


def default_prefill(gpu: Gpu) -> int:
    """SGLang's default for `--chunked-prefill-size`: tokens of a step of prefill, before attention DP divides them."""
    return _tier(gpu)[0]


def prefill_tokens(gpu: Gpu, dp: int, page: int) -> int:
    """`--chunked-prefill-size`: the default, or near it where SGLang would refuse that.

    Attention DP divides the number, rounded down; the part must be whole pages (`validation_hook.check_server_args`).
    """
    tokens = default_prefill(gpu)
    part = tokens // dp
    return tokens if part % page == 0 else max(part // page, 1) * page * dp


MEGAMOE_TOKENS = "SGLANG_OPT_DEEPGEMM_MEGA_MOE_NUM_MAX_TOKENS_PER_RANK"

_MEGAMOE_DEFAULT = 8192


def megamoe_tokens(gpu: Gpu, dp: int, attention_tp: int, page: int) -> int | None:
    """Tokens per rank that megamoe must have room for; None if its default holds a step of prefill.

    SGLang refuses less for V4 (`mega_moe_hook.validate_mega_moe_token_budget`).
    """
    tokens = up_to(prefill_tokens(gpu, dp, page) // dp, attention_tp)
    return tokens if tokens > _MEGAMOE_DEFAULT else None


def graph_batch(deployment: Deployment) -> int:
    """The largest batch for which SGLang captures a decode graph."""
    return _tier(deployment.gpu)[1 if deployment.tp < 4 else 2]
