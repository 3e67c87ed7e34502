"""Run DeepSeek's own model on our shards, on a CPU: TP N must give the logits of TP 1.

    python -m benchmarks.against_model --inference path/to/inference

`inference` is the folder with DeepSeek-V4's model.py and kernel.py, whose kernels must run on a CPU (plain PyTorch ones
do); it is not part of this repository. Each rank is a process (gloo) that builds the model from the shards' own
inference_config.json, loads its file with strict names, and runs a prefill. Exits with 1 where a key is missing or
the logits differ.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RANKS = (1, 2, 4)
TOKENS = 24
TOLERANCE = 0.2
"""Relative, in the 2-norm: partial sums are rounded to BF16 and requantized to FP8 in another order. Unrelated logits
differ by about 1.4."""


def run_rank(inference: Path, shards: Path, out: Path) -> None:
    """One rank: build, load, prefill; rank 0 saves its logits."""
    import torch
    import torch.distributed as dist
    from safetensors.torch import load_file

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    sys.path.insert(0, str(inference))
    import model as deepseek  # type: ignore[import-not-found]

    if world > 1:
        dist.init_process_group("gloo")
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    config = json.loads((shards / "inference_config.json").read_text())
    model = deepseek.Transformer(deepseek.ModelArgs(**config, max_batch_size=1, max_seq_len=256))
    weights = load_file(shards / f"model{rank}-mp{world}.safetensors")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    shared = ("mtp.0.embed.", "mtp.0.head.")  # the model's own embedding and head, under a second name
    missing = [name for name in missing if not name.startswith(shared)]
    if missing or unexpected:
        sys.exit(f"rank {rank} of {world}: missing {missing[:3]}, unexpected {unexpected[:3]}")
    tokens = torch.randint(0, config["vocab_size"], (1, TOKENS), generator=torch.Generator().manual_seed(1))
    logits = model(tokens)
    if rank == 0:
        torch.save(logits.float(), out)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def logits_of(arguments: argparse.Namespace, shards: Path, ranks: int, out: Path) -> Any:
    """The logits that `ranks` processes come to."""
    import torch

    base = [
        sys.executable,
        __file__,
        "--inference",
        str(arguments.inference),
        "--shards",
        str(shards),
        "--out",
        str(out),
    ]
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(base, env=os.environ | rendezvous | {"RANK": str(rank), "WORLD_SIZE": str(ranks)})
        for rank in range(ranks)
    ]
    codes = [worker.wait() for worker in workers]
    if any(codes):
        sys.exit(f"{ranks} ranks ended with {codes}")
    return torch.load(out)


def main() -> None:
    """Compare TP 2 and 4 with TP 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inference", type=Path, required=True)
    parser.add_argument("--shards", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.shards:
        run_rank(arguments.inference, arguments.shards, arguments.out)
        return
    from benchmarks.against_converter import shard
    from dsv4_shard.checkpoint.synthetic import write_checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        source = write_checkpoint(Path(scratch) / "checkpoint")
        results = {}
        for ranks in RANKS:
            shard(source, Path(scratch) / f"mp{ranks}", ranks, "fp4")
            results[ranks] = logits_of(arguments, Path(scratch) / f"mp{ranks}", ranks, Path(scratch) / f"{ranks}.pt")
        one = results[1]
        for ranks in RANKS[1:]:
            difference = float((results[ranks] - one).norm() / one.norm())
            print(f"TP {ranks}: relative difference of the logits to TP 1: {difference:.1e}")
            if not difference <= TOLERANCE:
                sys.exit(1)


if __name__ == "__main__":
    main()
