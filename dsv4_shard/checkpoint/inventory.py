"""A checkpoint's tensors by role, with formats, blocks, and findings about missing, unknown or odd tensors.

Later modules use roles, formats and counts instead of tensor names. The experts' own tensors decide whether they are
FP4 or FP8; config.json is only compared.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from dsv4_shard.checkpoint.completeness import check_completeness, check_numbers
from dsv4_shard.checkpoint.exports import NEXT, OTHER_EXPORT, name_export, unknown_export
from dsv4_shard.checkpoint.findings import Finding, Severity, defect, some
from dsv4_shard.checkpoint.formats import (
    Format,
    check_dtypes,
    check_shapes,
    compare_config,
    compare_stages,
    draft_difference,
    f32_norms,
    find_formats,
    is_packed,
)
from dsv4_shard.checkpoint.reader import NESTED_DRAFT, Checkpoint
from dsv4_shard.checkpoint.tensor_kinds import Census, take_census
from dsv4_shard.errors import IncompleteCheckpoint, OtherExport
from dsv4_shard.models import Draft, Family, ModelConfig, Part, Role, Stage, TensorName, family_of
from dsv4_shard.sources.checkpoint_files import INDEX_FILE
from dsv4_shard.storage import collector_paused
from dsv4_shard.tensors.geometry import logical_shape
from dsv4_shard.tensors.header import Tensor, nbytes_of
from dsv4_shard.text.units import counted


class TensorGroup(NamedTuple):
    """Tensors that differ only in the numbers of layer and expert.

    Attributes:
        stage: Stage of the model.
        role: Their role.
        part: Weight or scale.
        dtype: Stored dtype.
        shape: Shape in elements, with FP4 unpacked.
        nbytes: Bytes of one tensor.
    """

    stage: Stage
    role: Role
    part: Part
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """A checkpoint's tensors by role.

    Attributes:
        config: The checkpoint's config.
        names: Tensor name → parsed name.
        groups: Group → number of its tensors.
        layers: Layer → group → number of its tensors there.
        formats: (stage, role) → how the role is stored.
        draft: The draft model that the MTP blocks make up.
        findings: What the checks found.
        draft_difference: How the MTP blocks differ from the layers in format; None if they do not.
        is_draft_known: Whether the format of the MTP blocks is known, so that they can be planned alone.
    """

    config: ModelConfig
    names: dict[str, TensorName]
    groups: dict[TensorGroup, int]
    formats: dict[tuple[Stage, Role], Format]
    draft: Draft
    findings: tuple[Finding, ...]
    draft_difference: str | None = None
    is_draft_known: bool = True
    layers: dict[int, dict[TensorGroup, int]] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        """The family of the model."""
        return family_of(self.config)

    @property
    def mtp_blocks(self) -> int:
        """Number of MTP blocks in the checkpoint."""
        return self.draft.blocks

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop planning."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)

    def group(self, tensor: Tensor, name: TensorName) -> TensorGroup:
        """Return the group of `tensor`, whose parsed name is `name`."""
        return _group(self.formats, name.stage, name.role, name.part, tensor.dtype, tensor.shape)

    def format(self, role: Role, stage: Stage = Stage.LAYER) -> Format | None:
        """Return how `role` is stored, or None if the checkpoint has no such tensor."""
        return self.formats.get((stage, role))

    @property
    def routed(self) -> Format:
        """How the routed experts of the layers are stored."""
        return self.formats[Stage.LAYER, Role.ROUTED_GATE]

    @property
    def shared(self) -> Format | None:
        """How the shared experts of the layers are stored, None if there are none."""
        return self.format(Role.SHARED_GATE)


def outside_layers(inventory: Inventory) -> Inventory:
    """Return the inventory with only the names outside of layers.

    A search that weighs many layouts needs no others, and is faster without the 145,000 names of V4-Pro.
    """
    names = {name: place for name, place in inventory.names.items() if place.stage is Stage.MODEL}
    return replace(inventory, names=names)


def draft_alone(inventory: Inventory) -> Inventory:
    """Return the inventory with the MTP blocks alone, in their own formats, as if the layers had the same."""
    own = {role: fmt for (stage, role), fmt in inventory.formats.items() if stage is Stage.MTP}
    formats = {(stage, role): own.get(role, fmt) for (stage, role), fmt in inventory.formats.items()}
    groups = {group: count for group, count in inventory.groups.items() if group.stage is Stage.MTP}
    return replace(inventory, formats=formats, groups=groups, draft_difference=None)


def take_inventory(checkpoint: Checkpoint) -> Inventory:
    """Sort a checkpoint's tensors by role and check them. Problems become findings, not errors."""
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
    census = take_census(checkpoint.config, checkpoint.tensors, names)
    formats, odd_formats = find_formats(census)
    alone = _find_export(checkpoint, census, formats, unknown) or _find_draft(checkpoint, census)
    if alone is not None:
        findings = [finding for finding in checkpoint.findings if finding.severity is not Severity.ERROR] + [alone]
        return Inventory(checkpoint.config, names, _count(census, formats), formats, census.draft, tuple(findings))
    has_nested = any(finding.code == NESTED_DRAFT for finding in checkpoint.findings)
    checked = _check(checkpoint, census, formats, odd_formats)
    findings = [*checkpoint.findings, *(one for one in checked if not (has_nested and one.code == "no-mtp"))]
    difference = draft_difference(formats)
    if unknown:
        findings.append(defect("unknown-tensors", f"{len(unknown):,} tensors have no known role: {some(unknown)}"))
    odd = _odd_draft(checkpoint, census, unknown, findings)
    if odd is not None:
        difference = f"it is of a format that is not known: {odd}"
        findings = [one for one in findings if one.severity is not Severity.ERROR and one.code != "mtp-format"]
        findings.append(Finding(Severity.WARNING, "mtp-format", f"the MTP block is left out: {difference}"))
    return Inventory(
        checkpoint.config, names, _count(census, formats), formats, census.draft, tuple(findings), difference,
        is_draft_known=odd is None, layers=_by_layer(census, formats),
    )  # fmt: skip


