"""The inspection of a checkpoint of an unknown family: names, scales and divisibility.

It uses no roles, engines or rules: everything follows from names, dtypes and shapes. Both axes of a weight are always
given. The axis that engines cut is marked if the last part of the name means the same in all families.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from dsv4_shard.checkpoint import OTHER_EXPORT, Finding, Severity, UnknownCheckpoint, name_export, some
from dsv4_shard.engines import Request
from dsv4_shard.inspection.known_family import DEFAULT_TPS, DimensionPart, InspectionFinding
from dsv4_shard.inspection.scale_pairs import MAX_AXES, Scaled, Scales, Sharing, find_scales
from dsv4_shard.models import architectures_of, title_of
from dsv4_shard.planning import check_request
from dsv4_shard.tensors.header import nbytes_of
from dsv4_shard.text.document import Document, html_table
from dsv4_shard.text.sanitize import short_name
from dsv4_shard.text.units import counted, size
from dsv4_shard.version import __version__

SCHEMA_VERSION: Literal[1] = 1

NOT_KNOWN = (
    "Not checked for this family: whether all of its tensors are there; what engines fuse, pad, "
    "keep whole or repeat on every rank (as they do k and v where heads are fewer than ranks); what runs, and in how "
    "much memory. plan, reshard and verify --against refuse it."
)

_MAX_ROWS = 300
"""Real checkpoints have about thirty templates. Above this limit, a finding states how many there are."""

_MAX_WORDS = 8

ROWS_CUT = frozenset(
    {"gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "w13", "q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj"}
)

COLUMNS_CUT = frozenset({"down_proj", "w2", "o_proj", "wo", "out_proj"})

TWO_IN_ONE = frozenset({"gate_up_proj", "w13"})
"""Gate and up in one tensor: a rank takes a part of each, so each must divide."""

_MODULE_ENDINGS = (".weight_packed", ".weight", "_blocks")

AxisName = Literal["rows", "columns"]


class UnknownIdentity(Document):
    """Identity of the checkpoint by its own config.json. Sizes are null unless it has them as natural numbers.

    `intermediate_size` is that of a routed expert if config.json names it, else that of dense layers.
    """

    label: str
    revision: str | None
    family: str
    model_type: str | None
    architectures: tuple[str, ...]
    tensors: int
    files: int
    bytes: int
    layers: int | None
    hidden_size: int | None
    attention_heads: int | None
    key_value_heads: int | None
    routed_experts: int | None
    intermediate_size: int | None
    declared_block: tuple[int, int] | None


class TemplateRow(Document):
    """All tensors of one dtype whose names differ only in layer ({N}) and expert ({E}).

    `scales` names the elements that share a scale; null without a scale.
    """

    template: str
    dtype: str
    scales: str | None
    tensors: int
    bytes: int


class Axis(Document):
    """One axis of a weight: `size` elements in units of `unit` elements, in each of `parts` matrices that are stored as
    one.

    `scale_size` is the scale's size along the axis, for all parts; null if the scale has no such axis. `cut` tells
    whether engines cut this axis, as far as the name shows.
    """

    axis: AxisName
    size: int
    parts: int
    unit: int
    scale_size: int | None
    cut: bool
    shares: tuple[DimensionPart, ...]


class QuantizedRow(Document):
    """Weights of one template and shape, in elements, that have scales.

    `block` is null unless `scales` is "block". There are no axes if the scales are unclear.
    """

    template: str
    scale_template: str
    dtype: str
    scale_dtype: str
    tensors: int
    shape: tuple[int, ...]
    scale_shape: tuple[int, ...]
    scales: Sharing
    block: tuple[int, int] | None
    axes: tuple[Axis, ...]


class UnknownInspection(Document):
    """The whole inspection, as `--json` prints it. Names are escaped, and very long ones are cut."""

    kind: Literal["unknown-inspection"] = "unknown-inspection"
    schema_version: Literal[1]
    tool_version: str
    family_known: Literal[False]
    identity: UnknownIdentity
    templates: tuple[TemplateRow, ...]
    quantized: tuple[QuantizedRow, ...]
    findings: tuple[InspectionFinding, ...]
    not_known: str

    def in_short(self) -> str:
        """Family, size, number of findings and label in one line."""
        it = self.identity
        held = f"{counted(it.tensors, 'tensor')}, {size(it.bytes)}, {counted(len(self.findings), 'finding')}"
        return f"{it.family} (not known), {held}, {it.label}"

    def _repr_html_(self) -> str:
        """A table for notebooks: the tensors that have scales."""
        rows = [(row.template, row.dtype, row.shape, row.scales, row.block or "", row.tensors)
                for row in self.quantized]  # fmt: skip
        return html_table(self.in_short(), ("tensors", "dtype", "shape", "scales", "block", "count"), rows)


def inspect_unknown(checkpoint: UnknownCheckpoint, tps: tuple[int, ...] = DEFAULT_TPS) -> UnknownInspection:
    """Inspect a checkpoint of any family for each TP of `tps`. Raises UsageError for an invalid TP."""
    for tp in tps:
        check_request(Request(tp))
    identity = _identity(checkpoint)
    scales = find_scales(checkpoint.tensors, identity.declared_block, _packed_bits(checkpoint.document))
    rows = _count(scales)
    findings = (
        *checkpoint.findings,
        *_exported(checkpoint),
        *_findings(scales, identity.declared_block),
        *_left_out(len(rows), len(scales.scaled)),
    )
    return UnknownInspection(
        schema_version=SCHEMA_VERSION,
        tool_version=__version__,
        family_known=False,
        identity=identity,
        templates=tuple(_templates(rows)),
        quantized=tuple(_quantized(scales, identity.hidden_size, tps)),
        findings=tuple(InspectionFinding(severity=f.severity, code=f.code, message=f.message) for f in findings),
        not_known=NOT_KNOWN,
    )


def _identity(checkpoint: UnknownCheckpoint) -> UnknownIdentity:
    document = checkpoint.document
    model_type = document.get("model_type")
    return UnknownIdentity(
        label=checkpoint.source.label,
        revision=checkpoint.source.revision,
        family=title_of(document),
        model_type=short_name(model_type) if isinstance(model_type, str) else None,
        architectures=tuple(map(short_name, architectures_of(document)[:_MAX_WORDS])),
        tensors=len(checkpoint.tensors),
        files=len(checkpoint.files),
        bytes=sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
        layers=_size(document, "num_hidden_layers"),
        hidden_size=_size(document, "hidden_size"),
        attention_heads=_size(document, "num_attention_heads"),
        key_value_heads=_size(document, "num_key_value_heads"),
        routed_experts=_size(document, "n_routed_experts", "num_experts", "num_local_experts"),
        intermediate_size=_size(document, "moe_intermediate_size", "intermediate_size"),
        declared_block=_declared_block(document),
    )


def _natural(value: object) -> int | None:
    return value if type(value) is int and 0 < value < 2**31 else None


def _places(document: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The objects that contain sizes. Models of text and images nest those of the text."""
    nested = document.get("text_config")
    return (document, nested) if isinstance(nested, dict) else (document,)


