"""Standard output and error of the process, from which readers may go away before the command ends."""

import io
import os
import sys
from typing import Any, TextIO


def open_standard_streams() -> None:
    """Give closed standard streams (`>&-`, daemons) to /dev/null, before other files get their numbers.

    A command whose output nobody reads any more (`| head -1`) ends as it would have: with its work and its exit code.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    sys.stdout = _lasting(sys.stdout or open(1, "w", closefd=False), BrokenPipeError)  # noqa: SIM115
    sys.stderr = _lasting(sys.stderr or open(2, "w", closefd=False), OSError)  # noqa: SIM115


class _Lasting(io.FileIO):
    """A standard stream that goes to /dev/null once a write fails with `ends`."""

    def __init__(self, fd: int, ends: type[OSError]) -> None:
        super().__init__(fd, "w", closefd=False)
        self._ends = ends

    def write(self, content: bytes, /) -> int:  # type: ignore[override]
        try:
            return super().write(content)
        except self._ends:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return memoryview(content).nbytes


def _lasting(stream: TextIO, ends: type[OSError]) -> TextIO:
    """Return a stream like one of Python's own, with the same encoding and buffering, on a `_Lasting`."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    raw: Any = _Lasting(stream.fileno(), ends)
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if isinstance(stream.buffer, io.BufferedWriter) else raw,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
