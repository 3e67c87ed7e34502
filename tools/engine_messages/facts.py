"""DeepSeek V3, V3.2, V4 and V4.1 on NVIDIA GPUs: where the way begins, what is known on it, and what is off it."""

import re

from engine_messages.conditions import Facts

ENTRIES: dict[str, tuple[str, ...]] = {
    "sglang": (
        "srt.server_args:prepare_server_args", "srt.server_args:ServerArgs.__post_init__",
        "srt.entrypoints.engine:Engine._launch_subprocesses", "srt.entrypoints.engine:_wait_for_scheduler_ready",
        "srt.managers.scheduler:run_scheduler_process",
        "srt.managers.data_parallel_controller:run_data_parallel_controller_process",
        "srt.model_executor.model_runner:ModelRunner.forward",
        "srt.models.deepseek_v4:DeepseekV4ForCausalLM", "srt.models.deepseek_v4_nextn:DeepseekV4ForCausalLMNextN",
        "srt.models.deepseek_v4_dspark:DeepseekV4ForCausalLMDSpark", "srt.models.deepseek_v2:DeepseekV3ForCausalLM",
        "srt.models.deepseek_v2:DeepseekV32ForCausalLM", "srt.models.deepseek_nextn:DeepseekV3ForCausalLMNextN",
        "srt.layers.quantization.fp8:Fp8Config", "srt.layers.quantization.fp8:Fp8LinearMethod",
        "srt.layers.quantization.fp8:Fp8MoEMethod", "srt.models.deepseek_v4:MqaAttentionBase",
        "srt.layers.attention.dsv4.compressor:Compressor", "srt.layers.moe.token_dispatcher.deepep.*",
        *(f"srt.layers.quantization.mxfp4_{name}_moe.*" for name in (
            "flashinfer_cutlass", "flashinfer_trtllm", "marlin")),
        *(f"srt.layers.attention.attention_registry:create_{name}_backend" for name in (
            "dsv4", "dsa", "trtllm_mla", "flashmla", "flashinfer", "flashattention_v3", "flashattention_v4", "triton")),
    ),
    "vllm": (
        "engine.arg_utils:EngineArgs.create_engine_config", "engine.arg_utils:EngineArgs.__post_init__",
        "v1.engine.core:EngineCore.__init__", "v1.engine.core:EngineCoreProc.run_engine_core",
        "v1.engine.core:EngineCoreProc.__init__", "v1.engine.core:DPEngineCoreProc.__init__",
        "v1.engine.utils:launch_core_engines", "v1.engine.utils:wait_for_engine_startup",
        "v1.executor.multiproc_executor:MultiprocExecutor.__init__",
        "v1.executor.multiproc_executor:MultiprocExecutor._init_executor",
        "v1.executor.multiproc_executor:WorkerProc.worker_main",
        "v1.worker.gpu_worker:Worker.__init__", "v1.worker.gpu_worker:Worker.init_device",
        "v1.worker.gpu_worker:Worker.load_model", "v1.worker.gpu_worker:Worker.determine_available_memory",
        "v1.worker.gpu_worker:Worker.initialize_from_config", "v1.worker.gpu_worker:Worker.compile_or_warm_up_model",
        "v1.worker.gpu_worker:Worker.execute_model", "v1.worker.gpu_worker:Worker.get_kv_cache_spec",
        "models.deepseek_v4.nvidia.model.*", "models.deepseek_v4.nvidia.mtp.*",
        "models.deepseek_v4.nvidia.dspark.*", "models.deepseek_v4.quant_config.*",
        "models.deepseek_v41.nvidia.*", "models.deepseek_v41.quant_config.*",
        "models.deepseek_v32.nvidia.*",
        "model_executor.models.deepseek_v2:DeepseekV3ForCausalLM", "model_executor.models.deepseek_mtp:DeepSeekMTP",
        "model_executor.layers.quantization.fp8:Fp8Config", "model_executor.layers.fused_moe.config:FusedMoEConfig",
        "v1.core.kv_cache_planning.*", "v1.kv_cache_interface.*",
        *(f"v1.attention.backends.mla.{name}.*" for name in (
            "flashmla", "flashmla_sparse", "flashinfer_mla", "flashinfer_mla_sparse", "flashinfer_mla_sparse_sm90",
            "flashinfer_mla_sparse_sm120", "indexer", "sparse_indexer", "sparse_swa")),
    ),
}  # fmt: skip
"""Where the way begins, and what is looked up by a name: `module:class`, `module:class.method`, or `module.*`."""

