"""Detects the format of each role (FP4, NVFP4, FP8, plain) from dtypes and shapes, and compares it with config.json."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from dsv4_shard.checkpoint.findings import Finding, Severity, defect, some
from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.checkpoint.tensor_kinds import FLOATS, Census, TensorKind
from dsv4_shard.models import DIALECTS, NORM_ROLES, ModelConfig, Part, Role, Stage, family_of
from dsv4_shard.tensors.geometry import FP4_GROUP, NVFP4_GROUP, PACKED_FP4, Block, agree_on_unit, scale_shape
from dsv4_shard.text.sanitize import short

FP8_SCALES = ("F8_E8M0", "F32")

NVFP4 = "NVFP4"

PACKED = ("FP4", NVFP4)
"""Formats that store two values per byte."""

_READ = (*PACKED, "FP8", *FLOATS)


@dataclass(frozen=True, slots=True)
class Format:
    """How a quantizable weight is stored.

    Attributes:
        name: FP4, NVFP4, FP8, or the dtype of plain weights.
        block: Elements that share a scale; None for plain weights.
        scale_dtype: Dtype of the scale; None for plain weights.
    """

    name: str
    block: Block | None = None
    scale_dtype: str | None = None

    @property
    def is_read(self) -> bool:
        """Whether this is a format of the releases; if not, the name is the dtype of the weights."""
        return self.name in _READ

    def __str__(self) -> str:
        return f"{self.name} {self.block}, {self.scale_dtype} scales" if self.block else self.name


def is_packed(fmt: Format | None, part: Part) -> bool:
    """Return whether tensors of a format and part store two values per byte."""
    return fmt is not None and fmt.name in PACKED and part is Part.WEIGHT


def _format_name(dtype: str, scale_dtype: str | None, grouped: bool) -> str | None:
    """Return FP4, NVFP4, FP8, a plain dtype, or None for a combination that no checkpoint of the family has."""
    if grouped:
        return NVFP4 if (dtype, scale_dtype) == ("U8", "F8_E4M3") else None
    if scale_dtype is None:
        return dtype if dtype in FLOATS else None
    if dtype in PACKED_FP4 and scale_dtype == "F8_E8M0":
        return "FP4"
    if dtype == "F8_E4M3" and scale_dtype in FP8_SCALES:
        return "FP8"
    return None


def find_formats(census: Census) -> tuple[dict[tuple[Stage, Role], Format], list[Finding]]:
    """Return the format of each role, from its tensors, and findings about mixed or unknown formats.

    The block of FP8 is the one that fits the shapes of most weights and scales.
    """
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


def draft_difference(formats: dict[tuple[Stage, Role], Format]) -> str | None:
    """Return how the MTP block's formats differ from the layers'; None if they do not.

    NVIDIA's NVFP4 releases keep the MTP block's experts in DeepSeek's FP4, which both engines know: no difference.
    """
    odd: dict[tuple[Format, Format], list[str]] = {}
    for (stage, role), fmt in formats.items():
        layers = formats.get((Stage.LAYER, role))
        is_nvidia = layers is not None and (layers.name, fmt.name) == (NVFP4, "FP4")
        if stage is Stage.MTP and layers is not None and fmt != layers and not is_nvidia:
            odd.setdefault((fmt, layers), []).append(str(role))
    ways = [f"{some(roles)} {'is' if len(roles) == 1 else 'are'} {fmt}, in the layers {layers}"
            for (fmt, layers), roles in odd.items()]  # fmt: skip
    return "; ".join(ways) or None


def compare_stages(formats: dict[tuple[Stage, Role], Format]) -> Iterator[Finding]:
    """Yield a warning if the MTP block's formats differ from the layers', as after a cast of the target alone.

    SGLang 0.5.23 (`configs/model_config.py`, `is_fp4_experts`) and vLLM 0.33.0 (`models/deepseek_v4/quant_config.py`,
    `expert_dtype`) find one format of experts in a folder, and build target and draft with it.
    """
    difference = draft_difference(formats)
    if difference is not None:
        yield Finding(
            Severity.WARNING, "mtp-format", f"the MTP block is stored otherwise than the layers: {difference}. SGLang "
            "and vLLM build the experts of both in one format, so the draft is planned separately"
        )  # fmt: skip


def f32_norms(checkpoint: Checkpoint, formats: dict[tuple[Stage, Role], Format]) -> frozenset[Role]:
    """Return the norms that may be in F32: all, if Transformers saved a model without quantized experts, else none."""
    routed = formats.get((Stage.LAYER, Role.ROUTED_GATE))
    dialects = DIALECTS.get(family_of(checkpoint.config).name, ())
    if not any(dialect.f32_norms for dialect in dialects if dialect.name == checkpoint.dialect):
        return frozenset()
    return NORM_ROLES if routed is not None and routed.name in FLOATS else frozenset()


def check_dtypes(census: Census, f32: frozenset[Role]) -> Iterator[Finding]:
    """Yield a finding about tensors of unquantized roles that do not have the family's dtype.

    Engines' parameters depend on this dtype. The roles in `f32` may also be in F32.
    """
    expected = {key: spec.dtype for key, spec in census.family.rows.items() if not spec.quantized}
    of_kind = {k: "F32" if k.part.is_scalar else expected.get((k.stage, k.role), k.dtype) for k in census.counts}
    odd_kinds = (k for k in census.counts if k.dtype != of_kind[k])
    names = census.names_of(k for k in odd_kinds if not (k.role in f32 and k.dtype == "F32"))
    if names:
        parsed = [(name, census.names[name]) for name in names]
        odd = [
            f"{name} {census.tensors[name].dtype}, due {expected.get((place.stage, place.role), 'F32')}"
            for name, place in parsed
        ]
        yield defect(
            "odd-dtypes", f"{len(odd):,} tensors have another dtype than {census.family.title} checkpoints: {some(odd)}"
        )


def check_shapes(census: Census, formats: dict[tuple[Stage, Role], Format]) -> Iterator[Finding]:
    """Yield findings about weights whose shape is not the config's, and scales that are not `ceil(weight / block)`."""
    expected = {kind: _expected_shape(census, kind, formats.get((kind.stage, kind.role))) for kind in census.counts}
    odd = [kind for kind, shape in expected.items() if kind.shape != shape]
    if not odd:
        return
    of_place = {kind[:4]: expected[kind] for kind in odd}
    found: dict[Part, list[str]] = {part: [] for part in Part}
    for name in census.names_of(odd):
        place = census.names[name]
        found[place.part].append(f"{name} {list(census.tensors[name].shape)}, due {list(of_place[place[:4]])}")
    weights = found.pop(Part.WEIGHT)
    scales = [line for lines in found.values() for line in lines]
    if weights:
        yield defect(
            "odd-shapes", f"{len(weights):,} tensors have another shape than config.json gives: {some(weights)}"
        )
    if scales:
        yield defect("odd-scales", f"{len(scales):,} scales do not have the shape ceil(weight / block): {some(scales)}")


