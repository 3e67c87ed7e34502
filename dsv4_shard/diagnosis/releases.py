"""Inventories of DeepSeek's releases from their sizes, to match an engine's message when no checkpoint is given.

The sizes are those of the releases' config.json. The inventory is built as from a checkpoint's headers, so the engines'
rules, which read nothing else, can be evaluated.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from dsv4_shard.checkpoint import Format, Inventory, TensorGroup, expected_names
from dsv4_shard.models import Draft, Module, Part, Place, Role, Stage, family_of, parse_config
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE
from dsv4_shard.tensors.geometry import FP4_GROUP, Block
from dsv4_shard.tensors.header import nbytes_of

_FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}

_V4: dict[str, Any] = {
    "model_type": "deepseek_v4", "architectures": ["DeepseekV4ForCausalLM"], "quantization_config": _FP8,
    "vocab_size": 129280, "head_dim": 512, "o_lora_rank": 1024, "index_n_heads": 64, "index_head_dim": 128,
    "n_shared_experts": 1, "num_experts_per_tok": 6, "num_hash_layers": 3, "hc_mult": 4, "num_nextn_predict_layers": 1,
    "qk_rope_head_dim": 64, "sliding_window": 128, "max_position_embeddings": 1048576,
}  # fmt: skip

_PRO = _V4 | {
    "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "q_lora_rank": 1536, "o_groups": 16,
    "moe_intermediate_size": 3072, "n_routed_experts": 384, "compress_ratios": [128, *[128, 4] * 30, 0],
}  # fmt: skip

_FLASH = _V4 | {
    "hidden_size": 4096, "num_hidden_layers": 43, "num_attention_heads": 64, "q_lora_rank": 1024, "o_groups": 8,
    "moe_intermediate_size": 2048, "n_routed_experts": 256, "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
}  # fmt: skip

_DSPARK = {"dspark_block_size": 5}

_PRO_DSPARK = (
    _PRO | _DSPARK | {"expert_dtype": "fp4", "dspark_target_layer_ids": [58, 59, 60], "dspark_markov_rank": 512}
)

_FLASH_DSPARK = (
    _FLASH | _DSPARK | {"expert_dtype": "fp4", "dspark_target_layer_ids": [40, 41, 42], "dspark_markov_rank": 256}
)

_V41: dict[str, Any] = {
    "model_type": "deepseek_v41", "architectures": ["DeepseekV41ForCausalLM"],
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32], "expert_dtype": "fp4"},
    "text_config": {
        "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 64, "q_lora_rank": 1280, "o_groups": 8,
        "vocab_size": 129280, "head_dim": 512, "o_lora_rank": 1024, "index_n_heads": 32, "index_head_dim": 128,
        "moe_intermediate_size": 2304, "n_routed_experts": 384, "n_shared_experts": 1, "num_experts_per_tok": 6,
        "hc_mult": 4, "compress_ratios": [0, 0, *[2] * 18, *[1] * 20, 0, 0, 0], "num_nextn_predict_layers": 3,
        "kv_source_layer_ids": [2, 8, 14, 20], "index_source_layer_ids": [2, 8, 14, 20, 24, 28, 32, 36],
        "engram_layer_ids": [1, 14], "engram_num_embeddings": [384006168, 384016682], "engram_max_ngram_size": 4,
        "engram_n_heads": 8, "engram_head_dim": 256, "dspark_target_layer_ids": [37, 38, 39],
        "dspark_markov_rank": 256, "dspark_n_routed_experts": 128,
        "qk_rope_head_dim": 64, "sliding_window": 128, "max_position_embeddings": 1048576,
    },
    "vision_config": {
        "num_hidden_layers": 32, "hidden_size": 1024, "intermediate_size": 2816, "patch_size": 14,
        "downsample_ratio": 3,
    },
}  # fmt: skip

_V3: dict[str, Any] = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "quantization_config": _FP8,
    "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "vocab_size": 129280, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "intermediate_size": 18432, "first_k_dense_replace": 3, "moe_intermediate_size": 2048, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "num_nextn_predict_layers": 1, "max_position_embeddings": 163840,
}  # fmt: skip

_V32 = _V3 | {
    "model_type": "deepseek_v32", "architectures": ["DeepseekV32ForCausalLM"], "index_n_heads": 64,
    "index_head_dim": 128,
}  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class Release:
    """A release of a model.

    Attributes:
        repo: Its repository on the Hub.
        names: Regular expression for its names and those of others of its sizes, in lower case and without separators.
        document: Its config.json, reduced to the sizes.
        experts: Format of the routed experts.
        scales: Dtype of the scales of FP8 weights.
        o_a: Format of wo_a.
        blocks: Number of MTP blocks or DSpark stages.
        dspark: Whether the draft is DSpark's.
        optional: Whether it holds tensors that the family does not need.
    """

    repo: str
    names: str
    document: dict[str, Any]
    experts: str = "FP4"
    scales: str = "F8_E8M0"
    o_a: str = "FP8"
    blocks: int = 1
    dspark: bool = False
    optional: bool = False

    @property
    def title(self) -> str:
        return self.repo.rpartition("/")[2]


RELEASES = (
    Release("deepseek-ai/DeepSeek-V4-Pro", "v4pro", _PRO | {"expert_dtype": "fp4"}),
    Release("deepseek-ai/DeepSeek-V4-Flash", "v4flash", _FLASH | {"expert_dtype": "fp4"}),
    Release("sgl-project/DeepSeek-V4-Pro-FP8", "v4profp8|v4probase", _PRO, experts="FP8", o_a="BF16"),
    Release("sgl-project/DeepSeek-V4-Flash-FP8", "v4flashfp8", _FLASH, experts="FP8", o_a="BF16"),
    Release("deepseek-ai/DeepSeek-V4.1-Flash", r"v4\.?1flash", _V41, blocks=3, dspark=True),
    Release("deepseek-ai/DeepSeek-V3.2", r"deepseekv3\.?2(?!\d)", _V32, "FP8", "F32", optional=True),
    Release(
        "deepseek-ai/DeepSeek-V3", r"deepseek(?:v3\.?1|v3(?:0324)?|r1(?:0528)?)(?!\.?\d)", _V3, "FP8", "F32",
        optional=True,
    ),
)  # fmt: skip
"""The releases that are guessed from when a log names no model, the likeliest first. R1 and V3.1 have V3's sizes."""

