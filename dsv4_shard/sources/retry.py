"""Retries failed network requests, with back-off, Retry-After and a limit."""

import logging
from collections.abc import Callable
from threading import Event
from typing import TYPE_CHECKING, TypeVar

from dsv4_shard.errors import ServerFailed, Throttled, Unreachable
from dsv4_shard.limits import HUB_WAIT

if TYPE_CHECKING:
    import tenacity

TRIES = 8
"""Consecutive attempts before giving up. With the waits between them, this takes about two minutes."""

LONGEST_WAIT_SECONDS = 60.0

_FIRST_WAIT_SECONDS = 0.5

_LOGGED_WAIT_SECONDS = 4.0
"""Shortest wait that is reported to the user."""

T = TypeVar("T")

_log = logging.getLogger("dsv4_shard")


class Transient(Exception):
    """A failure that may not recur on the next attempt."""

    def __init__(self, message: str, wait: float | None = None, *, throttled: bool = False) -> None:
        """`wait` is the number of seconds that the server asks to wait, `throttled` whether it limits requests."""
        super().__init__(message)
        self.wait, self.throttled = wait, throttled


def retry(attempt: Callable[[], T], stopped: Event, tries: int = 0) -> T:
    """Return the result of `attempt`, repeated while it raises Transient.

    Args:
        attempt: The request.
        stopped: Ends the waiting and the attempts when set.
        tries: Number of attempts; 0 means TRIES.

    Raises:
        Throttled: The server limited requests until the last attempt.
        ServerFailed: The last attempt failed otherwise.
    """
    import tenacity

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Transient),
        stop=lambda state: state.attempt_number >= (tries or TRIES) or _asks_too_long(state) or stopped.is_set(),
        wait=_wait,
        sleep=tenacity.sleep_using_event(stopped),
        before_sleep=_log_wait,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except Transient as error:
        raise _given_up(error, retrying.statistics["attempt_number"]) from None


def _wait(state: "tenacity.RetryCallState") -> float:
    """Return the seconds before the next attempt: those that the server asked for, else random exponential back-off."""
    import tenacity

    error = _error_of(state)
    if error.wait is not None:
        return error.wait
    return tenacity.wait_random_exponential(_FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)(state)


def _asks_too_long(state: "tenacity.RetryCallState") -> bool:
    return (_error_of(state).wait or 0.0) > HUB_WAIT.seconds


def _log_wait(state: "tenacity.RetryCallState") -> None:
    wait = state.next_action.sleep if state.next_action else 0.0
    if wait >= _LOGGED_WAIT_SECONDS:
        _log.warning("%s; trying again in %.0f s", _error_of(state), wait)


def _error_of(state: "tenacity.RetryCallState") -> Transient:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, Transient), "only these are tried again"
    return error


def _given_up(error: Transient, attempts: int) -> Unreachable:
    tried = f"{error}, after {attempts} tries" if attempts > 1 else str(error)
    if error.throttled:
        asked = f" It asks for a pause of {error.wait:.0f} s." if error.wait else ""
        return Throttled(
            tried, hint=f"The server limits the number of requests.{asked} Run again later, or with a token."
        )
    return ServerFailed(tried, hint="Run again when the server answers: finished work is kept.")
