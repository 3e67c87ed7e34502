"""Is every tensor there that the model needs, with its scale, and none that it cannot have?

Layers × experts × three matrices, shared experts in every MoE layer, the tables of hash layers, and what depends on a
layer's kind. Findings only: what they mean for a plan is not decided here.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from dsv4_shard.checkpoint import Checkpoint, Finding, Severity, defect, some
from dsv4_shard.config import ModelConfig
from dsv4_shard.roles import (
    LAYER_SPECS,
    MODEL_SPECS,
    MTP_SPECS,
    ROUTED_SPECS,
    SPEC,
    LayerKind,
    Module,
    Part,
    Spec,
    Stage,
    TensorName,
    layer_kind,
    scale_name,
    unparse_name,
    weight_name,
)

FLOATS = ("BF16", "F32")
"""Dtypes of weights that are not quantized."""


def check_numbers(config: ModelConfig, names: dict[str, TensorName]) -> Iterator[Finding]:
    """Layers and experts beyond what the config says there are, and tensors that their layer cannot have."""
    layers = [n for n, at in names.items() if at.stage is Stage.LAYER and at.layer >= config.num_hidden_layers]
    if layers:
        yield defect("extra-layers", f"config.json has {config.num_hidden_layers} layers, but there is {some(layers)}")
    misplaced = [n for n, at in names.items() if at.expert < 0 and not _may_be(config, at)]
    if misplaced:
        yield defect("misplaced-tensors", f"{len(misplaced):,} tensors have no place in their layer: {some(misplaced)}")
    experts = [n for n, at in names.items() if at.expert >= config.n_routed_experts]
    if experts:
        yield defect(
            "extra-experts", f"config.json has {config.n_routed_experts} routed experts, but there is {some(experts)}"
        )


def _may_be(config: ModelConfig, at: TensorName) -> bool:
    """Whether the kind of layer has such a tensor: no indexer without a ratio of 4, no bias in a hash layer."""
    spec = SPEC[at.stage, at.role]
    return spec.optional or spec.present(layer_kind(config, at.stage, at.layer))


def check_completeness(checkpoint: Checkpoint, names: dict[str, TensorName]) -> Iterator[Finding]:
    """Every tensor that the model needs: layers × experts × 3, shared experts, tables, norms."""
    config = checkpoint.config
    blocks = {at.layer for at in names.values() if at.stage is Stage.MTP}
    if len(blocks) < config.num_nextn_predict_layers:
        yield Finding(
            Severity.WARNING,
            "no-mtp",
            f"config.json has {config.num_nextn_predict_layers} MTP blocks, the checkpoint {len(blocks)}: "
            "speculative decoding with MTP cannot be used",
        )
    if blocks and blocks != set(range(len(blocks))):
        yield defect("mtp-gap", f"MTP blocks are numbered {sorted(blocks)}")
    present = set(names.values())
    known = range(config.n_routed_experts)
    experts = Counter((at.stage, at.layer, at.role, at.part) for at in names.values() if at.expert in known)
    missing: list[str] = []
    lost_names: list[str] = []
    missing_experts = 0
    for at in expected_names(config, blocks):
        if at.expert < 0:
            if at not in present:
                missing.append(unparse_name(at))
            continue
        lost = config.n_routed_experts - experts[at.stage, at.layer, at.role, at.part]
        if lost > 0:
            missing_experts += lost
            absent = (one for e in known if (one := at._replace(expert=e)) not in present)
            lost_names += map(unparse_name, islice(absent, 1))
    if missing or missing_experts:
        detail = f", {missing_experts:,} of them of routed experts" if missing_experts else ""
        count = len(missing) + missing_experts
        yield defect("missing-tensors", f"{count:,} tensors are missing{detail}: {some(missing + lost_names, count)}")
    yield from _check_scales(checkpoint, names)


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


def _check_scales(checkpoint: Checkpoint, names: dict[str, TensorName]) -> Iterator[Finding]:
    """Each quantized weight has its scale, each scale its weight; plain weights have none."""
    tensors = checkpoint.tensors
    quantized = {key for key, spec in SPEC.items() if spec.quantized}
    unscaled: list[str] = []
    orphans: list[str] = []
    needless: list[str] = []
    for name, at in names.items():
        if at.part is Part.SCALE:
            weight = tensors.get(weight_name(name))
            if weight is None:
                orphans.append(name)
            elif weight.dtype in FLOATS:
                needless.append(name)
            continue
        plain = (at.stage, at.role) not in quantized or tensors[name].dtype in FLOATS
        if not plain and scale_name(name) not in tensors:
            unscaled.append(name)
    if unscaled:
        yield defect("missing-scales", f"{len(unscaled):,} quantized weights have no scale: {some(unscaled)}")
    if orphans:
        yield defect("orphan-scales", f"{len(orphans):,} scales have no weight: {some(orphans)}")
    if needless:
        yield defect("needless-scales", f"{len(needless):,} unquantized weights have a scale: {some(needless)}")
