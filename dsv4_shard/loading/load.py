"""Load a model's parameters from rank files or from a checkpoint by a plan, after all checks: for both engines."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import torch

from dsv4_shard.loading.checks import Shapes
from dsv4_shard.loading.progress import LoadProgress
from dsv4_shard.storage import default_workers

logger = logging.getLogger(__name__)

_MOST_THREADS = 8
"""More are not faster: they wait for the disk or the bus."""


class WeightOrigin(Protocol):
    """Where a rank's bytes come from.

    Attributes:
        identity: What they are made for.
        is_draft: Whether they are a draft model's.
    """

    @property
    def identity(self) -> Mapping[str, str]: ...

    @property
    def is_draft(self) -> bool: ...

    def open(self, rank: int) -> Shapes:
        """Check what can be checked without a tensor's bytes, and return the dtype and shape of each tensor."""
        ...

    def fill(self, targets: Mapping[str, torch.Tensor], threads: int, on_progress: Callable[[int], None]) -> None:
        """Fill contiguous tensors by name. Call `open` before."""
        ...

    def summary(self) -> str:
        """What was read, and what of it was verified."""
        ...


class Taker(NamedTuple):
    """What takes a whole tensor in place of a parameter, and the tensor that it takes, without its bytes."""

    take: Callable[[torch.Tensor], None]
    like: torch.Tensor


def load(
    origin: WeightOrigin, rank: int, parameters: Mapping[str, torch.Tensor], takers: Mapping[str, Taker] | None = None
) -> None:
    """Fill parameters from an opened `origin`, and hand a whole tensor of the CPU to each of `takers`.

    So are parameters filled that are not contiguous, one at a time. Raises LoadRefused or another ShardError;
    parameters are then partly filled.
    """
    memory = {name: parameter.data for name, parameter in parameters.items()}
    whole = {name: Taker(partial(_copy, one), one) for name, one in memory.items() if not one.is_contiguous()}
    whole |= takers or {}
    total = sum(one.nbytes for one in memory.values() if one.is_contiguous())
    progress = LoadProgress(f"dsv4_shard: rank {rank}", total + sum(taker.like.nbytes for taker in whole.values()))
    threads = threads_per_rank()
    origin.fill({name: one for name, one in memory.items() if name not in whole}, threads, progress.add)
    for name, taker in whole.items():
        tensor = torch.empty(taker.like.shape, dtype=taker.like.dtype, device="cpu")
        origin.fill({name: tensor}, threads, progress.add)
        taker.take(tensor)
    logger.info(
        "dsv4_shard: rank %d: %d parameters, %s, from %s",
        rank, len(memory) + len(takers or {}), progress.summary(), origin.summary(),
    )  # fmt: skip


def _copy(into: torch.Tensor, tensor: torch.Tensor) -> None:
    into.copy_(tensor)


def threads_per_rank() -> int:
    """Threads that load a rank: the CPUs are shared by as many ranks as there are GPUs."""
    return max(1, min(_MOST_THREADS, default_workers() // max(1, torch.cuda.device_count())))
