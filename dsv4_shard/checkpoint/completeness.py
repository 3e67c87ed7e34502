"""Checks that every tensor that the model needs is there, with its scale, and none that it cannot have.

The checks cover layers × experts × three matrices, the shared experts of every MoE layer, the tables of hash layers and
the tensors that depend on the kind of a layer. They return findings and do not decide what these mean for a plan.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from dsv4_shard.checkpoint.findings import Finding, Severity, defect, some
from dsv4_shard.checkpoint.tensor_kinds import FLOATS, Census, TensorKind
from dsv4_shard.models import Draft, ModelConfig, Module, Part, Place, Role, Stage, TensorName, family_of
from dsv4_shard.text.units import counted


def check_numbers(census: Census) -> Iterator[Finding]:
    """Yield findings about layers and experts beyond the config's numbers, and tensors that their layer cannot have."""
    config, kinds = census.config, census.counts
    layers = census.names_of(k for k in kinds if k.stage is Stage.LAYER and k.layer >= config.num_hidden_layers)
    if layers:
        yield defect("extra-layers", f"config.json has {config.num_hidden_layers} layers, but there is {some(layers)}")
    misplaced = census.names_of(k for k in kinds if not _is_possible(census, k))
    if misplaced:
        yield defect("misplaced-tensors", f"{len(misplaced):,} tensors have no place in their layer: {some(misplaced)}")
    experts = census.names_of(k for k in kinds if k.extra)
    if experts:
        counts = {stage: config.experts_in(stage) for stage in (Stage.LAYER, Stage.MTP)}
        number = " and ".join(str(count) for count in dict.fromkeys(counts.values()))
        yield defect("extra-experts", f"config.json has {number} routed experts, but there is {some(experts)}")


def _is_possible(census: Census, kind: TensorKind) -> bool:
    return census.family.may_have(census.config, census.place(kind.stage, kind.layer), kind.role)


def check_completeness(census: Census) -> Iterator[Finding]:
    """Yield findings about missing tensors: layers × experts × 3, shared experts, tables, norms, scales."""
    config, kinds = census.config, census.counts
    words = census.family.names(config)
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
    expert_names: list[str] = []
    missing_experts = 0
    for name in expected_names(config, blocks, census.draft):
        found = present[name.role, name.part, name.stage, name.layer]
        if name.expert < 0:
            if not found:
                missing.append(words.unparse(name))
        elif found < (expected := config.experts_in(name.stage)):
            missing_experts += expected - found
            experts = (words.unparse(name._replace(expert=expert)) for expert in range(expected))
            expert_names += islice((text for text in experts if text not in census.names), 1)
    if missing or missing_experts:
        detail = f", {missing_experts:,} of them of routed experts" if missing_experts else ""
        count = len(missing) + missing_experts
        are = "is" if count == 1 else "are"
        names = some(missing + expert_names, count)
        yield defect("missing-tensors", f"{counted(count, 'tensor')} {are} missing{detail}: {names}")
    yield from _check_scales(census)


def expected_names(
    config: ModelConfig, mtp_blocks: Iterable[int], draft: Draft, *, optional: bool = False
) -> Iterator[TensorName]:
    """Yield every weight that the model needs, in the order of the tables. Expert 0 stands for all experts of a layer.

    Args:
        config: The model's config.
        mtp_blocks: Numbers of the MTP blocks.
        draft: The draft model that they make up.
        optional: Whether to include weights that may be missing.
    """
    numbers = {Stage.MODEL: (-1,), Stage.LAYER: range(config.num_hidden_layers), Stage.MTP: sorted(mtp_blocks)}
    for stage, specs in family_of(config).specs.items():
        for layer in numbers.get(stage, range(config.blocks_in(stage))):
            place = Place(stage, layer, draft)
            for spec in specs:
                if spec.present(config, place) and (optional or not spec.optional):
                    expert = 0 if spec.role.module is Module.ROUTED else -1
                    yield TensorName(spec.role, Part.WEIGHT, stage, layer, expert)


def _check_scales(census: Census) -> Iterator[Finding]:
    """Yield findings where a quantized weight has no scale, a scale no weight, or a plain weight a scale."""
    rows = census.family.rows
    weights = [kind for kind in census.counts if kind.part is Part.WEIGHT and rows[kind.stage, kind.role].quantized]
    scales = [kind for kind in census.counts if kind.part is not Part.WEIGHT]
    unscaled = census.names_of(k for k in weights if k.dtype not in FLOATS and k.partner_dtype is None)
    orphans = census.names_of(k for k in scales if k.partner_dtype is None)
    needless = census.names_of(k for k in scales if k.partner_dtype in FLOATS)
    strange = census.names_of(
        k for k in scales if k.partner_dtype not in (*FLOATS, None) and (k.part is Part.SCALE) is k.grouped
    )
    words = census.family.names(census.config)
    scalars = [
        scalar
        for name in census.names_of(k for k in weights if k.grouped and k.dtype not in FLOATS)
        for part in (Part.TENSOR_SCALE, Part.INPUT_SCALE)
        if (scalar := words.part_name(name, part)) and scalar not in census.names
    ]
    if unscaled:
        yield defect("missing-scales", f"{len(unscaled):,} quantized weights have no scale: {some(unscaled)}")
    if scalars:
        yield defect("missing-scales", f"{len(scalars):,} scales of NVFP4 weights are missing: {some(scalars)}")
    if strange:
        yield defect(
            "needless-scales", f"{len(strange):,} scales are of another format than their weight: {some(strange)}"
        )
    if orphans:
        yield defect("orphan-scales", f"{len(orphans):,} scales have no weight: {some(orphans)}")
    if needless:
        yield defect("needless-scales", f"{len(needless):,} unquantized weights have a scale: {some(needless)}")
