"""RankFileLoader, the loader behind `--load-format dsv4_shard`: copies rank files into SGLang's parameters.

`checks` compares the files with the running engine before a byte is copied. The steps after the copy are SGLang's own,
in the order of its default loader: `post_load_weights`, then the processing of each quantization method. Only SGLang
imports this module, and it needs only packages that SGLang installs.
"""

import logging
from pathlib import Path
from typing import Any

import sglang
import torch
from safetensors import safe_open
from sglang.srt.model_loader import loader as stock
from sglang.srt.runtime_context import get_parallel

from dsv4_shard.engines.sglang.files import W13_ORDERS
from dsv4_shard.errors import LoadRefused
from dsv4_shard.sglang_plugin.checks import check_file, check_identity, check_parameters, find_manifest, rank_files

logger = logging.getLogger(__name__)

QUANT_METHODS = {
    "marlin": ("Mxfp4MarlinMoEMethod",),
    "flashinfer_mxfp4": ("Mxfp4FlashinferCutlassMoEMethod", "Mxfp4FlashinferTrtllmMoEMethod"),
    "triton": ("Fp8MoEMethod",),
    "deep_gemm": ("Fp8MoEMethod",),
    "auto": ("Fp8MoEMethod",),
}
"""Runner of the routed experts in a plan -> the classes with which SGLang runs them."""

_DTYPES = {
    torch.bfloat16: "BF16",
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
        options = dict(load_config.model_loader_extra_config or {})
        self._verify = bool(options.pop("verify", False))
        if options:
            raise ValueError(f"dsv4_shard: unknown keys in --model-loader-extra-config: {sorted(options)}")

    def download_model(self, model_config: Any) -> None:
        """Do nothing: the files are on disk already."""

    def load_model(self, *, model_config: Any, device_config: Any) -> torch.nn.Module:
        """Build the model, fill its parameters, and finish it as SGLang's default loader does.

        Raises NotAResult or LoadRefused before anything is copied.
        """
        manifest, root, inner = find_manifest(Path(model_config.model_path))
        check_identity(manifest.identity, _what_runs())
        device = torch.device(device_config.device)
        quant_config = stock._get_quantization_config(model_config, self.load_config)
        with stock.set_default_torch_dtype(model_config.dtype):
            with device:
                model = stock._initialize_model(model_config, self.load_config, quant_config)
            _check_runner(manifest.identity, model)
            rank = get_parallel().tp_rank
            files = {root / name: entry for name, entry in rank_files(manifest, inner, rank)}
            headers = {path: check_file(path, entry, rank, verify=self._verify) for path, entry in files.items()}
            held = {n: (i.dtype, i.shape) for header in headers.values() for n, i in header.tensors.items()}
            parameters = model.state_dict()
            check_parameters(held, _shapes(parameters), _optional(parameters, is_draft=bool(inner)))
            for path in files:
                with safe_open(path, framework="pt", device="cpu") as file:
                    for name in file.keys():  # noqa: SIM118
                        parameters[name].data.copy_(file.get_tensor(name))
            logger.info("dsv4_shard: rank %d: %d parameters from %d files", rank, len(held), len(files))
            stock.post_load_weights(model)
            prewarm = None if inner else getattr(model, "_prewarm_mhc_kernels", None)
            if prewarm is not None:
                prewarm()
            stock.DefaultModelLoader.postprocess_weights(model, device)
        finished: torch.nn.Module = model.eval()
        return finished


def _what_runs() -> dict[str, str]:
    """The properties of this process that decide the layout, with the names of `SglangLayout.identity`."""
    parallel = get_parallel()
    major, _ = torch.cuda.get_device_capability()
    return {
        "engine": f"sglang {sglang.__version__}",
        "gpu_family": "Hopper" if major == 9 else "Blackwell",
        "tp": str(parallel.tp_size),
        "ep": str(parallel.moe_ep_size),
        "attention_dp": str(parallel.attn_dp_size),
    }


def _check_runner(wanted: dict[str, str], model: torch.nn.Module) -> None:
    """Check the MoE runner and the order within w13. Shapes do not show that order. Raises LoadRefused."""
    runner = wanted.get("moe_runner", "")
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if not hasattr(module, "w13_weight") or method is None:
            continue
        if type(method).__name__ not in QUANT_METHODS.get(runner, ()):
            raise LoadRefused(f"the shards were made for moe_runner {runner!r}, this one uses {type(method).__name__}")
        order = W13_ORDERS[bool(getattr(method, "load_up_proj_weight_first", False))]
        check_identity(wanted, {"w13_order": order})
        return


def _shapes(parameters: dict[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {n: (_DTYPES.get(t.dtype, str(t.dtype)), tuple(t.shape)) for n, t in parameters.items()}


def _optional(parameters: dict[str, torch.Tensor], *, is_draft: bool) -> frozenset[str]:
    never = frozenset(name for name in parameters if name.endswith(_NEVER_LOADED))
    return never | (_SHARED_WITH_TARGET if is_draft else frozenset())
