"""The groups into which vLLM packs the KV caches of a model's layers, and the blocks that a request may take."""

from typing import Any

from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backends.utils import get_supported_kv_cache_layouts, resolve_kv_cache_layout
from vllm.v1.core import kv_cache_planning
from vllm.v1.kv_cache_interface import UniformTypeKVCacheSpecs
from vllm.v1.worker import workspace

from conformance.cases import Case
from conformance.vllm import stubs
from conformance.vllm.bringup import bring_up, build
from conformance.vllm.first_stop import Workspace


def kv_cache(job: dict[str, Any]) -> dict[str, Any]:
    """Bytes of a block, tokens in flight, and for each length of context the blocks of one request in each group."""
    case = Case(**job["case"])
    stubs.set_total_memory(job["memory"] << 20)
    workspace._manager = Workspace()
    config, model_config = bring_up(case, 0, job["model"], served=job["served"])
    build(config, model_config, "meta")
    if config.speculative_config is not None:
        build(config, config.speculative_config.draft_model_config, "meta")
    layers = config.compilation_config.static_forward_context
    with set_current_vllm_config(config):
        specs = {
            name: spec
            for name, layer in layers.items()
            if isinstance(layer, AttentionLayerBase) and (spec := layer.get_kv_cache_spec(config)) is not None
        }
        layouts = get_supported_kv_cache_layouts([layers[name].get_attn_backend() for name in specs])
        resolve_kv_cache_layout(config, [[layout.name for layout in layouts]], specs.values())
    groups = kv_cache_planning.get_kv_cache_groups(config, dict(specs))
    blocks = {}
    for length in job["contexts"]:
        config.model_config.max_model_len = length
        blocks[str(length)] = sorted(_blocks(group.kv_cache_spec, config) for group in groups)
    return {
        "gpu_memory_utilization": config.cache_config.gpu_memory_utilization,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "max_in_flight_tokens": config.max_in_flight_tokens,
        "block_size": config.cache_config.block_size,
        "bytes_per_block": kv_cache_planning._pool_bytes_per_block(config, groups),
        "attention": sorted({layers[name].get_attn_backend().__name__ for name in specs}),
        "blocks": blocks,
    }


def _blocks(spec: Any, config: Any) -> int:
    if isinstance(spec, UniformTypeKVCacheSpecs):
        return int(spec.max_memory_usage_pages(config))
    return -(-int(spec.max_memory_usage_bytes(config)) // int(spec.page_size_bytes))
