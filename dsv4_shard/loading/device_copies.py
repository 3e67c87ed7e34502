"""Copy bytes from a thread to the memory of a device, while the thread reads on.

A `DeviceCopier` has two blocks of pinned memory. A copy out of one runs on a stream of its own while the other is
filled. Copies from pageable memory would wait for the driver, which copies them into pinned memory itself.
"""

from collections.abc import Iterable

import torch

from dsv4_shard.storage import PAGE

_SLOTS = 2


class DeviceCopier:
    """Two blocks of memory of one thread, and its stream. On the CPU, copies are done when `copy` returns."""

    def __init__(self, device: torch.device, nbytes: int) -> None:
        """Make slots of `nbytes` bytes, which begin at a page, for copies to `device` or to the CPU.

        For a GPU, `nbytes` is best a power of two: torch pins as much.
        """
        is_pinned = device.type == "cuda"
        self._slots = [_aligned_memory(nbytes, is_pinned) for _ in range(_SLOTS)]
        self._views = [slot.numpy().data for slot in self._slots]
        self._events = [torch.cuda.Event() if is_pinned else None for _ in range(_SLOTS)]  # type: ignore[no-untyped-call]
        self._stream = torch.cuda.Stream(device) if is_pinned else None  # type: ignore[no-untyped-call]
        self._current = 0
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))  # which may still initialize parameters

    def slot(self) -> memoryview:
        """The memory for the next copies, once no earlier copy reads it any more."""
        self._current = (self._current + 1) % _SLOTS
        event = self._events[self._current]
        if event is not None:
            event.synchronize()
        return self._views[self._current]

    def copy(self, start: int, stop: int, target: torch.Tensor, at: int) -> None:
        """Copy bytes `[start, stop)` of the slot to byte `at` of `target`, a flat uint8 tensor."""
        into, data = target[at : at + stop - start], self._slots[self._current][start:stop]
        if self._stream is None or not target.is_cuda:
            into.copy_(data)
            return
        with torch.cuda.stream(self._stream):
            into.copy_(data, non_blocking=True)

    def sent(self) -> None:
        """Mark the end of the copies out of the slot."""
        event = self._events[self._current]
        if event is not None:
            event.record(self._stream)

    def finish(self) -> None:
        """Wait for all copies."""
        if self._stream is not None:
            self._stream.synchronize()


def device_of(targets: Iterable[torch.Tensor]) -> torch.device:
    """The GPU of the targets; the CPU if none is on one."""
    return next((one.device for one in targets if one.is_cuda), torch.device("cpu"))


def flat_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor as flat uint8, over the same memory."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def _aligned_memory(nbytes: int, is_pinned: bool) -> torch.Tensor:
    # An engine may build its model with the GPU as the default device. Pinned memory begins at a page as a rule.
    memory = torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=is_pinned)
    if memory.data_ptr() % PAGE:
        memory = torch.empty(nbytes + PAGE, dtype=torch.uint8, device="cpu", pin_memory=is_pinned)
    return memory[-memory.data_ptr() % PAGE :][:nbytes]
