"""`Area`: the part of an engine that a message is of, by its file, and the options that choose that part."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Area:
    """A part of an engine.

    Attributes:
        regex: Regular expression for the paths of its files.
        title: What it is.
        options: Engine → the options that choose or change it.
    """

    regex: str
    title: str
    options: dict[str, tuple[str, ...]]


def _options(**words: str) -> dict[str, tuple[str, ...]]:
    """Engine → its options, from one text for each engine."""
    return {engine: tuple(text.split()) for engine, text in words.items()}


AREAS = (
    Area(r"/engram", "engram tables (V4.1)", _options(vllm="--engram-config")),
    Area(r"/specul|/spec_decode/|dspark|nextn|mtp\.py|/speculators/|rejection", "the draft (MTP, DSpark)",
         _options(sglang="--speculative-algorithm --speculative-num-draft-tokens", vllm="--speculative-config")),
    Area(r"/cp/|/dcp/|context_parallel|cp_utils|pcp_|/dcp|cp_decode|layernorm_sp|decode_context", "context parallelism",
         _options(sglang="--attn-cp-size --dcp-size",
                  vllm="--decode-context-parallel-size --prefill-context-parallel-size")),
    Area(r"eplb", "balancing of experts (EPLB)", _options(sglang="--enable-eplb", vllm="--enable-eplb")),
    Area(r"offload", "offload to the host's memory", _options(sglang="--cpu-offload-gb", vllm="--cpu-offload-gb")),
    Area(r"all2all|prepare_finalize|token_dispatcher|deepep|megamoe|mega_moe|moe_transport",
         "exchange of tokens between experts' ranks", _options(sglang="--moe-a2a-backend", vllm="--all2all-backend")),
    Area(r"/moe/|fused_moe|_moe|moe_hook|/moe_", "the routed experts' kernels",
         _options(sglang="--moe-runner-backend", vllm="--moe-backend")),
    Area(r"model_loader/|/parameter\.py|weight_loader|weight_utils|models/utils|startup_weight|post_load|default_loader",
         "loading of the checkpoint", _options(sglang="--load-format", vllm="--load-format")),
    Area(r"quantization|quant_config|mxfp4|nvfp4|fp8|fp4|/marlin", "the format of the weights",
         _options(sglang="--quantization --fp8-gemm-runner-backend", vllm="--quantization --linear-backend")),
    Area(r"mem_cache/|kv_cache|pool_configurator|memory_pool|kv_shard|compress_state|memory_hook|mem_utils|block_table",
         "the KV cache", _options(sglang="--mem-fraction-static --kv-cache-dtype --page-size",
                                  vllm="--gpu-memory-utilization --kv-cache-dtype --block-size")),
    Area(r"attention|/mla/|flashmla|sparse_mla|compressor|indexer|sparse_swa|rotary|deepseek_v4_hook|cache_utils",
         "attention", _options(sglang="--attention-backend --kv-cache-dtype",
                               vllm="--attention-backend --kv-cache-dtype")),
    Area(r"graph|compil|/runner|warmup|custom_op|workspace|ubatch", "compilation and CUDA graphs",
         _options(sglang="--disable-cuda-graph", vllm="--enforce-eager")),
    Area(r"distributed/|parallel_state|parallel_hook|parallel\.py|network|communicat|pynccl|shm_broadcast|numa|net_devices|"
         r"layer_boundary|dp_attention|row_transport|all_reduce|collective", "the ranks and how they communicate",
         _options(sglang="--tp --ep --dp --disable-custom-all-reduce",
                  vllm="--tensor-parallel-size --enable-expert-parallel --disable-custom-all-reduce")),
    Area(r"/arg_groups/|/config/|/configs/|arg_utils|server_args|environ|/envs|runtime_context|transformers_utils|hf_transf",
         "the arguments and config.json", _options()),
    Area(r"/executor/|/engine/|/entrypoints/|/managers/|process|/plugins/|/platforms|/utils/", "the start of processes",
         _options()),
    Area(r"/models/|/layers/|linear\.py|vocab_parallel", "the model's layers",
         _options(sglang="--tp --ep", vllm="--tensor-parallel-size")),
    Area(r"model_runner|/worker/|forward|sampl|/model_executor/|/v1/|/core/", "the forward pass",
         _options(sglang="--disable-cuda-graph", vllm="--enforce-eager")),
)  # fmt: skip
"""The areas; the first that fits a path is taken."""


def area_of(path: str) -> Area | None:
    """The area of a file of an engine."""
    return next((area for area in AREAS if re.search(area.regex, path)), None)
