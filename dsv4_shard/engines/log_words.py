"""How each engine's logs and tracebacks look: what `explain` tells an engine, its version and its loader by.

Paths and functions are those of SGLang 0.5.12 to 0.5.23 and vLLM 0.25.0 to 0.33.0.
"""

import re
from dataclasses import dataclass

SGLANG = ("sglang",)
VLLM = ("vllm",)
BOTH = (*SGLANG, *VLLM)
"""Engines that print a message."""

DEFAULT_LOADER = "default"
SHARDED_STATE = "sharded_state"
PRESHARDED = "presharded"
RUNAI = "runai_streamer"
RUNAI_SHARDED = "runai_streamer_sharded"
OURS = "dsv4_shard"
"""Loaders, by their `--load-format`."""

LOADER_CLASSES = {
    "DefaultModelLoader": DEFAULT_LOADER,
    "ShardedStateLoader": SHARDED_STATE,
    "PreshardedModelLoader": PRESHARDED,
    "RunaiModelStreamerLoader": RUNAI,
}
"""The engines' classes of loaders, which both call alike."""

_VERSION = r"v?(\d{1,3}\.\d{1,3}(?:\.\d{1,3})?(?:[.-]?(?:post|rc|dev)\d{1,6})*)"


@dataclass(frozen=True, slots=True)
class LogWords:
    """What an engine's logs are told by.

    Attributes:
        form: Regular expression for the engine's own forms of lines.
        version: Regular expression with the version as its group.
        paths: Parts of the paths of its modules in tracebacks.
        loaders: (part of a path, regular expression for the function, loader); the innermost frame decides.
        bare_loader: The file whose `load_model` is that of a loader of rank files, if it is the innermost frame itself.
        expert_parallel: The option that spreads experts.
    """

    form: re.Pattern[str]
    version: re.Pattern[str]
    paths: tuple[str, ...]
    loaders: tuple[tuple[str, str, str], ...]
    bare_loader: str = ""
    expert_parallel: str = ""


_SGLANG_LOADER = "sglang/srt/model_loader/loader.py"

_VLLM_LOADERS = "vllm/model_executor/model_loader/"

LOG_WORDS = {
    "vllm": LogWords(
        re.compile(r"\((?:EngineCore|APIServer|Worker|ApiServer)[\w ]* pid=\d+\)|non-default args: |V1 LLM engine"),
        re.compile(
            r"(?i)(?:V1 LLM engine \(|vllm(?:-openai)?(?:[ /=:@-]|==| API server)(?:\s?version:?)?\s?|█.*\bversion\s+)"
            + _VERSION
        ),
        ("/vllm/",),
        (
            (_VLLM_LOADERS + "sharded_state_loader.py", "", SHARDED_STATE),
            (_VLLM_LOADERS + "runai_streamer_loader.py", "", RUNAI),
            (_VLLM_LOADERS + "default_loader.py", "", DEFAULT_LOADER),
            (_VLLM_LOADERS + "tensorizer_loader.py", "", "tensorizer"),
        ),
        expert_parallel="--enable-expert-parallel",
    ),
    "sglang": LogWords(
        re.compile(r"ServerArgs\(|server_args=|\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)? (?:[A-Z_]+\d+ ?)+\]"),
        re.compile(r"(?i)sglang(?:[ /=:@-]|==)(?:\s?version:?)?\s?" + _VERSION),
        ("/sglang_plugin/", "/sglang/"),
        (
            ("dsv4_shard/sglang_plugin/", "", OURS),
            (_SGLANG_LOADER, "_presharded|_load_from_presharded|_apply_presharded_file|_first_time_load", PRESHARDED),
            (_SGLANG_LOADER, "load_weights_and_postprocess|load_weights_only|_get_all_weights", DEFAULT_LOADER),
        ),
        bare_loader=_SGLANG_LOADER,
        expert_parallel="--ep N",
    ),
    "trtllm": LogWords(
        re.compile(r"\[TRT-LLM\]|\[TensorRT-LLM\]"),
        re.compile(r"(?i)(?:TensorRT-LLM|tensorrt_llm)(?:[ /=:@-]|==)(?:\s?version:?)?\s?" + _VERSION),
        ("/tensorrt_llm/",),
        (),
    ),
}
"""By the engine's name, in the order in which forms are tried."""
