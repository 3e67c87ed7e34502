"""Values of the options for engines, runners, versions and expert formats, as shell completion offers them.

Completion imports this module, so it must import fast and does not import the engines. The engines take the names of
their runners, backends and versions from here.
"""

ENGINES = {
    "sglang": "SGLang",
    "vllm": "vLLM",
    "reference": "DeepSeek's own generate.py",
    "trtllm": "TensorRT-LLM: planned only, no files are written",
    "node": "a folder a node, for stock loaders",
}
"""Value of `--engine` → its description."""

LOAD_FORMAT = "dsv4_shard"
"""Value of `--load-format` that our plugins add to SGLang and vLLM."""

RUNNERS = {
    "sglang": ("flashinfer_mxfp4", "marlin", "triton", "deep_gemm", "auto"),
    "vllm": (
        "marlin",
        "flashinfer_cutlass",
        "flashinfer_trtllm",
        "deep_gemm",
        "triton_unfused",
        "deep_gemm_mega_moe",
        "flashinfer_moe_ep_cutedsl",
        "flashinfer_moe_ep_mega_deep_gemm",
        "triton",
    ),
    "reference": ("tilelang",),
}
"""Engine → its MoE runners or backends that were compared. Engines that are not listed have no choice of runner."""

OTHER_RUNNERS = {
    "sglang": (
        "aiter", "cutlass", "experimental_sgl_marlin", "experimental_sgl_trtllm", "flashinfer_cutedsl",
        "flashinfer_cutlass", "flashinfer_megamoe", "flashinfer_trtllm", "flashinfer_trtllm_routed", "hpc_ops",
        "humming", "intel_xpu", "lora_cutedsl", "lora_marlin", "lora_triton", "megamoe", "triton_kernel",
    ),
    "vllm": (
        "aiter", "aiter_mega_moe", "aiter_triton_mxfp4_bf16", "aiter_triton_mxfp4_mxfp4", "b12x", "batched_triton",
        "cutlass", "emulation", "flashinfer_b12x", "flashinfer_cutedsl", "flydsl", "hpc", "humming", "rdna3",
    ),
}  # fmt: skip
"""Engine → the other names that it takes: what it then holds was not compared, so plans call them not verified.

With these above, all of SGLang's `MOE_RUNNER_BACKEND_CHOICES` and of vLLM's `MoEBackend`.
"""

RUNNER_NAMES = {engine: (*names, *OTHER_RUNNERS.get(engine, ())) for engine, names in RUNNERS.items()}
"""Engine → every name that `--runner` takes."""

REPLACED_RUNNERS = {
    "deep_gemm_amxf4_mega_moe": "Only development images of vLLM had it: deep_gemm_mega_moe has the same FP4 experts.",
}
"""Names that an engine no longer has → what is there in their place."""

A2A = (
    "deepep",
    "deepep_v2",
    "megamoe",
    "mooncake",
    "nixl",
    "ascend_fuseep",
    "flashinfer",
    "flashinfer_megamoe",
    "mori",
    "pplx",
)
"""SGLang's all-to-all backends. Each forces EP = TP and keeps the shared experts whole (`_shared_expert_use_tp1`)."""

A2A_BACKENDS = {"sglang": A2A}
"""Engine → its all-to-all backends."""

SGLANG_VERSIONS = ("0.5.23",)
"""Versions of SGLang whose own classes the layout was compared with, and with which the plugin's loader was run."""

VLLM_VERSIONS = ("0.33.0", "0.25.0")
"""Versions of vLLM whose own classes the layout was compared with. Of 0.25.0 only the loaders were run, no forward."""

VLLM_LOADER_VERSIONS = VLLM_VERSIONS[:1]
"""Versions of vLLM with which the plugin's loader was run, and data parallelism was compared."""

VLLM_BROKEN_VERSIONS = ("0.28.0", "0.27.0", "0.26.0")
"""They never set `hc_attn_fn_broadcast` after a sharded load, and fail in the first forward; 0.29.0 mends it."""

VERSIONS = {
    "sglang": SGLANG_VERSIONS,
    "vllm": (*VLLM_VERSIONS, *VLLM_BROKEN_VERSIONS),
    "reference": ("V4", "V4.1", "V3", "V3.2"),
    "trtllm": ("02586bf",),
    "node": SGLANG_VERSIONS,
}
"""Engine → versions that its rules cover, the newest working one first. The last three of vLLM are broken."""

PLANNED_ONLY = ("trtllm",)
"""Engines whose files `reshard` does not write."""

DEFAULT_ENGINE = "sglang"

NO_DRAFT = "none"
"""Value of `--draft` that leaves the draft model out."""

DRAFTS = {
    NO_DRAFT: "without the draft model, in the files too",
    "mtp": "with the MTP block of V4, V3 and V3.2",
    "dspark": "with the DSpark stages of 0731, 0813 and V4.1",
}
"""Value of `--draft` → its description."""

SHARED_EXPERTS = {
    "auto": "as the engine does it, else the next of its ways that runs",
    "whole": "all of it on every rank",
    "split": "cut over the ranks, where whole blocks divide",
    "pad": "cut over the ranks, filled up to whole blocks (vLLM)",
}
"""Value of `--shared-experts` → its description."""

RANKINGS = {"weights": "fewest bytes per GPU", "tokens": "most tokens of KV cache", "sent": "fewest bytes between GPUs"}
"""Value of `--rank-by` → its description."""

EXPERT_DTYPES = {"fp4": "as FP4 experts are", "fp8": "FP4 experts cast to FP8, as DeepSeek's converter does"}
"""Value of `--expert-dtype` → its description."""
