"""Progress of a run: a bar for each task on a terminal, a line now and then elsewhere. The counts of every form."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

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
class TaskState:
    """Bytes of a task that has begun. `resumed` ones, which an earlier run moved, count as `done`."""

    task: Task
    total: int
    done: int = 0
    resumed: int = 0
    begun: float = field(default_factory=time.monotonic)

    @property
    def percent(self) -> str:
        return _percent(self.done, self.total)


class TaskProgress(Progress):
    """Counts the bytes of each task, and shows nothing. Use as a context.

    `seconds` is the duration of the last finished task. `on_written` gets the outcome of the writing before an upload.
    """

    def __init__(self, on_written: OnWritten = lambda _: None) -> None:
        self._on_written = on_written
        self._states: dict[str, TaskState] = {}
        """Current task of each share: a share has one task after another."""
        self._started = time.monotonic()
        self.seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._states.clear()

    def begin(self, task: Task, total_bytes: int) -> None:
        if not self._states:
            # Re-enable the garbage collector, with everything built so far frozen.
            gc.freeze()
            gc.enable()
            self._started = time.monotonic()
        self._states[task.share] = TaskState(task, total_bytes)

    def resume(self, task: Task, nbytes: int) -> None:
        self._states[task.share].resumed += nbytes
        self._states[task.share].done += nbytes

    def advance(self, task: Task, nbytes: int) -> None:
        self._states[task.share].done += nbytes

    def end(self, task: Task) -> None:
        """Shares keep their counts until all have ended."""
        self.seconds = time.monotonic() - self._started
        if not task.share:
            self._states.clear()

    def lost(self, task: Task, reason: str) -> None:
        self._states.pop(task.share, None)

    def written(self, outcome: "Outcome") -> None:
        self._on_written(outcome)


class ProgressBars(TaskProgress):
    """Bytes moved: bars on a terminal, a line every half minute elsewhere; only exceptional events if `quiet`."""

    def __init__(self, console: Console, *, quiet: bool, on_written: OnWritten = lambda _: None) -> None:
        super().__init__(on_written)
        self._console = console
        self._shows_bars = console.is_terminal and not quiet
        self._prints_lines = not (console.is_terminal or quiet)
        self._bars: Bars | None = None
        self._shown: dict[str, TaskID] = {}
        """The bar of each share."""
        self._spoke = time.monotonic()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._close()

    def begin(self, task: Task, total_bytes: int) -> None:
        """Show a bar for the task, in place of the previous task's bar."""
        super().begin(task, total_bytes)
        if self._bars is None:
            self._bars = self._open()
        self._show(task.share)

    def _open(self) -> Bars:
        self._spoke = time.monotonic()
        columns = (
            "{task.description}", BarColumn(), TaskProgressColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeElapsedColumn(), "left", TimeRemainingColumn(),
        )  # fmt: skip
        bars = Bars(*columns, console=self._console, disable=not self._shows_bars, transient=True)
        bars.start()
        return bars

    def _show(self, share: str) -> None:
        """Show a new bar for a share, in place of its last one."""
        self._hide(share)
        if self._bars is not None:
            state = self._states[share]
            self._shown[share] = self._bars.add_task(str(state.task), total=state.total, completed=state.done)

    def _hide(self, share: str) -> None:
        bar = self._shown.pop(share, None)
        if bar is not None and self._bars is not None:
            self._bars.remove_task(bar)

    def resume(self, task: Task, nbytes: int) -> None:
        """Count bytes that an earlier run moved, and print their number."""
        super().resume(task, nbytes)
        total = self._states[task.share].total
        share = f"{task.share}: " if task.share else ""
        self._say(f"{share}Resuming: {size(nbytes)} of {size(total)} already written ({_percent(nbytes, total)} %)")
        self._show(task.share)  # a new bar, so that the rate does not count resumed bytes

    def advance(self, task: Task, nbytes: int) -> None:
        """Advance the bar, or print the progress of all tasks when it is time."""
        super().advance(task, nbytes)
        if self._bars is not None:
            self._bars.advance(self._shown[task.share], nbytes)
        now = time.monotonic()
        if self._prints_lines and now - self._spoke >= _SECONDS_BETWEEN_LINES:
            self._spoke = now
            state = self._states[task.share]
            if task.share:
                self._say("; ".join(f"{one.task} {one.percent} %" for one in self._states.values()))
            else:
                self._say(f"{task}: {size(state.done)} of {size(state.total)} ({state.percent} %)")

    def end(self, task: Task) -> None:
        """Remove the bar; shares keep theirs until all have ended."""
        super().end(task)
        if not task.share:
            self._close()

    def lost(self, task: Task, reason: str) -> None:
        """Report that a share is lost, and forget its progress."""
        super().lost(task, reason)
        self._hide(task.share)
        self._say(f"{task.share}: lost, {reason}")

    def again(self, task: Task, lost_on: str) -> None:
        """Report where a lost share is written now."""
        self._say(f"{task.share}: written again, after it was lost on {lost_on}")

    def _say(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(Text(clean(line)), soft_wrap=True)

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._shown.clear()


def _percent(done: int, total: int) -> str:
    return f"{100 * done / max(1, total):.0f}"
