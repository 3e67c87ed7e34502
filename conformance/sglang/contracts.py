"""Which parameters SGLang's model classes declare for a layout, and the verdict of its constructors."""

from typing import Any

import torch
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_executor.model_runner_components.moe_ep_setup import check_quantized_moe_compatibility
from sglang.srt.runtime_context import get_exec, get_parallel

from conformance.cases import Case
from conformance.sglang.bringup import bring_up, build
from conformance.sglang.oracle import first_layer, method_of


def contract(job: dict[str, Any]) -> dict[str, Any]:
    """Build a model without memory: its `contract`, and what it resolved to (`facts`)."""
    case = Case(**job["case"])
    config = bring_up(job)
    facts = _resolved(config)
    model: Any = build(config, "meta")
    layer = first_layer(model, case)
    facts |= {
        "n_local_heads": layer.self_attn.n_local_heads,
        "n_local_groups": layer.self_attn.n_local_groups,
        "moe_method": method_of(model, case),
    }
    return {"facts": facts, "contract": _declared(model)}


def _resolved(config: ModelConfig) -> dict[str, Any]:
    parallel = get_parallel()
    return {
        "resolved_runner": str(get_exec().moe.moe_runner_backend),
        "ep_resolved": parallel.moe_ep_size,
        "moe_tp": parallel.moe_tp_size,
        "attn_tp": parallel.attn_tp_size,
        "is_fp4_experts": config.is_fp4_experts,
        "check_quantized_moe": _late_check(config),
    }


def _late_check(config: ModelConfig) -> str:
    """What SGLang checks only after it has built the model."""
    parallel = get_parallel()
    try:
        check_quantized_moe_compatibility(
            model_config=config,
            tp_size=parallel.tp_size,
            moe_ep_size=parallel.moe_ep_size,
            moe_dp_size=parallel.moe_dp_size,
        )
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


def _declared(model: torch.nn.Module) -> list[dict[str, Any]]:
    parameters = dict(model.named_parameters())
    return [
        {
            "name": name,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "kind": "param" if name in parameters else "buffer",
        }
        for name, tensor in model.state_dict().items()
    ]
