"""config.json, as far as the geometry of the model's tensors needs it."""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dsv4_shard.errors import BadConfig, UnsupportedFamily

MAX_CONFIG_BYTES = 4 << 20

SUPPORTED = ("DeepseekV4ForCausalLM",)
FAMILIES = {
    "deepseek_v3": "DeepSeek-V3",
    "deepseek_v32": "DeepSeek-V3.2",
    "deepseek_v41": "DeepSeek-V4.1",
    "kimi_k2": "Kimi-K2",
    "kimi_k3": "Kimi-K3",
    "glm4_moe": "GLM-4 MoE",
    "qwen3_moe": "Qwen3 MoE",
}
"""Names for the families that people are likely to try; others are called by their `model_type`."""

Count = Annotated[int, Field(gt=0, lt=2**31, strict=True)]
Natural = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Few = Annotated[int, Field(ge=0, lt=2**16, strict=True)]
"""Of what the checks go through one by one: no model has 65,536 layers or experts, a hostile config may say so."""


class QuantizationConfig(BaseModel):
    """What config.json claims of the quantization; the headers decide."""

    model_config = ConfigDict(frozen=True)

    quant_method: str | None = None
    scale_fmt: str | None = None
    weight_block_size: tuple[Count, Count] | None = None


class ModelConfig(BaseModel):
    """The dimensions of a DeepSeek-V4 model, under the names of its config.json. Sizes in elements."""

    model_config = ConfigDict(frozen=True)

    model_type: str
    architectures: tuple[str, ...] = ()
    hidden_size: Count
    num_hidden_layers: Annotated[Few, Field(gt=0)]
    num_nextn_predict_layers: Few = 0
    num_hash_layers: Natural = 0
    vocab_size: Count
    num_attention_heads: Count
    head_dim: Count
    q_lora_rank: Count
    o_groups: Count
    o_lora_rank: Count
    index_n_heads: Count
    index_head_dim: Count
    moe_intermediate_size: Count
    n_routed_experts: Annotated[Few, Field(gt=0)]
    n_shared_experts: Few
    num_experts_per_tok: Count
    hc_mult: Count
    compress_ratios: tuple[Natural, ...]
    expert_dtype: str | None = None
    swiglu_limit: float | None = None
    quantization_config: QuantizationConfig | None = None

    @model_validator(mode="after")
    def _ratios_cover_layers(self) -> "ModelConfig":
        if len(self.compress_ratios) < self.num_hidden_layers:
            raise ValueError(
                f"compress_ratios has {len(self.compress_ratios)} entries for {self.num_hidden_layers} layers"
            )
        if self.num_hash_layers > self.num_hidden_layers:
            raise ValueError(f"num_hash_layers {self.num_hash_layers} exceeds {self.num_hidden_layers} layers")
        return self

    @property
    def declared_block(self) -> tuple[int, int] | None:
        """`weight_block_size`, where the config has one."""
        return self.quantization_config.weight_block_size if self.quantization_config else None


def parse_config(raw: bytes, where: str) -> tuple[ModelConfig, dict[str, Any]]:
    """The checked config, and the whole document. Raises BadConfig or UnsupportedFamily."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadConfig(f"{where}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadConfig(f"{where}: not a JSON object")
    _check_family(document, where)
    try:
        return ModelConfig.model_validate(document), document
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors(include_url=False, include_input=False))
        raise BadConfig(f"{where}: {problems}") from None


def _describe(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])


def _check_family(document: dict[str, Any], where: str) -> None:
    architectures = document.get("architectures")
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    if any(name in SUPPORTED for name in names):
        return
    model_type = str(document.get("model_type"))
    if not names and model_type == "deepseek_v4":
        return
    family = FAMILIES.get(model_type, model_type)
    raise UnsupportedFamily(
        f"{where}: a checkpoint of {family} (model_type {model_type!r}, architectures {names})",
        hint="This version reads DeepSeek-V4-Pro and DeepSeek-V4-Flash and their FP8 re-releases.",
    )
