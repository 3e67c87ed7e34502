"""The inspection of a checkpoint of an unknown family: names, scales and divisibility.

It uses no roles, engines or rules: everything follows from names, dtypes and shapes. Both axes of a weight are always
given. The axis that engines cut is marked if the last part of the name means the same in all families.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

from dsv4_shard.checkpoint import OTHER_EXPORT, Finding, Severity, UnknownCheckpoint, name_export, some
from dsv4_shard.engines import Request
from dsv4_shard.inspection.axes import Axis, axes_of
from dsv4_shard.inspection.declared_sizes import declared_block, packed_bits, size_of
from dsv4_shard.inspection.known_family import DEFAULT_TPS, InspectionFinding
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
    scales = find_scales(checkpoint.tensors, identity.declared_block, packed_bits(checkpoint.document))
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
        layers=size_of(document, "num_hidden_layers"),
        hidden_size=size_of(document, "hidden_size"),
        attention_heads=size_of(document, "num_attention_heads"),
        key_value_heads=size_of(document, "num_key_value_heads"),
        routed_experts=size_of(document, "n_routed_experts", "num_experts", "num_local_experts"),
        intermediate_size=size_of(document, "moe_intermediate_size", "intermediate_size"),
        declared_block=declared_block(document),
    )


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
            axes=tuple(axes_of(scaled, hidden, tps)),
        )


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
