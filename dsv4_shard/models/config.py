"""Turns config.json into a checked ModelConfig of the right family."""

from typing import Any

from pydantic import ValidationError

from dsv4_shard.errors import BadConfig, UnsupportedFamily
from dsv4_shard.limits import CONFIG
from dsv4_shard.models.families import FAMILIES, find_family
from dsv4_shard.models.family import Family, ModelConfig
from dsv4_shard.text.document_problems import described, missing_keys
from dsv4_shard.text.sanitize import short, short_name
from dsv4_shard.text.strict_json import BadJson, is_plain, parse_json
from dsv4_shard.text.units import counted

_NAMED_AT_ONCE = 30

_TOP_LEVEL_KEYS = ("model_type", "architectures", "quantization_config", "vision_config")
"""Keys outside of the nested part of the language model."""

UNSUPPORTED = {
    "glm4_moe": "GLM-4 MoE",
    "gpt_oss": "gpt-oss",
    "kimi_k2": "Kimi-K2",
    "kimi_k25": "Kimi-K2.5",
    "kimi_k3": "Kimi-K3",
    "minimax_m2": "MiniMax-M2",
    "qwen3_moe": "Qwen3 MoE",
    "qwen3_next": "Qwen3-Next",
}
"""`model_type` → title of unsupported families that users are likely to try."""


def parse_config(raw: bytes, where: str) -> tuple[ModelConfig, dict[str, Any]]:
    """Return the checked config and the whole document. `where` is the file's name in errors.

    Raises BadConfig if the file is not a valid config, and UnsupportedFamily if it is of an unknown family.
    """
    document = parse_document(raw, where)
    family = _family_of(document, where)
    try:
        return family.config.model_validate(_text_of(document, family)), document
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        missing = missing_keys(problems)
        others = [described(problem) for problem in problems if problem["type"] != "missing"]
        lacks = [f"lacks {counted(len(missing), 'field')} ({', '.join(missing[:_NAMED_AT_ONCE])})"] if missing else []
        raise BadConfig(f"{where}: {'; '.join([*lacks, *others[:_NAMED_AT_ONCE]])}{_more(others)}") from None


def parse_document(raw: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object of a config.json of any family. Raises BadConfig if it is not a plain JSON object."""
    try:
        document = parse_json(raw, CONFIG)
    except BadJson as error:
        raise BadConfig(f"{where}: {error}") from None
    if not isinstance(document, dict):
        raise BadConfig(f"{where}: not a JSON object")
    if not is_plain(document):
        raise BadConfig(f"{where}: nested too deeply, or holds a number beyond every double")
    return document


def _text_of(document: dict[str, Any], family: Family) -> dict[str, Any]:
    """Return the language model's part of a config.json, merged with the top-level keys that it needs."""
    if not family.text:
        return document
    nested = document.get(family.text)
    top_level = {key: document[key] for key in _TOP_LEVEL_KEYS if key in document}
    return (nested if isinstance(nested, dict) else {}) | top_level


def _more(problems: list[str]) -> str:
    return f" and {len(problems) - _NAMED_AT_ONCE:,} more" if len(problems) > _NAMED_AT_ONCE else ""


def architectures_of(document: dict[str, Any]) -> list[str]:
    """Return the architectures that a config.json names, without entries that are not strings."""
    names = document.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def title_of(document: dict[str, Any]) -> str:
    """Return a title, escaped, for an unknown family. `model_type` comes first, since several share an architecture."""
    model_type = document.get("model_type")
    if isinstance(model_type, str) and model_type:
        return UNSUPPORTED.get(model_type, short_name(model_type))
    names = architectures_of(document)
    return short_name(names[0]) if names else "a model without model_type"


def _family_of(document: dict[str, Any], where: str) -> Family:
    family = find_family(document)
    if family is not None:
        return family
    raise UnsupportedFamily(
        f"{where}: a checkpoint of {title_of(document)} (model_type {short(document.get('model_type'))}, "
        f"architectures {short(architectures_of(document))}), a family that is not known",
        hint="`dsv4-shard inspect` shows what it holds and what divides. To plan, reshard or verify, it must be known "
        f"what each tensor is and how engines cut it: this version reads {', '.join(f.title for f in FAMILIES)}.",
    )
