"""Is every tensor there that the model needs, with its scale, and none that it cannot have?

Layers × experts × three matrices, shared experts in every MoE layer, the tables of hash layers, and what depends on a
layer's kind. Findings only: what they mean for a plan is not decided here.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from dsv4_shard.census import Census, Kind
from dsv4_shard.checkpoint import Finding, Severity, defect, some
from dsv4_shard.config import ModelConfig
from dsv4_shard.roles import (
    LAYER_SPECS,
    MODEL_SPECS,
    MODULE,
    MTP_SPECS,
    ROUTED_SPECS,
    SPEC,
    LayerKind,
    Module,
    Part,
    Role,
    Spec,
    Stage,
    TensorName,
    layer_kind,
    unparse_name,
)

FLOATS = ("BF16", "F32")
"""Dtypes of weights that are not quantized."""


def check_numbers(census: Census) -> Iterator[Finding]:
    """Layers and experts beyond what the config says there are, and tensors that their layer cannot have."""
    config, kinds = census.config, census.counts
    layers = census.names_of(k for k in kinds if k.stage is Stage.LAYER and k.layer >= config.num_hidden_layers)
    if layers:
        yield defect("extra-layers", f"config.json has {config.num_hidden_layers} layers, but there is {some(layers)}")
    misplaced = census.names_of(k for k in kinds if MODULE[k.role] is not Module.ROUTED and not _may_be(config, k))
    if misplaced:
        yield defect("misplaced-tensors", f"{len(misplaced):,} tensors have no place in their layer: {some(misplaced)}")
    experts = census.names_of(k for k in kinds if k.extra)
    if experts:
        yield defect(
            "extra-experts", f"config.json has {config.n_routed_experts} routed experts, but there is {some(experts)}"
        )


def _may_be(config: ModelConfig, kind: Kind) -> bool:
    """Whether the layer has such a tensor: no indexer without a ratio of 4, no bias in a hash layer."""
    spec = SPEC[kind.stage, kind.role]
    return spec.optional or spec.present(layer_kind(config, kind.stage, kind.layer))


def check_completeness(census: Census) -> Iterator[Finding]:
    """Every tensor that the model needs: layers × experts × 3, shared experts, tables, norms."""
    config, kinds = census.config, census.counts
    blocks = {kind.layer for kind in kinds if kind.stage is Stage.MTP}
    if len(blocks) < config.num_nextn_predict_layers:
        yield Finding(
            Severity.WARNING,
            "no-mtp",
            f"config.json has {config.num_nextn_predict_layers} MTP blocks, the checkpoint {len(blocks)}: "
            "speculative decoding with MTP cannot be used",
        )
    if blocks and blocks != set(range(len(blocks))):
        yield defect("mtp-gap", f"MTP blocks are numbered {sorted(blocks)}")
    present: Counter[tuple[Role, Part, Stage, int]] = Counter()
    for (role, part, stage, layer, extra, *_), count in kinds.items():
        present[role, part, stage, layer] += 0 if extra else count
    missing: list[str] = []
    lost_names: list[str] = []
    missing_experts = 0
    for at in expected_names(config, blocks):
        found = present[at.role, at.part, at.stage, at.layer]
        if at.expert < 0:
            if not found:
                missing.append(unparse_name(at))
        elif found < config.n_routed_experts:
            missing_experts += config.n_routed_experts - found
            experts = (unparse_name(at._replace(expert=expert)) for expert in range(config.n_routed_experts))
            lost_names += islice((name for name in experts if name not in census.names), 1)
    if missing or missing_experts:
        detail = f", {missing_experts:,} of them of routed experts" if missing_experts else ""
        count = len(missing) + missing_experts
        yield defect("missing-tensors", f"{count:,} tensors are missing{detail}: {some(missing + lost_names, count)}")
    yield from _check_scales(census)


def expected_names(config: ModelConfig, mtp_blocks: Iterable[int]) -> Iterator[TensorName]:
    """Every weight that the model needs; one entry (expert 0) stands for all experts of a layer."""
    yield from _expected_of(MODEL_SPECS, Stage.MODEL, -1, LayerKind(0, False), config)
    for layer in range(config.num_hidden_layers):
        yield from _expected_of(LAYER_SPECS, Stage.LAYER, layer, layer_kind(config, Stage.LAYER, layer), config)
    for block in sorted(mtp_blocks):
        yield from _expected_of(MTP_SPECS, Stage.MTP, block, layer_kind(config, Stage.MTP, block), config)


def _expected_of(
    specs: Iterable[Spec], stage: Stage, layer: int, kind: LayerKind, config: ModelConfig
) -> Iterator[TensorName]:
    for spec in specs:
        if spec.module is Module.SHARED and config.n_shared_experts == 0:
            continue
        if spec.present(kind) and not spec.optional:
            yield TensorName(spec.role, Part.WEIGHT, stage, layer)
    if stage is not Stage.MODEL:
        for spec in ROUTED_SPECS:
            yield TensorName(spec.role, Part.WEIGHT, stage, layer, 0)


def _check_scales(census: Census) -> Iterator[Finding]:
    """Each quantized weight has its scale, each scale its weight; plain weights have none."""
    weights = [kind for kind in census.counts if kind.part is Part.WEIGHT and SPEC[kind.stage, kind.role].quantized]
    scales = [kind for kind in census.counts if kind.part is Part.SCALE]
    unscaled = census.names_of(k for k in weights if k.dtype not in FLOATS and k.partner_dtype is None)
    orphans = census.names_of(k for k in scales if k.partner_dtype is None)
    needless = census.names_of(k for k in scales if k.partner_dtype in FLOATS)
    if unscaled:
        yield defect("missing-scales", f"{len(unscaled):,} quantized weights have no scale: {some(unscaled)}")
    if orphans:
        yield defect("orphan-scales", f"{len(orphans):,} scales have no weight: {some(orphans)}")
    if needless:
        yield defect("needless-scales", f"{len(needless):,} unquantized weights have a scale: {some(needless)}")
