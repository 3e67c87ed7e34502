"""How reshard, merge and verify grow with their workers, with all files in memory, and what these CPUs allow.

`share` is the time that the slower of two things takes alone, as a part of ours: hashing the output by as many streams
as it has files (SHA-256 takes a file's bytes in order, so a file has one stream), and copying its files, as many at a
time as there are CPUs. Both can use all CPUs, which ours shares between them. `start` is what
reshard takes for a checkpoint of a few MB: the larger a checkpoint, the less it counts.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from benchmarks.against_cp import folder_bytes, remove
from benchmarks.running import tool
from benchmarks.settings import NotMeasured, Settings, require_room, say
from benchmarks.sized import write_least, write_sized
from benchmarks.spread import Spread, spread

CASES = {
    "experts whole, reference TP8": ("--engine", "reference", "--tp", "8"),
    "96-byte columns, SGLang TP16": ("--tp", "16"),
    "FP4 to FP8, reference TP8": ("--engine", "reference", "--tp", "8", "--expert-dtype", "fp8"),
}
WITHOUT = "reshard without SHA-256"
COMMANDS = (WITHOUT, "reshard", "verify", "merge")
"""In this order: `verify` and `merge` take what `reshard` wrote."""
LAYERS: dict[str, Any] = {"num_hidden_layers": 8, "compress_ratios": [4] * 8}
"""Each is a file: SHA-256 of what `merge` writes has as many streams."""

MEMORY = Path("/dev/shm")
FOLDERS = 6
"""Room for this many times the checkpoint: itself, the largest output, and its copy."""


class Allowed(NamedTuple):
    """What the CPUs allow, in GB/s: copying the files of an output, and SHA-256 of as many streams as it has files."""

    copied: float
    sha256: float


@dataclass(frozen=True, slots=True)
class Workers:
    """One command on one layout with one number of workers; rates in GB/s of output, memory in bytes.

    `verify` counts the bytes that it reads. `efficiency` is the rate divided by that of one worker and by the number of
    workers. `user` and `system` are CPU seconds per GB, of the command and its processes.
    """

    case: str
    command: str
    jobs: int
    gb_per_second: Spread
    efficiency: float
    start: float
    user: float
    system: float
    copied: float
    sha256: float
    share: float
    bottleneck: str
    peak_memory: int


class Taken(NamedTuple):
    """Seconds on the clock, of the CPUs (user, system), and the most memory of the command with its processes."""

    seconds: float
    cpu: tuple[float, float]
    peak: int


def measure(settings: Settings) -> list[Workers]:
    """Every command on every layout with 1, 2, 4 ... workers up to the number of CPUs."""
    if not os.access(MEMORY, os.W_OK):
        raise NotMeasured(f"no {MEMORY} here")
    require_room(MEMORY, FOLDERS * settings.nbytes)
    with tempfile.TemporaryDirectory(prefix="dsv4-shard-bench-", dir=MEMORY) as folder:
        source = write_sized(Path(folder) / "checkpoint", settings.nbytes, **LAYERS)
        least = write_least(Path(folder) / "least")
        return [row for case in CASES for row in _case(case, source, least, settings.rounds)]


def _case(case: str, source: Path, least: Path, rounds: int) -> Iterator[Workers]:
    out = source.with_name("out")
    start = _run("reshard", case, least, _cpus()).seconds
    _run("reshard", case, source, _cpus())
    allowed = Allowed(folder_bytes(out) / _seconds_to_copy(out) / 1e9, _sha256_rate(_weight_files(out)) / 1e9)
    for command in COMMANDS:
        yield from _rows(command, case, source, rounds, start, allowed)
    remove(out)


def _rows(command: str, case: str, source: Path, rounds: int, start: float, allowed: Allowed) -> Iterator[Workers]:
    """One command with each number of workers."""
    written = source.with_name("merged" if command == "merge" else "out")
    limits = {"SHA-256": allowed.sha256, "copying": allowed.copied}
    if command == WITHOUT:
        del limits["SHA-256"]
    limit = min(limits, key=lambda name: limits[name])
    alone = 0.0
    for jobs in _numbers():
        say(f"workers: {case}: {command}: {jobs} of {_cpus()}")
        runs = [_run(command, case, source, jobs) for _ in range(rounds)]
        size = folder_bytes(written)
        rate = spread(size / one.seconds / 1e9 for one in runs)
        user, system = (
            spread(spent * 1e9 / size for spent in of).median for of in zip(*(one.cpu for one in runs), strict=True)
        )
        alone = alone or rate.median
        yield Workers(case, command, jobs, rate, rate.median / alone / jobs, start, user, system, *allowed,
                      rate.median / limits[limit], limit, max(one.peak for one in runs))  # fmt: skip
    if command == "merge":
        remove(written)


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _numbers() -> list[int]:
    """1, 2, 4 ... and the number of CPUs."""
    return sorted({min(1 << power, _cpus()) for power in range(_cpus().bit_length() + 1)})


def _run(command: str, case: str, source: Path, jobs: int) -> Taken:
    """Run a command on `source` or what is written of it. Raises NotMeasured if it fails."""
    out, merged = source.with_name("out"), source.with_name("merged")
    if command in ("reshard", WITHOUT):
        remove(out)
        arguments = ["reshard", str(source), str(out), *CASES[case]]
    else:
        remove(merged)
        arguments = ["verify", str(out)] if command == "verify" else ["merge", str(out), str(merged)]
    line = tool(*arguments, "--jobs", str(jobs))
    if command == WITHOUT:
        line[line.index("dsv4_shard")] = "benchmarks.without_sha256"
    before, started = os.times(), time.monotonic()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with process, _watched(process.pid) as peak:
        _, errors = process.communicate()
    seconds, after = time.monotonic() - started, os.times()
    if process.returncode:
        raise NotMeasured(f"{command} ended with {process.returncode}: {errors.decode()}")
    cpu = after.children_user - before.children_user, after.children_system - before.children_system
    return Taken(seconds, cpu, peak[0])


@contextmanager
def _watched(pid: int) -> Iterator[list[int]]:
    """The largest sum of proportional set sizes of a process and its children so far, from samples."""
    peak, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            with suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                peak[0] = max(peak[0], sum(map(_pss, [str(pid), *children])))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _pss(pid: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def _weight_files(out: Path) -> int:
    return len({os.stat(path).st_ino for path in out.rglob("*.safetensors")})


def _seconds_to_copy(out: Path) -> float:
    """Seconds in which as many threads as there are CPUs copy the files, one file each, within the kernel."""
    twin = out.with_name("twin")
    twin.mkdir()
    files = list({os.stat(path).st_ino: path for path in out.rglob("*.safetensors")}.values())
    started = time.monotonic()
    with ThreadPoolExecutor(_cpus()) as pool:
        list(pool.map(lambda number: shutil.copyfile(files[number], twin / str(number)), range(len(files))))
    seconds = time.monotonic() - started
    remove(twin)
    return seconds


def _sha256_rate(streams: int) -> float:
    """Bytes a second of so many streams on these CPUs, from the CPU's cache."""
    data, count = os.urandom(1 << 20), 256

    def hash_stream() -> None:
        running = hashlib.sha256()
        for _ in range(count):
            running.update(data)

    workers = min(streams, _cpus())
    started = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda _: hash_stream(), range(workers)))
    return workers * count * len(data) / (time.monotonic() - started)


def table(rows: list[Workers]) -> Table:
    """For a person."""
    columns = ("layout", "command", "workers", "GB/s", "efficiency", "start", "user, system s/GB", "copied", "SHA-256",
               "share", "limit", "peak memory")  # fmt: skip
    shown = Table(*columns, title="Workers, files in memory")
    for row in rows:
        shown.add_row(row.case, row.command, str(row.jobs), str(row.gb_per_second), f"{row.efficiency:.0%}",
                      f"{row.start:.1f} s", f"{row.user:.2f} {row.system:.2f}", f"{row.copied:.1f} GB/s",
                      f"{row.sha256:.1f} GB/s", f"{row.share:.0%}", row.bottleneck,
                      f"{row.peak_memory >> 20} MiB")  # fmt: skip
    return shown
