"""How reshard grows with its workers, with all files in memory, and what SHA-256 and copying allow on these CPUs.

`share` is the time that the slower of two things takes alone, as a part of ours: hashing the output by as many streams
as it has files (SHA-256 takes a file's bytes in order, so a file has one stream), and copying its files, as many at a
time as there are CPUs. Both can use all CPUs, which ours shares between them.
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

from rich.table import Table

from benchmarks.against_cp import folder_bytes, remove
from benchmarks.running import tool
from benchmarks.settings import NotMeasured, Settings, require_room, say
from benchmarks.sized import write_sized
from benchmarks.spread import Spread, spread

CASES = {
    "experts whole, reference TP8": ("--engine", "reference", "--tp", "8"),
    "96-byte columns, SGLang TP16": ("--tp", "16"),
    "FP4 to FP8, reference TP8": ("--engine", "reference", "--tp", "8", "--expert-dtype", "fp8"),
}
MEMORY = Path("/dev/shm")
FOLDERS = 6
"""Room for this many times the checkpoint: itself, the largest output, and its copy."""


@dataclass(frozen=True, slots=True)
class Workers:
    """One case with one number of workers; rates in GB/s of output, memory in bytes.

    `efficiency` is the rate divided by that of one worker and by the number of workers.
    """

    case: str
    jobs: int
    gb_per_second: Spread
    efficiency: float
    copied: float
    sha256: float
    share: float
    bottleneck: str
    peak_memory: int


def measure(settings: Settings) -> list[Workers]:
    """Every case with 1, 2, 4 ... workers up to the number of CPUs."""
    if not os.access(MEMORY, os.W_OK):
        raise NotMeasured(f"no {MEMORY} here")
    require_room(MEMORY, FOLDERS * settings.nbytes)
    with tempfile.TemporaryDirectory(prefix="dsv4-shard-bench-", dir=MEMORY) as folder:
        source = write_sized(Path(folder) / "checkpoint", settings.nbytes)
        return [row for case in CASES for row in _case(case, source, settings.rounds)]


def _case(case: str, source: Path, rounds: int) -> Iterator[Workers]:
    out = source.with_name("out")
    alone = 0.0
    for jobs in _numbers():
        say(f"workers: {case}: {jobs} of {_cpus()}")
        seconds, peak = zip(*(_reshard(source, out, CASES[case], jobs) for _ in range(rounds)), strict=True)
        size = folder_bytes(out)
        rate = spread(size / one / 1e9 for one in seconds)
        alone = alone or rate.median
        copied, hashed = size / _seconds_to_copy(out) / 1e9, _sha256_rate(_weight_files(out)) / 1e9
        slower = min(copied, hashed)
        yield Workers(case, jobs, rate, rate.median / alone / jobs, copied, hashed, rate.median / slower,
                      "SHA-256" if slower == hashed else "copying", max(peak))  # fmt: skip
    remove(out)


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _numbers() -> list[int]:
    """1, 2, 4 ... and the number of CPUs."""
    return sorted({min(1 << power, _cpus()) for power in range(_cpus().bit_length() + 1)})


def _reshard(source: Path, out: Path, options: tuple[str, ...], jobs: int) -> tuple[float, int]:
    """Seconds, and the most memory that the command and its processes had at once."""
    remove(out)
    started = time.monotonic()
    command = tool("reshard", str(source), str(out), *options, "--jobs", str(jobs))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with process, _watched(process.pid) as peak:
        _, errors = process.communicate()
    if process.returncode:
        raise NotMeasured(f"reshard ended with {process.returncode}: {errors.decode()}")
    return time.monotonic() - started, peak[0]


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
    columns = ("layout", "workers", "GB/s", "efficiency", "copied", "SHA-256", "share", "limit", "peak memory")
    shown = Table(*columns, title="Workers, files in memory")
    for row in rows:
        shown.add_row(row.case, str(row.jobs), str(row.gb_per_second), f"{row.efficiency:.0%}",
                      f"{row.copied:.1f} GB/s", f"{row.sha256:.1f} GB/s", f"{row.share:.0%}", row.bottleneck,
                      f"{row.peak_memory >> 20} MiB")  # fmt: skip
    return shown
