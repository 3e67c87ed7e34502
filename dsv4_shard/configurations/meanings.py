"""What each option and variable of an engine means for a plan: tables by plain name.

An option is used, without effect on the weights of a rank, or beyond what can be planned. One that is in none of the
tables is not understood, also if the engine has it.
"""

import re
from typing import NamedTuple

USED: dict[str, dict[str, str]] = {
    "sglang": {
        "--tp-size": "tp",
        "--ep-size": "ep",
        "--attn-dp-size": "dp",
        "--moe-a2a-backend": "a2a",
        "--moe-runner-backend": "runner",
        "--enable-dp-lm-head": "dp_lm_head",
        "--ep-num-redundant-experts": "redundant_experts",
        "--init-expert-location": "expert_locations",
        "--nnodes": "nodes",
        "--context-length": "context",
        "--pp-size": "pp",
    },
    "vllm": {
        "--tensor-parallel-size": "tp",
        "--data-parallel-size": "dp",
        "--moe-backend": "runner",
        "--nnodes": "nodes",
        "--max-model-len": "context",
        "--pipeline-parallel-size": "pp",
    },
    "trtllm": {
        "tensor_parallel_size": "tp",
        "--tp_size": "tp",
        "moe_expert_parallel_size": "ep",
        "--ep_size": "ep",
        "pipeline_parallel_size": "pp",
        "--pp_size": "pp",
    },
}
"""Engine → its option → the field of the request with the same meaning, and the same values."""

SPECIAL = {
    "sglang": ("--dp-size", "--enable-dp-attention", "--model-path", "--revision"),
    "vllm": ("--enable-expert-parallel", "--model", "--revision"),
    "trtllm": ("enable_attention_dp",),
}
"""Engine → its options that are used with others: data parallelism, vLLM's EP, the checkpoint."""

NEUTRAL = {
    "--pp-size": "1", "--pipeline-parallel-size": "1", "pipeline_parallel_size": "1", "--pp_size": "1",
    "--dcp-size": "1", "--attn-cp-size": "1", "--moe-dp-size": "1", "--dwdp-size": "1",
    "--decode-context-parallel-size": "1", "--prefill-context-parallel-size": "1", "--cpu-offload-gb": "0",
    "--moe-a2a-backend": "none", "--moe-runner-backend": "auto", "--moe-backend": "auto",
    "--init-expert-location": "trivial", "--ep-num-redundant-experts": "0", "--dtype": "auto",
    "--max-model-len": "auto", "--expert-placement-strategy": "linear", "--offload-group-size": "-1",
}  # fmt: skip
"""Option → the value that is the engine's default, and so changes nothing."""


class Unplanned(NamedTuple):
    """Options, as a pattern of plain names, that change what a rank holds in a way that no plan has."""

    names: str
    why: str


UNPLANNED: dict[str, tuple[Unplanned, ...]] = {
    "sglang": (
        Unplanned("dcp-size|attn-cp-size|enable-prefill-cp|cp-strategy|enable-cp-.*", "context parallelism"),
        Unplanned("moe-dp-size|dwdp-size", "data parallelism of experts"),
        Unplanned("shared-experts-tp-size|enable-shared-experts-attn-tp|enforce-shared-experts-fusion",
                  "shared experts that are cut or fused in another way"),
        Unplanned("enable-dense-mlp-attn-tp|enable-attn-tp-input-scattered", "dense layers cut over attention TP"),
        Unplanned("enable-waterfill|elastic-ep-.*|enable-elastic-.*|max-ep-size|enable-paged-experts|paged-experts-.*",
                  "experts that move"),
        Unplanned("quantization|quantize-.*|modelopt-.*|rl-quant-profile|dtype|enable-fp32-lm-head",
                  "weights in other formats than the checkpoint's"),
        Unplanned("cpu-offload-gb|offload-.*|kt-.*|ple-offload-.*", "weights outside of the GPU"),
        Unplanned("enable-lora|lora-paths|max-lora-.*|max-loaded-loras|lora-.*", "LoRA adapters"),
        Unplanned("json-model-override-args|model-impl|model-config-parser|custom-weight-loader", "another model"),
        Unplanned("encoder-only|language-only|language-model-only", "a part of the model"),
    ),
    "vllm": (
        Unplanned("decode-context-parallel-size|prefill-context-parallel-size", "context parallelism"),
        Unplanned("quantization|quantization-config|dtype", "weights in other formats than the checkpoint's"),
        Unplanned("cpu-offload-.*|offload-.*", "weights outside of the GPU"),
        Unplanned("enable-lora|lora-modules|max-lora.*|lora-.*", "LoRA adapters"),
        Unplanned("hf-overrides|hf-config-path|model-impl|model-class-overrides|config-format|additional-config|worker-cls",
                  "another model"),
        Unplanned("enable-elastic-ep|elastic-ep-.*|expert-placement-strategy", "experts in other places"),
        Unplanned("language-model-only|mm-encoder-only", "a part of the model"),
    ),
    "trtllm": (Unplanned("quant_config|load_format|lora_config", "weights in other formats than the checkpoint's"),),
}  # fmt: skip
"""Engine → options that cannot be planned."""

