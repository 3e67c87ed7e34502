"""Small checkpoints of each family, and the steps from a folder to a result: for the tests that move bytes.

Only what takes tensors imports torch: the other tests run where it is not installed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from dsv4_shard.checkpoint.inventory import Inventory, take_inventory
from dsv4_shard.checkpoint.reader import Checkpoint, read_checkpoint
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, DSPARK_CONFIG, V41_CONFIG, tensors_of, write_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.models.config import parse_config
from dsv4_shard.opening import open_source
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import Job, prepare
from dsv4_shard.sharding.outcome import Outcome
from dsv4_shard.sharding.run import reshard
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.tensors.header import Tensor, build_header, nbytes_of

if TYPE_CHECKING:
    import torch

SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_hash_layers": 1,
    "compress_ratios": [128, 4, 0],
    "vocab_size": 256,
    "num_attention_heads": 8,
    "head_dim": 128,
    "o_groups": 8,
    "index_n_heads": 8,
    "moe_intermediate_size": 256,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "hc_mult": 2,
}
"""Cuts into 1, 2, 4 and 8 ranks; one layer is routed by hash, the other has an indexer. 3 MB with its MTP block."""

LEAST: dict[str, Any] = SMALL | {
    "num_hidden_layers": 1,
    "num_hash_layers": 0,
    "compress_ratios": [0],
    "vocab_size": 16,
    "num_attention_heads": 2,
    "o_groups": 2,
    "moe_intermediate_size": 128,
    "n_routed_experts": 2,
    "num_nextn_predict_layers": 0,
}
"""As little as a layer can be, for jobs that run hundreds of times: write it without MTP blocks."""


DSPARK: dict[str, Any] = SMALL | {"compress_ratios": [128, 4, 0, 0, 0], "dspark_target_layer_ids": [0, 1]}
"""To be written with three MTP blocks and `dspark`."""

SMALL_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 1,
    "vocab_size": 256,
    "num_attention_heads": 16,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
    "intermediate_size": 1024,
    "moe_intermediate_size": 1024,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "rope_theta": 10000,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
"""V3's structure: a dense layer, two with experts, and the MTP layer. Cuts into 1, 2, 4 and 8 ranks; 11 MB."""

SMALL_V32: dict[str, Any] = SMALL_V3 | {
    "architectures": ["DeepseekV32ForCausalLM"],
    "model_type": "deepseek_v32",
    "index_n_heads": 2,
    "index_head_dim": 128,
    "index_topk": 64,
}
"""The same with V3.2's indexer."""

SMALL_OF_V3 = {"v3": SMALL_V3, "v32": SMALL_V32}


def small_v3(folder: Path, family: str = "v3", seed: int = 31, **changes: Any) -> Path:
    """Write a small checkpoint of V3's generation into the new folder `folder`, with all that its releases have."""
    return write_checkpoint(folder, SMALL_OF_V3[family] | changes, seed, scales="F32", optional=True)


def small_config(**changes: Any) -> dict[str, Any]:
    """A valid config.json of a small checkpoint."""
    return DEMO_CONFIG | SMALL | changes


def dspark_config(**changes: Any) -> dict[str, Any]:
    """A valid config.json of a small DSpark checkpoint."""
    return DSPARK_CONFIG | DSPARK | changes


def v41_config(**changes: Any) -> dict[str, Any]:
    """A valid config.json of a small V4.1 checkpoint; `changes` are to its `text_config`."""
    return V41_CONFIG | {"text_config": V41_CONFIG["text_config"] | changes}


def write_dspark(folder: Path, document: dict[str, Any], seed: int) -> Path:
    """A small checkpoint of this config with as many of DSpark's stages as its kind has."""
    blocks = document.get("text_config", {}).get("num_nextn_predict_layers", 3)
    return write_checkpoint(folder, document, seed, blocks, dspark=True)


def least_config(**changes: Any) -> dict[str, Any]:
    """A valid config.json of the least checkpoint."""
    return DEMO_CONFIG | LEAST | changes


def open_folder(folder: Path) -> tuple[Checkpoint, Inventory]:
    """The checkpoint in `folder`, read anew."""
    checkpoint = read_checkpoint(open_source(str(folder)))
    return checkpoint, take_inventory(checkpoint)


