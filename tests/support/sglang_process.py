"""A process of SGLang's stand-in that loads rank files: plugin discovery, published facts, and a model to be filled.

The model has the parameters that SGLang's own classes declare for a case: names, dtypes and shapes of its oracle. Every
byte is 0xA5 until something is loaded.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conformance.digests import Oracle, Params
from conformance.states import DTYPES, describe, poison

STANDIN = Path(__file__).parent / "standin"
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
BACKENDS = {
    "Fp8MoEMethod": "triton",
    "Mxfp4MarlinMoEMethod": "marlin",
    "Mxfp4FlashinferCutlassMoEMethod": "flashinfer_mxfp4",
}


@contextmanager
def standin() -> Iterator[None]:
    """Import SGLang's stand-in as `sglang`, and forget it and the modules that imported it afterwards."""
    sys.path.insert(0, str(STANDIN))
    try:
        yield
    finally:
        sys.path.remove(str(STANDIN))
        ours = ("dsv4_shard.sglang_plugin.loader", "dsv4_shard.sglang_plugin.running")
        for name in [name for name in sys.modules if name.partition(".")[0] == "sglang" or name in ours]:
            del sys.modules[name]


class Model(torch.nn.Module):
    """A model with an oracle's parameters. `steps` are what loaders called, each with the state at that time."""

    def __init__(self, oracle: Oracle, rank: int) -> None:
        super().__init__()
        self.steps: list[tuple[str, Params]] = []
        for name, (dtype, shape, _) in oracle.ranks[rank].items():
            self._add(name, torch.empty(shape, dtype=TORCH_DTYPES[dtype]))
        layers = {_layer_of(name) for name in oracle.ranks[rank]}
        for name in filter(lambda name: oracle.case.pp == 1 or _layer_of(name) in layers, oracle.unloaded):
            self._add(name, torch.empty((), dtype=torch.float32))
        poison(self.parameters(), 0xA5)
        for module in self.modules():
            if hasattr(module, "w13_weight"):
                first = not any(hasattr(one, "quant_method") for one in self.modules())
                self._make_experts(module, oracle, first=first)

    def _add(self, name: str, tensor: torch.Tensor) -> None:
        *path, last = name.split(".")
        owner: torch.nn.Module = self
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, torch.nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))

    def _make_experts(self, module: Any, oracle: Oracle, first: bool) -> None:
        process = (lambda _: self.record("process")) if first else (lambda _: None)
        facts = {"process_weights_after_loading": staticmethod(process)}
        if "Flashinfer" in oracle.method:
            facts["load_up_proj_weight_first"] = True  # type: ignore[assignment]
        module.quant_method = type(oracle.method, (), facts)()
        module.runner_backend = SimpleNamespace(value=BACKENDS[oracle.method])

    def record(self, step: str) -> None:
        self.steps.append((step, describe(self.state_dict())))

    def post_load_weights(self) -> None:
        self.record("post_load")


def _layer_of(name: str) -> str:
    return name.partition(".self_attn.")[0]


class Process:
    """One rank of a case: what SGLang would publish there, which tests change before they load."""

    def __init__(self, oracle: Oracle, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
        import sglang.srt.eplb.expert_location as locations
        from sglang.srt import runtime_context

        self.oracle, self.rank, self.case = oracle, rank, oracle.case
        self.built: list[Model] = []
        tp, ep, dp = self.case.tp, self.case.ep, self.case.dp
        stage, rank = divmod(rank, tp)
        self.parallel = SimpleNamespace(
            tp_rank=rank, tp_size=tp, pp_rank=stage, pp_size=self.case.pp,
            moe_ep_size=ep, moe_dp_size=1, attn_dp_size=dp, attn_cp_size=1,
            enable_dp_lm_head=self.case.dp_lm_head,
            moe_ep_rank=rank // (tp // ep), moe_tp_rank=rank % (tp // ep), attn_tp_rank=rank % (tp // dp),
        )  # fmt: skip
        self.moe = SimpleNamespace(
            elastic_ep_backend=None, ep_num_redundant_experts=self.case.redundant,
            init_expert_location=self.case.locations_file or "trivial",
        )  # fmt: skip
        monkeypatch.setattr(runtime_context, "parallel", self.parallel)
        monkeypatch.setattr(runtime_context, "exec_", SimpleNamespace(moe=self.moe))
        monkeypatch.setattr(locations, "_metadata", None)
        rows = [[slot % 8 for slot in range(8 + self.case.redundant)]] * 3
        if self.case.locations_file:
            rows = json.loads(Path(self.case.locations_file).read_text())["physical_to_logical_map"]
        self.place(rows)
        monkeypatch.setattr(torch.version, "cuda", "12.9")
        self.capability: tuple[int, int] = divmod(self.case.sm, 10)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: self.capability)

    def place(self, rows: list[list[int]]) -> None:
        """Put experts into slots, as `--init-expert-location` does before the model is built."""
        from sglang.srt.eplb.expert_location import ExpertLocationMetadata

        self.put(ExpertLocationMetadata(torch.tensor(rows)))

    def place_nothing(self) -> None:
        """Leave the locations of experts unset."""
        self.put(None)

    def put(self, locations: object) -> None:
        """Set the locations of experts to anything."""
        from sglang.srt.eplb.expert_location import set_global_expert_location_metadata

        set_global_expert_location_metadata(locations, allow_overwrite=True)

    def build(self) -> Model:
        """What `_initialize_model` returns; tests replace it to change the model."""
        return Model(self.oracle, self.rank)

    def _build(self) -> Model:
        self.built.append(self.build())
        return self.built[-1]

    def load(self, folder: Path, extra: Any = None) -> Model:
        """Load as a worker does: plugins, the load format by its name, SGLang's choice of loader, and the loader."""
        from sglang.srt.configs.load_config import LoadConfig
        from sglang.srt.model_loader.loader import get_model_loader
        from sglang.srt.plugins.hook_registry import HookRegistry

        for point in entry_points(group="sglang.srt.plugins"):
            point.load()()
        HookRegistry.apply_hooks()
        config = SimpleNamespace(model_path=str(folder), dtype=torch.bfloat16, build=self._build,
                                 is_draft_model=self.case.draft)  # fmt: skip
        loader = get_model_loader(LoadConfig("dsv4_shard", extra), config)
        loader.download_model(config)
        return loader.load_model(model_config=config, device_config=SimpleNamespace(device="cpu"))
