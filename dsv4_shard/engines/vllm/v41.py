"""vLLM 0.33.0 with V4.1: what its classes declare for a rank. Its loader was not run, so no outcome is verified.

The parameters of its `DeepseekV41ForCausalLM` give bytes per rank (tests/data/unverified). Linear layers have a scale
for each row and 32 columns, in place of a block's. Engram tables are in host memory, by the default `cpu_offload` of
`--engram-config` (`config/engram.py`), and vision, aligner and engram projections are cut over TP.
"""

from dataclasses import replace

from dsv4_shard.checkpoint import TensorGroup
from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.drafts import is_left_out
from dsv4_shard.engines.placement import Expert, Placement, RankTensor, Replicate, Split, rank_tensor
from dsv4_shard.engines.stages import StartStage
from dsv4_shard.engines.unverified import unverified_rules
from dsv4_shard.engines.vllm import v4 as vllm
from dsv4_shard.models import V41, Module, Part, Role

_ROWS, _COLUMNS = Split(0, "tp"), Split(1, "tp")

_PLACEMENTS: dict[Role, Placement] = {
    **dict.fromkeys((Role.VISION_QKV, Role.VISION_QKV_BIAS, Role.VISION_GATE_UP), _ROWS),
    **dict.fromkeys((Role.ALIGNER_1, Role.ALIGNER_1_BIAS), _ROWS),
    **dict.fromkeys((Role.VISION_O, Role.VISION_DOWN, Role.ALIGNER_2), _COLUMNS),
}

_F32 = (Role.IMAGE_START, Role.IMAGE_END, Role.IMAGE_NEWLINE)


def place(role: Role, context: Context) -> Placement:
    """vLLM's placement of `role`; an engram projection is whole where each rank has tokens of its own."""
    if role is Role.ENGRAM_KV:
        return Replicate() if context.deployment.shared_parts == 1 else _ROWS
    return _PLACEMENTS.get(role) or vllm.place(role, context)


def store(group: TensorGroup, placement: Placement, context: Context) -> RankTensor | None:
    """vLLM's parameter dtypes: those of V4, a scale for each row; engram tables are not on the GPU."""
    if group.role is Role.ENGRAM_EMBED or is_left_out(group.stage, context):
        return None
    if group.role in _F32:
        return rank_tensor(group, placement, context, "F32")
    if group.part is Part.SCALE and group.role.module is not Module.ROUTED:
        return _row_scales(group, placement, context)
    return vllm.store(group, placement, context)


def _row_scales(group: TensorGroup, placement: Placement, context: Context) -> RankTensor:
    """Scales of blocks, each repeated for the rows of its block: as many rows as the weight has."""
    inner = placement.inner if isinstance(placement, Expert) else placement
    fmt = context.inventory.format(group.role, group.stage)
    stored, rows = rank_tensor(group, inner, context), fmt.block.rows if fmt and fmt.block else 1
    return replace(
        stored,
        shape=(stored.shape[0] * rows, *stored.shape[1:]),
        nbytes=stored.nbytes * rows,
        padding=stored.padding * rows,
    )


def assumes(context: Context) -> str:
    """What bytes per rank rest on."""
    return (
        "weights are the parameters that vLLM's classes declare for V4.1, with engram tables in host memory (its "
        "default); they were not loaded"
    )


_LATER = (StartStage.CONSTRUCTION, StartStage.LOADING)
"""Stages whose rules are V4's: they explain messages, and no plan checks them."""

VLLM_V41 = replace(
    vllm.VLLM,
    families=(V41,),
    rules=unverified_rules(vllm.VLLM, f"vLLM {vllm.VERSION}'s own loader was not run with {V41.title}"),
    place=place,
    store=store,
    others=tuple(rule for rule in vllm.RULES if rule.stage in _LATER),
    layout=None,
    assumes=assumes,
)
"""vLLM with V4.1; everything else is as with V4."""
