"""Tries again what a network let fail: with back-off, as long as the server asks for, and not for ever."""

import logging
from collections.abc import Callable
from threading import Event
from typing import TYPE_CHECKING, TypeVar

from dsv4_shard.errors import ServerFailed, Throttled, Unreachable

if TYPE_CHECKING:
    import tenacity

TRIES = 8
"""In a row that bring nothing, or next to nothing; with the waits between them, some two minutes."""

LONGEST_WAIT_SECONDS = 60.0

LONGEST_ASKED_SECONDS = 900.0
"""What a server may ask for by Retry-After."""

_FIRST_WAIT_SECONDS = 0.5

_SPOKEN_SECONDS = 4.0

T = TypeVar("T")

_log = logging.getLogger("dsv4_shard")


class Transient(Exception):
    """Something that may be over when it is tried again: `wait` seconds later, if the server said so."""

    def __init__(self, message: str, wait: float | None = None, *, throttled: bool = False) -> None:
        super().__init__(message)
        self.wait, self.throttled = wait, throttled


def persist(attempt: Callable[[], T], stopped: Event, tries: int = 0) -> T:
    """What `attempt` gives, tried `tries` times (0: TRIES) while it raises Transient, until `stopped` is set.

    Raises Throttled where the server refused to be asked, else ServerFailed, with the last failure.
    """
    import tenacity

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Transient),
        stop=lambda state: state.attempt_number >= (tries or TRIES) or _asks_too_much(state) or stopped.is_set(),
        wait=_wait,
        sleep=tenacity.sleep_using_event(stopped),
        before_sleep=_say,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except Transient as error:
        raise _given_up(error, retrying.statistics["attempt_number"]) from None


def _wait(state: "tenacity.RetryCallState") -> float:
    import tenacity

    error = _error_of(state)
    if error.wait is not None:
        return error.wait
    return tenacity.wait_random_exponential(_FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)(state)


def _asks_too_much(state: "tenacity.RetryCallState") -> bool:
    return (_error_of(state).wait or 0.0) > LONGEST_ASKED_SECONDS


def _say(state: "tenacity.RetryCallState") -> None:
    wait = state.next_action.sleep if state.next_action else 0.0
    if wait >= _SPOKEN_SECONDS:
        _log.warning("%s; trying again in %.0f s", _error_of(state), wait)


def _error_of(state: "tenacity.RetryCallState") -> Transient:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, Transient), "only these are tried again"
    return error


def _given_up(error: Transient, attempts: int) -> Unreachable:
    tried = f"{error}, after {attempts} tries" if attempts > 1 else str(error)
    if error.throttled:
        asked = f" It asks to wait {error.wait:.0f} s." if error.wait else ""
        return Throttled(
            tried, hint=f"The server limits how often it is asked.{asked} Run again later, or with a token."
        )
    return ServerFailed(tried, hint="Run again when the server answers: what is done is not done again.")
