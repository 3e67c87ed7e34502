"""RankFileLoader, the loader behind `--load-format dsv4_shard`: copies rank files into SGLang's parameters.

`running` compares the running engine with what the files were made for, and `checks` the files with the manifest and
the model, before a byte is copied. The steps after the copy are SGLang's own,
in the order of its default loader: `post_load_weights`, then the processing of each quantization method. Only SGLang
imports this module, and it needs only packages that SGLang installs.
"""

import logging
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from sglang.srt.model_loader import loader as stock

from dsv4_shard.errors import LoadRefused
from dsv4_shard.sglang_plugin.checks import check_apart, check_file, check_parameters, find_manifest, rank_files
from dsv4_shard.sglang_plugin.running import check_place, check_runner, check_running
from dsv4_shard.text.sanitize import short

logger = logging.getLogger(__name__)

_DTYPES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
}

_NEVER_LOADED = (".attn_mqa.k_scale", ".attn_mqa.v_scale")
"""Parameters that are in no checkpoint: SGLang sets them itself."""

_SHARED_WITH_TARGET = frozenset({"model.embed_tokens.weight", "lm_head.weight"})
"""Parameters that a draft model takes from its target after loading."""


class RankFileLoader(stock.BaseModelLoader):  # type: ignore[misc]
    """Loads rank files; see the module. `--model-loader-extra-config '{"verify": true}'` also hashes every tensor."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        options = load_config.model_loader_extra_config or {}
        if options not in ({}, {"verify": True}, {"verify": False}):
            raise LoadRefused(f'--model-loader-extra-config is {short(options)}: {{}} and {{"verify": true}} are known')
        self._verify = options.get("verify", False)

    def download_model(self, model_config: Any) -> None:
        """Do nothing: the files are on disk already."""

    def load_model(self, *, model_config: Any, device_config: Any) -> torch.nn.Module:
        """Build the model, fill its parameters, and finish it as SGLang's default loader does.

        Raises NotAResult or LoadRefused before anything is copied.
        """
        manifest, root, inner = find_manifest(Path(model_config.model_path))
        check_running(manifest.identity, is_draft=bool(inner))
        rank = check_place(manifest.identity)
        device = torch.device(device_config.device)
        quant_config = stock._get_quantization_config(model_config, self.load_config)
        with stock.set_default_torch_dtype(model_config.dtype):
            with device:
                model = stock._initialize_model(model_config, self.load_config, quant_config)
            check_runner(manifest.identity, model)
            files = {root / name: entry for name, entry in rank_files(manifest, inner, rank)}
            headers = {path: check_file(path, entry, rank, verify=self._verify) for path, entry in files.items()}
            held = {n: (i.dtype, i.shape) for header in headers.values() for n, i in header.tensors.items()}
            parameters = model.state_dict()
            check_parameters(held, _shapes(parameters), _optional(parameters, is_draft=bool(inner)))
            check_apart({name: _memory_of(name, parameters[name]) for name in held})
            for path in files:
                with safe_open(path, framework="pt", device="cpu") as file:
                    for name in file.keys():  # noqa: SIM118
                        parameters[name].data.copy_(file.get_tensor(name))
            verified = "bytes" if self._verify else "headers"
            logger.info(
                "dsv4_shard: rank %d: %d parameters from %d files, %s verified", rank, len(held), len(files), verified
            )
            stock.post_load_weights(model)
            prewarm = None if inner else getattr(model, "_prewarm_mhc_kernels", None)
            if prewarm is not None:
                prewarm()
            stock.DefaultModelLoader.postprocess_weights(model, device)
        finished: torch.nn.Module = model.eval()
        return finished


def _shapes(parameters: dict[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {n: (_DTYPES.get(t.dtype, str(t.dtype)), tuple(t.shape)) for n, t in parameters.items()}


def _memory_of(name: str, parameter: torch.Tensor) -> Hashable:
    """A key for a parameter's memory: its own name if it has none, as on the meta device."""
    return (str(parameter.device), parameter.data_ptr()) if parameter.data_ptr() else name


def _optional(parameters: dict[str, torch.Tensor], *, is_draft: bool) -> frozenset[str]:
    never = frozenset(name for name in parameters if name.endswith(_NEVER_LOADED))
    return never | (_SHARED_WITH_TARGET if is_draft else frozenset())
