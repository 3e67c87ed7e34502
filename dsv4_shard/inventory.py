"""What a checkpoint holds, by role: formats, blocks, and whether anything is missing, unknown or of an odd shape.

This is where the names of tensors end: everything after it speaks of roles, formats and counts. Whether experts are
FP4 or FP8 is decided here, by the experts' own tensors; config.json is only compared.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from dsv4_shard.census import Census, Kind, take_census
from dsv4_shard.checkpoint import Checkpoint, Finding, Severity, defect, some
from dsv4_shard.completeness import FLOATS, check_completeness, check_numbers
from dsv4_shard.dialects import DIALECTS
from dsv4_shard.families import family_of
from dsv4_shard.families.base import Family, ModelConfig
from dsv4_shard.roles import NORM_ROLES, Draft, Part, Role, Stage, TensorName
from dsv4_shard.storage.runtime import collector_paused
from dsv4_shard.tensors.geometry import (
    FP4_GROUP,
    NVFP4_GROUP,
    PACKED_FP4,
    Block,
    agree_on_unit,
    logical_shape,
    scale_shape,
)
from dsv4_shard.tensors.header import Tensor, nbytes_of
from dsv4_shard.text.sanitize import short

FP8_SCALES = ("F8_E8M0", "F32")
NVFP4 = "NVFP4"
PACKED = ("FP4", NVFP4)
"""Formats of two values a byte."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a quantized module is stored. `name` is FP4, NVFP4, FP8 or the dtype of plain weights (`block`: None)."""

    name: str
    block: Block | None = None
    scale_dtype: str | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.block}, {self.scale_dtype} scales" if self.block else self.name


class Group(NamedTuple):
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
    groups: dict[Group, int]
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

    def group(self, tensor: Tensor, at: TensorName) -> Group:
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
    formats, more = _find_formats(census)
    findings += more
    findings += _compare_stages(formats)
    findings += _check_dtypes(census, _f32_norms(checkpoint, formats))
    findings += _check_shapes(census, formats)
    findings += _compare_config(checkpoint.config, formats)
    return Inventory(checkpoint.config, names, _count(census, formats), formats, census.draft, tuple(findings))


def _count(census: Census, formats: dict[tuple[Stage, Role], Format]) -> dict[Group, int]:
    groups: dict[Group, int] = {}
    for kind, count in census.counts.items():
        group = _group(formats, kind.stage, kind.role, kind.part, kind.dtype, kind.shape)
        groups[group] = groups.get(group, 0) + count
    return groups


def _group(
    formats: dict[tuple[Stage, Role], Format], stage: Stage, role: Role, part: Part, dtype: str, shape: tuple[int, ...]
) -> Group:
    logical = logical_shape(dtype, shape, _is_packed(formats.get((stage, role)), part))
    return Group(stage, role, part, dtype, logical, nbytes_of(dtype, shape))


def _is_packed(fmt: Format | None, part: Part) -> bool:
    return fmt is not None and fmt.name in PACKED and part is Part.WEIGHT


# --- formats -------------------------------------------------------------------------------------------------------


def _format_name(dtype: str, scale_dtype: str | None, grouped: bool) -> str | None:
    """FP4, NVFP4, FP8, a plain dtype, or None for a combination that no checkpoint of the family has."""
    if grouped:
        return NVFP4 if (dtype, scale_dtype) == ("U8", "F8_E4M3") else None
    if scale_dtype is None:
        return dtype if dtype in FLOATS else None
    if dtype in PACKED_FP4 and scale_dtype == "F8_E8M0":
        return "FP4"
    if dtype == "F8_E4M3" and scale_dtype in FP8_SCALES:
        return "FP8"
    return None


