"""SGLang 0.5.23 with V4.1: what its classes declare for a rank. Its loader was not run, so no outcome is verified.

The parameters of its `DeepseekV4ForCausalLM`, with vision and engram tables, give bytes per rank
(tests/data/unverified). Tables stay in device memory, unless SGLANG_ENABLE_DSV41_ENGRAM_HOST_TABLE moves them to the
host.
"""

from dataclasses import replace

from dsv4_shard.checkpoint import TensorGroup
from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.drafts import is_left_out
from dsv4_shard.engines.engram import columns_of, equal_parts, table_parts
from dsv4_shard.engines.placement import Placement, RankTensor, rank_tensor
from dsv4_shard.engines.sglang import parameters
from dsv4_shard.engines.sglang.rules import VERSION
from dsv4_shard.engines.sglang.v4 import RULES, SGLANG
from dsv4_shard.engines.stages import StartStage
from dsv4_shard.engines.unverified import unverified_rules
from dsv4_shard.models import V41, Part, Role, Stage, V41Config

_F32 = (Role.VISION_NORM, Role.VISION_NORM_1, Role.VISION_NORM_2)

_AS_STORED = (Role.ENGRAM_EMBED, Role.COMPRESSOR_NORM)


def place(role: Role, context: Context) -> Placement:
    """SGLang's placement of `role`: tables by whole hash columns if TP divides these, else by equal rows."""
    if role is Role.ENGRAM_EMBED:
        assert isinstance(context.config, V41Config), "asked only for V4.1"
        is_even = columns_of(context.config) % context.deployment.tp == 0
        return table_parts(context) if is_even else equal_parts(context)
    return parameters.place(role, context)


def store(group: TensorGroup, placement: Placement, context: Context) -> RankTensor | None:
    """SGLang's parameter dtypes: those of V4; o_a in BF16 on every GPU, vision norms in F32, tables as stored."""
    if group.role is Role.ROUTER_BIAS_VL and group.stage is Stage.MTP:
        return None  # `_remap_dspark_weight_name` drops it
    if group.role is Role.O_A and group.stage is Stage.LAYER:
        return rank_tensor(group, placement, context, "BF16") if group.part is Part.WEIGHT else None
    if group.role in _AS_STORED and not is_left_out(group.stage, context):
        return rank_tensor(group, placement, context)
    if group.role in _F32 and group.part is Part.WEIGHT:
        return rank_tensor(group, placement, context, "F32")
    return parameters.store(group, placement, context)


def assumes(context: Context) -> str:
    """What bytes per rank rest on."""
    return (
        "weights are the parameters that SGLang's classes declare for V4.1, with engram tables in the GPU's memory; "
        "they were not loaded"
    )


_LATER = (StartStage.CONSTRUCTION, StartStage.LOADING)
"""Stages whose rules are V4's: they explain messages, and no plan checks them."""

SGLANG_V41 = replace(
    SGLANG,
    families=(V41,),
    rules=unverified_rules(SGLANG, f"SGLang {VERSION}'s own loader was not run with {V41.title}"),
    place=place,
    store=store,
    others=tuple(rule for rule in RULES if rule.stage in _LATER),
    layout=None,
    assumes=assumes,
)
"""SGLang with V4.1; everything else is as with V4."""
