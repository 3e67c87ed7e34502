"""Names the tool that wrote a checkpoint in a format which is not read here: MLX, ModelSlim, compressed-tensors, ...

A checkpoint is looked at only where its tensors have no role, or a format that no release has. Then one finding says
which tool wrote it and what shows that, and takes the place of all others: none of them would help. Evidence is the
`quant_method` of config.json, parts of names that only this tool writes, or the file in which it describes its work.

The table follows what the tools write and what the engines look for: mlx-lm 0.32.2 (`utils.py`), msmodelslim as
SGLang 0.5.23 reads it (`quantization/modelslim/`), compressed-tensors 0.18.0 (`config/base.py`), amd-quark 0.13
(`torch/export/`), nvidia-modelopt 0.47.0 (`torch/export/`), auto-round 0.16.1 (`export/`), and for the other names the
parameters of SGLang's `layers/quantization/`. Who reads a format follows the tables of methods of SGLang 0.5.23
(`quantization/__init__.py`) and vLLM 0.33.0 (`quantization/__init__.py`).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsv4_shard.checkpoint.findings import some
from dsv4_shard.tensors.header import Tensor
from dsv4_shard.text.sanitize import short, short_name

OTHER_EXPORT = "other-export"
"""Code of the finding that names another tool's export."""

NATIVE_METHODS = ("fp8", "mxfp8", "nvfp4")
"""`quant_method` of DeepSeek's and NVIDIA's releases, and names that say no more than the dtype."""

NEXT = "To plan, reshard or verify, name the checkpoint that it was made from."

_BOTH = "SGLang and vLLM have a reader for it; whether it takes this model is not verified here."


@dataclass(frozen=True, slots=True)
class Exporter:
    """A tool, the marks that it leaves, and what reads its exports.

    Attributes:
        title: Name of the tool in messages.
        readers: A sentence: what reads the export.
        methods: Values of `quant_method` in config.json.
        parts: Last parts of tensor names that other tools of this table do not write.
        files: Regular expression for the name of its description file.
        within: Text within tensor names that only it writes; empty for none.
    """

    title: str
    readers: str
    methods: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    files: str = r"(?!)"
    within: str = ""


MLX = Exporter(
    "MLX",
    "mlx-lm reads it, on Apple silicon (as SGLang does there with SGLANG_USE_MLX=1); no engine does on other GPUs.",
    parts=("scales", "biases"),
    within=".switch_mlp.",
)

EXPORTERS = (
    Exporter(
        "ModelSlim",
        "vLLM-Ascend, MindIE and SGLang read it, on Ascend NPUs; SGLang, vLLM and TensorRT-LLM on NVIDIA GPUs do not.",
        methods=("modelslim", "ascend"),
        parts=("weight_offset", "deq_scale", "quant_bias", "input_offset", "weight_scale_second",
               "weight_offset_second", "scale_bias"),
        files=r"quant_model_description.*\.json",
    ),
    Exporter(
        "compressed-tensors", _BOTH,
        methods=("compressed-tensors", "compressed_tensors"),
        parts=("weight_packed", "weight_shape", "weight_global_scale", "input_global_scale", "weight_g_idx"),
    ),
    Exporter("AMD Quark", f"It is made for AMD GPUs: {_BOTH}", methods=("quark", "quark_mxfp4", "quark_int4fp8_moe"),
             parts=("output_scale",)),
    Exporter("AutoRound", _BOTH, methods=("auto-round", "auto-round-int8", "auto_round", "intel/auto-round")),
    Exporter("AWQ", _BOTH, methods=("awq", "awq_marlin", "auto_awq")),
    Exporter("GPTQ", _BOTH, methods=("gptq", "gptq_marlin", "gptqmodel", "auto_gptq")),
    Exporter("GPTQ, AWQ or AutoRound", _BOTH, parts=("qweight", "qzeros", "g_idx"),
             files=r"quanti[sz]e_config\.json|quant_config\.json"),
    Exporter(
        "bitsandbytes",
        "Transformers and SGLang (`--load-format bitsandbytes`) read it; vLLM 0.33.0 has no such method.",
        methods=("bitsandbytes",),
        parts=("absmax", "quant_map", "nested_absmax", "nested_quant_map", "bitsandbytes__nf4", "bitsandbytes__fp4",
               "SCB"),
    ),
    Exporter(
        "NVIDIA ModelOpt", f"TensorRT-LLM reads it. {_BOTH}",
        methods=("modelopt", "modelopt_fp4", "modelopt_fp8", "modelopt_mixed", "modelopt_mxfp8", "petit_nvfp4"),
        parts=("weight_scale_2", "pre_quant_scale"),
        files=r"hf_quant_config\.json",
    ),
    Exporter("torchao", "Transformers and vLLM read it; SGLang 0.5.23 has no such method.", methods=("torchao",)),
    Exporter("HQQ", "Transformers reads it; SGLang and vLLM have no such method.", methods=("hqq",), parts=("W_q",)),
    Exporter("ExLlama (EXL2, EXL3)", "ExLlama and TabbyAPI read it; SGLang and vLLM do not.", methods=("exl2", "exl3"),
             parts=("trellis", "suh", "svh", "q_weight", "q_scale_max", "q_group_map")),
    Exporter("FBGEMM", "vLLM reads it; SGLang 0.5.23 has no such method.", methods=("fbgemm_fp8",)),
    Exporter("SGLang's W4AFP8 (INT4 experts, FP8 activations)", "SGLang reads it; vLLM does not.", methods=("w4afp8",)),
    Exporter("INT8 blocks", "SGLang reads it; vLLM does not.", methods=("blockwise_int8",)),
    Exporter("INT8 rows (W8A8)", "SGLang reads w8a8_int8, vLLM experts_int8.", methods=("w8a8_int8", "experts_int8")),
    Exporter("AQLM", "Transformers reads it.", methods=("aqlm",), parts=("codebooks",)),
    MLX,
)  # fmt: skip
"""The tools, in the order in which marks in tensor names are looked for: GPTQ's `scales` have `qweight`, MLX's not."""

