"""Writes small random checkpoints of any family, for the demo, the tests and the benchmarks.

The demo has V4-Pro's structure: every role, dtype and kind of layer. Its shared expert breaks at TP 16 for the same
reason, 3072 rows in 24 blocks of 128. Width, number of layers and number of experts are small.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from dsv4_shard.checkpoint.completeness import expected_names
from dsv4_shard.models import (
    Draft,
    ModelConfig,
    Module,
    Part,
    Place,
    Role,
    Spec,
    Stage,
    family_of,
    parse_config,
    release_file,
)
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE
from dsv4_shard.tensors.geometry import FP4_GROUP, NVFP4_GROUP, Block, scale_shape
from dsv4_shard.tensors.header import TensorInfo, build_header

FP8_BLOCK = Block(128, 128)

FP4_BLOCK = Block(1, FP4_GROUP)

_CHUNK = 4 << 20

E8M0_BIAS = 127

_SCALE_CODES = (117, 124)
"""Half-open range of the E8M0 codes in use: scales from 2^-10 to 2^-4."""

DEMO_CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "expert_dtype": "fp4",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 1,
    "num_hash_layers": 3,
    "compress_ratios": [128, 128, 4, 128, 0],
    "vocab_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 128,
    "o_groups": 16,
    "o_lora_rank": 128,
    "index_n_heads": 16,
    "index_head_dim": 128,
    "index_topk": 64,
    "moe_intermediate_size": 3072,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 6,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sqrtsoftplus",
    "swiglu_limit": 10.0,
    "sliding_window": 128,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "beta_fast": 32,
        "beta_slow": 1,
        "original_max_position_embeddings": 65536,
    },
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
    "torch_dtype": "bfloat16",
}

DSPARK_CONFIG: dict[str, Any] = DEMO_CONFIG | {
    "compress_ratios": [128, 128, 4, 128, 0, 0, 0],
    "dspark_block_size": 5,
    "dspark_noise_token_id": 255,
    "dspark_target_layer_ids": [1, 2, 3],
    "dspark_markov_rank": 32,
}
"""config.json of a DSpark release, to be written with three MTP blocks. It declares one, as the real releases do."""

V41_CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV41ForCausalLM"],
    "model_type": "deepseek_v41",
    "image_token_id": 250,
    "quantization_config": {
        "quant_method": "fp8",
        "weight_block_size": [32, 32],
        "scale_fmt": "ue8m0",
        "expert_dtype": "fp4",
    },
    "text_config": {
        "vocab_size": 256,
        "hidden_size": 96,
        "moe_intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 16,
        "head_dim": 64,
        "q_lora_rank": 64,
        "o_lora_rank": 32,
        "o_groups": 16,
        "swiglu_limit": 10.0,
        "n_routed_experts": 32,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "compress_ratios": [0, 2, 1, 0, 0],
        "kv_source_layer_ids": [1, 2],
        "index_source_layer_ids": [1, 2],
        "index_n_heads": 16,
        "index_head_dim": 32,
        "hc_mult": 2,
        "engram_layer_ids": [0, 2],
        "engram_num_embeddings": [203, 9],
        "engram_max_ngram_size": 3,
        "engram_n_heads": 2,
        "engram_head_dim": 64,
        "num_nextn_predict_layers": 2,
        "dspark_target_layer_ids": [1, 2],
        "dspark_markov_rank": 32,
        "dspark_n_routed_experts": 16,
    },
    "vision_config": {
        "num_hidden_layers": 2,
        "hidden_size": 48,
        "intermediate_size": 40,
        "patch_size": 2,
        "downsample_ratio": 2,
        "max_wh_ratio": None,
    },
}
"""config.json of a V4.1 model, to be written with two MTP blocks.

Sizes are multiples of 128 only where necessary. Its engram tables of 203 and 9 rows do not divide by 8 ranks: some
ranks get fewer rows than others, or none.
"""

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Name → (dtype, shape as stored)."""


def tensors_of(
    document: dict[str, Any],
    mtp_blocks: int = 1,
    *,
    experts: str | None = None,
    scales: str = "F8_E8M0",
    o_a: str = "FP8",
    dspark: bool = False,
    nvfp4: bool = False,
    optional: bool = False,
) -> Tensors:
    """Return every tensor of a checkpoint with this config.json.

    Args:
        document: config.json.
        mtp_blocks: Number of MTP blocks.
        experts: Format of the routed experts, FP4 or FP8; default: the one that config.json declares.
        scales: Dtype of all FP8 scales (F32 in the Base checkpoints).
        o_a: FP8, or BF16 without scales, as in the FP8 re-releases.
        dspark: Whether the MTP blocks are the stages of DSpark.
        nvfp4: Whether the layers' experts are in NVFP4, beside MTP blocks in FP4, as in NVIDIA's releases.
        optional: Whether to add tensors that may be missing (the MTP block's own embedding and head).
    """
    config, _ = parse_config(json.dumps(document).encode(), CONFIG_FILE)
    family, draft = family_of(config), Draft(mtp_blocks, dspark)
    fp4 = (experts or config.declared_experts or "fp8").upper() in ("FP4", "NVFP4")  # the latter is made of FP4
    tensors: Tensors = {}
    for name in expected_names(config, range(mtp_blocks), draft, optional=optional):
        spec = family.rows[name.stage, name.role]
        shape = spec.shape(config, Place(name.stage, name.layer, draft))
        routed = name.role.module is Module.ROUTED
        experts_of = (name._replace(expert=e) for e in range(config.experts_in(name.stage))) if routed else (name,)
        for weight in experts_of:
            quantized = spec.quantized and not (name.role is Role.O_A and o_a == "BF16")
            native = _stored(spec, shape, quantized, fp4 and routed, config, scales)
            stored = dict(zip((Part.WEIGHT, Part.SCALE), native, strict=False))
            if nvfp4 and routed and name.stage is Stage.LAYER:
                stored = _stored_nvfp4((shape[0], shape[1]))
            unparse = family.names(config).unparse
            tensors |= {unparse(weight._replace(part=part)): tensor for part, tensor in stored.items()}
    return tensors