def job_for(
    folder: Path, tp: int, expert_dtype: str | None = None, ranks: tuple[int, ...] | None = None
) -> tuple[Job, Checkpoint]:
    """All that resharding `folder` for the reference engine would write."""
    checkpoint, inventory = open_folder(folder)
    request = Request(tp=tp, engine="reference", expert_dtype=expert_dtype)
    return prepare(checkpoint, inventory, make_plan(checkpoint, inventory, request), ranks), checkpoint


def reshard_folder(
    folder: Path,
    out: Path,
    tp: int,
    expert_dtype: str | None = None,
    ranks: tuple[int, ...] | None = None,
    **options: Any,
) -> Outcome:
    """Reshard `folder` into `out` for the reference engine."""
    job, checkpoint = job_for(folder, tp, expert_dtype, ranks)
    return reshard(job, checkpoint, out, **options)


def load_tensors(*files: Path) -> dict[str, torch.Tensor]:
    """Every tensor of safetensors files, by the format's own reader."""
    tensors = {}
    for file in files:
        with safe_open(file, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118 - not a dict
                tensors[name] = reader.get_tensor(name)
    return tensors


def load_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint."""
    return load_tensors(*sorted(folder.glob("*.safetensors")))


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Put `tensors` in place of the checkpoint's own, as one file without an index."""
    from safetensors.torch import save_file

    for file in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        file.unlink(missing_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, whole."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def raw(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes, whatever its dtype."""
    import torch

    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def headers_only(
    document: dict[str, Any], mtp_blocks: int = 1, files: int = 3, **stored: Any
) -> tuple[Checkpoint, Inventory]:
    """A checkpoint that is nowhere: its tensors are dealt out to `files`, each beginning at byte 1000."""
    config, document = parse_config(json.dumps(document).encode(), "config.json")
    ends = [1000] * files
    tensors = {}
    for index, (name, (dtype, shape)) in enumerate(tensors_of(document, mtp_blocks, **stored).items()):
        number = index * 7 % files
        start, ends[number] = ends[number], ends[number] + nbytes_of(dtype, shape)
        tensors[name] = Tensor(name, dtype, shape, f"{number}.safetensors", start, ends[number])
    checkpoint = Checkpoint(LocalSource(Path("/nowhere"), "nowhere"), config, document, (), tensors, ())
    inventory = take_inventory(checkpoint)
    assert inventory.errors == ()
    return checkpoint, inventory


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Files made within get no more permissions than `mask` leaves."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def with_bf16_o_a(folder: Path) -> Path:
    """The checkpoint in `folder` with wo_a in BF16, as the FP8 re-releases have it: nothing is decoded on the way."""
    tensors = load_checkpoint(folder)
    for name in [name for name in tensors if name.endswith("wo_a.weight")]:
        del tensors[name.removesuffix("weight") + "scale"]
        tensors[name] = tensors[name].bfloat16()
    return rewrite(folder, tensors)


def write_sparse(folder: Path, document: dict[str, Any], *, bf16_o_a: bool = False) -> Path:
    """A checkpoint of zeros that takes no room on most file systems."""
    tensors = tensors_of(document)
    for name, (_, shape) in list(tensors.items()):
        if bf16_o_a and name.endswith("wo_a.weight"):
            tensors[name] = ("BF16", shape)
            del tensors[name.removesuffix("weight") + "scale"]
    header, placed = build_header(tensors)
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + max(info.stop for info in placed.values()))
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def write_nvfp4(folder: Path, document: dict[str, Any], seed: int) -> Path:
    """A checkpoint with NVFP4 experts of real values in its layers, and FP4 ones in its MTP block."""
    import torch

    write_checkpoint(folder, document, seed)
    random = np.random.default_rng(seed + 1)
    tensors = load_checkpoint(folder)
    for name in [name for name in tensors if name.startswith("layers.") and ".ffn.experts." in name]:
        stem, _, part = name.rpartition(".")
        if part == "scale":
            del tensors[name]
            continue
        rows, cols = tensors[name].shape
        tensors[name] = tensors[name].view(torch.uint8)
        scales = random.uniform(0.5, 400, (rows, cols * 2 // 16))
        tensors[f"{stem}.weight_scale"] = torch.from_numpy(scales).to(torch.float8_e4m3fn)
        for scalar in ("weight_scale_2", "input_scale"):
            tensors[f"{stem}.{scalar}"] = torch.tensor(random.uniform(1e-4, 1e-3), dtype=torch.float32)
    for name in [name for name in tensors if name.endswith("w3.input_scale")]:
        tensors[name] = tensors[name.replace("w3", "w1")].clone()
    return rewrite(folder, tensors)
