"""The model families that dsv4-shard knows: one module each, tables first."""

from typing import Any

from dsv4_shard.models.family import Family, ModelConfig
from dsv4_shard.models.v3 import V3, V32
from dsv4_shard.models.v4 import V4
from dsv4_shard.models.v41 import V41

FAMILIES: tuple[Family, ...] = (V4, V41, V3, V32)

_BY_CONFIG = {family.config: family for family in FAMILIES}


def family_of(config: ModelConfig) -> Family:
    """The family that a config is of."""
    return _BY_CONFIG[type(config)]


def find_family(document: dict[str, Any]) -> Family | None:
    """The family of a config.json, by its `architectures` and `model_type`; by the latter where it names none.

    None where it is of no known one: Kimi-K2 has V3's architecture and says by its `model_type` that it is another.
    """
    architectures, model_type = document.get("architectures"), document.get("model_type")
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    for family in FAMILIES:
        known = isinstance(model_type, str) and model_type in family.model_types
        if known and (not names or set(names) & set(family.architectures)):
            return family
    return None
