"""`Progress`: the caller's view of how far a verb is. `Reporter`: makes its calls one at a time."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from dsv4_shard.catalog.verb import wrong_type

if TYPE_CHECKING:
    from dsv4_shard.sharding.outcome import Outcome

SECONDS_BETWEEN_CALLS = 0.1
"""Shortest time between two calls of `advance` for one task. The last call of a task may come sooner."""


class Task(NamedTuple):
    """A part of a run that moves bytes.

    Attributes:
        work: "reshard", "upload", "merge", "verify", "signature" (of `verify`) or "sign".
        share: The share of a cluster's result, such as "ranks 0-7 on 10.0.0.1"; empty without a cluster.
    """

    work: str
    share: str = ""

    def __str__(self) -> str:
        return f"{self.work} {self.share}".rstrip()


class Progress:
    """Receives the progress of a run. A subclass overrides the methods that it needs; the others do nothing.

    The verb makes one call at a time, from the thread that moves the bytes. An exception in a method ends the run, as
    Ctrl-C does; the same call of the verb then resumes it.
    """

    def begin(self, task: Task, total_bytes: int) -> None:
        """`task` starts, or starts again, and will move `total_bytes`. On a cluster, several tasks run at once."""

    def resume(self, task: Task, nbytes: int) -> None:
        """An earlier run moved `nbytes` of the total of `task`."""

    def advance(self, task: Task, nbytes: int) -> None:
        """`task` moved `nbytes` more since the last call. About ten calls per second."""

    def end(self, task: Task) -> None:
        """`task` is done. Not called for a task that fails."""

    def lost(self, task: Task, reason: str) -> None:
        """The cluster lost the node that ran `task`. The share starts again, perhaps on another node."""

    def again(self, task: Task, lost_on: str) -> None:
        """The share of `task`, which was lost with the node `lost_on`, starts again. `task` names its node now."""

    def written(self, outcome: "Outcome") -> None:
        """`reshard_to_store` wrote its files into the scratch folder and will upload them next."""


class Reporter:
    """Makes the calls of a `Progress`, if there is one.

    It makes one call at a time, merges small advances, and makes no call after one that raised. All methods are
    thread-safe.

    Raises:
        UsageError: What should get the calls is no `Progress`.
    """

    def __init__(self, progress: Progress | None) -> None:
        if progress is not None and not isinstance(progress, Progress):
            raise wrong_type("progress", progress, "an object of a subclass of dsv4_shard.Progress")
        self._progress = progress
        self._calling = threading.RLock()
        self._counting = threading.Lock()
        self._pending: dict[Task, int] = {}
        self._left: dict[Task, int] = {}
        self._called: dict[Task, float] = {}

    @contextmanager
    def task(self, task: Task, total_bytes: int) -> Iterator["TaskReporter"]:
        """Begin a task and end it with the block. If the block raises, no more calls are made."""
        self.begin(task, total_bytes)
        try:
            yield TaskReporter(self, task)
        except BaseException:
            self._progress = None  # threads of an abandoned upload may still send
            raise
        self.end(task)

    def begin(self, task: Task, total_bytes: int) -> None:
        """See `Progress.begin`."""
        with self._counting:
            self._left[task], self._called[task] = total_bytes, time.monotonic()
        self._call(lambda progress: progress.begin(task, total_bytes))

    def resume(self, task: Task, nbytes: int) -> None:
        """See `Progress.resume`."""
        with self._counting:
            self._left[task] -= nbytes
        self._call(lambda progress: progress.resume(task, nbytes))

    def advance(self, task: Task, nbytes: int) -> None:
        """Count bytes, and report them if a call is due or the task is complete.

        A thread that arrives during another thread's call does not wait: that call or the next one reports its bytes.
        """
        with self._counting:
            self._pending[task] = self._pending.get(task, 0) + nbytes
            self._left[task] -= nbytes
            is_last = self._left[task] <= 0
            is_due = is_last or time.monotonic() - self._called[task] >= SECONDS_BETWEEN_CALLS
        if is_due and self._calling.acquire(blocking=is_last):
            try:
                self._flush(task)
            finally:
                self._calling.release()

    def end(self, task: Task) -> None:
        """See `Progress.end`."""
        self._flush(task)
        self._call(lambda progress: progress.end(task))

    def lost(self, task: Task, reason: str) -> None:
        """See `Progress.lost`."""
        self._flush(task)
        self._call(lambda progress: progress.lost(task, reason))

    def again(self, task: Task, lost_on: str) -> None:
        """See `Progress.again`."""
        self._call(lambda progress: progress.again(task, lost_on))

    def written(self, outcome: "Outcome") -> None:
        """See `Progress.written`."""
        self._call(lambda progress: progress.written(outcome))

    def _flush(self, task: Task) -> None:
        with self._calling:
            with self._counting:
                nbytes = self._pending.pop(task, 0)
                self._called[task] = time.monotonic()
            if nbytes:
                self._call(lambda progress: progress.advance(task, nbytes))

    def _call(self, call: Callable[[Progress], None]) -> None:
        with self._calling:
            progress = self._progress
            if progress is None:
                return
            self._progress = None  # restored below, unless the call raises
            call(progress)
            self._progress = progress


class TaskReporter(NamedTuple):
    """A task that has begun, for the code that moves its bytes."""

    reporter: Reporter
    task: Task

    def advance(self, nbytes: int) -> None:
        """Report `nbytes` more."""
        self.reporter.advance(self.task, nbytes)

    def resume(self, nbytes: int) -> None:
        """Report `nbytes` that an earlier run moved."""
        self.reporter.resume(self.task, nbytes)
