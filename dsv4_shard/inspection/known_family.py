"""The inspection of a checkpoint of a known family: identity, roles, findings, dimensions, TP matrix."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from dsv4_shard.checkpoint import PACKED, Checkpoint, Inventory, Severity, outside_layers
from dsv4_shard.engines import Request, Verdict, pick_gpu, serving
from dsv4_shard.models import Module, Part, V3Config, V4Config, V32Config
from dsv4_shard.models import family as families
from dsv4_shard.planning import LayoutOutcome, PlanBreach, PlanChange, check_request, nearest, options_of, outcome_of
from dsv4_shard.text.document import Document, html_table
from dsv4_shard.text.units import counted, size
from dsv4_shard.version import __version__

SCHEMA_VERSION: Literal[2] = 2

DEFAULT_TPS = (1, 2, 4, 8, 16, 32, 64)


class Identity(Document):
    """Identity of the checkpoint. Sizes count elements; `bytes` are those of the tensors, without headers."""

    label: str
    revision: str | None
    model_type: str
    family: str
    dialect: str
    tensors: int
    files: int
    bytes: int
    layers: int
    mtp_blocks: int
    dspark: bool
    hash_layers: int | None
    dense_layers: int | None
    hidden_size: int
    attention_heads: int
    head_dim: int | None
    o_groups: int | None
    index_heads: int | None
    vocab_size: int
    routed_experts: int
    experts_per_token: int
    shared_experts: int
    moe_intermediate_size: int


class RoleRow(Document):
    """All tensors of a module class in one format."""

    module: Module
    part: Part
    dtype: str
    block: str | None
    tensors: int
    bytes: int


class InspectionFinding(Document):
    """A fact about the checkpoint that its user should know. `code` is stable across versions."""

    severity: Severity
    code: str
    message: str


class DimensionPart(Document):
    """Units of a dimension per rank at a TP. `whole`: the number is an integer, and the scale's axis divides too."""

    tp: int
    units_per_rank: float
    whole: bool


class DimensionRow(Document):
    """A dimension that engines cut: `size` elements in `units` units of `unit` elements.

    `scale_size` is the size of the same axis of the scale, if there is one: TP must divide it as well.
    """

    module: Module
    name: str
    size: int
    unit: int
    units: int
    scale_size: int | None
    shares: tuple[DimensionPart, ...]


class MatrixCell(Document):
    """Verdict for an engine at a TP.

    `changes` are the differences from the engine's defaults, and `how` lists their subjects. If a rule breaks at this
    TP alone, `reason` has its arithmetic, and `how` has options that run on as many GPUs (null: none are known); then
    `changes` are theirs. `bytes_per_rank` are the weights of the fullest rank, with the options of `how`; null if
    the layout breaks a rule of the engine.
    """

    tp: int
    engine: str
    verdict: Verdict
    how: str | None
    changes: tuple[PlanChange, ...]
    rule: str | None
    module: Module | None
    reason: str | None
    engine_says: str | None
    bytes_per_rank: int | None

    @property
    def otherwise(self) -> bool:
        """Whether only other options run on as many GPUs, and not `--tp` alone."""
        return self.verdict is Verdict.FAILS and self.how is not None


class Inspection(Document):
    """The whole inspection, as `--json` prints it.

    `gpu` is the GPU whose memory was checked; null if none was named.
    """

    kind: Literal["inspection"] = "inspection"
    schema_version: Literal[2]
    tool_version: str
    identity: Identity
    roles: tuple[RoleRow, ...]
    findings: tuple[InspectionFinding, ...]
    dimensions: tuple[DimensionRow, ...]
    gpu: str | None
    matrix: tuple[MatrixCell, ...]

    @property
    def has_errors(self) -> bool:
        return any(finding.severity is Severity.ERROR for finding in self.findings)

    def in_short(self) -> str:
        """Family, size, number of findings and label in one line."""
        it, errors = self.identity, sum(finding.severity is Severity.ERROR for finding in self.findings)
        found = f"{counted(len(self.findings), 'finding')}, {counted(errors, 'error')}"
        return f"{it.family}, {counted(it.tensors, 'tensor')}, {size(it.bytes)}, {found}, {it.label}"

    def _repr_html_(self) -> str:
        """Tables for notebooks: the verdicts for each TP, and the findings."""
        cells = {(cell.tp, cell.engine): cell.verdict for cell in self.matrix}
        engines = list(dict.fromkeys(cell.engine for cell in self.matrix))
        tps = dict.fromkeys(cell.tp for cell in self.matrix)
        rows = [(f"TP {tp}", *(cells[tp, engine] for engine in engines)) for tp in tps]
        findings = [(finding.severity, finding.message) for finding in self.findings]
        found = html_table("Findings", ("severity", "finding"), findings) if findings else ""
        return html_table(self.in_short(), ("", *engines), rows) + found


def inspect(
    checkpoint: Checkpoint,
    inventory: Inventory,
    tps: tuple[int, ...] = DEFAULT_TPS,
    gpu: str | None = None,
    gpu_memory: str | None = None,
) -> Inspection:
    """Inspect a checkpoint for each TP of `tps`.

    The GPU is Hopper by default. A GPU named as for `plan` is checked with its memory. Raises UsageError for an invalid
    TP or GPU.
    """
    requests = [Request(tp, engine=engine, gpu=gpu, gpu_memory=gpu_memory) for tp in tps for engine in serving()]
    for request in requests:
        check_request(request)
    picked = pick_gpu(requests[0])
    usable = not inventory.errors
    weighed = outside_layers(inventory)
    return Inspection(
        schema_version=SCHEMA_VERSION,
        tool_version=__version__,
        identity=_identity(checkpoint, inventory),
        roles=tuple(_roles(inventory)),
        findings=tuple(
            InspectionFinding(severity=f.severity, code=f.code, message=f.message) for f in inventory.findings
        ),
        dimensions=tuple(_dimensions(inventory, tps)) if usable else (),
        gpu=picked.title if requests[0].names_gpu else None,
        matrix=tuple(_cell(checkpoint, weighed, request) for request in requests) if usable else (),
    )


