"""SGLang 0.5.23 with V3 and V3.2: rules in the order of its start, and placements. No files are written yet.

Read from its `deepseek_v2.py`, and verified against verdicts and parameters of its own classes (tests/data/sglang). The
dense MLP and the shared experts are cut over the whole TP group, also under attention DP. V3.2's indexer is whole.
Without expert parallelism V3's shared expert becomes one more routed expert; its cut stays the same.
"""

from dataclasses import replace

from dsv4_shard.checkpoint import TensorGroup
from dsv4_shard.engines.defaults import no_losses
from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.launch import Launch
from dsv4_shard.engines.placement import Placement, RankTensor, Split, rank_tensor
from dsv4_shard.engines.remedies import MORE_DP
from dsv4_shard.engines.rules import Divides, Rule, Symptom, in_stage
from dsv4_shard.engines.sglang import launch as v4_launch
from dsv4_shard.engines.sglang import parameters, rules, v4
from dsv4_shard.engines.sglang.kv_cache import memory_share
from dsv4_shard.engines.sglang.latent_cache import cache_of
from dsv4_shard.engines.shared_rules import (
    COLUMN_QUOTE,
    NO_CAST_RULE,
    heads_rule,
    latent_attention_rules,
    vocab_placement,
)
from dsv4_shard.engines.stages import StartStage
from dsv4_shard.models import NORM_ROLES, V3, V32, Module, Part, Role

_WHOLE_DENSE = ("SGLang's --moe-dense-tp-size 1, which keeps the dense MLP whole: this tool does not plan it",)

RULES: tuple[Rule, ...] = (
    *rules.CHOICES,
    *rules.CONFIGURATION_RULES,
    NO_CAST_RULE,
    *in_stage(
        StartStage.CONSTRUCTION,
        heads_rule(Symptom("assert num_heads % attn_tp_size == 0", remedies=(MORE_DP,))),
        *latent_attention_rules((MORE_DP,)),
        Divides(
            "dense-blocks", Module.DENSE, lambda c: c.v3.intermediate_size, "intermediate_size",
            lambda c: c.deployment.tp, "TP",
            lambda c: c.block(Role.DENSE_GATE).rows, "blocks",
            Symptom(rules.MERGED_QUOTE, remedies=_WHOLE_DENSE), Symptom(COLUMN_QUOTE, remedies=_WHOLE_DENSE),
            when=lambda c: c.v3.first_k_dense_replace > 0,
        ),
        rules.TP_EXPERTS_RULE,
        *rules.BACKEND_RULES,
        rules.ROUTED_RULE,
        rules.SHARED_RULE,
    ),
    *in_stage(StartStage.LOADING, rules.MARLIN_RULE, rules.QUANTIZED_MOE_RULE),
    *rules.RUNNER_RULES,
)  # fmt: skip

_PLACEMENTS: dict[Role, Placement] = {
    Role.Q_B: Split(0, "attention"),
    Role.KV_B: Split(0, "attention"),
    Role.O_PROJ: Split(1, "attention"),
    Role.DENSE_GATE: Split(0, "tp"),
    Role.DENSE_UP: Split(0, "tp"),
    Role.DENSE_DOWN: Split(1, "tp"),
}
"""Placements of roles that V3 has and V4 lacks; the other roles are placed as in V4."""


def place(role: Role, context: Context) -> Placement:
    """SGLang's placement of `role`: the embedding follows the attention group, the head does not."""
    if role is Role.EMBED:
        return vocab_placement(context, "attention")
    return _PLACEMENTS.get(role) or parameters.place(role, context)


def store(group: TensorGroup, placement: Placement, context: Context) -> RankTensor | None:
    """SGLang's parameter dtypes: scales in F32, norms in BF16, also for V3.2."""
    if group.role in (Role.MTP_EMBED, Role.MTP_HEAD):
        return None
    dtype = "F32" if group.part is Part.SCALE else "BF16" if group.role in NORM_ROLES else None
    return rank_tensor(group, placement, context, dtype)


def launch(context: Context, model_path: str, sharded: bool) -> Launch:
    """`sglang serve` for each node, on the checkpoint.

    For a whole shared expert, an option keeps SGLang from making it a routed expert, as it would without EP.
    """
    deployment, start = context.deployment, v4_launch.launch(context, model_path, sharded)
    if deployment.shared != "whole" or deployment.a2a:
        return replace(start, environment={})
    program = start.program
    if program is not None and deployment.ep == 1:
        program = replace(program, options={**program.options, "--disable-shared-experts-fusion": None})
    return replace(start, environment={"SGLANG_SHARED_EXPERT_TP1": "1"}, program=program)


SGLANG_V3 = replace(
    v4.SGLANG,
    families=(V3, V32),
    rules=RULES,
    place=place,
    store=store,
    launch=launch,
    changes=v4_launch.prefill_changes,
    losses=no_losses,
    kv_cache=cache_of,
    memory_share=memory_share,
    others=(),
)
"""SGLang with V3 and V3.2; everything else is as with V4."""
