"""Where SGLang's own start stops first: its argument checks, its constructors, or its `load_weights`.

Weights are tensors without memory, of the checkpoint's names, dtypes and shapes: what a loader refuses by a shape it
refuses here too. `process_weights_after_loading` is not run, since it calls kernels.
"""

import traceback
from collections.abc import Iterator
from typing import Any

import torch
from sglang.srt.arg_groups.validation_hook import check_server_args
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_executor.model_runner_components.moe_ep_setup import check_quantized_moe_compatibility
from sglang.srt.model_loader import loader as loaders
from sglang.srt.runtime_context import get_parallel

from conformance.first_stops import stop_of, weights_of
from conformance.sglang.bringup import InsteadOfCuda, bring_up, build, prepared_args
from conformance.sglang.oracle import leave_out_kernels


def first_stop(job: dict[str, Any]) -> dict[str, Any]:
    """The stage, error and place of the first stop; empty if the model is loaded."""
    return stop_of("sglang", _steps(job))


def _steps(job: dict[str, Any]) -> Iterator[str]:
    yield "configuration"
    check_server_args(prepared_args())
    config = bring_up(job)
    yield "construction"
    _stub_hardware()
    model: Any = build(config, "meta")
    yield "loading"
    leave_out_kernels()
    with loaders.set_default_torch_dtype(config.dtype), InsteadOfCuda("meta"):
        model.load_weights(weights_of(job))
        _check_marlin(model)
    _late_check(config)


def _check_marlin(model: torch.nn.Module) -> None:
    """What Marlin's method checks before it repacks the first layer's experts; the repacking itself needs kernels."""
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if type(method).__name__ == "Mxfp4MarlinMoEMethod":
            try:
                method.process_weights_after_loading(module)
            except Exception as error:
                if traceback.extract_tb(error.__traceback__)[-1].filename.endswith("mxfp4_marlin_moe.py"):
                    raise
            return


def _late_check(config: ModelConfig) -> None:
    """What `ModelRunner` checks once the weights are loaded."""
    parallel = get_parallel()
    check_quantized_moe_compatibility(
        model_config=config,
        tp_size=parallel.tp_size,
        moe_ep_size=parallel.moe_ep_size,
        moe_dp_size=parallel.moe_dp_size,
    )


def _stub_hardware() -> None:
    """Answer what V3.2's indexer asks of the GPU, and V4.1's engram of the tokenizer, while they are built."""
    from sglang.srt.layers import engram
    from sglang.srt.layers.attention.dsa import dsa_indexer

    dsa_indexer.resolve_num_sms = lambda *_: 78
    engram.EngramHasher.from_config = classmethod(lambda cls, *_, **__: torch.nn.Module())