KNOWN = Facts(
    true=re.compile(
        r"(?:\w+\.)*_?is_cuda(?:_alike)?(?:\(\))?|(?:\w+\.)*is_generation|(?:\w+\.)*device(?:_type)? == 'cuda'|"
        r"(?:\w+\.)*runner_type == 'generate'"
    ),
    false=re.compile(
        r"TYPE_CHECKING|"
        r"'(?!Deepseek|DeepSeek|DSpark)\w+(?:ForCausalLM\w*|ForConditionalGeneration|MTP\w*|Model)' in .*|"
        r"(?:.*\.)?(?:model_type|model_arch|arch) == '(?!deepseek|Deepseek|DeepSeek)\w+'|"
        r"(?:.*\.)?(?:model_type|model_arch|arch) in [\[({](?:'(?!deepseek|Deepseek|DeepSeek)\w+'(?:, )?)+[\])}]|"
        r"(?:\w+\.)*_?(?:is|use)_(?:hip|rocm|npu|xpu|hpu|cpu|tpu|musa|mps|metal|mlx|out_of_tree|aiter|gfx95\w*|"
        r"host_cpu_\w+|cpu_amx_available|shuffle_moe_mxfp4|fp8_fnuz)(?:\(.*\))?|_?use_aiter\w*|_?cpu_amx\w*|"
        r"(?:\w+\.)*device(?:_type)? == '(?:cpu|npu|xpu|hpu|tpu|musa|mps)'|cpu_has_amx_support\(\)|"
        r"(?:\w+\.)*(?:enable_lora|lora_config|lora_paths|is_multimodal\w*|is_encoder_decoder|is_embedding|is_pooling\w*|"
        r"pooler_config|enable_pooling|is_hybrid_swa_compress|is_attention_free|has_inner_state|is_hybrid|"
        r"enable_dllm|dllm_config|dllm_algorithm|enable_pdmux|is_image_gen|enable_multimodal|"
        r"kv_transfer_config|ec_transfer_config|enable_elastic_ep|weight_transfer_config|"
        r"supports_mm_inputs|is_draft_extend_mamba|uses_mrope|uses_xdrope_dim)(?: is not None)?|"
        r"(?:\w+\.)*runner_type == 'pooling'|(?:\w+\.)*disaggregation_mode (?:!= 'null'|== '(?:prefill|decode)')"
    ),
)
"""The GPUs are NVIDIA's; the model is DeepSeek's and generates text: no LoRA, images, pooling, separate prefill."""

