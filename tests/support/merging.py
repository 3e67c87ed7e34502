"""Reshard a folder, merge its ranks, and compare what comes back."""

from pathlib import Path
from typing import Any

import torch
from support.checkpoints.small import contents, open_folder
from support.oracles import v4 as oracle

from dsv4_shard.checkpoint.inventory import Inventory
from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.opening import open_source
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.reassembly.detect import holds_ranks
from dsv4_shard.reassembly.merge_job import prepare_merge
from dsv4_shard.reassembly.rank_folder import open_ranks
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.outcome import Outcome
from dsv4_shard.sharding.run import reshard
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE
from dsv4_shard.sources.local import LocalSource


def shard(folder: Path, out: Path, request: Request) -> Outcome:
    """Reshard the checkpoint or the ranks in `folder`."""
    checkpoint, inventory = opened(folder)
    return reshard(prepare(checkpoint, inventory, make_plan(checkpoint, inventory, request)), checkpoint, out)


def opened(folder: Path) -> tuple[Checkpoint, Inventory]:
    source = open_source(str(folder))
    if not holds_ranks(source):
        return open_folder(folder)
    assert isinstance(source, LocalSource)
    return open_ranks(source)


def merge(ranks: Path, out: Path, **options: Any) -> Checkpoint:
    """Merge the ranks in `ranks` into `out`; the checkpoint that they were."""
    checkpoint, inventory = opened(ranks)
    reshard(prepare_merge(checkpoint, inventory), checkpoint, out, **options)
    return checkpoint


def weights(folder: Path) -> dict[str, bytes]:
    """Every file of a checkpoint that its tensors decide: weights, index and config, by name."""
    return {name: found for name, found in contents(folder).items() if name.endswith("safetensors") or name in
            (INDEX_FILE, CONFIG_FILE)}  # fmt: skip


def held_by(tensors: dict[str, torch.Tensor], *, decoded: bool, cast: bool) -> dict[str, torch.Tensor]:
    """What ranks hold of a checkpoint where wo_a is decoded, and experts are cast, told by the oracle."""
    held = dict(tensors)
    for name in [name for name in tensors if name.endswith(".weight")]:
        scale = name.removesuffix("weight") + "scale"
        if decoded and "wo_a" in name and scale in held:
            held[name] = oracle.dequantize_fp8(held[name], held.pop(scale))
        elif cast and ".experts." in name:
            held[name], held[scale] = oracle.fp4_to_fp8(held[name], held[scale])
    return held