def _find_formats(census: Census) -> tuple[dict[tuple[Stage, Role], Format], list[Finding]]:
    """The format of each role, from its tensors. A role in two formats at once is an error."""
    kinds: dict[tuple[Stage, Role], Counter[tuple[str | None, str | None, str]]] = {}
    rows: Counter[tuple[int, int]] = Counter()
    cols: Counter[tuple[int, int]] = Counter()
    specs = census.family.rows
    for kind, count in census.counts.items():
        if kind.part is not Part.WEIGHT or not specs[kind.stage, kind.role].quantized:
            continue
        name = _format_name(kind.dtype, kind.partner_dtype, kind.grouped)
        kinds.setdefault((kind.stage, kind.role), Counter())[name, kind.partner_dtype, kind.dtype] += count
        scale = kind.partner_shape
        own = specs[kind.stage, kind.role].block
        if name == "FP8" and scale is not None and len(kind.shape) == len(scale) == 2 and own is None:
            rows[kind.shape[0], scale[0]] += count
            cols[kind.shape[1], scale[1]] += count
    declared = census.config.declared_block
    fp8_block = Block(
        agree_on_unit(rows, declared[0] if declared else None), agree_on_unit(cols, declared[1] if declared else None)
    )
    formats: dict[tuple[Stage, Role], Format] = {}
    findings: list[Finding] = []
    for (stage, role), counts in kinds.items():
        if len(counts) > 1:
            mix = ", ".join(f"{n:,} × {dtype} with {scale or 'no'} scale" for (_, scale, dtype), n in counts.items())
            findings.append(defect("mixed-formats", f"{role} ({stage}) is stored in several formats: {mix}"))
        (name, scale_dtype, dtype), _ = counts.most_common(1)[0]
        if name is None:
            findings.append(
                defect("unknown-format", f"{role} ({stage}): {dtype} with {scale_dtype or 'no'} scale is unknown")
            )
        blocks = {
            "FP8": specs[stage, role].block or fp8_block,
            "FP4": Block(1, FP4_GROUP),
            NVFP4: Block(1, NVFP4_GROUP),
        }
        block = blocks.get(name or "")
        formats[stage, role] = Format(name or dtype, block, scale_dtype if block else None)
    return formats, findings


def _compare_stages(formats: dict[tuple[Stage, Role], Format]) -> Iterator[Finding]:
    """Engines build an MTP block as one more layer, so it must be stored like the layers.

    But where the experts of the layers are NVFP4, NVIDIA leaves those of the MTP block as DeepSeek released them.
    """
    for (stage, role), fmt in formats.items():
        layers = formats.get((Stage.LAYER, role))
        left = layers is not None and (layers.name, fmt.name) == (NVFP4, "FP4")
        if stage is Stage.MTP and layers is not None and fmt != layers and not left:
            yield defect("mtp-format", f"{role} is {layers} in the layers and {fmt} in the MTP block")


def _f32_norms(checkpoint: Checkpoint, formats: dict[tuple[Stage, Role], Format]) -> frozenset[Role]:
    """Norms that may be in F32: all of them, in a model without quantized experts that Transformers saved."""
    routed = formats.get((Stage.LAYER, Role.ROUTED_GATE))
    dialects = DIALECTS.get(family_of(checkpoint.config).name, ())
    if not any(one.f32_norms for one in dialects if one.name == checkpoint.dialect):
        return frozenset()
    return NORM_ROLES if routed is not None and routed.name in FLOATS else frozenset()


def _check_dtypes(census: Census, f32: frozenset[Role]) -> Iterator[Finding]:
    """What is not quantized has one dtype in every checkpoint of a family, and engines' parameters follow from it.

    The roles in `f32` may also be in F32.
    """
    due = {key: spec.dtype for key, spec in census.family.rows.items() if not spec.quantized}
    due_of = {k: "F32" if k.part.is_scalar else due.get((k.stage, k.role), k.dtype) for k in census.counts}
    odd_kinds = (k for k in census.counts if k.dtype != due_of[k])
    names = census.names_of(k for k in odd_kinds if not (k.role in f32 and k.dtype == "F32"))
    if names:
        places = [(name, census.names[name]) for name in names]
        odd = [f"{name} {census.tensors[name].dtype}, due {due.get((at.stage, at.role), 'F32')}" for name, at in places]
        yield defect(
            "odd-dtypes", f"{len(odd):,} tensors have another dtype than {census.family.title} checkpoints: {some(odd)}"
        )


