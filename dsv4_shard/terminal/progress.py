"""Progress of a run: a bar for each task on a terminal, a line now and then elsewhere."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TaskProgressColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from dsv4_shard.sharding.progress import Progress, Task
from dsv4_shard.text.sanitize import clean
from dsv4_shard.text.units import size

if TYPE_CHECKING:
    from dsv4_shard.sharding.outcome import Outcome

OnWritten = Callable[["Outcome"], None]
"""Receives what was written, before it is uploaded."""

_SECONDS_BETWEEN_LINES = 30


@dataclass(slots=True)
class _State:
    """Progress of a task, and its bar."""

    task: Task
    bar: TaskID
    total: int
    done: int = 0

    @property
    def percent(self) -> str:
        return _percent(self.done, self.total)


class ProgressBars(Progress):
    """Bytes moved: bars on a terminal, a line every half minute elsewhere, nothing if `quiet`. Use as a context.

    `seconds` is the duration of the last finished task. `on_written` gets the outcome of the writing before an upload.
    """

    def __init__(self, console: Console, *, quiet: bool, on_written: OnWritten = lambda outcome: None) -> None:
        self._console = console
        self._shows_bars = console.is_terminal and not quiet
        self._prints_lines = not (console.is_terminal or quiet)
        self._on_written = on_written
        self._bars: Bars | None = None
        self._states: dict[str, _State] = {}
        """Current task of each share: a share has one task after another."""
        self._started = self._spoke = time.monotonic()
        self.seconds = 0.0

    def __enter__(self) -> "ProgressBars":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def begin(self, task: Task, total_bytes: int) -> None:
        """Show a bar for the task, in place of the previous task's bar."""
        if self._bars is None:
            self._bars = self._open()
        self._forget(task.share)
        bar = self._bars.add_task(str(task), total=total_bytes)
        self._states[task.share] = _State(task, bar, total_bytes)

    def _open(self) -> Bars:
        # Re-enable the garbage collector, with everything built so far frozen.
        gc.freeze()
        gc.enable()
        self._started = self._spoke = time.monotonic()
        columns = (
            "{task.description}", BarColumn(), TaskProgressColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeElapsedColumn(), "left", TimeRemainingColumn(),
        )  # fmt: skip
        bars = Bars(*columns, console=self._console, disable=not self._shows_bars, transient=True)
        bars.start()
        return bars

    def resume(self, task: Task, nbytes: int) -> None:
        """Count bytes that an earlier run moved, and print their number."""
        state = self._states[task.share]
        state.done += nbytes
        share = f"{task.share}: " if task.share else ""
        written = f"{size(nbytes)} of {size(state.total)} already written ({_percent(nbytes, state.total)} %)"
        self._say(f"{share}Resuming: {written}")
        if self._bars is not None:
            self._bars.remove_task(state.bar)  # a new bar, so that the rate does not count resumed bytes
            state.bar = self._bars.add_task(str(task), total=state.total, completed=state.done)

    def advance(self, task: Task, nbytes: int) -> None:
        """Advance the bar, or print the progress of all tasks when it is time."""
        state = self._states[task.share]
        state.done += nbytes
        if self._bars is not None:
            self._bars.advance(state.bar, nbytes)
        now = time.monotonic()
        if self._prints_lines and now - self._spoke >= _SECONDS_BETWEEN_LINES:
            self._spoke = now
            if task.share:
                self._say("; ".join(f"{one.task} {one.percent} %" for one in self._states.values()))
            else:
                self._say(f"{task}: {size(state.done)} of {size(state.total)} ({state.percent} %)")

    def end(self, task: Task) -> None:
        """Remove the bar; shares keep theirs until all have ended."""
        self.seconds = time.monotonic() - self._started
        if not task.share:
            self._close()

    def lost(self, task: Task, reason: str) -> None:
        """Report that a share is lost, and forget its progress."""
        self._forget(task.share)
        self._say(f"{task.share}: lost, {reason}")

    def again(self, task: Task, lost_on: str) -> None:
        """Report where a lost share is written now."""
        self._say(f"{task.share}: written again, after it was lost on {lost_on}")

    def written(self, outcome: "Outcome") -> None:
        """Show what was written before the upload."""
        self._on_written(outcome)

    def _forget(self, share: str) -> None:
        state = self._states.pop(share, None)
        if state is not None and self._bars is not None:
            self._bars.remove_task(state.bar)

    def _say(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(Text(clean(line)), soft_wrap=True)

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._states.clear()


def _percent(done: int, total: int) -> str:
    return f"{100 * done / max(1, total):.0f}"