def _stored(
    spec: Spec, shape: tuple[int, ...], quantized: bool, packed: bool, config: ModelConfig, scales: str
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return (dtype, stored shape) of a weight, and of its scale if it has one. `shape` is the weight's in elements."""
    if not quantized:
        return ((spec.dtype, shape),)
    matrix = (shape[0], shape[1])
    if packed:
        return ("I8", (shape[0], shape[1] // 2)), ("F8_E8M0", scale_shape(matrix, FP4_BLOCK))
    block = spec.block or Block(*(config.declared_block or FP8_BLOCK))
    return ("F8_E4M3", shape), (scales, scale_shape(matrix, block))


def _stored_nvfp4(shape: tuple[int, int]) -> dict[Part, tuple[str, tuple[int, ...]]]:
    """Return (dtype, stored shape) of an NVFP4 weight and its scales. `shape` is the weight's in elements."""
    return {
        Part.WEIGHT: ("U8", (shape[0], shape[1] // 2)),
        Part.GROUP_SCALE: ("F8_E4M3", (shape[0], shape[1] // NVFP4_GROUP)),
        Part.TENSOR_SCALE: ("F32", ()),
        Part.INPUT_SCALE: ("F32", ()),
    }


def by_file(tensors: Tensors, document: dict[str, Any]) -> dict[str, Tensors]:
    """Return file name → tensors, divided as in DeepSeek's releases (see `release_file`)."""
    config, _ = parse_config(json.dumps(document).encode(), CONFIG_FILE)
    parse, layers = family_of(config).names(config).parse, config.num_hidden_layers
    numbered: dict[int, Tensors] = {}
    for name, tensor in tensors.items():
        numbered.setdefault(release_file(parse(name), layers), {})[name] = tensor
    count = len(numbered)
    return {f"model-{number:05d}-of-{count:05d}.safetensors": numbered[number] for number in sorted(numbered)}


def write_checkpoint(
    folder: Path, document: dict[str, Any] = DEMO_CONFIG, seed: int = 0, mtp_blocks: int = 1, **stored: Any
) -> Path:
    """Write a checkpoint with random weights, and return its folder. The same seed gives the same bytes.

    Args:
        folder: Folder to create.
        document: config.json.
        seed: Seed of the random numbers.
        mtp_blocks: Number of MTP blocks.
        stored: Other options of `tensors_of`. Scales have the same values in each of their dtypes.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    weight_map: dict[str, str] = {}
    total = 0
    all_tensors = tensors_of(document, mtp_blocks, **stored)
    for file_name, tensors in by_file(all_tensors, document).items():
        header, placed = build_header(tensors)
        with (folder / file_name).open("wb") as file:
            file.write(header)
            for name, info in placed.items():
                for data in _random_bytes(random, name, info, document):
                    file.write(data.data)
        weight_map |= dict.fromkeys(tensors, file_name)
        total += max(info.stop for info in placed.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1))
    (folder / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n")
    (folder / "tokenizer.json").write_text('{"version": "1.0", "added_tokens": []}\n')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}\n')
    return folder


def _random_bytes(
    random: np.random.Generator, name: str, info: TensorInfo, document: dict[str, Any]
) -> Iterator[npt.NDArray[Any]]:
    """Yield a tensor's bytes in chunks of up to 4 MiB.

    FP8 values are never NaN, and scales differ by so little that the FP8 cast is exact.
    """
    remaining = info.nbytes
    while remaining:
        nbytes = min(remaining, _CHUNK)
        remaining -= nbytes
        match info.dtype:
            case "I64":
                experts = document["n_routed_experts"]
                yield random.integers(0, experts, nbytes // 8, dtype=np.int64)
            case "F32" if name.endswith(".input_scale"):  # gate and up have the same input
                own = np.random.default_rng(crc32(name.replace(".w3.", ".w1.").encode()))
                yield own.random(1, dtype=np.float32)
            case "F32" if name.endswith((".scale", ".weight_scale_inv")):
                codes = random.integers(*_SCALE_CODES, nbytes // 4, dtype=np.uint8)
                yield np.ldexp(np.float32(1), codes.astype(np.int32) - E8M0_BIAS)
            case "F32":
                yield random.standard_normal(nbytes // 4, dtype=np.float32) * np.float32(0.1)
            case "BF16":
                values = random.standard_normal(nbytes // 2, dtype=np.float32) * np.float32(0.1)
                yield (values.view(np.uint32) >> 16).astype(np.uint16)
            case "F8_E8M0":
                yield random.integers(*_SCALE_CODES, nbytes, dtype=np.uint8)
            case "F8_E4M3":
                codes = random.integers(0, 256, nbytes, dtype=np.uint8)
                codes[(codes & 0x7F) == 0x7F] = 0x38
                yield codes
            case _:
                yield random.integers(0, 256, nbytes, dtype=np.uint8)
