"""Options → checked `Request`, and back to options."""

from collections.abc import Callable

from dsv4_shard.catalog.option import fields_of, words_of
from dsv4_shard.catalog.options import REPLACED_RUNNERS
from dsv4_shard.catalog.rank_ranges import MAX_RANKS
from dsv4_shard.catalog.request import LEAST_PART, LayoutOptions, Request, Target
from dsv4_shard.engines import ENGINES, Engine, find_engine
from dsv4_shard.errors import UsageError
from dsv4_shard.text.suggest import did_you_mean


def request_of(options: LayoutOptions) -> Request:
    """Return the request in the options of a verb, TP included, with the engine's name as in its table.

    A runner, all-to-all backend or version that no engine has is refused here. A name that only another engine has is
    left to the rules, so that the plan explains the error.

    Raises:
        UsageError: A number or a name is invalid.
    """
    engine = find_engine(options.engine)
    refuse_unknown_names(options, engine)
    return options.part(Request, engine=engine.name)


_NAMES_OF: dict[str, Callable[[Engine], tuple[str, ...]]] = {
    "runner": lambda engine: (*engine.runners, *engine.other_runners),
    "a2a": lambda engine: engine.a2a,
}
"""Option → the names that an engine has for it."""


def refuse_unknown_names(options: Target, engine: Engine) -> None:
    """Refuse a name that no engine has; the hint has the names of `engine`.

    Raises:
        UsageError: There is such a name.
    """
    for name, names_of in _NAMES_OF.items():
        value = getattr(options, name, None)
        every = [one for known in ENGINES.values() for one in names_of(known)]
        if value is not None and value not in every:
            hint = REPLACED_RUNNERS.get(value) or did_you_mean(value, names_of(engine) or every)
            raise UsageError.about(name, value, "no engine has it", hint=hint)
    _refuse_unknown_version(options, engine)


def _refuse_unknown_version(options: Target, engine: Engine) -> None:
    """Refuse a version that the engine's table does not know; those that load and then fail have a rule."""
    version = getattr(options, "engine_version", None)
    if version is not None and engine.versions and version not in engine.versions:
        works = [one for one in engine.versions if one not in engine.failing_versions]
        raise UsageError.about("engine_version", version, f"not supported for {engine.title}",
                               hint=f"Supported: {', '.join(works)}.")  # fmt: skip


def check_request(request: Request) -> None:
    """Refuse invalid numbers, names and choices, also in an edited plan.

    Raises:
        UsageError: The request has one.
    """
    for field in fields_of(Request):
        field.checked(getattr(request, field.name))
    if request.part_nbytes is not None and request.part_nbytes < LEAST_PART:
        raise UsageError.about("part_size", request.part_size, "not a size of files",
                               hint="Give it as 20GB (10^9 bytes) or 16GiB (2^30); at least 1MB.")  # fmt: skip
    if request.pp_partition is not None and not request.partition:
        raise UsageError.about("pp_partition", request.pp_partition, "not the layers of pipeline stages",
                               hint="Give at least one layer for each stage, as 31,30.")  # fmt: skip
    if request.pp_partition is not None and request.pp == 1:
        raise UsageError("{pp_partition} without {pp}: it divides the layers over pipeline stages",
                         hint=f"Add --pp {len(request.partition)}.",
                         parameters={"pp_partition": ..., "pp": ...})  # fmt: skip
    if gpus_of(request) > MAX_RANKS:
        title = find_engine(request.engine).title
        raise UsageError(f"{{tp}} {{dp}}: {title}'s {gpus_of(request)} GPUs are over {MAX_RANKS}",
                         parameters={"tp": request.tp, "dp": request.dp})  # fmt: skip
    if request.gpu is not None and request.gpu_memory is not None:
        raise UsageError("{gpu} and {gpu_memory}: a GPU that is named has its own memory",
                         parameters={"gpu": request.gpu, "gpu_memory": ...})  # fmt: skip


def gpus_of(request: Request) -> int:
    """Number of GPUs of a request, also for an unknown engine, which `choose` refuses later."""
    engine = ENGINES.get(request.engine)
    return engine.gpus(request) if engine else request.tp * request.pp


def options_of(request: Request) -> str:
    """Return the request as options of `plan` and `reshard`."""
    return " ".join(words_of(request))
