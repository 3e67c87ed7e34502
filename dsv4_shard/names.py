"""Names that options take, as completion offers them, and the one that was meant where a name is not known.

Completion imports this module, so it imports nothing that takes long, the engines least of all: what it says of them
is held against their own tables by the tests.
"""

import difflib
from collections.abc import Iterable

ENGINES = {
    "sglang": "SGLang",
    "vllm": "vLLM",
    "reference": "DeepSeek's own generate.py",
    "trtllm": "TensorRT-LLM: planned only, no files are written",
    "node": "a folder a node, for stock loaders",
}

RUNNERS = {
    "sglang": ("flashinfer_mxfp4", "marlin", "triton", "deep_gemm", "auto"),
    "vllm": (
        "marlin",
        "flashinfer_cutlass",
        "flashinfer_trtllm",
        "deep_gemm",
        "triton_unfused",
        "deep_gemm_mega_moe",
        "flashinfer_moe_ep_cutedsl",
        "flashinfer_moe_ep_mega_deep_gemm",
        "triton",
    ),
    "reference": ("tilelang",),
}
"""Engine → its MoE runners or backends; the others have none to name."""

A2A = (
    "deepep",
    "deepep_v2",
    "megamoe",
    "mooncake",
    "nixl",
    "ascend_fuseep",
    "flashinfer",
    "flashinfer_megamoe",
    "mori",
    "pplx",
)
"""SGLang's all-to-all backends: each forces EP = TP and keeps the shared expert whole by itself
(`_shared_expert_use_tp1`)."""

VERSIONS = {
    "sglang": ("0.5.23",),
    "vllm": ("0.33.0", "0.25.0", "0.28.0", "0.27.0", "0.26.0"),
    "reference": ("V4", "V4.1", "V3", "V3.2"),
    "trtllm": ("02586bf",),
    "node": ("0.5.23",),
}
"""Engine → versions that its rules know, the newest that runs first; vLLM's last three are known to be broken."""

SHARED_EXPERTS = {
    "auto": "as the engine does it, else the next of its ways that runs",
    "whole": "all of it on every rank",
    "split": "cut over the ranks, where whole blocks divide",
    "pad": "cut over the ranks, filled up to whole blocks (vLLM)",
}

RANKINGS = {"weights": "the lightest", "tokens": "the most room for tokens", "sent": "the fewest bytes between GPUs"}

EXPERT_DTYPES = {"fp4": "as FP4 experts are", "fp8": "FP4 experts cast to FP8, as DeepSeek's converter does"}

_MOST = 3
_LONGEST = 100


def as_option(parameter: str) -> str:
    """A parameter of the verbs as the command line has it."""
    return "--" + parameter.replace("_", "-")


def near(name: str, known: Iterable[str]) -> list[str]:
    """Of `known`, those that `name` may have been meant for, the nearest first; `org/name` also by its last part."""
    wanted = name[:_LONGEST].lower()
    parts = {one.lower(): one for one in known} if "/" in wanted else {}
    parts = parts or {part: one for one in known for part in (one.lower().rpartition("/")[2], one.lower())}
    begun = [part for part in parts if wanted and part.startswith(wanted)]
    found = dict.fromkeys(parts[part] for part in [*begun, *difflib.get_close_matches(wanted, parts, n=_MOST)])
    return list(found)[:_MOST]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for who gave a name that is not known: those that come near, then all that there are."""
    known = list(dict.fromkeys(known))
    meant = near(name, known)
    listed = f"Known: {', '.join(known)}."
    return f"Did you mean {' or '.join(meant)}? {listed}" if meant else listed