def _size(document: dict[str, Any], *names: str) -> int | None:
    sizes = (_natural(place.get(name)) for name in names for place in _places(document))
    return next((size for size in sizes if size is not None), None)


def _quantizations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config's descriptions of quantized weights: one in FP8 checkpoints, one per group in compressed-tensors."""
    for place in _places(document):
        quantization = place.get("quantization_config")
        if isinstance(quantization, dict):
            yield quantization
            groups = quantization.get("config_groups")
            for group in groups.values() if isinstance(groups, dict) else ():
                weights = group.get("weights") if isinstance(group, dict) else None
                if isinstance(weights, dict):
                    yield weights


def _declared_block(document: dict[str, Any]) -> tuple[int, int] | None:
    for said in _quantizations(document):
        for block in (said.get("weight_block_size"), said.get("block_structure")):
            if isinstance(block, list) and len(block) == 2:
                rows, columns = _natural(block[0]), _natural(block[1])
                if rows and columns:
                    return rows, columns
    return None


def _packed_bits(document: dict[str, Any]) -> int | None:
    """Bits per value in packed words; None unless the config gives exactly one number that divides the word."""
    bits = {_natural(said.get("num_bits")) for said in _quantizations(document)} & {2, 4, 8}
    return bits.pop() if len(bits) == 1 else None


def _count(scales: Scales) -> dict[tuple[str, str, str], tuple[int, int]]:
    """(template, dtype, sharing) -> (number of tensors, bytes)."""
    shared = {scaled.kind: _sharing(scaled) for scaled in scales.scaled}
    rows: dict[tuple[str, str, str], tuple[int, int]] = {}
    for kind, count in scales.counts.items():
        key = (kind.template, kind.dtype, shared.get(kind, ""))
        tensors, nbytes = rows.get(key, (0, 0))
        rows[key] = (tensors + count, nbytes + count * nbytes_of(kind.dtype, kind.shape))
    return rows


def _templates(rows: Mapping[tuple[str, str, str], tuple[int, int]]) -> Iterator[TemplateRow]:
    most = sorted(rows, key=lambda key: -rows[key][0])[:_MAX_ROWS]
    for key in sorted(most):
        (template, dtype, sharing), (tensors, nbytes) = key, rows[key]
        yield TemplateRow(
            template=short_name(template), dtype=dtype, scales=sharing or None, tensors=tensors, bytes=nbytes
        )


def _sharing(scaled: Scaled) -> str:
    if scaled.block is not None:
        return str(scaled.block)
    return "unclear" if scaled.sharing is Sharing.UNCLEAR else f"a {scaled.sharing}"


