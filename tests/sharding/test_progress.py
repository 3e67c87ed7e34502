"""Progress: one call at a time, few of them, every byte counted, and none after a call that raised."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from dsv4_shard.sharding import progress as module
from dsv4_shard.sharding.progress import Progress, Reporter, Task

WORK = Task("reshard")
FIRST, SECOND = Task("verify", "ranks 0-3 on a"), Task("verify", "ranks 4-7 on b")


class Log(Progress):
    """Keeps the calls, and fails where two come at once."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._inside = threading.Lock()
        self._seconds = seconds

    def _keep(self, *call: Any) -> None:
        assert self._inside.acquire(blocking=False), "two calls at a time"
        time.sleep(self._seconds)
        self.calls.append(call)
        self._inside.release()

    def begin(self, task: Task, total_bytes: int) -> None:
        self._keep("begin", task, total_bytes)

    def resume(self, task: Task, nbytes: int) -> None:
        self._keep("resume", task, nbytes)

    def advance(self, task: Task, nbytes: int) -> None:
        self._keep("advance", task, nbytes)

    def end(self, task: Task) -> None:
        self._keep("end", task)

    def lost(self, task: Task, reason: str) -> None:
        self._keep("lost", task, reason)


class Raises(Log):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def advance(self, task: Task, nbytes: int) -> None:
        super().advance(task, nbytes)
        raise self._error


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_small_steps_come_as_one_and_the_last_at_once(clock: list[float]) -> None:
    log = Log()
    with Reporter(log).task(WORK, 100) as task:
        for _ in range(50):
            task.advance(1)
        clock[0] = 1.0
        task.advance(10)
        task.advance(10)
        task.advance(30)
        assert log.calls[-1] == ("advance", WORK, 40), "before the task ends: what it wrote is not yet in its place"
    assert log.calls == [
        ("begin", WORK, 100), ("advance", WORK, 60), ("advance", WORK, 40), ("end", WORK),
    ]  # fmt: skip


def test_bytes_of_an_earlier_run_count_for_the_last(clock: list[float]) -> None:
    log = Log()
    with Reporter(log).task(WORK, 100) as task:
        task.resume(90)
        task.advance(10)
        assert log.calls[1:] == [("resume", WORK, 90), ("advance", WORK, 10)]


def test_what_is_short_of_the_total_is_told_at_the_end(clock: list[float]) -> None:
    log = Log()
    with Reporter(log).task(WORK, 100) as task:
        task.advance(3)
    assert log.calls[1:] == [("advance", WORK, 3), ("end", WORK)]


def test_tasks_are_counted_apart(clock: list[float]) -> None:
    log = Log()
    reporter = Reporter(log)
    reporter.begin(FIRST, 10)
    reporter.begin(SECOND, 10)
    reporter.advance(FIRST, 4)
    reporter.advance(SECOND, 10)
    reporter.lost(FIRST, "its node died")
    reporter.begin(FIRST, 10)
    reporter.advance(FIRST, 10)
    assert log.calls[2:] == [
        ("advance", SECOND, 10), ("advance", FIRST, 4), ("lost", FIRST, "its node died"), ("begin", FIRST, 10),
        ("advance", FIRST, 10),
    ]  # fmt: skip
    assert (str(WORK), str(FIRST)) == ("reshard", "verify ranks 0-3 on a")


def test_threads_call_one_at_a_time_and_rarely_and_lose_no_byte() -> None:
    log = Log(seconds=0.001)
    begun = time.monotonic()
    with Reporter(log).task(WORK, 80_000) as task, ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(lambda: [task.advance(1) for _ in range(10_000)])
    advances = [call for call in log.calls if call[0] == "advance"]
    assert sum(nbytes for _, _, nbytes in advances) == 80_000
    assert len(advances) <= 2 + (time.monotonic() - begun) / module.SECONDS_BETWEEN_CALLS
    assert (log.calls[0][0], log.calls[-1][0]) == ("begin", "end")


def test_a_slow_progress_holds_up_no_other_worker(clock: list[float]) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Log):
        def advance(self, task: Task, nbytes: int) -> None:
            entered.set()
            assert go_on.wait(30)
            super().advance(task, nbytes)

    log = Slow()
    with Reporter(log).task(WORK, 100) as task:
        clock[0] = 1.0
        worker = threading.Thread(target=task.advance, args=(1,))
        worker.start()
        assert entered.wait(30)
        clock[0] = 2.0
        task.advance(2)  # returns while the other calls
        go_on.set()
        worker.join()
        task.advance(97)
    assert log.calls[1:-1] == [("advance", WORK, 1), ("advance", WORK, 99)]


@pytest.mark.parametrize("error", [ValueError("enough"), KeyboardInterrupt()])
def test_what_it_raises_ends_the_run_and_nothing_is_told_after_that(error: BaseException) -> None:
    log = Raises(error)
    reporter = Reporter(log)
    with pytest.raises(type(error)), reporter.task(WORK, 10) as task:
        task.advance(10)
    task.advance(1)
    reporter.begin(WORK, 10)
    reporter.end(WORK)
    assert log.calls == [("begin", WORK, 10), ("advance", WORK, 10)]


def test_a_task_that_fails_does_not_end() -> None:
    log = Log()
    with pytest.raises(ZeroDivisionError), Reporter(log).task(WORK, 10) as task:
        raise ZeroDivisionError
    task.advance(10)
    assert log.calls == [("begin", WORK, 10)]


def test_nobody_need_listen() -> None:
    with Reporter(None).task(WORK, 10) as task:
        task.resume(2)
        task.advance(8)


def test_a_subclass_needs_only_what_it_wants() -> None:
    class Begun(Progress):
        def begin(self, task: Task, total_bytes: int) -> None:
            begun.append((task, total_bytes))

    begun: list[tuple[Task, int]] = []
    with Reporter(Begun()).task(WORK, 10) as task:
        task.advance(10)
    assert begun == [(WORK, 10)]
