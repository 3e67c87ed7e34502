"""What vLLM's own load_weights puts into a rank's parameters, before anything is made of them for a kernel.

Two things are not as vLLM leaves them. Padding of FP4 experts is never written: the parameters are made of zeros, so
zeros are what a file must hold. And E8M0 scales of FP8 experts are given to the loader as F32, since it copies their
bytes as if they were numbers (2^-7 becomes 120): the oracle is the value that they stand for.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from vllm.config import LoadConfig, ModelConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.sharded_state_loader import ShardedStateLoader

from conformance.cases import Case
from conformance.states import POISONS, copy_state, describe, poison, raw
from conformance.vllm.bringup import bring_up, build, method_of, parameters_of

UNLOADED_DRAFT = re.compile(r"(.*\.)?(shared_head\.head|lm_head|embed_tokens)\.weight")
"""In a draft model, what it shares with its target. A sharded-state file must hold them nevertheless."""

_ROUTED_SCALE = re.compile(r".*\.experts\.\d+\.w[123]\.scale")


def oracle(job: dict[str, Any]) -> dict[str, Any]:
    """The state of one rank: `params`, and the `unloaded` ones' names."""
    case = Case(**job["case"])
    config, model_config = bring_up(case, job["rank"], job["model"], draft=job.get("draft"))
    if case.fp8_experts:
        _read_routed_scales_as_numbers()
    model = build(config, model_config, "cpu")
    state = _load(model, config, model_config)
    poison(model.parameters(), POISONS[0])
    unloaded = _unwritten(state, _load(model, config, model_config), case)
    if case.ep > 1:
        _check_filter(model, config, model_config, state, unloaded, case)
    return {
        "params": describe({name: tensor for name, tensor in state.items() if name not in unloaded}),
        "unloaded": unloaded,
        "method": method_of(model),
    }


def _check_filter(
    model: torch.nn.Module,
    config: VllmConfig,
    model_config: ModelConfig,
    state: dict[str, torch.Tensor],
    unloaded: list[str],
    case: Case,
) -> None:
    """Load with `--enable-ep-weight-filter`, which skips weights of experts of other ranks: the state is the same."""
    poison(model.parameters(), POISONS[0])
    config.parallel_config.enable_ep_weight_filter = True
    if _unwritten(state, _load(model, config, model_config), case) != unloaded:
        raise ValueError("--enable-ep-weight-filter: other parameters are not loaded")


def _load(model: torch.nn.Module, config: VllmConfig, model_config: ModelConfig) -> dict[str, torch.Tensor]:
    """Load by the standard loader; returns the state as ShardedStateLoader sees it. It cannot take MegaMoE's scales."""
    with set_current_vllm_config(config):
        loader = DefaultModelLoader(LoadConfig(load_format="auto"))
        loader.load_weights(model, model_config)
    if config.parallel_config.enable_ep_weight_filter and loader.local_expert_ids is None:
        raise ValueError("--enable-ep-weight-filter: the loader skips no experts")
    state = parameters_of(model)
    if all(tensor.is_contiguous() for tensor in state.values()):
        told = ShardedStateLoader._filter_subtensors(model.state_dict())
        assert state.keys() == told.keys(), "aliases are not told as the loader tells them"
    return copy_state(state)


def _unwritten(fresh: dict[str, torch.Tensor], poisoned: dict[str, torch.Tensor], case: Case) -> list[str]:
    """Parameters that are not loaded. Single bytes that are not must be zeros, which only padding is."""
    unloaded = []
    for name, tensor in fresh.items():
        left = raw(tensor) != raw(poisoned[name])
        if case.draft and UNLOADED_DRAFT.fullmatch(name) and bool(left.any()):
            unloaded.append(name)
        elif bool(raw(tensor)[left].any()):
            raise ValueError(f"{name}: vLLM loads {tensor.numel() - int(left.sum())} of {tensor.numel()} values")
    return unloaded


def _read_routed_scales_as_numbers() -> None:
    real = DefaultModelLoader.get_all_weights

    def weights(self: Any, *args: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in real(self, *args):
            is_bytes = tensor.dtype == torch.float8_e8m0fnu and _ROUTED_SCALE.fullmatch(name)
            yield name, tensor.float() if is_bytes else tensor

    DefaultModelLoader.get_all_weights = weights
