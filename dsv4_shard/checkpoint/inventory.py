"""What a checkpoint holds, by role: formats, blocks, and whether anything is missing, unknown or of an odd shape.

This is where the names of tensors end: everything after it speaks of roles, formats and counts. Whether experts are
FP4 or FP8 is decided here, by the experts' own tensors; config.json is only compared.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from dsv4_shard.checkpoint.completeness import check_completeness, check_numbers
from dsv4_shard.checkpoint.findings import Finding, Severity, defect, some
from dsv4_shard.checkpoint.formats import (
    Format,
    check_dtypes,
    check_shapes,
    compare_config,
    compare_stages,
    f32_norms,
    find_formats,
    is_packed,
)
from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.checkpoint.tensor_kinds import Census, take_census
from dsv4_shard.errors import IncompleteCheckpoint
from dsv4_shard.models.families import family_of
from dsv4_shard.models.family import Family, ModelConfig
from dsv4_shard.models.roles import Draft, Part, Role, Stage, TensorName
from dsv4_shard.storage.runtime import collector_paused
from dsv4_shard.tensors.geometry import logical_shape
from dsv4_shard.tensors.header import Tensor, nbytes_of
from dsv4_shard.text.units import counted


class TensorGroup(NamedTuple):
    """Tensors alike in all but their number. `shape` in elements (FP4 unpacked), `dtype` as stored."""

    stage: Stage
    role: Role
    part: Part
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """A checkpoint's tensors by role.

    `names` gives each tensor's place in the model; `groups` counts the tensors of each kind; `formats` says how each
    role is stored, target and MTP blocks apart; `draft` is what the latter are.
    """

    config: ModelConfig
    names: dict[str, TensorName]
    groups: dict[TensorGroup, int]
    formats: dict[tuple[Stage, Role], Format]
    draft: Draft
    findings: tuple[Finding, ...]

    @property
    def family(self) -> Family:
        return family_of(self.config)

    @property
    def mtp_blocks(self) -> int:
        """How many MTP blocks the checkpoint has."""
        return self.draft.blocks

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)

    def group(self, tensor: Tensor, at: TensorName) -> TensorGroup:
        """The group that counts `tensor`, which stands at `at`."""
        return _group(self.formats, at.stage, at.role, at.part, tensor.dtype, tensor.shape)

    def format(self, role: Role, stage: Stage = Stage.LAYER) -> Format | None:
        """How `role` is stored, or None where the checkpoint has no such tensor."""
        return self.formats.get((stage, role))

    @property
    def routed(self) -> Format:
        """How the target's routed experts are stored."""
        return self.formats[Stage.LAYER, Role.ROUTED_GATE]

    @property
    def shared(self) -> Format | None:
        """How the target's shared experts are stored, or None where there are none."""
        return self.format(Role.SHARED_GATE)


def outside_layers(inventory: Inventory) -> Inventory:
    """With only the names outside of layers: all that is looked at, of 145,000, where many layouts are weighed."""
    return replace(inventory, names={name: at for name, at in inventory.names.items() if at.stage is Stage.MODEL})


def take_inventory(checkpoint: Checkpoint) -> Inventory:
    """Sort a checkpoint's tensors by role and check them. Never raises for what it finds: that is in `findings`."""
    with collector_paused():
        return _take(checkpoint)


def _take(checkpoint: Checkpoint) -> Inventory:
    names: dict[str, TensorName] = {}
    unknown: list[str] = []
    parse = family_of(checkpoint.config).names(checkpoint.config).parse
    for name in checkpoint.tensors:
        parsed = parse(name)
        if parsed is None:
            unknown.append(name)
        else:
            names[name] = parsed
    findings = list(checkpoint.findings)
    if unknown:
        findings.append(defect("unknown-tensors", f"{len(unknown):,} tensors have no known role: {some(unknown)}"))
    census = take_census(checkpoint.config, checkpoint.tensors, names)
    findings += check_numbers(census)
    findings += check_completeness(census)
    formats, more = find_formats(census)
    findings += more
    findings += compare_stages(formats)
    findings += check_dtypes(census, f32_norms(checkpoint, formats))
    findings += check_shapes(census, formats)
    findings += compare_config(checkpoint.config, formats)
    return Inventory(checkpoint.config, names, _count(census, formats), formats, census.draft, tuple(findings))


def _count(census: Census, formats: dict[tuple[Stage, Role], Format]) -> dict[TensorGroup, int]:
    groups: dict[TensorGroup, int] = {}
    for kind, count in census.counts.items():
        group = _group(formats, kind.stage, kind.role, kind.part, kind.dtype, kind.shape)
        groups[group] = groups.get(group, 0) + count
    return groups


def _group(
    formats: dict[tuple[Stage, Role], Format], stage: Stage, role: Role, part: Part, dtype: str, shape: tuple[int, ...]
) -> TensorGroup:
    logical = logical_shape(dtype, shape, is_packed(formats.get((stage, role)), part))
    return TensorGroup(stage, role, part, dtype, logical, nbytes_of(dtype, shape))


def refuse_errors(inventory: Inventory) -> None:
    """Raise IncompleteCheckpoint with the first error, where the inventory has any."""
    errors = inventory.errors
    if errors:
        more = f" ({counted(len(errors) - 1, 'more finding')})" if len(errors) > 1 else ""
        raise IncompleteCheckpoint(errors[0].message + more)
