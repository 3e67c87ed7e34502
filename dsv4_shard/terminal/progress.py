"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

import sys
import threading
import time

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from dsv4_shard.text.sanitize import clean

_SECONDS_BETWEEN_LINES = 30


class Progress:
    """Bytes moved: with rate and time left on a terminal, a line every half minute elsewhere, nothing if `quiet`.

    One thing after another begins; `seconds` is what the last that ended has taken.
    """

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._shows_bar = console.is_terminal and not quiet
        self._prints_lines = not (console.is_terminal or quiet)
        self._bar: Bar | None = None
        self._lock = threading.Lock()
        self.seconds = 0.0

    def __enter__(self) -> "Progress":
        return self

    def begin(self, what: str, total: int) -> None:
        """Something of `total` bytes begins, and what began before it has ended."""
        self.end()
        self._what, self._total, self._done = what, total, 0
        self._started = self._spoke = time.monotonic()
        columns = (what, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=self._console, disable=not self._shows_bar, transient=True)
        self._task = self._bar.add_task(what, total=total)
        self._bar.start()

    def end(self) -> None:
        """What began, if anything, has ended."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self.seconds = time.monotonic() - self._started

    def advance(self, nbytes: int) -> None:
        """Called from any worker."""
        with self._lock:
            self._done += nbytes
            done, now = self._done, time.monotonic()
            speaks = self._prints_lines and now - self._spoke >= _SECONDS_BETWEEN_LINES
            if speaks:
                self._spoke = now
        if self._shows_bar and self._bar is not None:
            self._bar.advance(self._task, nbytes)
        if speaks:
            percent = 100 * done / max(1, self._total)
            print(f"{self._what}: {done:,} of {self._total:,} bytes ({percent:.0f} %)", file=sys.stderr)

    def resume(self, nbytes: int) -> None:
        """Count bytes that an earlier run moved, and say so."""
        self._done += nbytes
        percent = 100 * nbytes / max(1, self._total)
        text = f"going on where an earlier run stopped: {nbytes:,} of {self._total:,} bytes are there ({percent:.0f} %)"
        print(text, file=sys.stderr)
        if self._bar is not None:
            self._bar.remove_task(self._task)  # a new one, so that the rate does not count them
            self._task = self._bar.add_task(self._what, total=self._total, completed=nbytes)

    def __exit__(self, *_: object) -> None:
        self.end()


class SharesProgress:
    """Bytes moved by several shares: a bar each on a terminal, a line for all now and then elsewhere."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._shows_bars = console.is_terminal and not quiet
        self._prints_lines = not (console.is_terminal or quiet)
        columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bars = Bar(*columns, console=console, disable=not self._shows_bars, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._at: dict[str, tuple[str, int, int]] = {}
        self.seconds = 0.0

    def __enter__(self) -> "SharesProgress":
        self._started = self._spoke = time.monotonic()
        self._bars.start()
        return self

    def begin(self, share: str, what: str, total: int, done: int = 0) -> None:
        """`share` has begun something of `total` bytes, of which `done` are there already."""
        self._at[share] = (what, done, total)
        if share in self._tasks:
            self._bars.remove_task(self._tasks[share])  # a new one, so that the rate does not count what is there
        self._tasks[share] = self._bars.add_task(f"{what} {share}", total=total, completed=done)
        if done:
            percent = 100 * done / max(1, total)
            self.say(f"{share}: going on where an earlier run stopped: {done:,} of {total:,} bytes ({percent:.0f} %)")

    def advance(self, share: str, nbytes: int) -> None:
        """So many bytes more of a share that has begun."""
        what, done, total = self._at[share]
        self._at[share] = (what, done + nbytes, total)
        self._bars.advance(self._tasks[share], nbytes)
        now = time.monotonic()
        if self._prints_lines and now - self._spoke >= _SECONDS_BETWEEN_LINES:
            self._spoke = now
            parts = [
                f"{what} {share} {100 * done / max(1, total):.0f} %" for share, (what, done, total) in self._at.items()
            ]
            self.say("; ".join(parts))

    def lose(self, share: str, why: str) -> None:
        """Say that `share` is not on its way any more, and forget how far it was."""
        if self._at.pop(share, None) is not None:
            self._bars.remove_task(self._tasks.pop(share))
        self.say(f"{share}: lost, {why}")

    def say(self, line: str) -> None:
        """A line of its own, above the bars."""
        self._console.print(Text(clean(line)), soft_wrap=True)

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
        self.seconds = time.monotonic() - self._started