def _expected_shape(census: Census, kind: TensorKind, fmt: Format | None) -> tuple[int, ...]:
    """Return the stored shape that tensors of a kind must have."""
    place = census.place(kind.stage, kind.layer)
    shape = census.family.rows[kind.stage, kind.role].shape(census.config, place)
    if kind.part.is_scalar:
        return ()
    if kind.part is not Part.WEIGHT:
        return scale_shape((shape[0], shape[1]), fmt.block) if fmt is not None and fmt.block else shape
    return (*shape[:-1], shape[-1] // 2) if is_packed(fmt, kind.part) else shape


def compare_config(config: ModelConfig, formats: dict[tuple[Stage, Role], Format]) -> Iterator[Finding]:
    """Yield a finding for each contradiction between config.json and the headers. The headers decide the format."""
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
    """Yield a finding if `weight_block_size`, from which engines size scales, is not the block that the shapes give.

    Blocks of one row (groups) are not compared.
    """
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
    """Yield findings where the fields of `quantization_config` that engines read contradict the NVFP4 experts."""
    quantization = config.quantization_config
    if quantization is None or NVFP4 not in (routed.name, draft and draft.name):
        return
    if quantization.group_size not in (None, NVFP4_GROUP):
        yield Finding(Severity.WARNING, "group-size", f"config.json says group_size {short(quantization.group_size)}, "
                      f"NVFP4 has groups of {NVFP4_GROUP}: going by the headers")  # fmt: skip
    ignore = quantization.ignore
    ignored = isinstance(ignore, list) and any(str(entry).startswith("mtp") for entry in ignore)
    if draft is not None and ignored is (draft.name == NVFP4):
        yield Finding(Severity.WARNING, "ignored-mtp", f"the MTP block's experts are {draft.name}, but config.json's "
                      f"ignore list {'has' if ignored else 'lacks'} mtp: engines that go by it read them as what they "
                      "are not")  # fmt: skip
