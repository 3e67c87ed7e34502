"""Commands as children of their own, and what the kernel counted for each."""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CHILD = Path(__file__).with_name("child.py")


class ChildFailed(Exception):
    """A command ended with an error; the message has all that it said."""


@dataclass(frozen=True, slots=True)
class Run:
    """A command that ended well: `seconds` from its start to its end, `cpu` those of all its CPUs, sizes in bytes.

    `bytes_read` and `bytes_written` are those of read and write calls (and of copies within the kernel), whether the
    page cache or the disk served them; mapped files are not among them. `disk_read` and `disk_written` are those that
    went from and to the disk.
    """

    seconds: float
    cpu: float
    peak_memory: int
    bytes_read: int
    bytes_written: int
    disk_read: int
    disk_written: int


def tool(*arguments: str) -> list[str]:
    """A dsv4-shard command, in this interpreter."""
    return [sys.executable, "-m", "dsv4_shard", *arguments]


def run(command: list[str]) -> Run:
    """Run to the end. Raises ChildFailed."""
    return run_for_output(command)[0]


def run_for_output(command: list[str]) -> tuple[Run, str]:
    """Run to the end; also what went to stdout. Raises ChildFailed."""
    call = [sys.executable, "-I", "-S", str(CHILD), *command]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            output, errors = process.communicate()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise ChildFailed(f"`{shlex.join(command)}` ended with {process.returncode}:\n{output}{errors}")
    output, _, figures = output.rstrip().rpartition("\n")
    return Run(**json.loads(figures)), output