UNPLANNED_VARIABLES = {
    "SGLANG_DSV4_FP4_DEQUANT": "FP4 experts that are cast to FP8 as they are loaded",
    "SGLANG_DP_SHARED_EXPERT_LOCAL": "shared experts that are cut or fused in another way",
    "SGLANG_ENABLE_DSV41_ENGRAM_HOST_TABLE": "tables outside of the GPU",
    "SGLANG_ENABLE_DSV41_ENGRAM_PEER_SHARDS": "tables on other GPUs",
}  # fmt: skip
"""Variable → what no plan has. Values 0 and false change nothing."""

USED_VARIABLES = {"SGLANG_PP_LAYER_PARTITION": "pp_partition", "VLLM_PP_LAYER_PARTITION": "pp_partition"}
"""Variable → the field of the request with the same meaning."""

SHARED_WHOLE = "SGLANG_SHARED_EXPERT_TP1"
"""SGLang's variable that keeps shared experts whole."""

OWN_VARIABLES = (
    "SGLANG_DSV4_FP4_EXPERTS", "SGLANG_OPT_FP8_WO_A_GEMM", "SGLANG_OPT_DEEPGEMM_MEGA_MOE_NUM_MAX_TOKENS_PER_RANK",
)  # fmt: skip
"""Variables that the launch of a plan sets itself where the layout needs them."""


class Subject(NamedTuple):
    """A subject without effect on the weights of a rank, and a pattern of the plain names of its options."""

    about: str
    names: str


