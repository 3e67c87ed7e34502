"""Hold reshard's `reference` files against those of DeepSeek's own converter, byte by byte, whole files included.

The converter's files are also merged again: each tensor of the checkpoint must come back, as the safetensors library
reads it; wo_a as the converter decoded it, and experts as it cast them, where it did.

    python benchmarks/against_converter.py --converter path/to/inference/convert.py

The converter is not part of this repository: take `inference/convert.py` from any DeepSeek-V4 release (it needs tqdm).
Exits with 1 at the first file that differs.
"""

import argparse
import filecmp
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from dsv4_shard.checkpoint import CONFIG_FILE, read_checkpoint
from dsv4_shard.demo import DEMO_CONFIG, write_checkpoint
from dsv4_shard.engines.base import Request
from dsv4_shard.inventory import take_inventory
from dsv4_shard.merge import prepare_merge
from dsv4_shard.plan import make_plan
from dsv4_shard.ranks import open_ranks
from dsv4_shard.reshard import prepare, reshard
from dsv4_shard.sources import LocalSource, open_source


def convert(converter: Path, source: Path, out: Path, experts: int, ranks: int, dtype: str) -> float:
    """Seconds that the converter takes."""
    command = [sys.executable, str(converter), "--hf-ckpt-path", str(source), "--save-path", str(out)]
    command += ["--n-experts", str(experts), "--model-parallel", str(ranks), "--expert-dtype", dtype]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def shard(source: Path, out: Path, ranks: int, dtype: str) -> float:
    """Seconds that reshard takes, headers to rename."""
    started = time.monotonic()
    checkpoint = read_checkpoint(open_source(str(source)))
    inventory = take_inventory(checkpoint)
    plan = make_plan(checkpoint, inventory, Request(tp=ranks, engine="reference", expert_dtype=dtype))
    reshard(prepare(checkpoint, inventory, plan), checkpoint, out)
    return time.monotonic() - started


def merge(ranks: Path, config: Path, out: Path) -> dict[str, torch.Tensor]:
    """The tensors of the checkpoint that the converter's files in `ranks` merge into."""
    checkpoint, inventory = open_ranks(LocalSource(ranks, ranks.name), config)
    reshard(prepare_merge(checkpoint, inventory), checkpoint, out)
    return tensors_of(out)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by the format's own reader."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def differing(
    merged: dict[str, torch.Tensor], source: dict[str, torch.Tensor], whole: dict[str, torch.Tensor], dtype: str
) -> str:
    """The first tensor that is not the source's or, where it is decoded or cast, that of `whole`; empty: none.

    `whole` is what the converter itself makes for one rank.
    """
    for name in sorted(merged.keys() | whole.keys()):
        changes = "wo_a" in name or (dtype == "fp8" and ".experts." in name)
        found, due = merged.get(name), (whole if changes else source).get(name)
        if found is None or due is None:
            return name
        if (found.dtype, found.shape) != (due.dtype, due.shape) or not torch.equal(bits(found), bits(due)):
            return name
    return ""


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes."""
    return tensor.contiguous().flatten().view(torch.uint8)


def main() -> None:
    """Compare for every number of ranks that the demo checkpoint allows, FP4 kept and cast to FP8."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--converter", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = write_checkpoint(Path(scratch) / "checkpoint", seed=arguments.seed)
        original = tensors_of(source)
        for dtype in ("fp4", "fp8"):
            whole: dict[str, torch.Tensor] = {}
            for ranks in (1, 2, 4, 8, 16):
                theirs, ours = Path(scratch) / f"theirs-{dtype}-{ranks}", Path(scratch) / f"ours-{dtype}-{ranks}"
                slow = convert(arguments.converter, source, theirs, DEMO_CONFIG["n_routed_experts"], ranks, dtype)
                fast = shard(source, ours, ranks, dtype)
                names = sorted(path.name for path in theirs.glob("*.safetensors"))
                same = [filecmp.cmp(theirs / name, ours / name, shallow=False) for name in names]
                if len(names) != ranks or not all(same):
                    sys.exit(f"{dtype} mp{ranks}: {same.count(False)} of {len(names)} files differ")
                whole = whole or tensors_of(theirs)
                merged = merge(theirs, source / CONFIG_FILE, Path(scratch) / f"merged-{dtype}-{ranks}")
                if name := differing(merged, original, whole, dtype):
                    sys.exit(f"{dtype} mp{ranks}: merged, {name} is not what the checkpoint or the converter has")
                print(f"{dtype} mp{ranks}: {len(merged):,} tensors merged as they were", end="; ")
                print(f"{len(names)} files byte-identical, {slow / fast:.1f}× the converter's speed")


if __name__ == "__main__":
    main()
