"""SGLang 0.5.23's KV cache of DeepSeek-V3, V3.1, R1 and V3.2: one latent row for each token and layer.

Formulas: `model_executor/pool_configurator.py` (`DefaultPoolConfigurator`) and `calculate_mla_kv_cache_dim` for rows,
`arg_groups/overrides.py` (`_dsa_kv_cache_dtype_default`, `_mla_backend_page_constraints`) for dtype and page,
`resolve_max_num_reqs` for requests, `memory_hook.py` for the share. V3.2 also caches a key of its indexer. The room has
the measured bounds of V4, beside copies of kv_b in BF16 (`post_load_weights`). Draft models were not compared.
"""

from dataclasses import dataclass

from dsv4_shard.catalog.options import VERSIONS
from dsv4_shard.catalog.sms import SM_10X, SM_12X, SM_90
from dsv4_shard.engines.deployment import Context, Deployment
from dsv4_shard.engines.kv_cache import Cache, up_to
from dsv4_shard.engines.latent_rows import is_compared_geometry, row_bytes, with_copies
from dsv4_shard.engines.sglang.kv_cache import BEFORE, BESIDE, OPTION, default_share
from dsv4_shard.models import V32Config

_GRAPHS = 1536

_DEEPEP_GRAPHS = 1024
"""MiB that SGLang reserves for graphs of prefill with latent attention, and for those with DeepEP."""

_BLACKWELL = SM_10X | SM_12X

_A2A = (None, "deepep")

_LEAST_REQUESTS, _MOST_REQUESTS = 2048, 4096


def cache_of(context: Context) -> Cache | None:
    """The KV cache of a model of V3's generation; None for GPUs, versions, sizes and options that were not compared."""
    deployment, config = context.deployment, context.v3
    gpu, length = deployment.gpu, config.max_position_embeddings
    is_compared = (
        not deployment.serves_draft and gpu.verified and gpu.sm in SM_90 | SM_10X | {120} and deployment.a2a in _A2A
    )
    if not is_compared or deployment.version != VERSIONS["sglang"][0] or length is None:
        return None
    if not is_compared_geometry(config):
        return None
    return Cache(
        OPTION,
        default_share(deployment, _reserved(deployment)),
        BEFORE,
        with_copies(BESIDE, context),
        LatentPool(token_bytes(context), page_of(context), length),
    )


def token_bytes(context: Context) -> int:
    """Bytes of a token in all layers: BF16 rows, for V3.2 with an indexer's key, and rows in FP8 on Blackwell."""
    config = context.v3
    is_fp8 = isinstance(config, V32Config) and context.deployment.gpu.sm in _BLACKWELL
    return row_bytes(config, 1 if is_fp8 else 2) * config.num_hidden_layers


def page_of(context: Context) -> int:
    """Tokens of a page: one for V3's kernels on Hopper and workstations, else 64."""
    is_v3 = not isinstance(context.config, V32Config)
    return 1 if is_v3 and context.deployment.gpu.sm not in SM_10X else 64


def _reserved(deployment: Deployment) -> int:
    return _GRAPHS + (_DEEPEP_GRAPHS if deployment.a2a == "deepep" else 0)


@dataclass(frozen=True, slots=True)
class LatentPool:
    """SGLang's pool of pages of latent rows.

    Attributes:
        token: Bytes of a token.
        page: Tokens of a page.
        longest: The model's longest context in tokens, by which SGLang computes how many requests it admits.
    """

    token: int
    page: int
    longest: int

    def tokens(self, room: int, length: int) -> int:
        """`max_total_num_tokens`, which does not depend on the length of sessions."""
        return max(0, room // self.token) // self.page * self.page

    def sessions(self, room: int, length: int) -> int:
        """Sessions by whole pages, and by the requests that SGLang admits."""
        tokens = self.tokens(room, length)
        admitted = max(min(int(tokens / self.longest * 512), _MOST_REQUESTS), _LEAST_REQUESTS)
        return min(tokens // up_to(length, self.page), admitted, tokens // 2)

    def needs(self, length: int) -> int:
        """Room for the pages of one session."""
        return up_to(length, self.page) * self.token
