"""Checkpoints as other tools export them: the tensors in place of a quantized weight, and what config.json says.

The names, dtypes and config fields are those that the tools write, and that SGLang 0.5.23 and vLLM 0.33.0 create
parameters for: `quantization/mlx.py` and mlx-lm 0.32.2, `quantization/modelslim/schemes/`, compressed-tensors 0.18.0
(`compressors/`), `quantization/quark/`, `quantization/gptq/`, `quantization/awq/`, bitsandbytes' `QuantState.as_dict`,
nvidia-modelopt 0.47.0 (`export/unified_export_hf.py`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from support.checkpoints.full_size import Tensors

Shape = tuple[int, int]


class Export(NamedTuple):
    """How a tool exports: the tensors of a weight `[rows, columns]`, what it adds to config.json, files beside it."""

    store: Callable[[str, int, int], Tensors]
    config: dict[str, Any]
    files: tuple[str, ...] = ()


def _mlx(name: str, rows: int, cols: int) -> Tensors:
    return {
        f"{name}.weight": ("U32", (rows, cols // 4)),
        f"{name}.scales": ("BF16", (rows, cols // 64)),
        f"{name}.biases": ("BF16", (rows, cols // 64)),
    }


def _modelslim(name: str, rows: int, cols: int) -> Tensors:
    return {
        f"{name}.weight": ("I8", (rows, cols)),
        f"{name}.weight_scale": ("BF16", (rows, 1)),
        f"{name}.weight_offset": ("BF16", (rows, 1)),
    }


def _modelslim_w4a8(name: str, rows: int, cols: int) -> Tensors:
    return {
        f"{name}.weight": ("I8", (rows // 2, cols)),
        f"{name}.weight_scale": ("F32", (rows, 1)),
        f"{name}.weight_offset": ("F32", (rows, 1)),
        f"{name}.scale_bias": ("F32", (rows, 1)),
    }


def _packed(name: str, rows: int, cols: int) -> Tensors:
    return {
        f"{name}.weight_packed": ("I32", (rows, cols // 8)),
        f"{name}.weight_scale": ("BF16", (rows, cols // 32)),
        f"{name}.weight_shape": ("I64", (2,)),
    }


def _rows(dtype: str) -> Callable[[str, int, int], Tensors]:
    def store(name: str, rows: int, cols: int) -> Tensors:
        return {f"{name}.weight": (dtype, (rows, cols)), f"{name}.weight_scale": ("BF16", (rows, 1))}

    return store


def _gptq(name: str, rows: int, cols: int) -> Tensors:
    return {
        f"{name}.qweight": ("I32", (cols // 8, rows)),
        f"{name}.qzeros": ("I32", (cols // 128, rows // 8)),
        f"{name}.scales": ("F16", (cols // 128, rows)),
        f"{name}.g_idx": ("I32", (cols,)),
    }


def _awq(name: str, rows: int, cols: int) -> Tensors:
    return {key: tensor for key, tensor in _gptq(name, rows, cols).items() if not key.endswith("g_idx")}


def _bitsandbytes(name: str, rows: int, cols: int) -> Tensors:
    return {
        f"{name}.weight": ("U8", (rows * cols // 2, 1)),
        f"{name}.weight.absmax": ("U8", (rows * cols // 64,)),
        f"{name}.weight.quant_map": ("F32", (16,)),
        f"{name}.weight.quant_state.bitsandbytes__nf4": ("U8", (80,)),
    }


def _per_tensor(name: str, rows: int, cols: int) -> Tensors:
    return {
        f"{name}.weight": ("F8_E4M3", (rows, cols)),
        f"{name}.weight_scale": ("F32", ()),
        f"{name}.input_scale": ("F32", ()),
    }


def _nvfp4(name: str, rows: int, cols: int) -> Tensors:
    return {
        f"{name}.weight": ("U8", (rows, cols // 2)),
        f"{name}.weight_scale": ("F8_E4M3", (rows, cols // 16)),
        f"{name}.weight_scale_2": ("F32", ()),
        f"{name}.input_scale": ("F32", ()),
    }


def _mxfp4(name: str, rows: int, cols: int) -> Tensors:
    return {f"{name}.weight": ("U8", (rows, cols // 2)), f"{name}.weight_scale": ("U8", (rows, cols // 32))}


def _hqq(name: str, rows: int, cols: int) -> Tensors:
    return {f"{name}.W_q": ("U8", (rows, cols // 2)), f"{name}.meta": ("U8", (80,))}


_FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}

EXPORTS: dict[str, Export] = {
    "MLX": Export(_mlx, {"quantization": {"group_size": 64, "bits": 8},
                         "quantization_config": {"group_size": 64, "bits": 8}}),
    "ModelSlim": Export(_modelslim, {}, ("quant_model_description.json",)),
    "ModelSlim W4A8, whose config was left as it was": Export(_modelslim_w4a8, {"quantization_config": _FP8}),
    "compressed-tensors": Export(_packed, {"quantization_config": {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32, "type": "int"}}}}}),
    "compressed-tensors INT8": Export(_rows("I8"), {"quantization_config": {
        "quant_method": "compressed-tensors", "format": "int-quantized"}}),
    "compressed-tensors FP8": Export(_rows("F8_E4M3"), {"quantization_config": {
        "quant_method": "compressed-tensors", "format": "float-quantized"}}),
    "AMD Quark": Export(_mxfp4, {"quantization_config": {
        "quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32}}}}),
    "GPTQ": Export(_gptq, {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}),
    "AWQ": Export(_awq, {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}),
    "AutoRound": Export(_gptq, {"quantization_config": {"quant_method": "auto-round", "bits": 4}}),
    "GPTQ, AWQ or AutoRound": Export(_gptq, {}),
    "bitsandbytes": Export(_bitsandbytes, {"quantization_config": {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}),
    "NVIDIA ModelOpt": Export(_per_tensor, {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}},
                              ("hf_quant_config.json",)),
    "NVIDIA ModelOpt, without a word in config.json": Export(_per_tensor, {}, ("hf_quant_config.json",)),
    "HQQ": Export(_hqq, {"quantization_config": {"quant_method": "hqq"}}),
}  # fmt: skip

NVFP4 = Export(_nvfp4, {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}})
"""NVIDIA's for a family of which no NVFP4 release is read, such as DeepSeek-V3."""


def exported(tensors: Tensors, export: Export) -> Tensors:
    """Return `tensors` with each quantized weight, and its scale, as a tool stores it; names are kept."""
    scales = {name for name in tensors if name.endswith((".scale", ".weight_scale_inv"))}
    modules = {name.rpartition(".")[0] for name in scales}
    result: Tensors = {}
    for name, (dtype, shape) in tensors.items():
        module, _, part = name.rpartition(".")
        if module in modules and part == "weight":
            result |= export.store(module, shape[0], shape[1] * (2 if dtype == "I8" else 1))
        elif name not in scales:
            result[name] = (dtype, shape)
    return result
