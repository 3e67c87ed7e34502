"""config.json, as far as the geometry of the model's tensors needs it."""

from typing import Any

from pydantic import ValidationError

from dsv4_shard.errors import BadConfig, UnsupportedFamily
from dsv4_shard.escape import short
from dsv4_shard.families import FAMILIES, find_family
from dsv4_shard.families.base import Family, ModelConfig
from dsv4_shard.jsonfile import BadJson, is_plain, parse_json

MAX_CONFIG_BYTES = 4 << 20
MAX_CONFIG_VALUES = 200_000
"""Enough for a ratio of each of as many layers as there can be; real ones have some 200."""

_NAMED_AT_ONCE = 30
_BESIDE_TEXT = ("model_type", "architectures", "quantization_config", "vision_config")

OTHERS = {
    "kimi_k2": "Kimi-K2",
    "kimi_k3": "Kimi-K3",
    "glm4_moe": "GLM-4 MoE",
    "qwen3_moe": "Qwen3 MoE",
}
"""Names for other families that people are likely to try, by `model_type`."""


def parse_config(raw: bytes, where: str) -> tuple[ModelConfig, dict[str, Any]]:
    """The checked config, and the whole document. Raises BadConfig or UnsupportedFamily."""
    try:
        document = parse_json(raw, MAX_CONFIG_VALUES)
    except BadJson as error:
        raise BadConfig(f"{where}: {error}") from None
    if not isinstance(document, dict):
        raise BadConfig(f"{where}: not a JSON object")
    if not is_plain(document):
        raise BadConfig(f"{where}: nested too deeply, or holds a number beyond every double")
    family = _family_of(document, where)
    try:
        return family.config.model_validate(_text_of(document, family)), document
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        more = f" and {len(problems) - _NAMED_AT_ONCE:,} more" if len(problems) > _NAMED_AT_ONCE else ""
        raise BadConfig(f"{where}: {'; '.join(map(_describe, problems[:_NAMED_AT_ONCE]))}{more}") from None


def _text_of(document: dict[str, Any], family: Family) -> dict[str, Any]:
    """The language model's part of a config.json, under one roof with what stands beside it."""
    if not family.text:
        return document
    nested = document.get(family.text)
    beside = {key: document[key] for key in _BESIDE_TEXT if key in document}
    return (nested if isinstance(nested, dict) else {}) | beside


def _describe(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])


def _family_of(document: dict[str, Any], where: str) -> Family:
    family = find_family(document)
    if family is not None:
        return family
    model_type, architectures = document.get("model_type"), document.get("architectures")
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    title = OTHERS.get(str(model_type), short(model_type).strip("'"))
    raise UnsupportedFamily(
        f"{where}: a checkpoint of {title} (model_type {short(model_type)}, architectures {short(names)})",
        hint=f"This version reads {', '.join(family.title for family in FAMILIES)}.",
    )
