"""config.json, as far as the geometry of the model's tensors needs it."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dsv4_shard.errors import BadConfig, UnsupportedFamily
from dsv4_shard.escape import short, short_name
from dsv4_shard.jsonfile import BadJson, is_plain, parse_json

MAX_CONFIG_BYTES = 4 << 20
MAX_CONFIG_VALUES = 200_000
"""Enough for a ratio of each of as many layers as there can be; real ones have some 200."""

_NAMED_AT_ONCE = 30

SUPPORTED = ("DeepseekV4ForCausalLM",)
FAMILIES = {
    "deepseek_v3": "DeepSeek-V3",
    "deepseek_v32": "DeepSeek-V3.2",
    "deepseek_v41": "DeepSeek-V4.1",
    "glm4_moe": "GLM-4 MoE",
    "gpt_oss": "gpt-oss",
    "kimi_k2": "Kimi-K2",
    "kimi_k25": "Kimi-K2.5",
    "kimi_k3": "Kimi-K3",
    "minimax_m2": "MiniMax-M2",
    "qwen3_moe": "Qwen3 MoE",
    "qwen3_next": "Qwen3-Next",
}
"""Names for the families that people are likely to try; others are called by their `model_type`."""

Count = Annotated[int, Field(gt=0, lt=2**31, strict=True)]
Natural = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Few = Annotated[int, Field(ge=0, lt=2**13, strict=True)]
"""Of what the checks go through one by one: no model has 8,192 layers or experts, a hostile config may say so."""


Word = Annotated[str, Field(max_length=100)]


class QuantizationConfig(BaseModel):
    """What config.json claims of the quantization; the headers decide."""

    model_config = ConfigDict(frozen=True)

    quant_method: Word | None = None
    scale_fmt: Word | None = None
    weight_block_size: tuple[Count, Count] | None = None


class ModelConfig(BaseModel):
    """The dimensions of a DeepSeek-V4 model, under the names of its config.json. Sizes in elements."""

    model_config = ConfigDict(frozen=True)

    model_type: Word
    architectures: tuple[Word, ...] = ()
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
    expert_dtype: Word | None = None
    swiglu_limit: Annotated[float, Field(strict=True)] | None = None
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
    document = parse_document(raw, where)
    _check_family(document, where)
    try:
        return ModelConfig.model_validate(document), document
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        more = f" and {len(problems) - _NAMED_AT_ONCE:,} more" if len(problems) > _NAMED_AT_ONCE else ""
        raise BadConfig(f"{where}: {'; '.join(map(_describe, problems[:_NAMED_AT_ONCE]))}{more}") from None


def parse_document(raw: bytes, where: str) -> dict[str, Any]:
    """config.json of a model of any family: an object, and no more is asked. Raises BadConfig."""
    try:
        document = parse_json(raw, MAX_CONFIG_VALUES)
    except BadJson as error:
        raise BadConfig(f"{where}: {error}") from None
    if not isinstance(document, dict):
        raise BadConfig(f"{where}: not a JSON object")
    if not is_plain(document):
        raise BadConfig(f"{where}: nested too deeply, or holds a number beyond every double")
    return document


def _describe(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])


def architectures_of(document: dict[str, Any]) -> list[str]:
    """The architectures that a config.json names, whatever else stands among them."""
    names = document.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def family_of(document: dict[str, Any]) -> str:
    """What to call a family that is not known: by its `model_type`, since several share an architecture. Escaped."""
    model_type = document.get("model_type")
    if isinstance(model_type, str) and model_type:
        return FAMILIES.get(model_type, short_name(model_type))
    names = architectures_of(document)
    return short_name(names[0]) if names else "a model without model_type"


def _check_family(document: dict[str, Any], where: str) -> None:
    names = architectures_of(document)
    if any(name in SUPPORTED for name in names):
        return
    model_type = document.get("model_type")
    if not names and model_type == "deepseek_v4":
        return
    raise UnsupportedFamily(
        f"{where}: a checkpoint of {family_of(document)} (model_type {short(model_type)}, architectures "
        f"{short(names)}), a family that is not known",
        hint="`dsv4-shard inspect` shows what it holds and what divides. To plan, reshard or verify, it must be known "
        "what each tensor is and how engines cut it: this version knows DeepSeek-V4-Pro and DeepSeek-V4-Flash and "
        "their FP8 re-releases.",
    )
