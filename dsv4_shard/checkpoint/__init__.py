"""A checkpoint's headers as one checked object: reader, inventory by role, findings, fingerprint."""

from dsv4_shard.checkpoint.completeness import expected_names
from dsv4_shard.checkpoint.exports import OTHER_EXPORT, name_export
from dsv4_shard.checkpoint.findings import Finding, Severity, some
from dsv4_shard.checkpoint.fingerprint import Origin, config_digest, differences, modified_since, origin_of
from dsv4_shard.checkpoint.folders import refuse_kinds, refuse_other_folders, results_in
from dsv4_shard.checkpoint.formats import NVFP4, PACKED, Format
from dsv4_shard.checkpoint.inventory import (
    Inventory,
    TensorGroup,
    draft_alone,
    outside_layers,
    refuse_errors,
    take_inventory,
)
from dsv4_shard.checkpoint.reader import Checkpoint, UnknownCheckpoint, read_checkpoint, read_unknown

__all__ = [
    "NVFP4",
    "OTHER_EXPORT",
    "PACKED",
    "Checkpoint",
    "Finding",
    "Format",
    "Inventory",
    "Origin",
    "Severity",
    "TensorGroup",
    "UnknownCheckpoint",
    "config_digest",
    "differences",
    "draft_alone",
    "expected_names",
    "modified_since",
    "name_export",
    "origin_of",
    "outside_layers",
    "read_checkpoint",
    "read_unknown",
    "refuse_errors",
    "refuse_kinds",
    "refuse_other_folders",
    "results_in",
    "some",
    "take_inventory",
]
