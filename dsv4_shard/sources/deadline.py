"""Calls that end in time, whatever happens inside the library that makes them: a thread is left behind at the deadline.

Timeouts of HTTP clients count from one byte to the next, so a server that sends a byte now and then holds a call for
days.
"""

import contextvars
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

_LOOK_SECONDS = 0.1
"""Between two looks at the deadline, and at whether the call is of use still."""


T = TypeVar("T")


class Overdue(Exception):
    """A call did not end in time, or is of no use any more. Its thread is left behind."""


class Deadline:
    """`seconds` from the last sign of life on, at first from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._since = seconds, time.monotonic()

    def renew(self) -> None:
        """Begin anew: there was a sign of life."""
        self._since = time.monotonic()

    @property
    def waited(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._since

    @property
    def left(self) -> float:
        """Seconds to the deadline; 0 beyond it."""
        return max(0.0, self.seconds - self.waited)


def in_time(call: Callable[[], T], deadline: Deadline, is_over: Callable[[], bool] = lambda: False) -> T:
    """Return what `call` returns, or raise what it raises. Raises Overdue at the deadline, or once `is_over`."""
    answer: list[T] = []
    raised: list[BaseException] = []

    def make() -> None:
        try:
            answer.append(call())
        except BaseException as error:
            raised.append(error)

    if not deadline.left:
        raise Overdue
    thread = Thread(target=contextvars.copy_context().run, args=(make,), daemon=True)
    thread.start()
    while thread.is_alive() and deadline.left and not is_over():
        thread.join(min(_LOOK_SECONDS, deadline.left))
    if raised:
        raise raised[0]
    if not answer:
        raise Overdue
    return answer[0]


def for_each(
    names: Iterable[str],
    call: Callable[[str], object],
    threads: int,
    look: Callable[[], None] = lambda: None,
    stop: Callable[[], None] = lambda: None,
    linger: float = 0.0,
) -> None:
    """Call `call` for each name, in several threads. Its first error is raised, and what `look` raises meanwhile.

    Then, and after an interrupt, `stop` is called, and no thread begins with another name. Threads that have not ended
    after `linger` seconds are left behind.
    """
    waiting, ends = SimpleQueue[str](), SimpleQueue[BaseException | None]()
    for name in names:
        waiting.put(name)

    def work() -> None:
        try:
            while True:
                call(waiting.get_nowait())
        except Empty:
            ends.put(None)
        except BaseException as error:
            ends.put(error)

    count = min(threads, waiting.qsize())
    workers = [Thread(target=contextvars.copy_context().run, args=(work,), daemon=True) for _ in range(count)]
    try:
        for worker in workers:
            worker.start()
        while count:
            try:
                error = ends.get(timeout=_LOOK_SECONDS)
            except Empty:
                look()
                continue
            if error is not None:
                raise error
            count -= 1
    except BaseException:
        _drain(waiting)
        stop()
        patience = Deadline(linger)
        for worker in workers:
            if worker.is_alive():
                worker.join(patience.left)
        raise


def _drain(queue: SimpleQueue[str]) -> None:
    try:
        while True:
            queue.get_nowait()
    except Empty:
        pass
