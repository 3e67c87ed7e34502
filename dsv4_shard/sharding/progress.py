"""`Progress`: how far a verb is, told to its caller; and `Reporter`, which calls it one call at a time."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from dsv4_shard.sharding.outcome import Outcome

SECONDS_BETWEEN_CALLS = 0.1
"""`advance` is called no more often than this for one task, apart from its last call."""


class Task(NamedTuple):
    """A part of a run that moves bytes: `work` is "reshard", "upload", "merge" or "verify".

    `share` is empty, or the share of a cluster's result that it works on, such as "ranks 0-7 on 10.0.0.1".
    """

    work: str
    share: str = ""

    def __str__(self) -> str:
        return f"{self.work} {self.share}".rstrip()


class Progress(Protocol):
    """Gets told how far a run is. A subclass needs only the methods that it wants; the others do nothing.

    The verb makes one call at a time, from whichever thread moves the bytes. What a method raises ends the run, as
    Ctrl-C does; the same call then resumes it.
    """

    def begin(self, task: Task, total_bytes: int) -> None:
        """`task` begins, or begins again, and will move `total_bytes`. On a cluster, several tasks run at once."""

    def resume(self, task: Task, nbytes: int) -> None:
        """Of the total of `task`, an earlier run has moved `nbytes`."""

    def advance(self, task: Task, nbytes: int) -> None:
        """`task` has moved `nbytes` more since the last call; about ten calls a second."""

    def end(self, task: Task) -> None:
        """`task` is done. This is not called for a task that fails."""

    def lost(self, task: Task, reason: str) -> None:
        """A node of a cluster was lost with `task`; the share begins again, perhaps on another node."""

    def written(self, outcome: "Outcome") -> None:
        """`reshard_to_store` has written its files into the scratch folder, and uploads them next."""


class Reporter:
    """Calls a `Progress`, or nobody: one call at a time, small advances as one, and none after a call that raised.

    All methods may be called from any thread.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._calling = threading.RLock()
        self._counting = threading.Lock()
        self._pending: dict[Task, int] = {}
        self._left: dict[Task, int] = {}
        self._called: dict[Task, float] = {}

    @contextmanager
    def task(self, task: Task, total_bytes: int) -> Iterator["TaskReporter"]:
        """Begin a task; it ends with the block. After a block that raises there are no more calls."""
        self.begin(task, total_bytes)
        try:
            yield TaskReporter(self, task)
        except BaseException:
            self._progress = None  # an upload that is given up may have threads that still send
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
        """Count bytes, and pass on what was counted if it is time, or the last of the task.

        Who comes while another thread calls does not wait: that, or the next, passes on these bytes too.
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
            self._progress = None  # until the call returns: after one that raises there are no more
            call(progress)
            self._progress = progress


class TaskReporter(NamedTuple):
    """A task that has begun. Its methods are what the code that moves the bytes calls."""

    reporter: Reporter
    task: Task

    def advance(self, nbytes: int) -> None:
        """So many bytes more."""
        self.reporter.advance(self.task, nbytes)

    def resume(self, nbytes: int) -> None:
        """So many bytes are there from an earlier run."""
        self.reporter.resume(self.task, nbytes)
