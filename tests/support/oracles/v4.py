"""What DeepSeek's converters make of a checkpoint, told again in whole tensors: the truth that shards are held to.

Written from what the converter does and not from dsv4_shard, and without regard to memory or speed: every tensor is
whole in memory, every rank is made on its own.
"""

import re

import torch

torch.set_num_threads(1)  # the tensors are small, and tests that run side by side share the CPUs

FP4_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
"""Code → value. The converter reads code 8, a negative zero, as a positive one."""

ROWS, COLUMNS = 0, 1
CUT = {
    "embed": ROWS,
    "head": ROWS,
    "wq_b": ROWS,
    "wo_a": ROWS,
    "weights_proj": ROWS,
    "attn_sink": ROWS,
    "wo_b": COLUMNS,
    "markov_w1": ROWS,
    "markov_w2": ROWS,
}
"""Modules that are cut over the ranks. A scale is cut as its weight is."""

_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_HEADROOM = 64.0
"""2^6: the largest power of two by which 6.0, FP4's largest value, can grow within FP8's 448."""


def shards(tensors: dict[str, torch.Tensor], mp: int, expert_dtype: str) -> list[dict[str, torch.Tensor]]:
    """The tensors of each of `mp` ranks, for experts kept in `fp4` (or already FP8), or cast to `fp8`."""
    return [_shard(tensors, mp, rank, expert_dtype) for rank in range(mp)]


def _shard(tensors: dict[str, torch.Tensor], mp: int, rank: int, expert_dtype: str) -> dict[str, torch.Tensor]:
    experts = 1 + max(int(found[1]) for found in map(_EXPERT.search, tensors) if found)
    held: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("mtp.") and ("emb" in name or name.endswith("head.weight")):
            continue
        expert = _EXPERT.search(name)
        if expert:
            if int(expert[1]) // (experts // mp) == rank:
                held[name] = tensor
            continue
        axis = CUT.get(_module(name))
        held[name] = tensor if axis is None else tensor.chunk(mp, axis)[rank].contiguous()
    for name in list(held):
        if name.endswith("wo_a.weight") and held[name].dtype == torch.float8_e4m3fn:
            held[name] = dequantize_fp8(held[name], held.pop(_scale_of(name)))
        elif _EXPERT.search(name) and held[name].dtype == torch.int8:
            if expert_dtype == "fp8":
                held[name], held[_scale_of(name)] = fp4_to_fp8(held[name], held[_scale_of(name)])
            else:
                held[name] = held[name].view(torch.float4_e2m1fn_x2)
    return held


def shards_v41(tensors: dict[str, torch.Tensor], mp: int, expert_dtype: str) -> list[dict[str, torch.Tensor]]:
    """The same of V4.1's converter, whose blocks are 32×32."""
    return [_shard_v41(tensors, mp, rank, expert_dtype) for rank in range(mp)]


def _shard_v41(tensors: dict[str, torch.Tensor], mp: int, rank: int, expert_dtype: str) -> dict[str, torch.Tensor]:
    experts = {"layers": 0, "mtp": 0}
    for name in tensors:
        expert, stage = _EXPERT.search(name), name.split(".")[0]
        if expert:
            experts[stage] = max(experts[stage], int(expert[1]) + 1)
    held: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if re.fullmatch(r"mtp\.\d+\.(embed|head)\.weight", name):
            continue
        expert = _EXPERT.search(name)
        if expert:
            if int(expert[1]) // (experts[name.split(".")[0]] // mp) == rank:
                held[name] = tensor
        elif ".engram.embed." in name:
            held[name] = _rounded_up(tensor, mp, 127 if name.endswith("scale") else 0).chunk(mp)[rank].contiguous()
        else:
            axis = CUT.get(_module(name))
            held[name] = tensor if axis is None else tensor.chunk(mp, axis)[rank].contiguous()
    for name in list(held):
        if name.endswith("wo_a.weight"):
            held[name] = dequantize_fp8(held[name], held.pop(_scale_of(name)))
        elif _EXPERT.search(name) and held[name].dtype == torch.int8:
            if expert_dtype == "fp8":
                held[name], held[_scale_of(name)] = fp4_to_fp8(held[name], held[_scale_of(name)], 32)
            else:
                held[name] = held[name].view(torch.float4_e2m1fn_x2)
    return held


def _rounded_up(tensor: torch.Tensor, mp: int, code: int) -> torch.Tensor:
    """As many rows more, all of the same byte, as make equal parts."""
    rows = torch.full((-tensor.shape[0] % mp, tensor.shape[1]), code, dtype=torch.uint8)
    return torch.cat([tensor.view(torch.uint8), rows]).view(tensor.dtype)


def _module(name: str) -> str:
    """The part of a name that says what is cut: the last but one, or the last where a parameter has no `.weight`."""
    parts = name.split(".")
    return parts[-1] if len(parts) == 1 or parts[-1] not in ("weight", "scale", "bias", "tid2eid") else parts[-2]


def _scale_of(name: str) -> str:
    return name.removesuffix("weight") + "scale"


def dequantize_fp8(weight: torch.Tensor, scale: torch.Tensor, block: int | None = None) -> torch.Tensor:
    """FP8 in square blocks (default: those that the two shapes give) → BF16, multiplied in float32."""
    block = block or weight.shape[0] // scale.shape[0]
    factors = scale.float().repeat_interleave(block, 0).repeat_interleave(block, 1)
    return (weight.float() * factors[: weight.shape[0], : weight.shape[1]]).bfloat16()


def unpack_fp4(weight: torch.Tensor) -> torch.Tensor:
    """Packed FP4 → float32, the low half of a byte first."""
    codes = weight.view(torch.uint8).long()
    values = torch.empty(weight.shape[0], weight.shape[1] * 2)
    values[:, 0::2] = FP4_VALUES[codes % 16]
    values[:, 1::2] = FP4_VALUES[codes // 16]
    return values


def fp4_to_fp8(weight: torch.Tensor, scale: torch.Tensor, block: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed FP4 with a scale for 32 columns → FP8 and a scale for each square block.

    A block's new scale is its largest old one / 64; what that leaves of the old scales goes into the values.
    """
    rows, columns = weight.shape[0], weight.shape[1] * 2
    old = scale.float().view(rows // block, block, columns // block, block // 32)
    new = old.amax((1, 3), keepdim=True) / _HEADROOM
    factors = (old / new).view(rows, columns // 32).repeat_interleave(32, 1)
    cast = (unpack_fp4(weight) * factors).to(torch.float8_e4m3fn)
    return cast, new[:, 0, :, 0].to(torch.float8_e8m0fnu)
