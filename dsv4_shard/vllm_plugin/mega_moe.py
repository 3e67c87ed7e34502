"""Experts of DeepGEMM MegaMoE, which vLLM keeps in the order of its kernel, and the files in that of the checkpoint.

The kernel wants gate and up interleaved by 8 rows and scales transposed, and a new DeepGEMM the shared expert too.
vLLM's own weight loader of these parameters (`DeepGemmMegaMoEExperts.weight_loader`) puts them so.
"""

from collections.abc import Callable
from typing import Any

import torch

from dsv4_shard.errors import LoadRefused
from dsv4_shard.loading.checks import Shapes
from dsv4_shard.loading.load import Taker
from dsv4_shard.loading.parameters import meta_tensor
from dsv4_shard.tensors.geometry import FP4_GROUP

_BLOCK = 128
"""Rows and columns of a block of the shared expert's scales, as vLLM requires."""

_SHARED = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}


def mega_layers(model: torch.nn.Module) -> dict[str, Any]:
    """The modules with MegaMoE's experts, by their path."""
    return {path: module for path, module in model.named_modules() if hasattr(module, "_kernel_layout_shard")}


class MegaMoe:
    """The MegaMoE layers of a model; none in most."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.takers: dict[str, Taker] = {}
        """What takes each tensor that files have for them, as a whole."""
        self._shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._replaced: set[str] = set()
        for path, module in mega_layers(model).items():
            self._add_routed(path, module)
            if module.has_fused_shared_experts:
                self._add_shared(path, module)

    def as_in_files(self, wanted: Shapes) -> Shapes:
        """What files hold for a model that wants `wanted`."""
        return {name: shape for name, shape in wanted.items() if name not in self._replaced} | self._shapes

    def _add(self, name: str, dtype: str, shape: tuple[int, ...], take: Callable[[torch.Tensor], None]) -> None:
        self._shapes[name] = (dtype, shape)
        self.takers[name] = Taker(take, meta_tensor(dtype, shape))

    def _add_routed(self, path: str, module: Any) -> None:
        experts, hidden, inner = module.num_local_experts, module.hidden_size, module.intermediate_size
        for name, rows, cols in (("w13", 2 * inner, hidden), ("w2", hidden, inner)):
            for suffix, dtype, each in (("weight", "I8", 2), ("weight_scale", "U8", FP4_GROUP)):
                parameter = f"{name}_{suffix}"
                shape = (experts, rows, cols // each)
                self._add(f"{path}.{parameter}", dtype, shape, _routed_taker(module, parameter))
                self._replaced.add(f"{path}.{parameter}")

    def _add_shared(self, path: str, module: Any) -> None:
        """A launch of the kernel that runs the shared expert too, which files hold as vLLM's MLP."""
        owner = f"{path.removesuffix('experts')}shared_experts"
        inner = module.intermediate_size * module.num_shared_experts
        shapes = {"gate_up_proj": (2 * inner, module.hidden_size), "down_proj": (module.hidden_size, inner)}
        self._replaced |= {f"{path}.{name}" for name, _ in module.named_parameters() if name.startswith("shared_")}
        for linear, (rows, cols) in shapes.items():
            for suffix, dtype, each in (("weight", "F8_E4M3", 1), ("weight_scale_inv", "F8_E8M0", _BLOCK)):
                name = f"{owner}.{linear}.{suffix}"
                self._add(name, dtype, (rows // each, cols // each), _shared_taker(module, owner, linear, suffix))


def _routed_taker(module: Any, parameter: str) -> Callable[[torch.Tensor], None]:
    shards = ("w2",) if parameter.startswith("w2") else ("w1", "w3")

    def take(tensor: torch.Tensor) -> None:
        into = getattr(module, parameter)
        for slot, whole in enumerate(tensor):
            expert = module.experts_start_idx + slot
            for shard, part in zip(shards, whole.to(into.device).chunk(len(shards)), strict=True):
                if not module.weight_loader(into, part, parameter, shard, expert, return_success=True):
                    raise LoadRefused(f"{parameter}: vLLM does not take expert {expert} on this rank")

    return take


def _shared_taker(module: Any, owner: str, linear: str, suffix: str) -> Callable[[torch.Tensor], None]:
    def take(tensor: torch.Tensor) -> None:
        parts = tensor.to(module.w13_weight.device).chunk(len(_SHARED[linear]))
        for shard, part in zip(_SHARED[linear], parts, strict=True):
            module.load_shared_expert_weight(f"{owner}.{shard}.{suffix}", part)

    return take
