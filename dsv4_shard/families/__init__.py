"""The model families that dsv4-shard knows: one module each, tables first."""

from typing import Any

from dsv4_shard.families.base import Family, ModelConfig
from dsv4_shard.families.v4 import V4

FAMILIES: tuple[Family, ...] = (V4,)

_BY_CONFIG = {family.config: family for family in FAMILIES}


def family_of(config: ModelConfig) -> Family:
    """The family that a config is of."""
    return _BY_CONFIG[type(config)]


def find_family(document: dict[str, Any]) -> Family | None:
    """The family of a config.json, by its `architectures`; by `model_type` where it names none. None: unknown."""
    architectures, model_type = document.get("architectures"), document.get("model_type")
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    for family in FAMILIES:
        if (names and set(names) & set(family.architectures)) or (not names and model_type in family.model_types):
            return family
    return None