NAMED_RELEASES = (
    *RELEASES,
    Release("deepseek-ai/DeepSeek-V4-Pro-0813", "v4pro(?:0813|dspark)", _PRO_DSPARK, blocks=3, dspark=True),
    Release("deepseek-ai/DeepSeek-V4-Flash-0731", "v4flash(?:0731|dspark)", _FLASH_DSPARK, blocks=3, dspark=True),
    Release("deepseek-ai/DeepSeek-V4-Flash-Base", "v4flashbase", _FLASH | {"expert_dtype": "fp8"}, "FP8", "F32"),
)
"""Those that a log can name besides."""

_OF_OTHERS = re.compile("distill|qwen|llama|draft|eagle|lora")
"""Words in the names of other models that are called after a release."""

_BEFORE = r"(?:^|deepseek|ds)"


def find_release(name: str) -> Release | None:
    """The release that a path or repository names: the one with the longest match, in the last part that has one.

    Another model whose name contains a release's (a distilled Qwen, another vendor's V4) is none.
    """
    for part in reversed(re.split(r"[/\\]|--", name.lower())):
        plain = re.sub(r"[-_ ]", "", part)
        found = [
            (match.end(), match.end() - match.start(), release)
            for release in NAMED_RELEASES
            for match in [re.search(_BEFORE + rf"({release.names})", plain)]
            if match
        ]
        if found:
            return None if _OF_OTHERS.search(plain) else max(found, key=lambda one: one[:2])[2]
    return None


@cache
def inventory_of(release: Release) -> Inventory:
    """The inventory that a release's headers give, without tensor names."""
    config, _ = parse_config(json.dumps(release.document).encode(), CONFIG_FILE)
    family, draft = family_of(config), Draft(release.blocks, release.dspark)
    groups: Counter[TensorGroup] = Counter()
    formats: dict[tuple[Stage, Role], Format] = {}
    for at in expected_names(config, range(release.blocks), draft, optional=release.optional):
        spec = family.rows[at.stage, at.role]
        shape = spec.shape(config, Place(at.stage, at.layer, draft))
        routed = at.role.module is Module.ROUTED
        count = config.experts_in(at.stage) if routed else 1
        if not spec.quantized or (at.role is Role.O_A and release.o_a == "BF16"):
            dtype = "BF16" if spec.quantized else spec.dtype
            if spec.quantized:
                formats[at.stage, at.role] = Format(dtype)
            groups[TensorGroup(at.stage, at.role, Part.WEIGHT, dtype, shape, nbytes_of(dtype, shape))] += count
            continue
        fp4 = routed and release.experts == "FP4"
        block = Block(1, FP4_GROUP) if fp4 else spec.block or Block(*(config.declared_block or (128, 128)))
        scale = "F8_E8M0" if fp4 else release.scales
        formats[at.stage, at.role] = Format("FP4" if fp4 else "FP8", block, scale)
        scales = (-(-shape[0] // block.rows), -(-shape[1] // block.cols))
        dtype, stored = ("I8", (shape[0], shape[1] // 2)) if fp4 else ("F8_E4M3", shape)
        groups[TensorGroup(at.stage, at.role, Part.WEIGHT, dtype, shape, nbytes_of(dtype, stored))] += count
        groups[TensorGroup(at.stage, at.role, Part.SCALE, scale, scales, nbytes_of(scale, scales))] += count
    return Inventory(config, {}, dict(groups), formats, draft, ())