def _identity(checkpoint: Checkpoint, inventory: Inventory) -> Identity:
    config = inventory.config
    v4 = config if isinstance(config, V4Config) else None
    return Identity(
        label=checkpoint.source.label,
        revision=checkpoint.source.revision,
        model_type=config.model_type,
        family=inventory.family.title,
        dialect=checkpoint.dialect,
        tensors=len(checkpoint.tensors),
        files=len(checkpoint.files),
        bytes=sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
        layers=config.num_hidden_layers,
        mtp_blocks=inventory.mtp_blocks,
        dspark=inventory.draft.dspark,
        hash_layers=v4.num_hash_layers if v4 else None,
        dense_layers=config.first_k_dense_replace if isinstance(config, V3Config) else None,
        hidden_size=config.hidden_size,
        attention_heads=config.num_attention_heads,
        head_dim=v4.head_dim if v4 else None,
        o_groups=v4.o_groups if v4 else None,
        index_heads=config.index_n_heads if isinstance(config, V4Config | V32Config) else None,
        vocab_size=config.vocab_size,
        routed_experts=config.n_routed_experts,
        experts_per_token=config.num_experts_per_tok,
        shared_experts=config.n_shared_experts,
        moe_intermediate_size=config.moe_intermediate_size,
    )


def _roles(inventory: Inventory) -> Iterator[RoleRow]:
    tensors: Counter[tuple[Module, Part, str, str | None]] = Counter()
    nbytes: Counter[tuple[Module, Part, str, str | None]] = Counter()
    for group, count in inventory.groups.items():
        fmt = inventory.format(group.role, group.stage)
        weight = fmt is not None and group.part is Part.WEIGHT
        dtype = f"{fmt.name} ({group.dtype})" if fmt and weight and fmt.name in PACKED else group.dtype
        key = (group.role.module, group.part, dtype, str(fmt.block) if fmt and weight and fmt.block else None)
        tensors[key] += count
        nbytes[key] += count * group.nbytes
    order = list(Module)
    for key in sorted(tensors, key=lambda k: (order.index(k[0]), k[1] is not Part.WEIGHT, -nbytes[k])):
        module, part, dtype, block = key
        yield RoleRow(module=module, part=part, dtype=dtype, block=block, tensors=tensors[key], bytes=nbytes[key])


def _dimensions(inventory: Inventory, tps: tuple[int, ...]) -> Iterator[DimensionRow]:
    """Every dimension that some engine cuts, in the units that must stay whole."""
    for cut in inventory.family.dimensions:
        size, unit, scales = cut.size(inventory.config), 1, None
        if cut.role is not None:
            fmt = inventory.format(cut.role, cut.stage)
            if fmt is None:
                continue
            if fmt.block:
                unit, scales = fmt.block[cut.axis], _scale_size(inventory, cut)
        yield _dimension(cut.module, cut.name, size, unit, scales, tps)


def _scale_size(inventory: Inventory, cut: families.Dimension) -> int | None:
    """Size of the scale's axis, from its own header; None if there is no scale."""
    key, parts = (cut.stage, cut.role), (Part.SCALE, Part.GROUP_SCALE)
    sizes = [g.shape[cut.axis] for g in inventory.groups if (g.stage, g.role) == key and g.part in parts]
    return sizes[0] if sizes else None


def _dimension(
    module: Module, name: str, size: int, unit: int, scales: int | None, tps: tuple[int, ...]
) -> DimensionRow:
    units = -(-size // unit)
    shares = tuple(
        DimensionPart(
            tp=tp,
            units_per_rank=units / tp,
            whole=size % (tp * unit) == 0 and (scales is None or scales % tp == 0),
        )
        for tp in tps
    )
    return DimensionRow(module=module, name=name, size=size, unit=unit, units=units, scale_size=scales, shares=shares)


def _cell(checkpoint: Checkpoint, inventory: Inventory, request: Request) -> MatrixCell:
    """The engine's verdict for a TP with its default options; if that is no, with other options on as many GPUs."""
    outcome = outcome_of(inventory, request, checkpoint=checkpoint)
    verdict = outcome.verdict
    if not outcome.breaches:
        return _cell_of(request, verdict, outcome, ", ".join(change.subject for change in outcome.changes))
    first = outcome.breaches[0]
    other = next(nearest(inventory, request, 1, elsewhere=False), None) if verdict is Verdict.FAILS else None
    how = options_of(replace(other.request, gpu=None, gpu_memory=None, engine=Request(1).engine)) if other else None
    return _cell_of(request, verdict, other or outcome, how, first)


def _cell_of(
    request: Request, verdict: Verdict, shown: LayoutOutcome, how: str | None, broken: PlanBreach | None = None
) -> MatrixCell:
    """The cell of a request with the changes and bytes of `shown`: its own outcome, or that of other options."""
    return MatrixCell(
        tp=request.tp,
        engine=request.engine,
        verdict=verdict,
        how=how or None,
        changes=tuple(map(PlanChange.of, shown.changes)) if not shown.breaches else (),
        rule=broken.rule if broken else None,
        module=broken.module if broken else None,
        reason=broken.reason if broken else None,
        engine_says=broken.engine_says if broken else None,
        bytes_per_rank=shown.weights,
    )
