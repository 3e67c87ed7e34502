"""Hold reshard's `reference` files against those of DeepSeek's own converter, byte by byte, whole files included.

    python benchmarks/against_converter.py --converter path/to/inference/convert.py

The converter is not part of this repository: take `inference/convert.py` from a release of DeepSeek-V4, of its DSpark
versions, or of V4.1 (it needs tqdm); which one it is, is read from the script, and a checkpoint of that kind made.
Exits with 1 at the first file that differs.
"""

import argparse
import filecmp
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from generations import command, generation_of

from dsv4_shard.checkpoint import read_checkpoint
from dsv4_shard.engines.base import Request
from dsv4_shard.inventory import take_inventory
from dsv4_shard.plan import make_plan
from dsv4_shard.reshard import prepare, reshard
from dsv4_shard.sources import open_source


def convert(converter: Path, source: Path, out: Path, experts: int | None, ranks: int, dtype: str) -> float:
    """Seconds that the converter takes."""
    started = time.monotonic()
    subprocess.run(command(converter, source, out, ranks, dtype, experts), check=True, capture_output=True)
    return time.monotonic() - started


def shard(source: Path, out: Path, ranks: int, dtype: str) -> float:
    """Seconds that reshard takes, headers to rename."""
    started = time.monotonic()
    checkpoint = read_checkpoint(open_source(str(source)))
    inventory = take_inventory(checkpoint)
    plan = make_plan(checkpoint, inventory, Request(tp=ranks, engine="reference", expert_dtype=dtype))
    reshard(prepare(checkpoint, inventory, plan), checkpoint, out)
    return time.monotonic() - started


def main() -> None:
    """Compare for every number of ranks that the checkpoint allows, FP4 kept and cast to FP8."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--converter", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generation = generation_of(arguments.converter)
    print(f"the converter is that of {generation.title}")
    with tempfile.TemporaryDirectory() as scratch:
        source = generation.write(Path(scratch) / "checkpoint", arguments.seed)
        for dtype in ("fp4", "fp8"):
            for ranks in (1, 2, 4, 8, 16):
                theirs, ours = Path(scratch) / f"theirs-{dtype}-{ranks}", Path(scratch) / f"ours-{dtype}-{ranks}"
                slow = convert(arguments.converter, source, theirs, generation.experts, ranks, dtype)
                fast = shard(source, ours, ranks, dtype)
                names = sorted(path.name for path in theirs.glob("*.safetensors"))
                same = [filecmp.cmp(theirs / name, ours / name, shallow=False) for name in names]
                if len(names) != ranks or not all(same):
                    sys.exit(f"{dtype} mp{ranks}: {same.count(False)} of {len(names)} files differ")
                print(f"{dtype} mp{ranks}: {len(names)} files byte-identical, {slow / fast:.1f}× the converter's speed")


if __name__ == "__main__":
    main()
