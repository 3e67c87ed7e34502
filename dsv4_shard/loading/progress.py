"""How much of a load is done: a line now and then, and the figures of the last line."""

import logging
import threading
import time

from dsv4_shard.text.units import size

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0


class LoadProgress:
    """Counts bytes from any thread, and logs a line every ten seconds."""

    def __init__(self, what: str, total: int) -> None:
        """Start the clock. `what` begins each line; `total` is the bytes that will be loaded."""
        self._what, self._total, self._done = what, total, 0
        self._lock = threading.Lock()
        self._started = self._last = time.monotonic()

    def add(self, nbytes: int) -> None:
        """Count bytes that are loaded."""
        with self._lock:
            self._done += nbytes
            if time.monotonic() - self._last < _SECONDS_BETWEEN_LINES:
                return
            self._last = time.monotonic()
        share = self._done / self._total if self._total else 1
        logger.info("%s: %s of %s (%.0f %%)", self._what, size(self._done), size(self._total), 100 * share)

    def summary(self) -> str:
        """The bytes to load, the seconds since the start, and the rate."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        return f"{size(self._total)} in {seconds:.1f} s ({size(round(self._total / seconds))}/s)"
