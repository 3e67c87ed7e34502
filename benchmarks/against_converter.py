"""Hold reshard's `reference` files against those of DeepSeek's own converter, byte by byte, whole files included.

The converter's files are also merged again: each tensor of the checkpoint must come back, as the safetensors library
reads it; wo_a as the converter decoded it, and experts as it cast them, where it did. And its files of half as many
ranks, resharded, must be those that it makes itself.

    python -m benchmarks.against_converter --converter path/to/inference/convert.py

The converter is not part of this repository: take `inference/convert.py` from a release of DeepSeek-V3, V3.2, V4, of
its DSpark versions, or of V4.1 (they need tqdm); which it is, is read from the script, and such a checkpoint is made.
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

from benchmarks.generations import command, generation_of
from dsv4_shard.checkpoint.inventory import take_inventory
from dsv4_shard.checkpoint.reader import read_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.opening import open_source
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.reassembly.merge_job import prepare_merge
from dsv4_shard.reassembly.rank_folder import open_ranks
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.run import reshard
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE
from dsv4_shard.sources.local import LocalSource


def convert(converter: Path, source: Path, out: Path, experts: int | None, ranks: int, dtype: str | None) -> float:
    """Seconds that the converter takes."""
    started = time.monotonic()
    subprocess.run(command(converter, source, out, ranks, dtype, experts), check=True, capture_output=True)
    return time.monotonic() - started


def shard(source: Path, out: Path, ranks: int, dtype: str | None) -> float:
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
    merged: dict[str, torch.Tensor], source: dict[str, torch.Tensor], whole: dict[str, torch.Tensor], dtype: str | None
) -> str:
    """The first tensor that is not the source's or, where it is decoded or cast, that of `whole`; empty: none.

    `whole` is what the converter itself makes for one rank.
    """
    if len(merged) != len(whole):
        return f"{len(merged):,} tensors: that"
    for name, found in merged.items():
        changes = "wo_a" in name or (dtype == "fp8" and ".experts." in name)
        due = (whole if changes else source).get(name)
        if (
            due is None
            or (found.dtype, found.shape) != (due.dtype, due.shape)
            or not torch.equal(bits(found), bits(due))
        ):
            return name
    return ""


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes."""
    return tensor.contiguous().flatten().view(torch.uint8)


def main() -> None:
    """Compare for every number of ranks that the checkpoint allows, and every dtype that the experts can have."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--converter", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generation = generation_of(arguments.converter)
    print(f"the converter is that of {generation.title}")
    with tempfile.TemporaryDirectory() as scratch:
        source = generation.write(Path(scratch) / "checkpoint", arguments.seed)
        for dtype in generation.dtypes:
            theirs = {ranks: Path(scratch) / f"{dtype}-{ranks}" for ranks in generation.ranks}
            for ranks, folder in theirs.items():
                slow = convert(arguments.converter, source, folder, generation.experts, ranks, dtype)
                case = f"{dtype} mp{ranks}" if dtype else f"mp{ranks}"
                print(case, end=": ", flush=True)
                print(compare(source, theirs, ranks, dtype, slow))


def compare(source: Path, theirs: dict[int, Path], ranks: int, dtype: str | None, slow: float) -> str:
    """What was found of one of the converter's results, which are in `theirs` by their number of ranks, 1 among them.

    Exits where anything differs.
    """
    with tempfile.TemporaryDirectory(dir=source.parent) as scratch:
        ours, merged, doubled = (Path(scratch) / name for name in ("ours", "merged", "doubled"))
        fast = shard(source, ours, ranks, dtype)
        refuse_differences(theirs[ranks], ours, "differ")
        back = merge(theirs[ranks], source / CONFIG_FILE, merged)
        if name := differing(back, tensors_of(source), tensors_of(theirs[1]), dtype):
            sys.exit(f"merged, {name} is not what the checkpoint or the converter has")
        said = f"{ranks} files byte-identical, {slow / fast:.1f}× the converter's speed; merged as they were"
        half = theirs.get(ranks // 2)
        if half is None:
            return said
        reshard_ranks(half, source / CONFIG_FILE, doubled, ranks)
        refuse_differences(theirs[ranks], doubled, f"differ, made of mp{ranks // 2}'s")
        return f"{said}; mp{ranks // 2}'s, resharded, are these"


def reshard_ranks(half: Path, config: Path, out: Path, ranks: int) -> None:
    """The converter's files of half as many ranks, resharded."""
    checkpoint, inventory = open_ranks(LocalSource(half, half.name), config)
    plan = make_plan(checkpoint, inventory, Request(tp=ranks, engine="reference"))
    reshard(prepare(checkpoint, inventory, plan), checkpoint, out)


def refuse_differences(theirs: Path, ours: Path, how: str) -> None:
    """Exit where not each of the converter's files has one of ours with its bytes, and none is more."""
    names = {folder: sorted(path.name for path in folder.glob("*.safetensors")) for folder in (theirs, ours)}
    if names[theirs] != names[ours]:
        sys.exit(f"{len(names[theirs])} and {len(names[ours])} files")
    same = [filecmp.cmp(theirs / name, ours / name, shallow=False) for name in names[theirs]]
    if not all(same):
        sys.exit(f"{same.count(False)} of {len(same)} files {how}")


if __name__ == "__main__":
    main()