NO_EFFECT: dict[str, tuple[Subject, ...]] = {
    "sglang": (
        Subject("server", "host|port|fastapi-.*|.*grpc.*|smg-.*|sidecar.*|skip-server-warmup|warmups|.*http2.*|ssl-.*|"
                "enable-ssl-refresh|.*api-key|served-model-name|weight-version|.*chat-template.*|completion-template|"
                "file-storage-path|.*thinking.*|tool-.*|reasoning-parser|sampling-.*|asr-.*|preferred-sampling-params|"
                "allow-auto-truncate|stream-.*|incremental-.*|batch-notify-size|.*tokenizer.*|return-.*|"
                "enable-return-.*|constrained-.*|grammar-backend|enable-custom-logit-processor|enable-response-store|"
                "enable-http-.*|random-seed|enable-multimodal|.*mm-.*|limit-mm-.*|allowed-media-.*|media-.*|"
                "image-processor-backend|disable-fast-image-processor|watermark-config|enable-watermark"),
        Subject("logs", "log-.*|uvicorn-.*|crash-dump-folder|show-time-cost|.*metric.*|bucket-.*|.*-buckets|gc-.*|"
                "decode-log-interval|enable-request-time-stats-logging|.*trace.*|otlp-.*|kv-events-config|load-.*publish.*|"
                "load-publish-endpoint|enable-cache-report|debug-.*|enable-layerwise-nvtx-marker|enable-profile-.*|"
                "expert-distribution-recorder-.*|expert-balancedness-report-mode|kv-canary.*|msprobe-.*"),
        Subject("scheduling", "max-running-requests|max-queued-requests|.*chunked-prefill.*|chunked-prefill-size|"
                "max-prefill-tokens|prefill-max-requests|prefill-decode-interval.*|schedule-.*|.*priority.*|"
                "retraction-policy|num-continuous-decode-steps|scheduler-recv-interval|enable-mixed-chunk|"
                "disable-overlap-schedule|enable-dynamic-chunking|load-balance-method|.*prefill-delayer.*|"
                "min-free-slots-delay|watchdog-timeout|soft-watchdog-timeout|sleep-on-idle|pp-max-micro-batch-size|"
                "pp-async-batch-depth|enable-two-batch-overlap|enable-single-batch-overlap|tbo-.*|"
                "enable-deterministic-inference|enable-session-radix-cache|enable-streaming-session"),
        Subject("KV cache", "mem-fraction-static|max-total-tokens|kv-cache-dtype|page-size|c128-page-size|swa-.*|"
                "disable-hybrid-swa-memory|.*radix.*|enable-page-major-kv-layout|enable-unified-memory|"
                "disable-chunked-prefix-cache|.*hicache.*|enable-hierarchical-cache|.*lmcache.*|.*flexkv.*|"
                "prefill-kv-cache-dequant-dtype|.*unified-cache-.*|prefill-only-disable-kv-cache|enable-hisparse|"
                "hisparse-config|.*-swa-bounded-replay|enable-kv-cache-sharding|enable-dsa-cache-layer-split"),
        Subject("kernels", ".*attention-backend|.*-gemm-backend|dsa-.*|dsv4-.*|.*flashinfer-autotune.*|.*cuda-graph.*|"
                "enable-cudagraph-gc|.*torch-compile.*|enable-deepseek-v4-fp4-indexer|.*tf32.*|mamba-.*|.*mamba.*|"
                "linear-attn-.*|triton-attention-.*|enable-lean-attention|enable-fused-.*|enable-dsa-fused-indexer|"
                "flashinfer-mla-disable-ragged|enable-precise-embedding-interpolation"),
        Subject("communication", "nccl-port|dist-timeout|dist-init-addr|node-rank|gated-launch-port|.*symm-mem|"
                "enable-nccl-nvls|disable-custom-all-reduce|.*allreduce-fusion.*|enable-mscclpp|pre-warm-nccl|"
                "enable-p2p-check|enable-dp-attention-local-control-broadcast|disable-attn-tp-gather|numa-node|"
                "base-gpu-id|gpu-id-step|device|use-ray|mooncake-ib-device|deepep-.*|ep-dispatch-algorithm|"
                "flashinfer-a2a-dispatch-type|dcp-comm-backend"),
        Subject("draft model", "speculative-.*|decoupled-spec-.*|spec-trace-dir|enable-multi-layer-eagle"),
        Subject("prefill and decode apart", "disaggregation-.*|num-reserved-decode-tokens|optimistic-prefill-attempts|"
                "enable-pdmux|pdmux-config-path|sm-group-num|enable-pd-role-switch"),
        Subject("reading the checkpoint", "load-format|model-loader-extra-config|trust-remote-code|weight-loader-.*|"
                "download-dir|model-checksum|delete-ckpt-after-loading|startup-weight-load-mode|remote-instance-.*|"
                "engine-info-bootstrap-port|modelexpress-config|weight-cache-.*|checkpoint-engine-.*"),
        Subject("EPLB, which moves experts after loading", "enable-eplb|eplb-.*"),
        Subject("dense layers, which DeepSeek-V4 has not", "moe-dense-tp-size"),
        Subject("copies in host memory", "enable-memory-saver|enable-(draft-)?weights-cpu-backup"),
    ),
    "vllm": (
        Subject("server", "host|port|uds|grpc.*|api-.*|ssl-.*|.*ssl-refresh|root-path|middleware|allow-.*|allowed-.*|"
                "served-model-name|.*chat-template.*|response-role|.*auto-tool-choice|tool-.*|.*reasoning-.*|"
                "tokenizer.*|skip-tokenizer-init|seed|max-logprobs|logprobs-mode|generation-config|"
                "override-generation-config|logits-processors|io-processor-plugin|renderer-num-workers|h11-.*|"
                "enable-request-id-headers|disable-fastapi-docs|return-.*|enable-return-routed-experts|"
                "enable-force-include-usage|enable-prompt-tokens-details|enable-tokenizer-info-endpoint|"
                "structured-outputs-config|stream-interval|exclude-tools-.*|sse-.*|.*mm-.*|media-.*|headless|"
                "default-chat-template-kwargs|anthropic-.*|cohere-.*|enable-scale-out|shutdown-timeout|runner|convert"),
        Subject("logs", ".*log-.*|.*-log|logging-config|.*logging.*|.*metrics.*|otlp-.*|collect-.*|.*nvtx.*|"
                "profiler-config|kv-events-config|custom-histogram-buckets|disable-log-stats|jit-monitor-.*|"
                "enable-log-requests|fail-on-environ-validation|watchdog-config"),
        Subject("scheduling", "max-num-.*|long-prefill-.*|scheduling-policy|enable-chunked-prefill|"
                "disable-chunked-mm-input|scheduler-.*|prefill-schedule-interval|async-scheduling|enable-dbo|dbo-.*|"
                "ubatch-size|watermark|dp-sync-interval|performance-mode"),
        Subject("KV cache", "gpu-memory-utilization|kv-cache-.*|block-size|num-gpu-blocks-override|"
                "enable-prefix-caching|prefix-cach.*|prefix-match-unit|disable-hybrid-kv-cache-manager|kv-offloading-.*|swa-bounded-replay|"
                "kv-sharing-fast-prefill|.*sleep-mode.*|sleep-.*|enable-cumem-allocator|disable-sliding-window"),
        Subject("kernels", "attention-.*|enforce-eager|.*cudagraph.*|compilation-config|optimization-level|"
                ".*flashinfer-autotune|linear-backend|sparse-indexer-topk-backend|disable-cascade-attn|"
                "ir-op-priority|mamba-.*|.*replayssm.*|.*-prefill-backend|.*-decode-backend|use-fp64-gumbel"),
        Subject("communication", "node-rank|master-.*|data-parallel-.*|distributed-.*|cpu-distributed-.*|numa-.*|"
                "device-ids|all2all-backend|disable-custom-all-reduce|disable-nccl-for-dp-synchronization|"
                "enable-nccl-comm-suspend|enable-shm-tensor-arena|dcp-.*|cp-.*|ray-.*|worker-extension-cls"),
        Subject("draft model", "speculative-config|spec-.*"),
        Subject("prefill and decode apart", "kv-transfer-config|ec-transfer-config|ec-manager-config"),
        Subject("reading the checkpoint", "load-format|model-loader-extra-config|trust-remote-code|download-dir|"
                "safetensors-.*|ignore-patterns|use-tqdm-on-load|pt-load-map-location|enable-ep-weight-filter|"
                "max-parallel-loading-workers|hf-token|code-revision|weight-transfer-config"),
        Subject("EPLB, which moves experts after loading", "enable-eplb|eplb-config"),
    ),
    "trtllm": (
        Subject("server", "custom_tokenizer|stream_interval|num_postprocess_workers|print_iter_log|return_perf_metrics|"
                "--host|--port|--backend"),
        Subject("scheduling", "max_batch_size|max_num_tokens|max_seq_len|scheduler_config|enable_chunked_prefill|"
                "disable_overlap_scheduler|attention_dp_config|--max_.*"),
        Subject("KV cache", "kv_cache_config"),
        Subject("kernels", "cuda_graph_config|sparse_attention_config"),
        Subject("draft model", "speculative_config"),
        Subject("prefill and decode apart", "cache_transceiver_config"),
    ),
}  # fmt: skip
"""Engine → subjects without effect on the weights of a rank."""

