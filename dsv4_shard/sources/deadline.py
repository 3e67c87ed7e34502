"""Calls that end in time, whatever happens inside the library that makes them: a thread is left behind at the deadline.

Timeouts of HTTP clients count from one byte to the next, so a server that sends a byte now and then holds a call for
days.
"""

import contextvars
import time
from collections.abc import Callable
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
