"""Where a message comes from: engine, loader and stage, from the frames of its traceback.

The frames are read from the innermost outwards; the first that a table knows decides. `engines.log_words` has the paths
of each engine.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dsv4_shard.engines import LOG_WORDS, RUNAI_SHARDED, SHARDED_STATE, LogWords, StartStage

CONFIGURATION = StartStage.CONFIGURATION
CONSTRUCTION = StartStage.CONSTRUCTION
LOADING = StartStage.LOADING
KV_PLANNING = StartStage.KV_PLANNING
SERVING = StartStage.SERVING
"""Stages of a serving engine's start, in their order."""

FRAME = re.compile(r'File "([^"\n]{1,400})", line (\d{1,7}), in (\S{1,100})')


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a traceback: the file's path with forward slashes, the function, and the line."""

    path: str
    function: str
    line: int


@dataclass(frozen=True, slots=True)
class MessageOrigin:
    """Where a message comes from; None where the log does not show it."""

    engine: str | None = None
    loader: str | None = None
    stage: str | None = None
    frames: tuple[Frame, ...] = ()

    def passes(self, path: str) -> bool:
        """Whether a frame's path contains `path`."""
        return any(path in frame.path for frame in self.frames)


_KV_PLANNING = re.compile(
    r"_?initialize_kv_caches?|get_kv_cache_config\w*|determine_available_memory|_?check_enough_\w+|init_memory_pool\w*|"
    r"profile_max_num_token|_?estimate_max_model_len\w*|profile_run|\w*dummy_run|capture_model|\w*cuda_graphs?"
)
"""Functions that plan or fill the KV cache: whatever they call belongs to that stage."""

_STAGE: tuple[tuple[str, str, str], ...] = (
    (r"v1/core/kv_cache|/mem_cache/", r"", KV_PLANNING),
    (r"", r"\w*load_weights?\w*|\w*weight_loader\w*|\w*load_w(?:13|2)|process_weights_after_loading|"
     r"post_load_weights|\w*safetensors\w*iterator|_prepare_weights|\w*download_weights\w*|"
     r"deepgemm_post_process\w*|load_\w*parallel_weight|load_merged\w*|load_qkv\w*|_load_\w*|copy_parameters?",
     LOADING),
    (r"model_loader/weight_utils|sharded_state_loader|sglang_plugin/", r"", LOADING),
    (r"", r"create_weights|_?initialize_model", CONSTRUCTION),
    (r"/models/|/layers/|distributed/parallel_state", r"__init__|__post_init__", CONSTRUCTION),
    (r"/config/|/configs/|arg_utils|server_args|/arg_groups/|transformers/", r"", CONFIGURATION),
    (r"sglang/srt/model_loader/loader\.py|vllm/model_executor/model_loader/", r"load_model", LOADING),
    (r"", r"forward\w*|execute_model|__call__|run_batch|event_loop\w*", SERVING),
)  # fmt: skip
"""(regular expression for a path, for the function, stage): the innermost frame that one of them fits decides."""


def origin_of(frames: Iterable[Frame], load_format: str | None) -> MessageOrigin:
    """The origin of a message with these frames, outermost first; `load_format` is the one that the log names."""
    inner = tuple(reversed(tuple(frames)))
    engine = next((name for frame in inner if (name := _engine(frame)) is not None), None)
    loader = _loader(inner, LOG_WORDS[engine], load_format) if engine is not None else None
    told = None if load_format in (None, "auto") else load_format
    return MessageOrigin(engine, loader or told, _stage(inner), inner[::-1])


def _engine(frame: Frame) -> str | None:
    names = (name for name, words in LOG_WORDS.items() if any(part in f"/{frame.path}" for part in words.paths))
    return next(names, None)


def _loader(inner: tuple[Frame, ...], words: LogWords, load_format: str | None) -> str | None:
    for frame in inner:
        for part, function, loader in words.loaders:
            if part in frame.path and re.match(function, frame.function):
                return RUNAI_SHARDED if (loader, load_format) == (SHARDED_STATE, RUNAI_SHARDED) else loader
    if words.bare_loader and inner[0].path.endswith(words.bare_loader) and inner[0].function == "load_model":
        return SHARDED_STATE if load_format in (None, "auto") else load_format
    return None


def _stage(inner: tuple[Frame, ...]) -> str | None:
    if any(_KV_PLANNING.fullmatch(frame.function) for frame in inner):
        return KV_PLANNING
    for frame in inner:
        for path, function, stage in _STAGE:
            if re.search(path, frame.path) and (not function or re.fullmatch(function, frame.function)):
                return stage
    return None


_PLACES = (
    (r"/arg_groups/|/config/|/configs/|/arg_utils|/server_args|/environ|/envs|/platforms/|/distributed/|/executor/|/engine/|"
     r"/entrypoints/|/managers/", CONFIGURATION),
    (r"/model_loader/|/parameter\.py", LOADING),
    (r"/mem_cache/|/kv_cache|/pool_configurator|/core/", KV_PLANNING),
    (r"/oracle/|/quantization/\w+\.py", CONSTRUCTION),
    (r"/models/|/layers/|/worker/|/model_executor/|/attention/|/speculative/", SERVING),
)  # fmt: skip
"""(regular expression for a path, stage), for places whose functions say nothing."""


def stage_of_path(path: str) -> str | None:
    """The stage of which a module of an engine is."""
    return next((stage for regex, stage in _PLACES if re.search(regex, path)), None)
