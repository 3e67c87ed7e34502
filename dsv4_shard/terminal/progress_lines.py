"""Progress for scripts: a JSON line per second on stderr."""

import json
import sys
import threading
import time
from typing import TextIO

from rich.console import Console

from dsv4_shard.errors import UsageError
from dsv4_shard.sharding.progress import Task
from dsv4_shard.terminal.progress import OnWritten, ProgressBars
from dsv4_shard.text.suggest import did_you_mean

HOW = {
    "auto": "bars on a terminal, a line per half minute elsewhere, nothing with --json",
    "json": "a JSON line per second on stderr",
    "none": "nothing",
}
"""Value of `--progress` → what is shown."""

SECONDS_BETWEEN_LINES = 1.0


def progress_as(how: str, console: Console, *, as_json: bool, on_written: OnWritten = lambda _: None) -> ProgressBars:
    """Return the progress that `--progress` names. Raises UsageError."""
    if how.lower() not in HOW:
        raise UsageError.about("progress", how, "must be auto, json or none", hint=did_you_mean(how, HOW))
    if how.lower() == "json":
        return ProgressLines(console, sys.stderr, on_written)
    return ProgressBars(console, quiet=as_json or how.lower() == "none", on_written=on_written)


class ProgressLines(ProgressBars):
    """A JSON line for each running task: when it begins, once per second, and when it ends.

    Keys: `kind` ("progress"), `task` (such as "reshard"), `share` (of a cluster, else ""), `state` ("begun", "running",
    "done" or "lost"), `bytes`, `total_bytes`, `resumed_bytes` (which an earlier run moved; `bytes` counts them),
    `seconds` since the task began, and `bytes_per_second` of this run.
    """

    def __init__(self, console: Console, stream: TextIO, on_written: OnWritten = lambda _: None) -> None:
        super().__init__(console, quiet=True, on_written=on_written)
        self._stream = stream
        self._tasks: dict[Task, _Counts] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._clock = threading.Thread(target=self._tick, name="progress", daemon=True)

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        super().__exit__(*error)

    def begin(self, task: Task, total_bytes: int) -> None:
        super().begin(task, total_bytes)
        if not self._clock.is_alive():
            self._clock.start()
        with self._lock:
            self._tasks[task] = _Counts(total_bytes)
            self._print(task, "begun")

    def resume(self, task: Task, nbytes: int) -> None:
        with self._lock:
            self._tasks[task].resumed += nbytes
            self._tasks[task].done += nbytes
            self._print(task, "running")

    def advance(self, task: Task, nbytes: int) -> None:
        with self._lock:
            self._tasks[task].done += nbytes

    def end(self, task: Task) -> None:
        self._leave(task, "done")
        super().end(task)

    def lost(self, task: Task, reason: str) -> None:
        self._leave(task, "lost")

    def again(self, task: Task, lost_on: str) -> None:
        """Print nothing: the share's next task begins with a line of its own."""

    def _leave(self, task: Task, state: str) -> None:
        with self._lock:
            if task in self._tasks:
                self._print(task, state)
                del self._tasks[task]

    def _tick(self) -> None:
        while not self._stopped.wait(SECONDS_BETWEEN_LINES):
            with self._lock:
                for task in self._tasks:
                    self._print(task, "running")

    def _print(self, task: Task, state: str) -> None:
        counts = self._tasks[task]
        seconds = time.monotonic() - counts.begun
        line = {
            "kind": "progress", "task": task.work, "share": task.share, "state": state, "bytes": counts.done,
            "total_bytes": counts.total, "resumed_bytes": counts.resumed, "seconds": round(seconds, 3),
            "bytes_per_second": round((counts.done - counts.resumed) / max(seconds, 1e-3)),
        }  # fmt: skip
        print(json.dumps(line), file=self._stream, flush=True)


class _Counts:
    """Bytes of a task, and when it began."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.resumed = total, 0, 0
        self.begun = time.monotonic()
