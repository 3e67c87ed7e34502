"""Do the ranks' experts add up? One MoE layer, dequantized from rank files and from the source, on random tokens.

Each rank computes what its routed experts contribute; the sum over ranks, plus the shared expert once, must be what
the unsharded layer gives. Adding the shared expert on every rank, the mistake that a replicated one invites, is
computed too, so that the check shows that it could tell the difference.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.config import ModelConfig
from dsv4_shard.errors import UsageError
from dsv4_shard.header import Header, read_header
from dsv4_shard.inventory import Inventory
from dsv4_shard.manifest import Manifest, load_manifest
from dsv4_shard.sources import LocalFile
from dsv4_shard.transforms import dequantize

if TYPE_CHECKING:
    import torch

TOKENS = 4
SEED = 20_480
TOLERANCE = 1e-6
"""Relative: the same products are summed in another order, in float64 over float32 experts."""

_EXPERTS = 16
"""At most so many routed experts are computed, spread evenly over the ranks."""


class Numerics(BaseModel):
    """Relative errors (in the 2-norm) of the ranks' sum: with the shared expert added once, and added on each rank."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    experts: tuple[int, ...]
    ranks: int
    error_once: float
    error_on_every_rank: float

    @property
    def ok(self) -> bool:
        return self.error_once <= TOLERANCE


class _Reader(Protocol):
    def read(self, name: str) -> tuple[bytes, str, tuple[int, ...]]:
        """Bytes, dtype and shape of a tensor."""
        ...


@dataclass(frozen=True, slots=True)
class _SourceReader:
    checkpoint: Checkpoint

    def read(self, name: str) -> tuple[bytes, str, tuple[int, ...]]:
        tensor = self.checkpoint.tensors[name]
        with self.checkpoint.source.open(tensor.file) as file:
            return file.read(tensor.start, tensor.stop), tensor.dtype, tensor.shape


@dataclass(frozen=True, slots=True)
class _RankReader:
    file: LocalFile
    header: Header

    def read(self, name: str) -> tuple[bytes, str, tuple[int, ...]]:
        info = self.header.tensors[name]
        start = self.header.data_start
        return self.file.read(start + info.start, start + info.stop), info.dtype, info.shape


def check_numerics(folder: Path, checkpoint: Checkpoint, inventory: Inventory, layer: int | None = None) -> Numerics:
    """Compare a layer (default: the last) of a verified result with its source.

    Raises UsageError where the result does not hold all ranks, or there is no such layer.
    """
    import torch

    config = inventory.config
    layer = config.num_hidden_layers - 1 if layer is None else layer
    if not 0 <= layer < config.num_hidden_layers:
        raise UsageError(f"--layer {layer}: the model has layers 0 to {config.num_hidden_layers - 1}")
    manifest = load_manifest(folder)
    if len(manifest.ranks) != manifest.world:
        raise UsageError(
            f"{folder} holds {len(manifest.ranks)} of {manifest.world} ranks; --numerics adds up all of them"
        )
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randn(TOKENS, config.hidden_size, generator=generator)
    experts = _spread(config.n_routed_experts, manifest.world)
    weights = dict(zip(experts, torch.rand(len(experts), generator=generator).tolist(), strict=True))
    prefix = f"layers.{layer}.ffn."
    source = _SourceReader(checkpoint)
    shared = _run_expert(source, f"{prefix}shared_experts.", tokens, config)
    routed = _sum_experts(source, prefix, weights, tokens, config)
    whole = routed + shared
    once, on_every_rank = _add_up(folder, manifest, prefix, weights, tokens, config)
    return Numerics(
        layer=layer,
        experts=experts,
        ranks=manifest.world,
        error_once=_relative(once, whole),
        error_on_every_rank=_relative(on_every_rank, whole),
    )


def _spread(experts: int, ranks: int) -> tuple[int, ...]:
    """Experts to compute: as many ranks as possible get one, the same number each."""
    count = min(experts, max(_EXPERTS, min(ranks, _EXPERTS)))
    return tuple(sorted({index * experts // count for index in range(count)}))


def _add_up(
    folder: Path,
    manifest: Manifest,
    prefix: str,
    weights: dict[int, float],
    tokens: "torch.Tensor",
    config: ModelConfig,
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """The all-reduce of the ranks' routed outputs, plus the shared output once, and plus that of every rank."""
    import torch

    routed = torch.zeros(tokens.shape, dtype=torch.float64)
    shared_sum = torch.zeros(tokens.shape, dtype=torch.float64)
    for entry in manifest.files:
        file = LocalFile(folder / entry.name, entry.name)
        try:
            reader = _RankReader(file, read_header(file, entry.name))
            mine = {e: w for e, w in weights.items() if f"{prefix}experts.{e}.w1.weight" in entry.tensors}
            routed += _sum_experts(reader, prefix, mine, tokens, config)
            shared = _run_expert(reader, f"{prefix}shared_experts.", tokens, config)
            shared_sum += shared
        finally:
            file.close()
    return routed + shared, routed + shared_sum


def _sum_experts(
    reader: _Reader, prefix: str, weights: dict[int, float], tokens: "torch.Tensor", config: ModelConfig
) -> "torch.Tensor":
    import torch

    total = torch.zeros(tokens.shape, dtype=torch.float64)
    for expert, weight in weights.items():
        total += weight * _run_expert(reader, f"{prefix}experts.{expert}.", tokens, config)
    return total


def _run_expert(reader: _Reader, prefix: str, tokens: "torch.Tensor", config: ModelConfig) -> "torch.Tensor":
    """SwiGLU of one expert as in DeepSeek's model.py, unquantized activations; float64 `[tokens, hidden]`."""
    import torch.nn.functional as functional

    gate = tokens @ _weight(reader, f"{prefix}w1").T
    up = tokens @ _weight(reader, f"{prefix}w3").T
    if config.swiglu_limit:
        up = up.clamp(-config.swiglu_limit, config.swiglu_limit)
        gate = gate.clamp(max=config.swiglu_limit)
    return ((functional.silu(gate) * up) @ _weight(reader, f"{prefix}w2").T).double()


def _weight(reader: _Reader, name: str) -> "torch.Tensor":
    data, dtype, shape = reader.read(f"{name}.weight")
    scale, scale_dtype, scale_shape = reader.read(f"{name}.scale")
    array = np.frombuffer(scale, np.uint8).reshape(*scale_shape, -1).copy()
    return dequantize(data, dtype, shape, array, scale_dtype)


def _relative(found: "torch.Tensor", wanted: "torch.Tensor") -> float:
    return float((found - wanted).norm() / wanted.norm())
