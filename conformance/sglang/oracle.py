"""What SGLang's own load_weights puts into a rank's parameters, before anything is made of them for a kernel.

`Compressor.ape` of layers compressed 4:1 is turned around while it is loaded, or by `post_load_weights` if a loader
bypasses `load_weights`. A file must hold it as the checkpoint does; the turned one is kept for `load.py`.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_loader import loader as loaders

from conformance.cases import Case
from conformance.sglang.bringup import InsteadOfCuda, bring_up, build
from conformance.states import POISONS, copy_state, describe, digest, poison, untouched

UNLOADED = re.compile(r".*\.self_attn\.attn(_mqa)?\.[kv]_scale|.*\.experts\.w(13|2)_blockscale_swizzled")
UNLOADED_DRAFT = re.compile(rf"{UNLOADED.pattern}|lm_head\.weight|model\.embed_tokens\.weight")
"""Not in checkpoints: scales of the KV cache; in a draft model, what it shares with its target."""


def oracle(job: dict[str, Any]) -> dict[str, Any]:
    """The state of one rank: `params`, the `unloaded` ones' names, and the digests of `ape` after it is `turned`."""
    case = Case(**job["case"])
    config = bring_up(job)
    leave_out_kernels()
    turn = _do_not_turn()
    (_, one), (model, other) = (_load_over(config, byte) for byte in POISONS)
    unloaded = untouched(one, other)
    pattern = UNLOADED_DRAFT if case.draft else UNLOADED
    strange = [name for name in unloaded if not pattern.fullmatch(name)]
    if strange:
        raise ValueError(f"not loaded by SGLang: {strange}")
    return {
        "params": describe({name: tensor for name, tensor in one.items() if name not in unloaded}),
        "unloaded": unloaded,
        "turned": _turned(model, turn),
        "method": method_of(model, case),
    }


def leave_out_kernels() -> None:
    """Skip what needs a GPU around loading: kernels compiled ahead, and scales of wo_a packed for them on Blackwell."""
    from sglang.srt.models.deepseek_v4 import DeepseekV4ForCausalLM

    DeepseekV4ForCausalLM._prewarm_mhc_kernels = lambda self: None
    DeepseekV4ForCausalLM._setup_fp8_wo_a_scales = lambda self, is_nextn: None


def _do_not_turn() -> Callable[[Any], None]:
    """Have every `ape` loaded as it is stored; returns what would have turned it."""
    from sglang.srt.layers.attention.dsv4.compressor import Compressor

    turn: Callable[[Any], None] = Compressor._apply_ape_hotfix
    Compressor._apply_ape_hotfix = lambda self: setattr(self, "ape_converted", True)
    return turn


def _load_over(config: ModelConfig, byte: int) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A model filled with `byte`, then loaded by the standard loader; and its state."""
    model: Any = build(config, "cpu")
    poison(model.parameters(), byte)
    loader = loaders.DefaultModelLoader(LoadConfig(load_format="auto"))
    with loaders.set_default_torch_dtype(config.dtype), InsteadOfCuda("cpu"):
        model.load_weights(loader._get_all_weights(config, model))
    return model, copy_state(model.state_dict())


def _turned(model: torch.nn.Module, turn: Callable[[Any], None]) -> dict[str, str]:
    digests = {}
    for name, module in model.named_modules():
        if hasattr(module, "ape_converted"):
            turn(module)
            digests[f"{name}.ape"] = digest(module.ape)
    return digests


def method_of(model: Any, case: Case) -> str:
    """Class of the routed experts' quantization method: what the runner has come to."""
    return type(first_layer(model, case).mlp.experts.quant_method).__name__


def first_layer(model: Any, case: Case) -> Any:
    """The first layer of a model's pipeline stage, or of a draft model."""
    if case.draft:
        return model.stages[0] if case.dspark else model.model.decoder
    return model.model.layers[model.model.start_layer]
