"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

import sys
import threading
import time

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

_SECONDS_BETWEEN_LINES = 30


class Progress:
    """Bytes moved: with rate and time left on a terminal, a line every half minute elsewhere, nothing if `quiet`."""

    def __init__(self, console: Console, what: str, total: int, *, quiet: bool) -> None:
        self._what, self._total = what, total
        self._shows_bar = console.is_terminal and not quiet
        self._prints_lines = not (console.is_terminal or quiet)
        columns = (what, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=console, disable=not self._shows_bar, transient=True)
        self._lock = threading.Lock()
        self._done = 0
        self.seconds = 0.0

    def __enter__(self) -> "Progress":
        self._started = self._spoke = time.monotonic()
        self._task = self._bar.add_task(self._what, total=self._total)
        self._bar.start()
        return self

    def advance(self, nbytes: int) -> None:
        """Called from any worker."""
        with self._lock:
            self._done += nbytes
            done, now = self._done, time.monotonic()
            speaks = self._prints_lines and now - self._spoke >= _SECONDS_BETWEEN_LINES
            if speaks:
                self._spoke = now
        if self._shows_bar:
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
        self._bar.remove_task(self._task)  # a new one, so that the rate does not count them
        self._task = self._bar.add_task(self._what, total=self._total, completed=nbytes)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self.seconds = time.monotonic() - self._started
