"""Where vLLM's own start stops first: its configuration, its constructors, or its `load_weights`.

Weights are tensors without memory, of the checkpoint's names, dtypes and shapes: what a loader refuses by a shape it
refuses here too. `process_weights_after_loading` is not run, since it calls kernels.
"""

import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from vllm.config import set_current_vllm_config
from vllm.models.deepseek_v41.common import engram
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.worker import workspace

from conformance.cases import Case
from conformance.first_stops import stop_of, weights_of
from conformance.vllm.bringup import InsteadOfCuda, bring_up, build
from conformance.vllm.stubs import native_operators


def first_stop(job: dict[str, Any]) -> dict[str, Any]:
    """The stage, error and place of the first stop; empty if the model is loaded."""
    return stop_of("vllm", _steps(job))


def _steps(job: dict[str, Any]) -> Iterator[str]:
    yield "configuration"
    case = Case(**job["case"])
    config, model_config = bring_up(case, 0, job["model"], **job["options"])
    yield "construction"
    _stub_hardware()
    model: Any = build(config, model_config, "meta")
    yield "loading"
    with (
        set_current_vllm_config(config),
        native_operators(),
        set_default_torch_dtype(model_config.dtype),
        torch.device("meta"),
        InsteadOfCuda("meta"),
    ):
        model.load_weights(weights_of(job))


class Workspace:
    """Scratch memory for kernels, which constructors reserve."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: torch.empty(1)


def _stub_hardware() -> None:
    """Answer what V3.2's attention and V4.1's engram tables ask of the GPU and the host while they are built."""
    workspace._manager = Workspace()
    properties: Any = SimpleNamespace(
        multi_processor_count=78, major=9, minor=0, total_memory=141 << 30, name="NVIDIA H20"
    )
    torch.cuda.get_device_properties = lambda *_, **__: properties
    engram.is_uva_available = lambda *_: True
    engram.get_engram_dp_size = lambda: 1
    engram.build_compressed_token_map = lambda *_: ([0] * 129280, 99092)  # as V4.1's tokenizer gives
    transformers: Any = importlib.import_module("transformers")
    transformers.AutoTokenizer.from_pretrained = staticmethod(lambda *_, **__: None)
