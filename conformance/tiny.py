"""Tiny checkpoints that both engines take: real head sizes, every kind of layer, everything else as small as it can be.

Layers: compressed 128:1 and routed by hash, not compressed and routed by hash, compressed 4:1 and routed by score; then
one MTP block, or three DSpark stages. 8 heads, output groups and experts cut into 8 ranks.
"""

from pathlib import Path
from typing import Any, NamedTuple

from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, write_checkpoint

CONFIG: dict[str, Any] = DEMO_CONFIG | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hc_eps": 1e-6,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 65536,
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "transformers_version": "4.57.1",
    "use_cache": True,
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_hash_layers": 2,
    "compress_ratios": [128, 0, 4, 0],
    "vocab_size": 512,
    "num_attention_heads": 8,
    "head_dim": 512,
    "q_lora_rank": 128,
    "o_groups": 8,
    "o_lora_rank": 128,
    "index_n_heads": 8,
    "index_head_dim": 128,
    "index_topk": 512,
    "moe_intermediate_size": 512,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "rope_scaling": DEMO_CONFIG["rope_scaling"] | {"original_max_position_embeddings": 4096},
}
"""What the engines read of a config.json beside the demo's, in the words of V4-Pro's."""

SEED = 20


class Variant(NamedTuple):
    """A way to store a checkpoint: `expert_dtype` of config.json (None: absent), and `tensors_of`'s options."""

    expert_dtype: str | None
    scales: str = "F8_E8M0"
    o_a: str = "FP8"
    intermediate: int = 512
    vocab: int = 512
    experts: int = 8
    dspark: bool = False
    nvfp4: bool = False


_STORED = {
    "fp4": Variant("fp4"),
    "fp8": Variant(None, o_a="BF16"),
    "fp8f32": Variant("fp8", scales="F32"),
    "fp8e8": Variant("fp8"),
    "nvfp4": Variant("fp4", nvfp4=True),
}
"""As DeepSeek's releases, sgl-project's FP8 re-releases, DeepSeek's Base checkpoints; these with E8M0 scales; NVIDIA's
release with NVFP4 experts.
"""

_ODD = {f"{name}-odd": variant._replace(intermediate=384) for name, variant in _STORED.items()}

VARIANTS: dict[str, Variant] = (
    _STORED | _ODD | {f"dspark-{name}": variant._replace(dspark=True) for name, variant in (_STORED | _ODD).items()}
)
"""`odd`: an intermediate size of 3 blocks of 128, which TP 2 cuts into one and a half, as TP 16 does V4-Pro's 24.

`dspark`: three DSpark stages in place of the MTP block, as in V4-Flash-0731 and V4-Pro-0813.
"""

_DSPARK: dict[str, Any] = {
    "compress_ratios": [*CONFIG["compress_ratios"], 0, 0],
    "dspark_block_size": 5,
    "dspark_noise_token_id": 255,
    "dspark_target_layer_ids": [0, 1, 2],
    "dspark_markov_rank": 32,
}
"""What a DSpark release's config.json has beside."""

VARIANTS |= {
    "fp4-vocab": Variant("fp4", vocab=500),
    "fp8-vocab": Variant(None, o_a="BF16", vocab=500),
    "fp4-thirds": Variant("fp4", experts=9),
}
"""A vocabulary of no whole 64 rows; experts for TP 3, over which 512 rows are padded to 576, as TP 12 does V4-Pro's."""


_NVFP4: dict[str, Any] = {
    "quant_algo": "MIXED_PRECISION",
    "moe_quant_algo": "NVFP4",
    "group_size": 16,
    "kv_cache_quant_algo": None,
    "ignore": ["*.attn.*", "*.ffn.shared_experts.*", "head", "mtp.*"],
    "producer": {"name": "modelopt", "version": "dsv4-nvfp4-experts"},
    "quantized_layers": {
        f"layers.{layer}.ffn.experts": {"quant_algo": "NVFP4", "group_size": 16} for layer in range(3)
    },
}
"""What the `quantization_config` of NVIDIA's release has beside."""


def config_of(variant: str) -> dict[str, Any]:
    """config.json of a variant."""
    made = VARIANTS[variant]
    document = CONFIG | {
        "moe_intermediate_size": made.intermediate,
        "expert_dtype": made.expert_dtype,
        "vocab_size": made.vocab,
        "n_routed_experts": made.experts,
    }
    document |= _DSPARK if made.dspark else {}
    document |= {"quantization_config": CONFIG["quantization_config"] | _NVFP4} if made.nvfp4 else {}
    return {key: value for key, value in document.items() if value is not None}


def write_variant(folder: Path, variant: str) -> Path:
    """Write a variant into the new folder `folder`: always the same bytes."""
    made = VARIANTS[variant]
    experts = "FP4" if made.expert_dtype == "fp4" else "FP8"
    stored = {"experts": experts, "scales": made.scales, "o_a": made.o_a}
    blocks = 3 if made.dspark else 1
    return write_checkpoint(folder, config_of(variant), SEED, blocks, dspark=made.dspark, nvfp4=made.nvfp4, **stored)