def _quantized(scales: Scales, hidden: int | None, tps: tuple[int, ...]) -> Iterator[QuantizedRow]:
    most = sorted(scales.scaled, key=lambda scaled: -scales.counts[scaled.kind])[:_MAX_ROWS]
    for scaled in sorted(most, key=lambda scaled: scaled.kind.template):
        kind = scaled.kind
        if len(kind.shape) > MAX_AXES or len(kind.scale_shape) > MAX_AXES:
            continue
        yield QuantizedRow(
            template=short_name(kind.template),
            scale_template=short_name(kind.scale or ""),
            dtype=kind.dtype,
            scale_dtype=kind.scale_dtype or "",
            tensors=scales.counts[kind],
            shape=scaled.shape,
            scale_shape=kind.scale_shape,
            scales=scaled.sharing,
            block=scaled.block,
            axes=tuple(_axes(scaled, hidden, tps)),
        )


def _axes(scaled: Scaled, hidden: int | None, tps: tuple[int, ...]) -> Iterator[Axis]:
    if scaled.sharing is Sharing.UNCLEAR or scaled.scale_sizes is None:
        return
    module = module_of(scaled.kind.template)
    cut = _cut(module, scaled.shape, hidden)
    units = scaled.block or (1, scaled.packed)
    names: tuple[AxisName, AxisName] = ("rows", "columns")
    for number, name in enumerate(names):
        size, scale = scaled.shape[number - 2], scaled.scale_sizes[number]
        parts = 2 if module in TWO_IN_ONE and name == cut and size % 2 == 0 else 1
        yield Axis(
            axis=name,
            size=size // parts,
            parts=parts,
            unit=units[number],
            scale_size=scale if scaled.sharing is Sharing.BLOCK or scale > 1 else None,
            cut=name == cut,
            shares=tuple(_share(size, parts * tp, units[number], tp) for tp in tps),
        )


def _share(size: int, ways: int, unit: int, tp: int) -> DimensionPart:
    """Units per rank of an axis that is cut `ways`. TP 1 is always whole, even if the last block is not full.

    The scale's axis has `ceil(size / unit)` entries, so it divides wherever the weight's does.
    """
    return DimensionPart(tp=tp, units_per_rank=size / (ways * unit), whole=tp == 1 or size % (ways * unit) == 0)


def module_of(template: str) -> str:
    """The last part of a weight's name that identifies the module."""
    for ending in _MODULE_ENDINGS:
        if template.endswith(ending):
            template = template.removesuffix(ending)
            break
    return template.rpartition(".")[2]


def _cut(module: str, shape: tuple[int, ...], hidden: int | None) -> AxisName | None:
    """The axis that engines cut, if the name shows it.

    Stacked experts may be transposed; the hidden axis is never cut.
    """
    if module not in ROWS_CUT | COLUMNS_CUT:
        return None
    *experts, rows, columns = shape
    if experts and (rows == hidden) != (columns == hidden):
        return "columns" if rows == hidden else "rows"
    return "rows" if module in ROWS_CUT else "columns"


def _findings(scales: Scales, declared: tuple[int, int] | None) -> Iterator[Finding]:
    """Warnings about odd tensors. None is an error, because an unknown family may have reasons for them."""
    unclear = [scaled.kind for scaled in scales.scaled if scaled.sharing is Sharing.UNCLEAR]
    unusual = [scaled.kind for scaled in scales.scaled if not scaled.usual]
    others = [scaled for scaled in scales.scaled if declared is not None and scaled.block not in (None, declared)]
    given = ", ".join(sorted({str(scaled.block) for scaled in others})[:_MAX_WORDS])
    for code, kinds, words in (
        ("no-scale", scales.without_scale, "tensors are stored as quantized weights are, without a scale beside them"),
        ("no-weight", scales.without_weight, "scales have no weight beside them"),
        ("unclear-scales", unclear, "weights have scales whose shape gives no block"),
        ("mixed-blocks", unusual, "weights have other blocks than most of their dtype"),
        ("block-size", [scaled.kind for scaled in others], f"weights have scales that give blocks of {given}, where "
         f"config.json says weight_block_size {list(declared or ())}: going by the headers"),
    ):  # fmt: skip
        if kinds:
            count = sum(scales.counts[kind] for kind in kinds)
            names = some(sorted({kind.template for kind in kinds}))
            yield Finding(Severity.WARNING, code, f"{count:,} {words}: {names}")


_OWN_PARTS = frozenset({"weight", "bias", "weight_scale_inv", "scale", "e_score_correction_bias"})
"""Last parts of names in releases of many families; tools that quantize add others."""


def _exported(checkpoint: UnknownCheckpoint) -> Iterator[Finding]:
    """Yield a note about the tool that wrote the checkpoint, if its names or config.json show one."""
    odd = [name for name in checkpoint.tensors if name.rpartition(".")[2] not in _OWN_PARTS]
    named = name_export(checkpoint.document, checkpoint.documents, checkpoint.tensors, odd)
    if named is not None:
        yield Finding(Severity.NOTE, OTHER_EXPORT, named)


def _left_out(names: int, weights: int) -> Iterator[Finding]:
    for count, what in ((names, "names"), (weights, "quantized weights")):
        if count > _MAX_ROWS:
            message = f"{count:,} {what} that differ: only the {_MAX_ROWS} that most tensors have are listed"
            yield Finding(Severity.WARNING, "left-out", message)
