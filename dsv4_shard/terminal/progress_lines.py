"""Progress for scripts: a JSON line per second on stderr. The forms that `--progress` names."""

import json
import sys
import threading
import time
from typing import TextIO

from rich.console import Console

from dsv4_shard.errors import UsageError
from dsv4_shard.sharding.progress import Task
from dsv4_shard.terminal.options import PROGRESS
from dsv4_shard.terminal.progress import OnWritten, ProgressBars, TaskProgress, TaskState
from dsv4_shard.text.suggest import did_you_mean

SECONDS_BETWEEN_LINES = 1.0


def progress_as(how: str, console: Console, *, as_json: bool, on_written: OnWritten = lambda _: None) -> TaskProgress:
    """Return the progress that `--progress` names. Raises UsageError."""
    if how.lower() not in PROGRESS:
        raise UsageError.about("progress", how, "no such form of progress", hint=did_you_mean(how, PROGRESS))
    if how.lower() == "json":
        return ProgressLines(sys.stderr, on_written)
    return ProgressBars(console, quiet=as_json or how.lower() == "none", on_written=on_written)


class ProgressLines(TaskProgress):
    """A JSON line for each running task: when it begins, once per second, and when it ends.

    Keys: `kind` ("progress"), `task` (such as "reshard"), `share` (of a cluster, else ""), `state` ("begun", "running",
    "done" or "lost"), `bytes`, `total_bytes`, `resumed_bytes` (which an earlier run moved; `bytes` counts them),
    `seconds` since the task began, and `bytes_per_second` of this run.
    """

    def __init__(self, stream: TextIO, on_written: OnWritten = lambda _: None) -> None:
        super().__init__(on_written)
        self._stream = stream
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._clock = threading.Thread(target=self._tick, name="progress", daemon=True)

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        with self._lock:
            super().__exit__(*error)

    def begin(self, task: Task, total_bytes: int) -> None:
        with self._lock:
            super().begin(task, total_bytes)
            self._print(self._states[task.share], "begun")
        if not self._clock.is_alive():
            self._clock.start()

    def resume(self, task: Task, nbytes: int) -> None:
        with self._lock:
            super().resume(task, nbytes)
            self._print(self._states[task.share], "running")

    def advance(self, task: Task, nbytes: int) -> None:
        with self._lock:
            super().advance(task, nbytes)

    def end(self, task: Task) -> None:
        with self._lock:
            self._print(self._states.pop(task.share), "done")
            super().end(task)

    def lost(self, task: Task, reason: str) -> None:
        with self._lock:
            if task.share in self._states:
                self._print(self._states[task.share], "lost")
            super().lost(task, reason)

    def _tick(self) -> None:
        while not self._stopped.wait(SECONDS_BETWEEN_LINES):
            with self._lock:
                for state in self._states.values():
                    self._print(state, "running")

    def _print(self, state: TaskState, name: str) -> None:
        seconds = time.monotonic() - state.begun
        line = {
            "kind": "progress", "task": state.task.work, "share": state.task.share, "state": name, "bytes": state.done,
            "total_bytes": state.total, "resumed_bytes": state.resumed, "seconds": round(seconds, 3),
            "bytes_per_second": round((state.done - state.resumed) / max(seconds, 1e-3)),
        }  # fmt: skip
        print(json.dumps(line), file=self._stream, flush=True)