NO_EFFECT_VARIABLES = re.compile(
    "(SGLANG|VLLM|TRTLLM|TLLM|DYN)_("
    ".*TIMEOUT.*|.*LOG.*|.*CACHE_(DIR|ROOT|PATH)|.*CACHE.*|.*WARMUP.*|.*THINKING.*|.*REASONING.*|JIT_.*|RADIX_.*|"
    "SIMULATE_.*|DISAGGREGATION_.*|OPT_SWA_.*|OPT_USE_CUSTOM_ALL_REDUCE.*|OPT_USE_(JIT|TOPK|FAST|ONLINE)_.*|"
    ".*ALLREDUCE.*|.*SYMM_MEM|.*MEMORY_PROFILER.*|.*MEMORY_INBALANCE.*|CLIP_MAX_.*|SKIP_P2P_CHECK|RPC_.*|HTTP_.*|"
    "HOST_IP|PORT|.*NIXL.*|MOONCAKE_.*|CONNECTOR_.*|USE_V2_MODEL_RUNNER|USE_RUST_FRONTEND|SERVER_DEV_MODE|"
    "RANDOMIZE_DP_DUMMY_INPUTS|ENGINE_READY_.*|SPARSE_INDEXER_MAX_LOGITS_MB|.*CUDA_?GRAPH.*|GPU_NIC_.*|NIC_.*|"
    "DISABLE_GC|SERVER_.*|WORKER_DISABLE_GC|SPEC_DECODE_.*|PINNED_WEIGHT_STAGING|SKIP_.*|TOKENIZER.*|ROUTER_.*|"
    "ENABLE_UNIFIED_RADIX_TREE|OPT_UNIFIED_.*|DG_.*|MAX_TOKENS_PER_EXPERT_FP4_MOE|DSV4_MHC_PREWARM|USE_DEEP_GEMM|"
    ".*ENGINE_CONV.*|LOAD_.*)",
)
"""Variables of engines without effect on the weights of a rank."""

_ENGINE_VARIABLE = re.compile("(SGLANG|VLLM|TRTLLM|TLLM)_")


def is_of_engine(variable: str) -> bool:
    """Whether a variable is of an engine. Others (NCCL, UCX, caches) do not reach its model."""
    return _ENGINE_VARIABLE.match(variable) is not None


def subject_of(engine: str, name: str) -> str | None:
    """Return the subject of an option without effect on weights; None if it is not known to have none."""
    return next((one.about for one in NO_EFFECT.get(engine, ()) if re.fullmatch(one.names, _bare(engine, name))), None)


def unplanned(engine: str, name: str) -> str | None:
    """Return what an option asks for that no plan has; None if it is not known to ask for such."""
    return next((one.why for one in UNPLANNED.get(engine, ()) if re.fullmatch(one.names, _bare(engine, name))), None)


def _bare(engine: str, name: str) -> str:
    return name if engine == "trtllm" else name.removeprefix("--")