_OF_FORMAT = frozenset({"unknown-format", "odd-dtypes", "unknown-tensors"})
"""Codes of errors that a format which is not known gives. Missing or misshapen tensors are damage, also in a draft."""

_FOLLOWING = frozenset({"mixed-formats", "missing-scales", "orphan-scales", "needless-scales", "odd-scales"})
"""Codes of errors that follow from those."""


def _check(
    checkpoint: Checkpoint, census: Census, formats: dict[tuple[Stage, Role], Format], odd_formats: list[Finding]
) -> list[Finding]:
    """Return what the checks of numbers, completeness, formats, dtypes and shapes find."""
    return [
        *check_numbers(census),
        *check_completeness(census),
        *odd_formats,
        *compare_stages(formats),
        *check_dtypes(census, f32_norms(checkpoint, formats)),
        *check_shapes(census, formats),
        *compare_config(checkpoint.config, formats),
    ]


def _odd_draft(checkpoint: Checkpoint, census: Census, unknown: list[str], findings: list[Finding]) -> str | None:
    """Return the first error if the MTP blocks' format gives all of them, and the target has none; else None."""
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    codes = {error.code for error in errors}
    prefix = census.family.grammar.prefixes.get(Stage.MTP)
    if not codes & _OF_FORMAT or codes - _OF_FORMAT - _FOLLOWING or not census.draft.blocks:
        return None
    if unknown and not (prefix and all(name.startswith(prefix) for name in unknown)):
        return None
    names = {name: place for name, place in census.names.items() if place.stage is not Stage.MTP}
    target = take_census(census.config, census.tensors, names)
    found = [*checkpoint.findings, *_check(checkpoint, target, *find_formats(target))]
    return None if any(one.severity is Severity.ERROR for one in found) else errors[0].message


def _find_export(
    checkpoint: Checkpoint, census: Census, formats: dict[tuple[Stage, Role], Format], unknown: list[str]
) -> Finding | None:
    """Return the finding that takes the place of all others if another tool wrote the checkpoint."""
    unread = {key for key, fmt in formats.items() if not fmt.is_read}
    odd = unknown + census.names_of(kind for kind in census.counts if (kind.stage, kind.role) in unread)
    prefix = census.family.grammar.prefixes.get(Stage.MTP)
    is_of_draft = prefix is not None and all(name.startswith(prefix) for name in odd)
    if not odd or (is_of_draft and any(kind.stage is Stage.LAYER for kind in census.counts)):
        return None
    document, tensors = checkpoint.document, checkpoint.tensors
    experts = formats.get((Stage.LAYER, Role.ROUTED_GATE))
    found = name_export(document, checkpoint.documents, tensors, odd)
    if found is None and (experts is None or not experts.is_read) and 2 * len(odd) > len(tensors):
        found = unknown_export(document, odd, len(tensors))
    return defect(OTHER_EXPORT, f"{found} {NEXT}") if found else None


def _find_draft(checkpoint: Checkpoint, census: Census) -> Finding | None:
    """Return the one finding about a folder that holds a draft model alone; None for any other."""
    if {kind.stage for kind in census.counts} != {Stage.MTP}:
        return None
    blocks, dspark = census.draft
    what = counted(blocks, "DSpark stage" if dspark else "MTP block")
    above = checkpoint.source.root.parent if checkpoint.source.root is not None else None
    target = f": {above}" if above is not None and (above / INDEX_FILE).exists() else ""
    return defect(
        "draft-alone", f"a draft model alone: {what} ({len(census.names):,} tensors), and no tensor of its target. "
        f"Engines load it beside the target. To plan, name the folder of the target{target}."
    )  # fmt: skip


def _count(census: Census, formats: dict[tuple[Stage, Role], Format]) -> dict[TensorGroup, int]:
    groups: dict[TensorGroup, int] = {}
    for kind, count in census.counts.items():
        group = _group(formats, kind.stage, kind.role, kind.part, kind.dtype, kind.shape)
        groups[group] = groups.get(group, 0) + count
    return groups


def _by_layer(census: Census, formats: dict[tuple[Stage, Role], Format]) -> dict[int, dict[TensorGroup, int]]:
    """Count the tensors of each layer by group."""
    layers: dict[int, dict[TensorGroup, int]] = {}
    for kind, count in census.counts.items():
        if kind.stage is Stage.LAYER:
            held = layers.setdefault(kind.layer, {})
            group = _group(formats, kind.stage, kind.role, kind.part, kind.dtype, kind.shape)
            held[group] = held.get(group, 0) + count
    return layers


def _group(
    formats: dict[tuple[Stage, Role], Format], stage: Stage, role: Role, part: Part, dtype: str, shape: tuple[int, ...]
) -> TensorGroup:
    logical = logical_shape(dtype, shape, is_packed(formats.get((stage, role)), part))
    return TensorGroup(stage, role, part, dtype, logical, nbytes_of(dtype, shape))


def refuse_errors(inventory: Inventory) -> None:
    """Raise IncompleteCheckpoint with the inventory's first error; OtherExport if another tool wrote the checkpoint."""
    errors = inventory.errors
    for error in errors:
        if error.code == OTHER_EXPORT:
            raise OtherExport(error.message)
    if errors:
        more = f" ({counted(len(errors) - 1, 'more finding')})" if len(errors) > 1 else ""
        raise IncompleteCheckpoint(errors[0].message + more)