_EXCLUDED: tuple[tuple[str, str], ...] = (
    ("another platform",
     r"(?:^|[._])(?:npu|amd|xpu|tpu|hpu|cpu|mlx|rocm\w*|musa|hip\w*|mps|ascend\w*|aiter\w*|hardware_backend|mindspore\w*|"
     r"amx\w*|gfx\w*|intel\w*|quick_all_reduce|xpumem)(?:[._]|$)"),
    ("another model's",
     r"(?:^|\.)model_overrides\.(?!deepseek|model_override)|(?:^|[._])(?:kimi|glm\w*|inkling|step5|hy_v4|muse|llama\w*|"
     r"gemma\w*|qwen\w*|minimax\w*|bailing\w*|mistral\w*|whisper|phi3\w*|ernie\w*|mamba\w*|mamba2\w*|gdn\w*|"
     r"hybrid_linear\w*|linear_attn\w*|replayssm\w*|ple_state\w*|qsa\w*|mrope\w*|xdrope|moonep|linear_metadata|kda\w*|"
     r"lightning\w*|short_conv\w*|trtllm_mha\w*|flashinfer_backend|dual_chunk\w*|fope|ntk_\w+|linear_scaling_rope|step3p5|"
     r"lilicorr|xpress|dots3\w*|flint|gemma4\w*)(?:[._]|$)|(?:^|\.)attention\.linear(?:\.|$)|"
     r"(?:^|\.)models\.(?!deepseek_v2|deepseek_v3|deepseek_v4|deepseek_mtp|deepseek_nextn|deepseek_common|utils|"
     r"interfaces|registry|config$|deepseek_eagle)"),
    ("a format that no release of these models has",
     r"(?:^|[._])(?:gguf\w*|awq\w*|gptq\w*|bitsandbytes\w*|compressed_tensors\w*|quark\w*|wna16|moe_wna16|torchao\w*|auto_round|"
     r"w4a8\w*|w4a4\w*|int8\w*|int4\w*|petit\w*|humming\w*|qoq|marlin_24|fpgemm\w*|expert_pack\w*|mxint4\w*|"
     r"int_wna16|fp4_kv_cache\w*|turboquant\w*|experts_int8|"
     r"inc|online|modelslim|w4afp8|w8a8_fp8|nvfp4_online|kt_ep_wrapper|paged_experts)(?:[._]|$)"),
    ("a feature that no plan has: adapters, images, pooling, separate prefill, transfer of weights or of the cache",
     r"(?:^|[._])(?:lora\w*|multimodal\w*|mm_\w+|vision|vit|vl_model|encoder\w*|pooling\w*|pooler\w*|embedding_\w+|"
     r"speech_to_text|diffusion\w*|dllm\w*|disaggregation\w*|disagg\w*|pd_disaggregation\w*|kv_transfer|ec_transfer|ec_connector\w*|"
     r"kv_connector\w*|kv_offload|weight_transfer|weight_sync|weight_exporter|weight_cache|remote_instance\w*|"
     r"checkpoint_engine|elastic_ep\w*|rlhf\w*|reload|connector\w*|aux_output_connector|hicache\w*|hisparse\w*|"
     r"pool_host|memory_pool_host|flexkv|mooncake\w*|ipc_loader|tensorizer\w*|sleep_mode\w*|cumem\w*|multiplex|batch_overlap|"
     r"tboplan|watermark\w*|sidecar|engram_store|hybrid_cache|unified_\w+|storage|dwdp)(?:[._]|$)"),
    ("another way to draft: these models have MTP and DSpark",
     r"(?:^|[._])(?:ngram\w*|medusa\w*|dflash\w*|domino\w*|suffix\w*|extract_hidden_states|hass|p_?eagle\w*|"
     r"standalone\w*|lookahead|mlp_speculator\w*|speculators)(?:[._]|$)"),
    ("after the first forward pass: requests, tokens, sampling",
     r"(?:^|[._])(?:tool_parsers?|reasoning|function_call|grammar|constrained|openai|anthropic|scoring|tokenizers?|"
     r"parser|beam_search|structured_outputs?|sampling_params|sampler|sample|rejection_sampler|logits_process\w*|logprobs?|"
     r"input_processor|io_struct|io_processor\w*|output_processor|async_llm|llm_engine|core_client|tokenizer_manager\w*|"
     r"multi_tokenizer\w*|detokenizer\w*|http_server\w*|grpc\w*|rust_server|session\w*|request_receiver|schedule_policy|"
     r"radix\w*|swa_radix\w*|prefill_delayer|pooling_params|tasks|template\w*|chat_\w+|"
     r"schedule_batch|batch_result_processor|output_streamer|output_sender|internal_state|kv_events\w*|load_snapshot|"
     r"single_type_kv_cache_manager|kv_cache_manager|kv_cache_coordinator|block_pool|request_queue|tensor_ipc|serial_utils|pool|"
     r"prompt_embeds|async_d2h\w*|overlap_utils|sched|dynamic_chunk_sizer|"
     r"rebalance\w*|eplb_manager|eplb_communicator|expert_distribution|expert_location_updater|weight_updater|"
     r"weight_checker\w*|sampling_observer\w*)(?:[._]|$)"),
    ("a tool of developers: benchmarks, traces, canaries, tests",
     r"(?:^|[._])(?:benchmarks?|bench\w*|metrics|tracing|profiler\w*|observability|usage|test|tests|testing|debug_utils|"
     r"kv_canary|nvtx\w*|dump_input|cudacore\w*|source_patcher|routing_simulator\w*|ci_\w+|scripted_runtime|triton_load_watch|"
     r"gpu_sync_debug|jit_monitor|hook_manager|pr_fix_toggle|rank_consensus_checker|state_capturer|"
     r"batch_invariant\w*|determinism|routed_experts_capturer|gc_utils|fault_tolerance|sentinel|watch_?dog)(?:[._]|$)"),
    ("code of another project, or a kernel",
     r"(?:^|[._])(?:third_party|kernels|vllm_flash_attn|_custom_ops|cute_utils)(?:[._]|$)"),
)  # fmt: skip

EXCLUDED = tuple((reason, re.compile(regex)) for reason, regex in _EXCLUDED)
"""(reason, regular expression for a module's name): what is off the way although something on it calls it."""


def excluded(module: str) -> str | None:
    """Why a module is off the way; None if it is not."""
    return next((reason for reason, regex in EXCLUDED if regex.search(module)), None)
