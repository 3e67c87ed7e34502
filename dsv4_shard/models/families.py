"""The table of supported families, and the family of a config."""

from typing import Any

from dsv4_shard.models.family import Family, ModelConfig
from dsv4_shard.models.v3 import V3, V32
from dsv4_shard.models.v4 import V4
from dsv4_shard.models.v41 import V41

FAMILIES: tuple[Family, ...] = (V4, V41, V3, V32)

_BY_CONFIG = {family.config: family for family in FAMILIES}


def family_of(config: ModelConfig) -> Family:
    """Return the family of a config, by its class."""
    return _BY_CONFIG[type(config)]


def find_family(document: dict[str, Any]) -> Family | None:
    """Return the family of a config.json, or None if it is not supported.

    `model_type` must match, and so must `architectures` if the config names any: Kimi-K2 has V3's architecture, but
    another `model_type`.
    """
    architectures, model_type = document.get("architectures"), document.get("model_type")
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    for family in FAMILIES:
        known = isinstance(model_type, str) and model_type in family.model_types
        if known and (not names or set(names) & set(family.architectures)):
            return family
    return None
