"""Checkpoints in the names, dtypes and sizes of other families than DeepSeek-V4, without their weights (sparse files).

Sizes that divide, or do not, are those of the releases as their configs are quoted in public; layers, experts and
vocabulary are few. Names follow what the engines' model classes load. No header of these releases was read: which dtype
their scales have, and that GLM's have a second axis of one, is as compressed-tensors and block FP8 usually store it.
"""

import json
from pathlib import Path
from typing import Any

from dsv4_shard.tensors.geometry import Block, scale_shape
from dsv4_shard.tensors.header import build_header

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""name → (dtype, shape as stored)"""

LAYERS, EXPERTS, VOCABULARY = 2, 3, 256
BLOCK = Block(128, 128)
FP8: dict[str, Any] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
WEIGHTS: dict[str, Any] = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
CHANNELS: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
}
INT4: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}}},
}


def blocks(name: str, rows: int, cols: int, scale: str = "F32") -> Tensors:
    """A weight in FP8 with a scale for each 128×128 block."""
    return {
        f"{name}.weight": ("F8_E4M3", (rows, cols)),
        f"{name}.weight_scale_inv": (scale, scale_shape((rows, cols), BLOCK)),
    }


def channels(name: str, rows: int, cols: int) -> Tensors:
    """A weight in FP8 with a scale for each row, as compressed-tensors has it."""
    return {f"{name}.weight": ("F8_E4M3", (rows, cols)), f"{name}.weight_scale": ("BF16", (rows, 1))}


def packed(name: str, rows: int, cols: int) -> Tensors:
    """A weight in INT4, eight values a word, with a scale for each 32 of a row, as compressed-tensors has it."""
    return {
        f"{name}.weight_packed": ("I32", (rows, cols // 8)),
        f"{name}.weight_scale": ("BF16", (rows, cols // 32)),
        f"{name}.weight_shape": ("I32", (2,)),
    }


def plain(name: str, rows: int, cols: int) -> Tensors:
    """A weight that is not quantized."""
    return {f"{name}.weight": ("BF16", (rows, cols))}


def _frame(hidden: int) -> Tensors:
    return {
        "model.embed_tokens.weight": ("BF16", (VOCABULARY, hidden)),
        "model.norm.weight": ("BF16", (hidden,)),
        "lm_head.weight": ("BF16", (VOCABULARY, hidden)),
    }


def _grouped_attention(at: str, hidden: int, heads: int, kv_heads: int, store: Any, **stored: str) -> Tensors:
    attention = f"{at}.self_attn"
    tensors: Tensors = {f"{at}.input_layernorm.weight": ("BF16", (hidden,))}
    tensors |= store(f"{attention}.q_proj", heads * 128, hidden, **stored)
    for name in ("k_proj", "v_proj"):
        tensors |= store(f"{attention}.{name}", kv_heads * 128, hidden, **stored)
    tensors |= store(f"{attention}.o_proj", hidden, heads * 128, **stored)
    return tensors


def _mlp(at: str, hidden: int, width: int, store: Any, names: tuple[str, str, str], **stored: str) -> Tensors:
    gate, up, down = names
    return {
        **store(f"{at}.{gate}", width, hidden, **stored),
        **store(f"{at}.{up}", width, hidden, **stored),
        **store(f"{at}.{down}", hidden, width, **stored),
    }


PROJ = ("gate_proj", "up_proj", "down_proj")


def _qwen3(hidden: int, width: int, heads: int, kv_heads: int) -> Tensors:
    tensors = _frame(hidden)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        tensors |= _grouped_attention(at, hidden, heads, kv_heads, blocks, scale="BF16")
        tensors[f"{at}.self_attn.q_norm.weight"] = ("BF16", (128,))
        tensors[f"{at}.mlp.gate.weight"] = ("BF16", (EXPERTS, hidden))
        for expert in range(EXPERTS):
            tensors |= _mlp(f"{at}.mlp.experts.{expert}", hidden, width, blocks, PROJ, scale="BF16")
    return tensors


def _latent_attention(at: str, hidden: int, heads: int, store: Any) -> Tensors:
    return {
        **store(f"{at}.q_a_proj", 1536, hidden),
        **store(f"{at}.q_b_proj", heads * 192, 1536),
        **store(f"{at}.kv_a_proj_with_mqa", 576, hidden),
        **store(f"{at}.kv_b_proj", heads * 256, 512),
        **store(f"{at}.o_proj", hidden, heads * 128),
        f"{at}.kv_a_layernorm.weight": ("BF16", (512,)),
    }


def _kimi(dense: Any, experts: Any) -> Tensors:
    tensors = _frame(7168)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        tensors |= _latent_attention(f"{at}.self_attn", 7168, 64, dense)
        if layer == 0:
            tensors |= _mlp(f"{at}.mlp", 7168, 18432, dense, PROJ)
            continue
        tensors[f"{at}.mlp.gate.weight"] = ("BF16", (EXPERTS, 7168))
        tensors[f"{at}.mlp.gate.e_score_correction_bias"] = ("F32", (EXPERTS,))
        tensors |= _mlp(f"{at}.mlp.shared_experts", 7168, 2048, dense, PROJ)
        for expert in range(EXPERTS):
            tensors |= _mlp(f"{at}.mlp.experts.{expert}", 7168, 2048, experts, PROJ)
    return tensors


def _glm() -> Tensors:
    tensors = _frame(5120)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        tensors |= _grouped_attention(at, 5120, 96, 8, channels)
        tensors[f"{at}.self_attn.q_proj.bias"] = ("BF16", (96 * 128,))
        if layer == 0:
            tensors |= _mlp(f"{at}.mlp", 5120, 12288, channels, PROJ)
            continue
        tensors[f"{at}.mlp.gate.weight"] = ("BF16", (EXPERTS, 5120))
        tensors |= _mlp(f"{at}.mlp.shared_experts", 5120, 1536, channels, PROJ)
        for expert in range(EXPERTS):
            tensors |= _mlp(f"{at}.mlp.experts.{expert}", 5120, 1536, channels, PROJ)
    return tensors


def _minimax() -> Tensors:
    tensors = _frame(3072)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        tensors |= _grouped_attention(at, 3072, 48, 8, blocks)
        tensors[f"{at}.block_sparse_moe.gate.weight"] = ("F32", (EXPERTS, 3072))
        tensors[f"{at}.block_sparse_moe.e_score_correction_bias"] = ("F32", (EXPERTS,))
        for expert in range(EXPERTS):
            tensors |= _mlp(f"{at}.block_sparse_moe.experts.{expert}", 3072, 1536, blocks, ("w1", "w3", "w2"))
    return tensors


def _config(model_type: str, architecture: str, quantization: dict[str, Any], **sizes: Any) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "quantization_config": quantization,
        "vocab_size": VOCABULARY,
        **sizes,
    }


QWEN3, QWEN3_CODER, KIMI = "Qwen3-235B-A22B-FP8", "Qwen3-Coder-480B-A35B-Instruct-FP8", "Kimi-K2-Instruct"
KIMI_INT4, GLM, MINIMAX = "Kimi-K2-Thinking", "GLM-4.5-FP8", "MiniMax-M2"

_KIMI_SIZES = {
    "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 64, "num_key_value_heads": 64,
    "n_routed_experts": 384, "moe_intermediate_size": 2048, "intermediate_size": 18432,
}  # fmt: skip

FAMILIES: dict[str, tuple[dict[str, Any], Tensors]] = {
    QWEN3: (
        _config("qwen3_moe", "Qwen3MoeForCausalLM", FP8, num_hidden_layers=94, hidden_size=4096,
                num_attention_heads=64, num_key_value_heads=4, num_experts=128, moe_intermediate_size=1536,
                intermediate_size=12288),
        _qwen3(4096, 1536, 64, 4),
    ),
    QWEN3_CODER: (
        _config("qwen3_moe", "Qwen3MoeForCausalLM", FP8, num_hidden_layers=62, hidden_size=6144,
                num_attention_heads=96, num_key_value_heads=8, num_experts=160, moe_intermediate_size=2560,
                intermediate_size=8192),
        _qwen3(6144, 2560, 96, 8),
    ),
    KIMI: (_config("kimi_k2", "DeepseekV3ForCausalLM", FP8, **_KIMI_SIZES), _kimi(blocks, blocks)),
    KIMI_INT4: (_config("kimi_k2", "DeepseekV3ForCausalLM", INT4, **_KIMI_SIZES), _kimi(plain, packed)),
    GLM: (
        _config("glm4_moe", "Glm4MoeForCausalLM", CHANNELS, num_hidden_layers=92, hidden_size=5120,
                num_attention_heads=96, num_key_value_heads=8, n_routed_experts=160, moe_intermediate_size=1536,
                intermediate_size=12288),
        _glm(),
    ),
    MINIMAX: (
        _config("minimax_m2", "MiniMaxM2ForCausalLM", FP8, num_hidden_layers=62, hidden_size=3072,
                num_attention_heads=48, num_key_value_heads=8, num_local_experts=256, intermediate_size=1536),
        _minimax(),
    ),
}  # fmt: skip
"""config.json, as far as it is of interest, and tensors."""


def write_family(folder: Path, document: dict[str, Any], tensors: Tensors) -> Path:
    """A checkpoint of one file, of holes."""
    header, placed = build_header(tensors)
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + max(info.stop for info in placed.values()))
    (folder / "config.json").write_text(json.dumps(document))
    return folder
