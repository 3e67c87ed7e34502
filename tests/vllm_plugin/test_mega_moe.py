"""MegaMoE's experts go to vLLM's own weight loader, each part with its expert's number. Oracles have the result."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dsv4_shard.errors import LoadRefused
from dsv4_shard.vllm_plugin.mega_moe import MegaMoe

PATH = "model.layers.0.ffn.experts"


class Experts(torch.nn.Module):
    """What the loader reads of vLLM's `DeepGemmMegaMoEExperts`: two experts, from number 4 on."""

    hidden_size, intermediate_size = 256, 128
    experts_start_idx, num_local_experts, num_shared_experts = 4, 2, 1
    _kernel_layout_shard = None

    def __init__(self, fused: bool = False, takes: bool = True) -> None:
        super().__init__()
        self.has_fused_shared_experts, self.takes = fused, takes
        self.calls: list[Any] = []
        for name in ("w13_weight", "w13_weight_scale", "w2_weight", "w2_weight_scale", "shared_l1_weight"):
            self.register_parameter(name, torch.nn.Parameter(torch.zeros(1), requires_grad=False))

    def weight_loader(
        self, param: Any, part: torch.Tensor, name: str, shard: str, expert: int, return_success: bool
    ) -> bool:
        assert param is getattr(self, name)
        self.calls.append((name, shard, expert, tuple(part.shape), int(part.flatten()[0])))
        return self.takes

    def load_shared_expert_weight(self, name: str, part: torch.Tensor) -> None:
        self.calls.append((name, tuple(part.shape), int(part.flatten()[0])))


def model_of(experts: Experts) -> torch.nn.Module:
    model = torch.nn.Module()
    owner = model
    for part in PATH.split(".")[:-1]:
        owner.add_module(part, torch.nn.Module())
        owner = owner.get_submodule(part)
    owner.add_module("experts", experts)
    return model


def numbered(*shape: int) -> torch.Tensor:
    """Rows that hold their number within the first two axes."""
    return torch.arange(shape[0] * shape[1], dtype=torch.int32).reshape(*shape[:2], 1).expand(shape)


def test_files_hold_rows_in_the_order_of_the_checkpoint() -> None:
    mega = MegaMoe(model_of(Experts()))
    wanted = {"other": ("F32", (1,)), f"{PATH}.w13_weight_scale": ("I32", (2, 256, 2))}
    assert mega.as_in_files(wanted) == {
        "other": ("F32", (1,)),
        f"{PATH}.w13_weight": ("I8", (2, 256, 128)),
        f"{PATH}.w13_weight_scale": ("U8", (2, 256, 8)),
        f"{PATH}.w2_weight": ("I8", (2, 256, 64)),
        f"{PATH}.w2_weight_scale": ("U8", (2, 256, 4)),
    }


def test_each_expert_goes_to_the_loader_in_its_parts() -> None:
    experts = Experts()
    mega = MegaMoe(model_of(experts))
    mega.takers[f"{PATH}.w13_weight"].take(numbered(2, 256, 128))
    mega.takers[f"{PATH}.w2_weight_scale"].take(numbered(2, 256, 4))
    assert experts.calls == [
        ("w13_weight", "w1", 4, (128, 128), 0),
        ("w13_weight", "w3", 4, (128, 128), 128),
        ("w13_weight", "w1", 5, (128, 128), 256),
        ("w13_weight", "w3", 5, (128, 128), 384),
        ("w2_weight_scale", "w2", 4, (256, 4), 0),
        ("w2_weight_scale", "w2", 5, (256, 4), 256),
    ]
    assert mega.takers[f"{PATH}.w13_weight"].like.shape == (2, 256, 128)


def test_a_fused_shared_expert_is_taken_from_its_own_names() -> None:
    experts = Experts(fused=True)
    mega = MegaMoe(model_of(experts))
    held = mega.as_in_files({f"{PATH}.shared_l1_weight": ("F8_E4M3", (256, 256))})
    shared = "model.layers.0.ffn.shared_experts"
    assert f"{PATH}.shared_l1_weight" not in held
    assert held[f"{shared}.gate_up_proj.weight"] == ("F8_E4M3", (256, 256))
    assert held[f"{shared}.down_proj.weight_scale_inv"] == ("F8_E8M0", (2, 1))
    mega.takers[f"{shared}.gate_up_proj.weight"].take(numbered(1, 256, 256)[0])
    assert experts.calls == [(f"{shared}.w1.weight", (128, 256), 0), (f"{shared}.w3.weight", (128, 256), 128)]


def test_an_expert_that_vllm_does_not_take_is_a_refusal() -> None:
    mega = MegaMoe(model_of(Experts(takes=False)))
    with pytest.raises(LoadRefused, match=r"^w13_weight: vLLM does not take expert 4 on this rank"):
        mega.takers[f"{PATH}.w13_weight"].take(numbered(2, 256, 128))


def test_most_models_have_none() -> None:
    model = torch.nn.Module()
    model.experts = SimpleNamespace()  # type: ignore[assignment]
    wanted = {"a": ("F32", (1,))}
    assert MegaMoe(model).as_in_files(wanted) == wanted
