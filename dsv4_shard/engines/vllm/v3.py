"""vLLM 0.33.0 with V3 and V3.2: rules in the order of its start, and placements. No files are written yet.

Read from its sources, and verified against verdicts and parameters of its own classes (tests/data/vllm), without data
parallelism. Unlike V4's, V3's shared experts are not padded: they must divide into TP parts of whole blocks.
"""

from collections.abc import Iterator
from dataclasses import replace

from dsv4_shard.checkpoint import Inventory, TensorGroup
from dsv4_shard.engines.defaults import loads_well, no_losses, no_notes
from dsv4_shard.engines.deployment import Context, Deployment, Request
from dsv4_shard.engines.launch import Launch, Options
from dsv4_shard.engines.placement import Expert, Placement, RankTensor, Replicate, Split, rank_tensor
from dsv4_shard.engines.remedies import FEWER_RANKS, FULL_EP, NO_DP, for_engine, leave_out
from dsv4_shard.engines.rules import NO_OPTION, NOT_VERIFIED, Divides, Requires, Rule, Symptom, in_stage
from dsv4_shard.engines.shared_rules import (
    ADDED_IN_PARTS,
    DOWN_QUOTE,
    GATE_UP_QUOTE,
    NO_CAST_RULE,
    ROW_QUOTE,
    latent_attention_rules,
    vocab_placement,
)
from dsv4_shard.engines.stages import StartStage
from dsv4_shard.engines.vllm import v4 as vllm
from dsv4_shard.engines.vllm.kv_cache import memory_share
from dsv4_shard.engines.vllm.latent_cache import cache_of
from dsv4_shard.engines.vllm.launch import on_nodes, parallel_options, with_draft
from dsv4_shard.models import NORM_ROLES, V3, V32, Module, Part, Role, V32Config


def candidates(inventory: Inventory, request: Request) -> Iterator[Deployment]:
    """The only deployment of vLLM for a request: shared experts split, never padded."""
    for deployment in vllm.candidates(inventory, request):
        yield (
            replace(deployment, shared="split", shared_parts=deployment.tp)
            if request.shared_experts == "auto"
            else deployment
        )


_FEWER = (FEWER_RANKS, for_engine("sglang"))

_UNKNOWN_EXPERTS = Symptom(
    heard=(GATE_UP_QUOTE, DOWN_QUOTE),
    consequence="not known: shared experts that are cut alike are refused before",
    remedies=(FULL_EP,),
)


def _sequence_parallel(context: Context) -> bool:
    """Whether experts and shared experts run on each rank's own tokens, whole (`use_sequence_parallel_moe`)."""
    deployment = context.deployment
    return deployment.ep > 1 and deployment.tp > 1 and deployment.dp > 1


def _is_v32(context: Context) -> bool:
    """Whether the model is V3.2, whose dense MLP is whole under sequence parallelism too; V3's is not."""
    return isinstance(context.config, V32Config)


