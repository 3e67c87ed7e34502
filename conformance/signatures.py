"""Signatures and fields of the parts of SGLang that the plugin imports: of SGLang's own, or of the tests' stand-in.

Standard library only: SGLang's environment imports this module too.
"""

import inspect
import pkgutil
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent.parent / "tests" / "data" / "sglang" / "signatures.json"

CALLED = (
    "sglang.srt.arg_groups.choices.add_load_format_choices",
    "sglang.srt.configs.load_config.LoadConfig._verify_load_format",
    "sglang.srt.eplb.expert_location.get_global_expert_location_metadata",
    "sglang.srt.eplb.expert_location.set_global_expert_location_metadata",
    "sglang.srt.model_loader.loader.BaseModelLoader.__init__",
    "sglang.srt.model_loader.loader.BaseModelLoader.download_model",
    "sglang.srt.model_loader.loader.BaseModelLoader.load_model",
    "sglang.srt.model_loader.loader.DefaultModelLoader.postprocess_weights",
    "sglang.srt.model_loader.loader._get_quantization_config",
    "sglang.srt.model_loader.loader._initialize_model",
    "sglang.srt.model_loader.loader.get_model_loader",
    "sglang.srt.model_loader.loader.post_load_weights",
    "sglang.srt.model_loader.loader.set_default_torch_dtype",
    "sglang.srt.plugins.hook_registry.HookRegistry.apply_hooks",
    "sglang.srt.plugins.hook_registry.HookRegistry.register",
    "sglang.srt.runtime_context.get_exec",
    "sglang.srt.runtime_context.get_parallel",
)

DATACLASSES = (
    "sglang.srt.configs.load_config.LoadConfig",
    "sglang.srt.eplb.expert_location.ExpertLocationMetadata",
)

ENUMS = ("sglang.srt.configs.load_config.LoadFormat", "sglang.srt.plugins.hook_registry.HookType")


def signatures() -> dict[str, str]:
    """Parameters of each function of CALLED, without annotations."""
    return {name: _parameters(pkgutil.resolve_name(name)) for name in CALLED}


def members() -> dict[str, list[str]]:
    """Fields of each of DATACLASSES, and names of each of ENUMS."""
    found = {name: sorted(field.name for field in fields(pkgutil.resolve_name(name))) for name in DATACLASSES}
    return found | {name: sorted(pkgutil.resolve_name(name).__members__) for name in ENUMS}


def calls_in_order(function: Any, names: frozenset[str]) -> list[str]:
    """Those of `names` that a method calls on itself, in the order of its source."""
    return [name for name in re.findall(r"self\.(\w+)\(", inspect.getsource(function)) if name in names]


def _parameters(function: Any) -> str:
    signature = inspect.signature(function)
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()]
    return str(inspect.Signature(bare))
