"""SGLang's parameters: their placement on the ranks, and the dtypes in which a rank holds them."""

from dsv4_shard.catalog.sms import SM_10X
from dsv4_shard.checkpoint import NVFP4, TensorGroup
from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.drafts import is_dspark, is_left_out
from dsv4_shard.engines.nvfp4 import is_nvfp4, nvfp4_tensor
from dsv4_shard.engines.placement import Expert, Placement, RankTensor, Replicate, Split, rank_tensor
from dsv4_shard.engines.sglang.runners import runner_of
from dsv4_shard.engines.shared_rules import vocab_placement
from dsv4_shard.models import Part, Role, Stage


def keeps_o_a_fp8(context: Context, stage: Stage = Stage.LAYER) -> bool:
    """Whether SGLang holds o_a in FP8: on sm_120 it does only if SGLANG_OPT_FP8_WO_A_GEMM asks for it.

    DSpark's stages have it in BF16 on every GPU (`DSparkAttention`).
    """
    is_fp8 = context.deployment.gpu.sm in SM_10X and context.format(Role.O_A).name == "FP8"
    return is_fp8 and not is_dspark(stage, context)


def decodes_no_o_a(context: Context) -> bool:
    """Whether SGLang holds every o_a as it is stored, in FP8."""
    return all(keeps_o_a_fp8(context, stage) for stage in (Stage.LAYER, Stage.MTP))


_PLACEMENTS: dict[Role, Placement] = {
    Role.Q_B: Split(0, "attention"),
    Role.O_A: Split(0, "attention"),
    Role.O_B: Split(1, "attention"),
    Role.ROUTED_GATE: Expert(Split(0, "moe")),
    Role.ROUTED_UP: Expert(Split(0, "moe")),
    Role.ROUTED_DOWN: Expert(Split(1, "moe")),
}
"""Placements by role. Other roles are whole, except embedding and shared experts, which depend on the deployment."""


def place(role: Role, context: Context) -> Placement:
    """SGLang's placement of `role`."""
    deployment = context.deployment
    if role is Role.HEAD:
        return vocab_placement(context, deployment.head_group)
    if role is Role.EMBED:
        return vocab_placement(context, "tp" if deployment.dp == 1 else "one")
    if deployment.shared == "split" and role in (Role.SHARED_GATE, Role.SHARED_UP, Role.SHARED_DOWN):
        return Split(1 if role is Role.SHARED_DOWN else 0, "tp")
    placement = _PLACEMENTS.get(role, Replicate())
    if isinstance(placement, Expert) and deployment.moe_tp == 1:
        return Expert(Replicate())
    return placement


def store(group: TensorGroup, placement: Placement, context: Context) -> RankTensor | None:
    """SGLang's parameter dtypes: FP8 scales in F32; o_a in BF16 on Hopper and in DSpark's stages, without its scale."""
    if group.role in (Role.MTP_EMBED, Role.MTP_HEAD) or is_left_out(group.stage, context):
        return None
    if group.role is Role.O_A and group.part is Part.SCALE and not keeps_o_a_fp8(context, group.stage):
        return None
    if is_nvfp4(group, context):
        return nvfp4_tensor(group, placement, context, scales_twice=not has_trtllm_nvfp4(context), all_inputs=True)
    return rank_tensor(group, placement, context, parameter_dtype(group.role, group.part, context, group.stage))


def has_trtllm_nvfp4(context: Context) -> bool:
    """Whether NVFP4 experts run on TRTLLM's kernels: SGLang's own choice on sm_10x, and for no other GPU."""
    return context.deployment.gpu.sm in SM_10X and context.deployment.runner == "auto"


_DTYPES = {
    Role.ROUTER_HASH: "I32",
    **dict.fromkeys((Role.COMPRESSOR_NORM, Role.INDEXER_NORM, Role.DSPARK_CONFIDENCE), "F32"),
}


def parameter_dtype(role: Role, part: Part, context: Context, stage: Stage = Stage.LAYER) -> str | None:
    """The dtype of SGLang's parameter; None if it is the checkpoint's."""
    if role is Role.O_A and part is Part.WEIGHT:
        return None if keeps_o_a_fp8(context, stage) else "BF16"
    if part is Part.SCALE:
        routed = role in (Role.ROUTED_GATE, Role.ROUTED_UP, Role.ROUTED_DOWN)
        row = runner_of(context)
        if context.deployment.experts == NVFP4:
            return "F32"  # the draft's FP4 experts, for which SGLang builds TRTLLM's method on every GPU
        return (row.scales if row else None) if routed else "F32"
    return _DTYPES.get(role)
