"""Checkpoints of full width for the tests: the real ones from skeleton files, variants of them in memory.

All are made once per process and never changed by a test; those in memory have no files and no offsets. Reading a real
one takes seconds, so the workers of a run share what the first of them has read.
"""

import fcntl
import gc
import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from support.checkpoints.skeletons import write_skeleton
from support.paths import DATA as DATA
from support.scratch import shared_folder

from dsv4_shard import opening
from dsv4_shard.checkpoint.inventory import Inventory, take_inventory
from dsv4_shard.checkpoint.reader import Checkpoint, SourceFile, read_checkpoint
from dsv4_shard.checkpoint.synthetic import FP8_BLOCK, tensors_of
from dsv4_shard.engines.deployment import Context, Deployment, Request
from dsv4_shard.engines.registry import find_engine
from dsv4_shard.engines.rules import Breach
from dsv4_shard.models.config import parse_config
from dsv4_shard.opening import open_source
from dsv4_shard.planning.choice import choose
from dsv4_shard.sources.base import Source
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.storage.runtime import collector_paused
from dsv4_shard.tensors.geometry import scale_shape
from dsv4_shard.tensors.header import Tensor, nbytes_of

PRO, FLASH, PRO_FP8 = "DeepSeek-V4-Pro", "DeepSeek-V4-Flash", "DeepSeek-V4-Pro-FP8"
PRO_NVFP4 = "DeepSeek-V4-Pro-NVFP4"
V41, V3, V32 = "DeepSeek-V4.1-Flash", "DeepSeek-V3", "DeepSeek-V3.2"
V4_MODELS = (
    PRO,
    FLASH,
    PRO_FP8,
    PRO_NVFP4,
    "DeepSeek-V4-Flash-0731",
    "DeepSeek-V4-Pro-0813",
    "DeepSeek-V4-Flash-Base",
    "DeepSeek-V4-Flash-FP8",
)
REAL_MODELS = (*V4_MODELS, V41, V3, V32)

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""name → (dtype, shape as stored)"""


def config_of(model: str) -> dict[str, Any]:
    """config.json of a real checkpoint, as released; the caller's own copy."""
    config: dict[str, Any] = json.loads((DATA / model / "config.json").read_text())
    return config


@cache
def inventory_of(model: str) -> tuple[Checkpoint, Inventory]:
    """A real checkpoint, read from its skeleton. The collector need not look at its 100,000 tuples again."""
    with collector_paused():
        checkpoint = _read_once(model)
        inventory = take_inventory(checkpoint)
    gc.freeze()
    return checkpoint, inventory


@contextmanager
def real_checkpoints_read_once() -> Iterator[None]:
    """Commands of this process that open the folder of a real checkpoint get what `inventory_of` has read there."""

    def read_once(source: Source) -> Checkpoint:
        model = _model_in(source)
        return replace(inventory_of(model)[0], source=source) if model else read_checkpoint(source)

    def take_once(checkpoint: Checkpoint) -> Inventory:
        model = _model_in(checkpoint.source)
        return inventory_of(model)[1] if model else take_inventory(checkpoint)

    with (
        patch.object(opening, "read_checkpoint", read_once),
        patch.object(opening, "take_inventory", take_once),
    ):
        yield


def _model_in(source: Source) -> str | None:
    root = source.root and source.root.resolve()
    there = root is not None and root.parent == shared_folder().resolve() and root.name in REAL_MODELS
    return root.name if there else None


def _read_once(model: str) -> Checkpoint:
    """Read from the skeleton by the first worker that asks, and from that worker's pickle by the others."""
    folder = shared_folder()
    kept = folder / f"{model}.pickle"
    with (folder / f"{model}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            skeleton = folder / model
            if not skeleton.exists():
                write_skeleton(skeleton, model)
            checkpoint = read_checkpoint(open_source(str(skeleton)))
            if "PYTEST_XDIST_WORKER" in os.environ:
                kept.write_bytes(pickle.dumps(checkpoint, pickle.HIGHEST_PROTOCOL))
            return checkpoint
    found: Checkpoint = pickle.loads(kept.read_bytes())
    return found


def in_memory(document: dict[str, Any], tensors: Tensors) -> Checkpoint:
    """A checkpoint of one file that does not exist."""
    config, document = parse_config(json.dumps(document).encode(), "config.json")
    placed = {
        name: Tensor(name, dtype, shape, "model.safetensors", 0, nbytes_of(dtype, shape))
        for name, (dtype, shape) in tensors.items()
    }
    files = (SourceFile("model.safetensors", sum(tensor.nbytes for tensor in placed.values()), "0" * 32),)
    return Checkpoint(LocalSource(Path("/nowhere"), "in-memory"), config, document, files, placed, ())


@cache
def variant_of(
    model: str, experts: str, *, layers: int | None = None, scales: str = "F8_E8M0", o_a: str = "FP8"
) -> Inventory:
    """The inventory of `model` with FP4 or FP8 `experts`, cut to its first `layers`, and one MTP block.

    `scales` is the dtype of all FP8 scales (F32 in the Base checkpoints), `o_a` is FP8, or BF16 as in the FP8
    re-releases.
    """
    document = config_of(model)
    document["expert_dtype"] = experts.lower()
    if layers is not None:
        document |= {"num_hidden_layers": layers, "compress_ratios": document["compress_ratios"][:layers]}
    tensors = tensors_of(document)
    for name, (dtype, shape) in list(tensors.items()):
        if o_a == "BF16" and ".attn.wo_a." in name:
            if name.endswith(".scale"):
                del tensors[name]
            else:
                tensors[name] = ("BF16", shape)
        elif dtype == "F8_E8M0" and (experts == "FP8" or ".ffn.experts." not in name):
            tensors[name] = (scales, shape)
    inventory = take_inventory(in_memory(document, tensors))
    assert inventory.errors == ()
    return inventory


def to_fp8_experts(tensors: Tensors) -> Tensors:
    """`tensors` with every packed FP4 weight in 128×128 blocks of FP8 instead."""
    cast = dict(tensors)
    for name, (dtype, shape) in tensors.items():
        if dtype == "I8":
            whole = (shape[0], shape[1] * 2)
            cast[name] = ("F8_E4M3", whole)
            cast[name.removesuffix("weight") + "scale"] = ("F8_E8M0", scale_shape(whole, FP8_BLOCK))
    return cast


def deployment(inventory: Inventory, request: Request) -> Deployment:
    """What the engine makes of a request that leaves it nothing to choose, or the first of its choices."""
    return next(find_engine(request.engine).candidates(inventory, request))


def breaches_of(inventory: Inventory, request: Request) -> list[Breach]:
    """Every rule that the engine's first choice breaks."""
    chosen = deployment(inventory, request)
    return find_engine(request.engine).breaches(Context(inventory, chosen))


def feasible(inventory: Inventory, **wanted: Any) -> Deployment:
    """The deployment of a request that must be feasible."""
    choice = choose(inventory, Request(**wanted))
    assert choice.feasible, choice.breaches
    return choice.deployment
