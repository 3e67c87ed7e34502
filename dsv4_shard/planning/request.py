"""Options → checked `Request`, and back to options."""

from dsv4_shard.catalog.option import fields_of, words_of
from dsv4_shard.catalog.rank_ranges import MAX_RANKS
from dsv4_shard.catalog.request import Layout, Request
from dsv4_shard.engines.registry import find_engine
from dsv4_shard.errors import UsageError


def request_of(options: Layout) -> Request:
    """The request among the options of a verb, TP among them, with the engine as its table has it. Raises UsageError.

    A runner, all-to-all backend or version that no engine has was refused with the other values; one that another
    engine has is for the rules, whose plan says what is wrong with it.
    """
    engine = find_engine(options.engine).name
    return options.part(Request, engine=engine)


def check_request(request: Request) -> None:
    """Refuse numbers, names and choices that mean nothing, also those of an edited plan. Raises UsageError."""
    for field in fields_of(Request):
        field.checked(getattr(request, field.name))
    if gpus_of(request) > MAX_RANKS:
        raise UsageError(f"{{tp}} {{dp}}: vLLM's {gpus_of(request)} GPUs are over {MAX_RANKS}",
                         parameters={"tp": request.tp, "dp": request.dp})  # fmt: skip
    if request.gpu is not None and request.gpu_memory is not None:
        raise UsageError("{gpu} and {gpu_memory}: a GPU that is named has its own memory",
                         parameters={"gpu": request.gpu, "gpu_memory": ...})  # fmt: skip


def gpus_of(request: Request) -> int:
    """vLLM's replicas have GPUs of their own; elsewhere DP divides those of TP."""
    return request.tp * (request.dp if request.engine == "vllm" else 1)


def options_of(request: Request) -> str:
    """The request as options of `plan` and `reshard`."""
    return " ".join(words_of(request))
