"""NVFP4 experts on a rank, as the parameters of SGLang's and vLLM's `ModelOptNvFp4FusedMoE` hold them.

Both cut weights and group scales like FP4 experts. SGLang keeps a second copy of the group scales for its kernels
(`blockscale_swizzled`), except with TRTLLM's. A rank holds the input scales of all experts in SGLang, and in vLLM with
Blackwell's kernels.
"""

from collections.abc import Callable
from dataclasses import replace

from dsv4_shard.checkpoint import NVFP4, TensorGroup
from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.placement import Placement, RankTensor, rank_tensor
from dsv4_shard.models import Module, Part


def is_nvfp4(group: TensorGroup, context: Context) -> bool:
    """Whether `group` is of NVFP4 experts."""
    fmt = context.inventory.format(group.role, group.stage)
    return group.role.module is Module.ROUTED and fmt is not None and fmt.name == NVFP4


def second_copy(context: Context, stored: Callable[[TensorGroup], RankTensor | None]) -> int:
    """Bytes of the second copy of the group scales on a rank, which no file has; `stored` says what a rank stores."""
    each = (
        (stored(group), count // context.deployment.ep)
        for group, count in context.inventory.groups.items()
        if group.part is Part.GROUP_SCALE and is_nvfp4(group, context)
    )
    return sum(tensor.nbytes // 2 * count for tensor, count in each if tensor is not None)


def nvfp4_tensor(
    group: TensorGroup, placement: Placement, context: Context, *, scales_twice: bool, all_inputs: bool
) -> RankTensor:
    """What a rank holds of one expert's tensor; `all_inputs`: an input scale counts for other ranks' experts too."""
    stored = rank_tensor(group, placement, context)
    if all_inputs and group.part is Part.INPUT_SCALE:
        return replace(stored, nbytes=stored.nbytes * context.deployment.ep)
    copies = 2 if scales_twice and group.part is Part.GROUP_SCALE else 1
    return replace(stored, nbytes=stored.nbytes * copies)