RULES: tuple[Rule, ...] = (
    *vllm.CHOICES,
    Requires(
        "shared-way", Module.SHARED, lambda c: c.deployment.shared == "split",
        "vLLM splits V3's shared experts; it has no way to {at.shared} them", consequence=NO_OPTION,
        remedies=(leave_out("shared_experts"), for_engine("sglang")), fatal=True,
    ),
    *vllm.CONFIGURATION_RULES,
    NO_CAST_RULE,
    *in_stage(
        StartStage.CONSTRUCTION,
        vllm.VOCAB_RULE,
        *latent_attention_rules(_FEWER),
        Divides(
            "dense-blocks", Module.DENSE, lambda c: c.v3.intermediate_size, "intermediate_size",
            lambda c: c.deployment.tp, "TP",
            lambda c: c.block(Role.DENSE_DOWN).cols, "blocks", Symptom(remedies=_FEWER), Symptom(ROW_QUOTE,
            remedies=_FEWER),
            when=lambda c: c.v3.first_k_dense_replace > 0 and not (_sequence_parallel(c) and _is_v32(c)),
        ),
        Divides(
            "shared-blocks", Module.SHARED, lambda c: c.shared_intermediate, "shared intermediate size",
            lambda c: c.deployment.tp, "TP", lambda c: c.block(Role.SHARED_DOWN).cols, "blocks",
            Symptom(remedies=_FEWER), Symptom(ROW_QUOTE, remedies=_FEWER),
            when=lambda c: c.config.n_shared_experts > 0 and not _sequence_parallel(c),
        ),
        vllm.ROUTED_PARTS_RULE,
        *vllm.BACKEND_RULES,
        Divides(
            "routed-blocks", Module.ROUTED, lambda c: c.config.moe_intermediate_size, "moe_intermediate_size",
            lambda c: c.deployment.moe_tp, "MoE TP", lambda c: c.block(Role.ROUTED_DOWN).cols, "blocks",
            cut=_UNKNOWN_EXPERTS, when=vllm.has_even_parts,
        ),
    ),
    Requires(
        "dp", Module.ATTENTION, lambda c: c.deployment.dp == 1,
        "vLLM's own classes of this generation were not run with data parallelism",
        consequence=NOT_VERIFIED, fatal=True,
        remedies=(NO_DP, for_engine("sglang", ", which has attention DP")),
    ),
)  # fmt: skip

_PLACEMENTS: dict[Role, Placement] = {
    **dict.fromkeys((Role.Q_B, Role.KV_B), Split(0, "attention")),
    Role.O_PROJ: Split(1, "attention"),
    **dict.fromkeys((Role.DENSE_GATE, Role.DENSE_UP, Role.SHARED_GATE, Role.SHARED_UP), Split(0, "tp")),
    **dict.fromkeys((Role.DENSE_DOWN, Role.SHARED_DOWN), Split(1, "tp")),
    **dict.fromkeys((Role.ROUTED_GATE, Role.ROUTED_UP), Expert(Split(0, "moe"))),
    Role.ROUTED_DOWN: Expert(Split(1, "moe")),
}


def place(role: Role, context: Context) -> Placement:
    """vLLM's placement of `role`."""
    if role in (Role.EMBED, Role.HEAD):
        return vocab_placement(context)
    placement = _PLACEMENTS.get(role, Replicate())
    return Expert(Replicate()) if isinstance(placement, Expert) and context.deployment.moe_tp == 1 else placement


def store(group: TensorGroup, placement: Placement, context: Context) -> RankTensor | None:
    """vLLM's parameter dtypes: scales in F32, norms in BF16, and the indexer's keys decoded to BF16."""
    if group.role in (Role.MTP_EMBED, Role.MTP_HEAD):
        return None
    if group.role is Role.INDEXER_K:
        return None if group.part is Part.SCALE else rank_tensor(group, placement, context, "BF16")
    dtype = "F32" if group.part is Part.SCALE else "BF16" if group.role in NORM_ROLES else None
    return rank_tensor(group, placement, context, dtype)


def launch(context: Context, model_path: str, sharded: bool) -> Launch:
    """`vllm serve` for each node, on the checkpoint; nodes after the first serve no API."""
    options: Options = {"--trust-remote-code": None}
    if isinstance(context.config, V32Config):
        options["--tokenizer-mode"] = "deepseek_v32"
    start = on_nodes(model_path, options | parallel_options(context), context.deployment.nodes)
    return with_draft(start, context, {"method": "mtp", "num_speculative_tokens": 1})


def addition(context: Context) -> str:
    """Describe how the shared experts' output joins the sum."""
    return ADDED_IN_PARTS


VLLM_V3 = replace(
    vllm.VLLM,
    families=(V3, V32),
    candidates=candidates,
    rules=RULES,
    place=place,
    store=store,
    launch=launch,
    addition=addition,
    notes=no_notes,
    losses=no_losses,
    misloads=loads_well,
    kv_cache=cache_of,
    memory_share=memory_share,
    others=(),
)
"""vLLM with V3 and V3.2; everything else is as with V4."""
