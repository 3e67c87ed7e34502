"""Loads a rank's files as a worker of that rank would: plugin discovery, choice of loader, the loader itself.

What it has put into the parameters is compared with the oracle at two points: when it hands the model to
`post_load_weights`, and after that. SGLang's stock ShardedStateLoader only warns where a tensor does not fit, and
copies a corner; here a warning is a failure.
"""

from typing import Any

import sglang
import torch
from sglang.srt.configs.device_config import DeviceConfig
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_loader import loader as loaders
from sglang.srt.runtime_context import get_model

from conformance.cases import Case
from conformance.digests import differences
from conformance.sglang.bringup import InsteadOfCuda, bring_up
from conformance.sglang.oracle import UNLOADED, UNLOADED_DRAFT, leave_out_kernels
from conformance.states import describe, digest


def load(job: dict[str, Any]) -> dict[str, Any]:
    """Load with `load_format` and hold against `want`: `loader`, `compared` parameters, `differences`, `warnings`."""
    case = Case(**job["case"])
    config = bring_up(job)
    sglang.__version__ = job.get("version") or sglang.__version__
    leave_out_kernels()
    seen: dict[str, dict[str, Any]] = {}
    _watch_post_load(seen)
    processed = case.fp8_experts and case.sm < 100  # all else is repacked by kernels
    _watch_processing(seen, process=processed)
    warnings: list[str] = []
    loaders.logger.warning = lambda message, *args, **_: warnings.append(message % args)
    loader, model = _load_model(config)
    seen.setdefault("after", describe(model.state_dict()))
    if "before" not in seen:
        raise ValueError(f"{loader} did not call post_load_weights")
    pattern = UNLOADED_DRAFT if case.draft else UNLOADED
    got = {name: param for name, param in seen["before"].items() if not pattern.fullmatch(name)}
    lines = differences(job["want"], got) + _unturned(job["turned"], seen["after"])
    if processed:
        lines += _wrong_cache_scales(model)
    return {"loader": loader, "compared": len(job["want"]), "differences": lines, "warnings": warnings}


def _load_model(config: ModelConfig) -> tuple[str, torch.nn.Module]:
    published = get_model()
    load_config = LoadConfig(
        load_format=published.load_format, model_loader_extra_config=published.model_loader_extra_config
    )
    loader = loaders.get_model_loader(load_config, config)
    with InsteadOfCuda("cpu"):
        model = loader.load_model(model_config=config, device_config=DeviceConfig("cpu"))
    return f"{type(loader).__module__}.{type(loader).__name__}", model


def _watch_post_load(seen: dict[str, Any]) -> None:
    """Keep the state with which `post_load_weights` is called first."""
    from sglang.srt.models.deepseek_v4 import DeepseekV4ForCausalLM
    from sglang.srt.models.deepseek_v4_dspark import DeepseekV4ForCausalLMDSpark

    def watch(model: Any) -> None:
        real = model.post_load_weights

        def watched(self: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
            seen.setdefault("before", describe(self.state_dict()))
            real(self, *args, **kwargs)

        model.post_load_weights = watched

    for model in (DeepseekV4ForCausalLM, DeepseekV4ForCausalLMDSpark):
        watch(model)


def _watch_processing(seen: dict[str, Any], process: bool) -> None:
    """Keep the state that a loader hands over to be processed for kernels; go on only where that needs no GPU."""
    real = loaders.DefaultModelLoader.postprocess_weights

    def watched(model: torch.nn.Module, device: torch.device) -> None:
        seen.setdefault("after", describe(model.state_dict()))
        if process:
            real(model, device)

    loaders.DefaultModelLoader.postprocess_weights = staticmethod(watched)


def _unturned(turned: dict[str, str], after: dict[str, Any]) -> list[str]:
    """`turned` has those of other pipeline stages too."""
    return [
        f"{name}: not turned once after loading"
        for name, want in turned.items()
        if name in after and after[name][2] != want
    ]


def _wrong_cache_scales(model: torch.nn.Module) -> list[str]:
    """Scales of the KV cache must come to be 1.0 where processing has run."""
    one = digest(torch.ones(()))
    scales = {name: tensor for name, tensor in model.state_dict().items() if UNLOADED.fullmatch(name)}
    return [f"{name}: not 1.0" for name, tensor in scales.items() if digest(tensor) != one]
