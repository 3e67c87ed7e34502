"""Outcome → what a plan assumes and could not check."""

from collections.abc import Iterator

from dsv4_shard.engines import ANY_ENGINE, Deployment, Request
from dsv4_shard.models import NATIVE
from dsv4_shard.planning.outcome import LayoutOutcome


def assumptions_of(outcome: LayoutOutcome, dialect: str) -> Iterator[str]:
    """Yield the assumptions of a plan; `dialect` is the naming dialect that the engine's own loader has to read."""
    yield from _of_gpu(outcome.deployment, outcome.request)
    if dialect != NATIVE:
        yield f"whether the engine reads the checkpoint's own names ({dialect}) is not verified"
    is_unsure = not outcome.choice.feasible or outcome.engine.is_bound
    if outcome.choice.is_weighed and is_unsure:
        yield f"not verified: {outcome.engine.assumes(outcome.context)}"


def _of_gpu(deployment: Deployment, request: Request) -> Iterator[str]:
    """Yield what is assumed of the GPU."""
    gpu = deployment.gpu
    if not deployment.gpu_named and deployment.version != ANY_ENGINE:
        yield "Hopper (sm_90) is assumed and memory is not compared: name the GPU with --gpu"
    if request.gpu_memory is not None:
        memory = f"{gpu.memory / (1 << 30):.2f} GiB"
        yield f"Hopper (sm_90) is assumed for a GPU of {memory} (--gpu-memory): name the GPU with --gpu"
    if not gpu.verified:
        yield (
            f"bytes are those on {gpu.stands_for} (sm_{gpu.sm}); on {gpu.title} the engine may hold weights in other "
            "formats"
        )