def _check_shapes(census: Census, formats: dict[tuple[Stage, Role], Format]) -> Iterator[Finding]:
    """Each weight has the shape that the config implies, each scale `ceil(weight / block)`."""
    due = {kind: _due_shape(census, kind, formats.get((kind.stage, kind.role))) for kind in census.counts}
    odd = [kind for kind, shape in due.items() if kind.shape != shape]
    if not odd:
        return
    wanted = {kind[:4]: due[kind] for kind in odd}
    found: dict[Part, list[str]] = {part: [] for part in Part}
    for name in census.names_of(odd):
        at = census.names[name]
        found[at.part].append(f"{name} {list(census.tensors[name].shape)}, due {list(wanted[at[:4]])}")
    weights = found.pop(Part.WEIGHT)
    scales = [line for lines in found.values() for line in lines]
    if weights:
        yield defect(
            "odd-shapes", f"{len(weights):,} tensors have another shape than config.json gives: {some(weights)}"
        )
    if scales:
        yield defect("odd-scales", f"{len(scales):,} scales do not have the shape ceil(weight / block): {some(scales)}")


def _due_shape(census: Census, kind: Kind, fmt: Format | None) -> tuple[int, ...]:
    """The shape that tensors of a kind must have, as stored."""
    place = census.place(kind.stage, kind.layer)
    shape = census.family.rows[kind.stage, kind.role].shape(census.config, place)
    if kind.part.is_scalar:
        return ()
    if kind.part is not Part.WEIGHT:
        return scale_shape((shape[0], shape[1]), fmt.block) if fmt is not None and fmt.block else shape
    return (*shape[:-1], shape[-1] // 2) if _is_packed(fmt, kind.part) else shape


def _compare_config(config: ModelConfig, formats: dict[tuple[Stage, Role], Format]) -> Iterator[Finding]:
    """Where config.json and headers disagree, it is said; on what the experts are, the headers win."""
    routed = formats.get((Stage.LAYER, Role.ROUTED_GATE))
    if routed is not None:
        declared = config.declared_experts
        if declared is None and routed.name in PACKED:
            yield Finding(
                Severity.NOTE, "expert-dtype", f"config.json has no expert_dtype; the experts are {routed.name}"
            )
        elif declared is not None and declared.upper() != routed.name:
            yield Finding(
                Severity.WARNING,
                "expert-dtype",
                f"config.json says {config.declared_by} {declared!r}, but the experts are {routed}: going by the "
                "headers",
            )
        yield from _compare_nvfp4(config, routed, formats.get((Stage.MTP, Role.ROUTED_GATE)))
    yield from _compare_blocks(config, formats)
    shared = formats.get((Stage.LAYER, Role.SHARED_GATE))
    if shared is not None and shared.block is not None:
        scale_fmt = config.quantization_config.scale_fmt if config.quantization_config else None
        if scale_fmt == "ue8m0" and shared.scale_dtype == "F32":
            yield Finding(Severity.NOTE, "scale-format", "config.json says scale_fmt ue8m0, the scales are F32")


def _compare_blocks(config: ModelConfig, formats: dict[tuple[Stage, Role], Format]) -> Iterator[Finding]:
    """Engines size scales by `weight_block_size`, so the scales' shapes must give it, but those of rows' groups."""
    odd: dict[str, list[str]] = {}
    for (_, role), fmt in formats.items():
        if fmt.name == "FP8" and fmt.block and fmt.block.rows > 1 and tuple(fmt.block) != config.declared_block:
            odd.setdefault(str(fmt.block), []).append(str(role))
    if odd and config.declared_block is not None:
        given = "; ".join(f"{block} for {some(list(dict.fromkeys(roles)))}" for block, roles in odd.items())
        yield defect(
            "block-size",
            f"config.json says weight_block_size {list(config.declared_block)}, but the scales' shapes give {given}",
        )


def _compare_nvfp4(config: ModelConfig, routed: Format, draft: Format | None) -> Iterator[Finding]:
    """What engines take from `quantization_config` of NVFP4 experts, against what they are."""
    said = config.quantization_config
    if said is None or NVFP4 not in (routed.name, draft and draft.name):
        return
    if said.group_size not in (None, NVFP4_GROUP):
        yield Finding(Severity.WARNING, "group-size", f"config.json says group_size {short(said.group_size)}, NVFP4 "
                      f"has groups of {NVFP4_GROUP}: going by the headers")  # fmt: skip
    ignored = isinstance(said.ignore, list) and any(str(entry).startswith("mtp") for entry in said.ignore)
    if draft is not None and ignored is (draft.name == NVFP4):
        yield Finding(Severity.WARNING, "ignored-mtp", f"the MTP block's experts are {draft.name}, but config.json's "
                      f"ignore list {'has' if ignored else 'lacks'} mtp: engines that go by it read them as what they "
                      "are not")  # fmt: skip