_BITS = ("bits", "w_bit", "num_bits", "weight_bits")

_GROUPS = ("group_size", "q_group_size")

_WORDS = ("quant_algo", "moe_quant_algo", "format", "quant_format", "packing_format", "bnb_4bit_quant_type", "dtype",
          "mode")  # fmt: skip


def unknown_export(document: Mapping[str, Any], odd: Sequence[str], count: int) -> str:
    """Return what shows that `odd` of `count` tensors are of a format that is in no table here."""
    method = _quantization(document).get("quant_method")
    said = f"; {_CONFIG} says quant_method {short(method)}" if method not in (None, *NATIVE_METHODS) else ""
    return (
        f"an export in a format that is not known here: {len(odd):,} of {count:,} tensors have names or dtypes that no "
        f"release has: {some(list(odd))}{said}."
    )


def name_export(
    document: Mapping[str, Any], files: Iterable[str], tensors: Mapping[str, Tensor], odd: Sequence[str]
) -> str | None:
    """Return the tool that wrote a checkpoint, what shows it and what reads it; None if nothing shows a tool.

    Args:
        document: config.json.
        files: Names of the files in its folder.
        tensors: Name → tensor.
        odd: Names without a role, or of an unknown format. A few of them are damage; many, or a tool's own, its export.
    """
    quantization = _quantization(document)
    parts = Counter(name.rpartition(".")[2] for name in odd)
    exporter, shown = _exporter(quantization, list(files), parts, odd) or (None, "")
    if exporter is None or (_MANY * len(odd) < len(tensors) and parts.keys().isdisjoint(exporter.parts)):
        return None
    details = ", ".join(_details(quantization)) if shown.startswith(_CONFIG) else ""
    stored = _stored_as(tensors)
    named = f"an export of {exporter.title}{details and f' ({details})'}{stored and f': {stored}'}"
    return f"{named}. {shown}. {exporter.readers}"


_MANY = 20
"""A tool's mark outside of tensor names counts where at least one tensor in so many is odd."""

_CONFIG = "config.json"


def _stored_as(tensors: Mapping[str, Tensor]) -> str:
    """Return how most quantized weights are stored: `66 × weight U32, biases BF16, scales BF16`; empty for none."""
    modules: dict[str, dict[str, str]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = tensor.dtype
    kinds = Counter(tuple(sorted(parts.items())) for parts in modules.values() if len(parts) > 1)
    if not kinds:
        return ""
    kind, count = kinds.most_common(1)[0]
    kind = tuple(sorted(kind, key=lambda part: not part[0].endswith("weight")))
    return f"{count:,} × {', '.join(f'{short_name(part)} {dtype}' for part, dtype in kind[:_PARTS_SHOWN])}"


_PARTS_SHOWN = 6


def _exporter(
    quantization: Mapping[str, Any], files: list[str], parts: Mapping[str, int], odd: Sequence[str]
) -> tuple[Exporter, str] | None:
    """Return the tool and the evidence for it."""
    method = quantization.get("quant_method")
    named = next((one for one in EXPORTERS if isinstance(method, str) and method.lower() in one.methods), None)
    if named is not None:
        return named, f"{_CONFIG} says quant_method {short(method)}"
    if method is None and _is_mlx(quantization):
        return MLX, f"{_CONFIG} has MLX's `quantization`"
    for one in EXPORTERS:
        described = [name for name in files if re.fullmatch(one.files, name)]
        shown = [part for part in one.parts if part in parts]
        if described:
            return one, f"{some(described)} describes it"
        if shown:
            return one, f"It writes tensors called {', '.join(shown[:_PARTS_SHOWN])}"
        if within := next((name for name in odd if one.within and one.within in name), None):
            return one, f"It names experts as {short_name(within)}"
    return None


def _is_mlx(quantization: Mapping[str, Any]) -> bool:
    """Whether a config has MLX's form: bits and group size, and no method (SGLang's `quantization/mlx.py`)."""
    return all(type(quantization.get(key)) is int for key in ("bits", "group_size"))


def _quantization(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return config.json's description of the quantization, of the language model if that is nested; empty for none."""
    nested = document.get("text_config")
    for place in (document, nested if isinstance(nested, dict) else {}):
        for key in ("quantization_config", "compression_config", "quantization"):
            if isinstance(found := place.get(key), dict):
                return found
    return {}


def _details(quantization: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a config says of its format in words: `pack-quantized`, `4 bits`, `groups of 128`."""
    places = list(_weights(quantization))
    for keys, words in ((_WORDS, "{}"), (_BITS, "{} bits"), (_GROUPS, "groups of {}")):
        values = [place[key] for key in keys for place in places if isinstance(place.get(key), str | int)]
        for value in list(dict.fromkeys(value for value in values if not isinstance(value, bool)))[:_MOST_WORDS]:
            if isinstance(value, str) or value > 0:
                yield words.format(short_name(str(value)))


_MOST_WORDS = 2


def _weights(quantization: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the objects that describe weights: the whole, compressed-tensors' groups, and Quark's global config."""
    yield quantization
    groups = quantization.get("config_groups")
    everywhere = quantization.get("global_quant_config")
    for group in (*(groups.values() if isinstance(groups, dict) else ()), everywhere):
        weights = group.get("weights", group.get("weight")) if isinstance(group, dict) else None
        yield from (one for one in (weights if isinstance(weights, list) else [weights]) if isinstance(one, dict))
