"""What is tried again, for how long, what is said meanwhile, and how it ends."""

import logging
import threading
from collections.abc import Callable

import pytest

from dsv4_shard.errors import ExitCode, ServerFailed, Throttled
from dsv4_shard.sources import retry as persistence
from dsv4_shard.sources.retry import Transient, retry


class Clock(threading.Event):
    """Waits for nobody, and notes for how long it would have."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return self.is_set()


def failing(times: int, error: Transient) -> Callable[[], str]:
    """Fails so often, then gives a result."""
    left = [times]

    def attempt() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return "done"

    return attempt


@pytest.mark.parametrize("times", range(8))
def test_up_to_eight_tries_give_the_result(times: int) -> None:
    clock = Clock()
    assert retry(failing(times, Transient("503")), clock) == "done"
    assert len(clock.waits) == times


def test_the_last_failure_is_told_with_the_number_of_tries() -> None:
    clock = Clock()
    with pytest.raises(ServerFailed, match=r"^host answered 503, after 8 tries$") as raised:
        retry(failing(99, Transient("host answered 503")), clock)
    assert raised.value.exit_code == ExitCode.NETWORK
    assert all(0 <= wait <= persistence.LONGEST_WAIT_SECONDS for wait in clock.waits)
    assert sum(clock.waits) <= 150


def test_fewer_tries_may_do() -> None:
    with pytest.raises(ServerFailed, match="after 2 tries"):
        retry(failing(99, Transient("503")), Clock(), 2)


def test_a_server_is_given_as_long_as_it_asks() -> None:
    clock = Clock()
    retry(failing(2, Transient("429", 17.0, throttled=True)), clock)
    assert clock.waits == [17.0, 17.0]


def test_a_server_that_asks_for_too_long_is_told_at_once() -> None:
    clock = Clock()
    with pytest.raises(Throttled, match=r"^429$") as raised:
        retry(failing(99, Transient("429", 901.0, throttled=True)), clock)
    assert clock.waits == []
    assert raised.value.hint is not None
    assert "It asks for a pause of 901 s" in raised.value.hint


def test_nobody_who_gave_up_is_waited_for() -> None:
    clock = Clock()
    clock.set()
    with pytest.raises(ServerFailed):
        retry(failing(99, Transient("503")), clock)
    assert clock.waits == []


def test_other_errors_are_not_tried_again() -> None:
    clock = Clock()

    def attempt() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        retry(attempt, clock)
    assert clock.waits == []


def test_a_long_wait_is_spoken_of_and_a_short_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dsv4_shard"):
        retry(failing(1, Transient("host answered 429", 1.0)), Clock())
        assert caplog.messages == []
        retry(failing(1, Transient("host answered 429", 30.0)), Clock())
    assert caplog.messages == ["host answered 429; trying again in 30 s"]
