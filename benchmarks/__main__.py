"""`make bench`: how fast reshard is against `cp` on the same disk, and how long V4-Pro's headers take.

Ratios come from alternating runs of the same minute, since machines are noisy; each is the median of ROUNDS. Peak
memory is the kernel's figure for a process of its own. `--json FILE` keeps the numbers.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dsv4_shard.demo import DEMO_CONFIG, write_checkpoint

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from skeletons import write_skeleton

ROUNDS = 3
CONFIG = DEMO_CONFIG | {"hidden_size": 1024, "n_routed_experts": 32, "num_hidden_layers": 4}
CASES = {
    "reference TP16, FP4 kept": ("--tp", "16", "--engine", "reference"),
    "reference TP16, cast to FP8": ("--tp", "16", "--engine", "reference", "--expert-dtype", "fp8"),
}


def timed(run: Callable[[], object]) -> float:
    """Seconds that `run` takes."""
    started = time.monotonic()
    run()
    return time.monotonic() - started


def command(*arguments: str) -> None:
    """Run dsv4-shard in a process of its own."""
    subprocess.run([sys.executable, "-m", "dsv4_shard", *arguments], check=True, capture_output=True)


def peak_memory(*arguments: str) -> int:
    """Bytes of resident memory at the peak of one dsv4-shard command."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    call = [sys.executable, "-c", code, sys.executable, "-m", "dsv4_shard", *arguments]
    return int(subprocess.run(call, check=True, capture_output=True, text=True).stdout) * 1024


def bench_reshard(scratch: Path, name: str, options: tuple[str, ...]) -> dict[str, Any]:
    """One layout against `cp -r` of what it wrote."""
    source, out, twin = scratch / "checkpoint", scratch / "out", scratch / "copy"
    ours, theirs = [], []
    command("reshard", str(source), str(out), *options)  # also fills the page cache, for both
    for _ in range(ROUNDS):
        shutil.rmtree(twin, ignore_errors=True)
        theirs.append(timed(lambda: subprocess.run(["cp", "-r", str(out), str(twin)], check=True)))
        subprocess.run(["sync"], check=True)
        ours.append(timed(lambda: command("reshard", str(source), str(out), *options, "--overwrite")))
    nbytes = sum(path.stat().st_size for path in out.iterdir())
    memory = peak_memory("reshard", str(source), str(out), *options, "--overwrite")
    shutil.rmtree(twin)
    shutil.rmtree(out)
    return {
        "case": name,
        "output_bytes": nbytes,
        "speed_over_cp": statistics.median(t / o for t, o in zip(theirs, ours, strict=True)),
        "bytes_per_second": nbytes / statistics.median(ours),
        "peak_memory": memory,
    }


def bench_headers(scratch: Path) -> list[dict[str, Any]]:
    """Start-up, and inspect and plan on all 145,116 headers of V4-Pro."""
    pro = str(write_skeleton(scratch / "pro", "DeepSeek-V4-Pro"))
    cases = {"--help": ("--help",), "inspect V4-Pro": ("inspect", pro), "plan V4-Pro": ("plan", pro, "--tp", "16")}
    return [
        {
            "case": name,
            "seconds": statistics.median(timed(lambda a=arguments: command(*a)) for _ in range(ROUNDS)),
            "peak_memory": peak_memory(*arguments),
        }
        for name, arguments in cases.items()
    ]


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, dest="json_file")
    parser.add_argument("--scratch", type=Path, help="where to write; default: the temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        scratch = Path(folder)
        write_checkpoint(scratch / "checkpoint", CONFIG)
        moves = [bench_reshard(scratch, name, options) for name, options in CASES.items()]
        headers = bench_headers(scratch)
    table = Table("case", "output", "speed / cp", "rate", "peak memory")
    for row in moves:
        table.add_row(row["case"], f"{row['output_bytes'] / 1e9:.2f} GB", f"{row['speed_over_cp']:.2f}",
                      f"{row['bytes_per_second'] / 1e9:.2f} GB/s", f"{row['peak_memory'] >> 20} MiB")  # fmt: skip
    for row in headers:
        table.add_row(row["case"], "", "", f"{row['seconds']:.2f} s", f"{row['peak_memory'] >> 20} MiB")
    Console().print(table)
    if arguments.json_file:
        arguments.json_file.write_text(json.dumps({"reshard": moves, "headers": headers}, indent=1))


if __name__ == "__main__":
    main()
