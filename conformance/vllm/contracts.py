"""Which parameters vLLM's model classes declare for a layout, and the verdict of its constructors."""

from typing import Any

import torch

from conformance.cases import Case
from conformance.vllm.bringup import bring_up, build, method_of, parameters_of


def contract(job: dict[str, Any]) -> dict[str, Any]:
    """Build a model without memory: its `contract`, and what it resolved to (`facts`)."""
    case = Case(**job["case"])
    config, model_config = bring_up(case, job["rank"], job["model"])
    model: Any = build(config, model_config, "meta")
    declared = parameters_of(model)
    attention = _first_layer(model, case).attn
    method, _, backend = method_of(model).partition(" ")
    facts = {
        "moe": {"method": method, "backend": backend},
        "n_params": len(declared),
        "aliases_removed": sorted(model.state_dict().keys() - declared.keys()),
        "attn_cls": type(attention).__name__,
        "n_local_groups": attention.n_local_groups,
        "seq_parallel": getattr(model.model, "use_sequence_parallel", False),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in declared.values()),
    }
    return {"facts": facts, "contract": _describe(declared)}


def _first_layer(model: Any, case: Case) -> Any:
    if case.draft:
        return next(iter(model.model.layers.values())).mtp_block
    return model.model.layers[0]


def _describe(parameters: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in parameters.items()
    ]
