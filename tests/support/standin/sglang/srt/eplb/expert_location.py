"""Which expert each slot holds."""

from dataclasses import dataclass
from typing import Any

_metadata = None


@dataclass
class ExpertLocationMetadata:
    physical_to_logical_map: Any


def get_global_expert_location_metadata():
    return _metadata


def set_global_expert_location_metadata(value, allow_overwrite=False):
    global _metadata
    _metadata = value
