"""Options → checked `Request`, and back to options."""

import shlex
from collections.abc import Mapping
from typing import Any, TypedDict

from dsv4_shard.catalog.options import DEFAULT_ENGINE, EXPERT_DTYPES, SHARED_EXPERTS
from dsv4_shard.catalog.rank_ranges import MAX_RANKS
from dsv4_shard.engines.deployment import Request
from dsv4_shard.engines.registry import ENGINES, find_engine
from dsv4_shard.errors import UsageError
from dsv4_shard.text.sanitize import short
from dsv4_shard.text.suggest import did_you_mean


class LayoutOptions(TypedDict, total=False):
    """The options of `plan` and of `search` that name a layout, or leave a choice open with None."""

    tp: int
    ep: int | None
    dp: int
    engine: str
    runner: str | None
    a2a: str | None
    shared_experts: str
    gpu: str | None
    gpu_memory: str | None
    nodes: int | None
    expert_dtype: str | None
    engine_version: str | None


# --- parts of the verbs --------------------------------------------------------------------------------------------


def request_of(tp: int, *, engine: str = DEFAULT_ENGINE, shared_experts: str = "auto", **others: Any) -> "Request":
    """What is asked for by options that have the names of the command line's. Raises UsageError.

    A runner, all-to-all backend or version that no engine has is a slip of the pen; one that another engine has is for
    the rules, whose plan says what is wrong with it.
    """
    name, engines = find_engine(engine).name, ENGINES.items()
    _refuse_unknown("--runner", others.get("runner"), {one: table.runners for one, table in engines}, name)
    _refuse_unknown("--a2a", others.get("a2a"), {one: table.a2a for one, table in engines}, name)
    _refuse_unknown("--engine-version", others.get("engine_version"), {one: t.versions for one, t in engines}, name)
    return Request(tp, engine=name, shared=shared_experts, **others)


def _refuse_unknown(option: str, given: object, known: Mapping[str, tuple[str, ...]], engine: str) -> None:
    """Raise UsageError for a name that no engine has; those of `engine` are offered."""
    every = [one for names in known.values() for one in names]
    if isinstance(given, str) and given not in every:
        hint = did_you_mean(given, known[engine] or every)
        raise UsageError(f"{option} {short(given)}: no such name is known", hint=hint)


_MAX_NAME_CHARS = 100


def check_request(request: Request) -> None:
    """Refuse numbers, names and choices that mean nothing, also those of an edited plan. Raises UsageError."""
    for name, value in (("tp", request.tp), ("ep", request.ep), ("dp", request.dp), ("nodes", request.nodes)):
        if value is not None and not 1 <= value <= MAX_RANKS:
            raise UsageError(f"--{name} {value}: must be from 1 to {MAX_RANKS}")
    if gpus_of(request) > MAX_RANKS:
        title = find_engine(request.engine).title
        raise UsageError(f"--tp {request.tp} --dp {request.dp}: {title}'s {gpus_of(request)} GPUs are over {MAX_RANKS}")
    names = {"engine": request.engine, "runner": request.runner, "a2a": request.a2a, "gpu": request.gpu,
             "engine-version": request.engine_version, "gpu-memory": request.gpu_memory}  # fmt: skip
    for name, text in names.items():
        if not ((isinstance(text, str) and len(text) <= _MAX_NAME_CHARS) or (text is None and name != "engine")):
            raise UsageError(f"--{name} {short(text)}: must be a name")
    if request.gpu is not None and request.gpu_memory is not None:
        raise UsageError(f"--gpu {short(request.gpu)} and --gpu-memory: a GPU that is named has its own memory")
    if request.shared not in tuple(SHARED_EXPERTS):
        hint = did_you_mean(str(request.shared), SHARED_EXPERTS)
        raise UsageError(f"--shared-experts {short(request.shared)}: there is no such way", hint=hint)
    if request.expert_dtype not in (None, *EXPERT_DTYPES):
        hint = did_you_mean(str(request.expert_dtype), EXPERT_DTYPES)
        raise UsageError(f"--expert-dtype {short(request.expert_dtype)}: no such format of experts", hint=hint)


def gpus_of(request: Request) -> int:
    """GPUs of a request, whose engine need not be a known one: `choose` refuses that later."""
    engine = ENGINES.get(request.engine)
    return engine.gpus(request) if engine else request.tp


def options_of(request: Request, *, engine: bool = True) -> str:
    """The request as options of `plan` and `reshard`."""
    options = [f"--tp {request.tp}"]
    if request.ep is not None:
        options.append(f"--ep {request.ep}")
    if request.dp != 1:
        options.append(f"--dp {request.dp}")
    if engine and request.engine != DEFAULT_ENGINE:
        options.append(f"--engine {request.engine}")
    for name, value in (("runner", request.runner), ("a2a", request.a2a), ("gpu", request.gpu),
                        ("gpu-memory", request.gpu_memory and shlex.quote(request.gpu_memory)),
                        ("nodes", request.nodes), ("expert-dtype", request.expert_dtype),
                        ("engine-version", request.engine_version)):  # fmt: skip
        if value is not None:
            options.append(f"--{name} {value}")
    if request.shared != "auto":
        options.append(f"--shared-experts {request.shared}")
    return " ".join(options)
