"""A process of a stand-in for vLLM that loads rank files: published groups, and a model to be filled.

The model has the parameters that vLLM's own classes declare for a case: names, dtypes and shapes of its oracle. The
stand-in has the names that the plugin imports; `python -m conformance files` runs it in vLLM itself.
"""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from conformance.digests import Oracle
from conformance.states import DTYPES, poison

VERSION = "0.33.0"

_OURS = ("dsv4_shard.vllm_plugin.loader", "dsv4_shard.vllm_plugin.running")

_TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


class BaseModelLoader:
    """The part of vLLM's that loaders inherit."""

    def __init__(self, load_config: Any) -> None:
        self.load_config = load_config


class Process:
    """One rank of a case: what vLLM publishes there, which tests change before they load."""

    def __init__(self, oracle: Oracle, rank: int, monkeypatch: pytest.MonkeyPatch, version: str = VERSION) -> None:
        case = oracle.case
        self.oracle, self.rank = oracle, rank
        self.groups = {
            "tp": SimpleNamespace(world_size=case.tp, rank_in_group=rank % case.tp),
            "dp": SimpleNamespace(world_size=case.dp, rank_in_group=rank // case.tp % case.dp),
            "pp": SimpleNamespace(world_size=case.pp, rank_in_group=rank // case.tp % case.pp),
            "pcp": SimpleNamespace(world_size=1, rank_in_group=0),
        }
        eplb = SimpleNamespace(num_redundant_experts=0)
        self.parallel = SimpleNamespace(enable_expert_parallel=case.ep > 1, eplb_config=eplb)
        self.formats: dict[str, Any] = {}
        for name, members in self._modules(version).items():
            module = ModuleType(name)
            vars(module).update(members)
            monkeypatch.setitem(sys.modules, name, module)
        for name in _OURS:
            monkeypatch.delitem(sys.modules, name, raising=False)

    def _modules(self, version: str) -> dict[str, dict[str, Any]]:
        groups = {f"get_{name}_group": (lambda name=name: self.groups[name]) for name in self.groups}
        register = lambda name: lambda loader: self.formats.setdefault(name, loader)  # noqa: E731
        return {
            "vllm": {"__version__": version},
            "vllm.config": {"get_current_vllm_config": lambda: SimpleNamespace(parallel_config=self.parallel)},
            "vllm.distributed": groups,
            "vllm.model_executor": {},
            "vllm.model_executor.model_loader": {
                "_LOAD_FORMAT_TO_MODEL_LOADER": self.formats,
                "register_model_loader": register,
            },
            "vllm.model_executor.model_loader.base_loader": {"BaseModelLoader": BaseModelLoader},
        }

    def build(self) -> torch.nn.Module:
        """A model with the oracle's parameters, and routed experts where vLLM has them."""
        model, case = torch.nn.Module(), self.oracle.case
        for name, (dtype, shape, _) in self.oracle.ranks[self.rank].items():
            _add(model, name, torch.empty(shape, dtype=_TORCH_DTYPES[dtype]))
        for name in self.oracle.unloaded:
            rows = next(iter(self.oracle.ranks[self.rank].values()))[1]
            _add(model, name, torch.empty(rows))
        poison(model.parameters(), 0xA5)
        ranks = case.tp * case.dp
        rank = self.rank % ranks
        modules: list[Any] = list(model.modules())
        for module in modules:
            if hasattr(module, "w13_weight"):
                ep = (case.ep, rank, 1, 0) if case.ep > 1 else (1, 0, ranks, rank)
                names = ("ep_size", "ep_rank", "tp_size", "tp_rank")
                experts = _linear_map(8 + (case.variant == "fp4-thirds"), case.ep, rank)
                module.expert_map_manager = SimpleNamespace(**dict(zip(names, ep, strict=True)), expert_map=experts)
        return model

    def load(self, folder: Path, model: torch.nn.Module, extra: Any = None) -> None:
        """Load as a worker does: plugins, then the loader of the format, into a model that vLLM has built."""
        from dsv4_shard.vllm_plugin import register

        register()
        register()
        loader = self.formats["dsv4_shard"](SimpleNamespace(model_loader_extra_config=extra))
        config = SimpleNamespace(model=str(folder), runner_type="draft" if self.oracle.case.draft else "generate")
        loader.download_model(config)
        loader.load_weights(model, config)


def _linear_map(experts: int, ep: int, rank: int) -> torch.Tensor | None:
    """As vLLM's `determine_expert_map`: global expert to local slot, -1 elsewhere; None without EP."""
    if ep == 1:
        return None
    base, rest = divmod(experts, ep)
    start, count = rank * base + min(rank, rest), base + (rank < rest)
    placed = torch.full((experts,), -1, dtype=torch.int32)
    placed[start : start + count] = torch.arange(count, dtype=torch.int32)
    return placed


def _add(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    *path, last = name.split(".")
    owner = model
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, torch.nn.Module())
        owner = owner.get_submodule(part)
    owner.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
