"""The supported model families: config schema, tensor roles, tensor names in every dialect, shapes."""

from dsv4_shard.models.config import architectures_of, parse_config, parse_document, title_of
from dsv4_shard.models.dialects import DIALECTS, NATIVE, View, is_transformers_config, native_view
from dsv4_shard.models.families import FAMILIES, family_of
from dsv4_shard.models.family import Family, ModelConfig, release_file
from dsv4_shard.models.names import NATIVE_PARTS, Grammar, Names, scale_name
from dsv4_shard.models.roles import (
    DSPARK,
    NORM_ROLES,
    TARGET,
    Draft,
    Module,
    Part,
    Place,
    Role,
    Spec,
    Stage,
    TensorName,
)
from dsv4_shard.models.v3 import V3, V32, V3Config, V32Config
from dsv4_shard.models.v4 import OVERLAP_RATIO, V4, V4Config
from dsv4_shard.models.v41 import V41, V41Config

__all__ = [
    "DIALECTS",
    "DSPARK",
    "FAMILIES",
    "NATIVE",
    "NATIVE_PARTS",
    "NORM_ROLES",
    "OVERLAP_RATIO",
    "TARGET",
    "V3",
    "V4",
    "V32",
    "V41",
    "Draft",
    "Family",
    "Grammar",
    "ModelConfig",
    "Module",
    "Names",
    "Part",
    "Place",
    "Role",
    "Spec",
    "Stage",
    "TensorName",
    "V3Config",
    "V4Config",
    "V32Config",
    "V41Config",
    "View",
    "architectures_of",
    "family_of",
    "is_transformers_config",
    "native_view",
    "parse_config",
    "parse_document",
    "release_file",
    "scale_name",
    "title_of",
]
