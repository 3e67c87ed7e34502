"""SGLang's defaults for a GPU, and the tokens that its pool configurator makes of a budget."""

from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.mem_cache.kv_cache_dtype import configure_kv_cache_dtype
from sglang.srt.model_executor.pool_configurator import (
    DSV4PoolConfigurator,
    compute_swa_request_cap,
    create_memory_pool_configurator,
)
from sglang.srt.runtime_context import get_exec, get_model, get_parallel, get_schedule, get_spec
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from conformance.sglang.bringup import bring_up, prepared_args


def kv_cache(job: dict[str, Any]) -> dict[str, Any]:
    """The resolved defaults, and for each budget in GiB the tokens of the pool and of its sliding windows."""
    config = bring_up(job)
    schedule, spec = get_schedule(), get_spec().speculative_algorithm
    count = config.num_hidden_layers
    layers = SimpleNamespace(start_layer=0, end_layer=count, num_effective_layers=count)
    _, dtype = configure_kv_cache_dtype(
        server_args_kv_cache_dtype=get_model().kv_cache_dtype,
        model=None,
        model_dtype=torch.bfloat16,
        is_draft_worker=False,
        is_dflash=False,
        speculative_draft_attention_backend="",
    )
    configurator = create_memory_pool_configurator(
        SimpleNamespace(
            kv_cache_dtype_str="fp8_e4m3",
            model_config=config,
            layer_info=layers,
            pp_size=1,
            sliding_window_size=config.sliding_window_size,
            page_size=schedule.page_size,
            attn_dp_size=get_parallel().attn_dp_size,
            spec_algorithm=SpeculativeAlgorithm.from_string(spec),
            is_hybrid_swa=config.is_hybrid_swa,
            kv_cache_dtype=dtype,
            use_mla_backend=True,
            server_args=prepared_args(),
            is_draft_worker=False,
            mambaish_config=None,
        )
    )
    if not isinstance(configurator, DSV4PoolConfigurator):
        return _latent(configurator, dtype, job["budgets"])
    return {
        "mem_fraction_static": schedule.mem_fraction_static,
        "max_running_requests": schedule.max_running_requests,
        "chunked_prefill_size": schedule.chunked_prefill_size,
        "swa_full_tokens_ratio": schedule.swa_full_tokens_ratio,
        "decode_max_bs": get_exec().graph.cuda_graph_config.decode.max_bs,
        "page_size": schedule.page_size,
        "bytes_per_full_token": configurator.bytes_per_full_token,
        "window_slots": _window_slots(schedule.page_size, config.sliding_window_size),
        "pools": {str(budget): _pool(configurator, budget << 30, schedule.page_size) for budget in job["budgets"]},
    }


def _pool(configurator: Any, nbytes: int, page: int) -> list[int] | None:
    """Tokens of the pool and of its windows; None where SGLang refuses so little memory."""
    try:
        pool = configurator.calculate_pool_sizes(nbytes, page)
    except ValueError as error:
        if "cannot hold even one request" not in str(error):
            raise
        return None
    return [pool.full_max_total_num_tokens, pool.swa_max_total_num_tokens]


def _window_slots(page: int, window: int) -> int:
    """Window slots that one more request takes."""
    one, two = (
        compute_swa_request_cap(page_size=page, window=window, attn_dp_size=1, max_running_requests=requests)
        for requests in (1, 2)
    )
    return int(two - one)


def _latent(configurator: Any, dtype: torch.dtype, budgets: list[int]) -> dict[str, Any]:
    """The same of V3 and V3.2, whose pool has tokens of one kind."""
    schedule = get_schedule()
    tokens = {
        str(budget): configurator.calculate_pool_sizes(budget << 30, schedule.page_size).max_total_num_tokens
        for budget in budgets
    }
    return {
        "mem_fraction_static": schedule.mem_fraction_static,
        "max_running_requests": schedule.max_running_requests,
        "chunked_prefill_size": schedule.chunked_prefill_size,
        "decode_max_bs": get_exec().graph.cuda_graph_config.decode.max_bs,
        "page_size": schedule.page_size,
        "dtype": str(dtype),
        "attention": [get_exec().kernel.attention_backend, get_exec().kernel.dsa_decode_backend],
        "bytes_per_token": configurator._cell_size,
        "tokens": tokens,
    }
