"""Do the ranks' experts add up? Checks one MoE layer on random tokens.

The layer's weights are dequantized from the rank files and from the source. Each rank computes the contribution of its
routed experts, or of its parts of them. The sum over ranks, plus the shared expert once, must equal the output of the
unsharded layer. The sum with the shared expert counted once per rank, a common mistake with a replicated one, is
computed as well: it shows that the check would detect that mistake.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from dsv4_shard.checkpoint import Checkpoint, Inventory
from dsv4_shard.errors import UsageError
from dsv4_shard.models import NATIVE_PARTS, ModelConfig, Module, Names, Part, Place, Role, Stage, TensorName, scale_name
from dsv4_shard.planning import check_plan, load_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.manifest import PLAN_NAME, load_manifest
from dsv4_shard.sharding.recipe import Destination, Recipe, Slice, Step
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.verification.dequantize import dequantize, plain
from dsv4_shard.verification.documents import Numerics

if TYPE_CHECKING:
    import torch

TOKENS = 4

SEED = 20_480

_NVFP4_SCALES = (Part.GROUP_SCALE, Part.TENSOR_SCALE)

_EXPERTS = 16
"""Largest number of routed experts that are computed."""


class _Expert(NamedTuple):
    """The names of an expert's gate, up and down weights."""

    gate: str
    up: str
    down: str


_ROUTED = (Role.ROUTED_GATE, Role.ROUTED_UP, Role.ROUTED_DOWN)

_SHARED = (Role.SHARED_GATE, Role.SHARED_UP, Role.SHARED_DOWN)


def _names_of(names: Names, roles: tuple[Role, ...], layer: int, expert: int = -1) -> _Expert:
    return _Expert(*(names.unparse(TensorName(role, Part.WEIGHT, Stage.LAYER, layer, expert)) for role in roles))


class _Reader(Protocol):
    def weight(self, name: str) -> "torch.Tensor":
        """The values of a source weight, or of the part that a rank holds, float32 `[rows, columns]`."""
        ...


@dataclass(frozen=True, slots=True)
class _SourceReader:
    """Reads weights from the checkpoint."""

    checkpoint: Checkpoint
    names: Names

    def weight(self, name: str) -> "torch.Tensor":
        return _values(name, self._read, self.checkpoint.tensors, self.names)

    def _read(self, name: str) -> "_Matrix":
        tensor = self.checkpoint.tensors[name]
        with self.checkpoint.source.open(tensor.file) as file:
            return _Matrix(file.read(tensor.start, tensor.stop), tensor.dtype, tensor.shape[0] if tensor.shape else 1)


class _Matrix(NamedTuple):
    """The stored bytes of a matrix with `rows` rows."""

    data: bytes
    dtype: str
    rows: int


class _RankReader:
    """Reads weights from one rank's files. The recipe gives the place of each source tensor's part."""

    def __init__(self, folder: Path, recipe: Recipe, names: Names, steps: dict[str, Step], rank: int) -> None:
        """`recipe` has all ranks; `folder` has this rank's files."""
        self._folder, self._recipe, self._names, self._steps, self._rank = folder, recipe, names, steps, rank

    def holds(self, name: str) -> bool:
        """Whether the rank has a part of a source tensor."""
        return self._place(self._steps[name]) is not None

    def weight(self, name: str) -> "torch.Tensor":
        """The values of the rank's part of a source weight, float32 `[rows, columns]`."""
        step = self._steps[name]
        if step.transform is not None:
            return _decoded(self._read(step, lambda tensor: tensor), self._read(step, scale_name, whole=True))
        return _values(
            name, lambda part: self._read(self._steps[part], lambda tensor: tensor), self._steps, self._names
        )

    def _place(self, step: Step) -> tuple[int, Destination, Slice] | None:
        """(file number, destination, cut) of the rank's part; None if the rank has none."""
        for landing in step.landings:
            for cut, files in landing.spread:
                for number in files:
                    if self._rank in self._recipe.files[number].ranks:
                        return number, landing, cut
        return None

    def _read(self, step: Step, rename: Callable[[str], str], whole: bool = False) -> _Matrix:
        place = self._place(step)
        assert place is not None, "only what a rank holds is asked of it"
        number, landing, cut = place
        output = self._recipe.files[number]
        name = rename(landing.tensor)
        info = output.tensors[name]
        start, nbytes, rows = self._recipe.offset(number, name), info.nbytes, (1, 1, *info.shape)[-2]
        if not whole and step.transform is None:
            converted = cut.rows * cut.row_nbytes
            nbytes = step.conversion.nbytes(converted) if step.conversion else converted
            start, rows = start + landing.at, cut.rows
        own = (output.name, *output.links)[output.ranks.index(self._rank)]
        with LocalSource(self._folder, str(self._folder)).open(own) as file:
            return _Matrix(file.read(start, start + nbytes), info.dtype, rows)


def _values(name: str, read: Callable[[str], _Matrix], tensors: Container[str], names: Names) -> "torch.Tensor":
    """The values of a weight, float32 `[rows, columns]`.

    The weight is plain, has a scale, or is NVFP4 with group scales and a tensor scale.
    """
    group_scale, tensor_scale = (f"{name.removesuffix('weight')}{NATIVE_PARTS[part]}" for part in _NVFP4_SCALES)
    if group_scale in tensors:
        return _decoded(read(name), read(group_scale)) * float(np.frombuffer(read(tensor_scale).data, np.float32)[0])
    scale = names.scale_name(name)
    return _decoded(read(name), read(scale) if scale in tensors else None)


def _decoded(weight: _Matrix, scale: _Matrix | None) -> "torch.Tensor":
    """The values of a weight with its scale, if it has one, float32 `[rows, columns]`."""
    if scale is None:
        return plain(weight.data, weight.dtype, weight.rows)
    scales = np.frombuffer(scale.data, np.uint8).reshape(scale.rows, -1, 4 if scale.dtype == "F32" else 1).copy()
    stored = scale.dtype if scale.dtype in ("F32", "F8_E4M3") else "F8_E8M0"  # vLLM's files store E8M0 as U8
    return dequantize(weight.data, weight.dtype, weight.rows, scales, stored)


def check_numerics(
    folders: Sequence[Path], checkpoint: Checkpoint, inventory: Inventory, layer: int | None = None
) -> Numerics:
    """Compare a layer of a verified result, in one folder or several, with its source.

    `layer` is the last one by default. Raises UsageError if the result lacks ranks, or if the layer does not exist or
    has no experts.
    """
    import torch

    config = inventory.config
    layer = config.num_hidden_layers - 1 if layer is None else layer
    if not 0 <= layer < config.num_hidden_layers:
        raise UsageError.about("layer", layer, f"the model has layers 0 to {config.num_hidden_layers - 1}")
    if not inventory.family.may_have(config, Place(Stage.LAYER, layer), Role.ROUTED_GATE):
        raise UsageError("{layer}: this layer has a dense MLP, and {numerics} adds up experts",
                         parameters={"layer": layer, "numerics": ...})  # fmt: skip
    if not config.n_shared_experts:
        raise UsageError.about("numerics", ..., "adds up shared experts, and the model has none")
    homes = {rank: folder for folder in folders for rank in load_manifest(folder).ranks}
    world = load_manifest(folders[0]).world
    if len(homes) != world:
        where = ", ".join(map(str, folders))
        raise UsageError(
            f"{where}: {'holds' if len(folders) == 1 else 'hold'} {len(homes)} of {world} ranks; --numerics adds up all"
        )
    plan = check_plan(load_plan(folders[0] / PLAN_NAME), checkpoint, inventory)
    recipe = prepare(checkpoint, inventory, plan, in_parts=False).recipe
    steps = {step.source.name: step for step in recipe.steps if _is_expert(inventory.names[step.source.name], layer)}
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randn(TOKENS, config.hidden_size, generator=generator)
    experts = _spread(config.n_routed_experts)
    weights = dict(zip(experts, torch.rand(len(experts), generator=generator).tolist(), strict=True))
    names = inventory.family.names(config)
    routed_names = {expert: _names_of(names, _ROUTED, layer, expert) for expert in experts}
    shared_names = _names_of(names, _SHARED, layer)
    source = _SourceReader(checkpoint, names)
    whole = _sum_experts(source, routed_names, weights, tokens, config)
    whole += _run_expert(source, shared_names, tokens, config)
    routed, shared = torch.zeros_like(whole), []
    for rank, folder in sorted(homes.items()):
        reader = _RankReader(folder, recipe, names, steps, rank)
        if not reader.holds(shared_names.gate):
            continue  # a rank of another pipeline stage
        mine = {e: w for e, w in weights.items() if reader.holds(routed_names[e].gate)}
        routed += _sum_experts(reader, routed_names, mine, tokens, config)
        shared.append(_run_expert(reader, shared_names, tokens, config))
    is_whole = len(steps[shared_names.gate].landings[0].spread) == 1
    once = shared[0] if is_whole else torch.stack(shared).sum(0)
    on_every_rank = torch.stack(shared).sum(0) * (1 if is_whole else len(shared))
    return Numerics(
        layer=layer,
        experts=experts,
        ranks=len(shared),
        shared_experts="whole" if is_whole else "in parts",
        error_once=_relative(routed + once, whole),
        error_on_every_rank=_relative(routed + on_every_rank, whole),
    )


def _is_expert(at: TensorName, layer: int) -> bool:
    return at.stage is Stage.LAYER and at.layer == layer and at.role.module in (Module.ROUTED, Module.SHARED)


def _spread(experts: int) -> tuple[int, ...]:
    """The experts to compute, evenly spaced, so that under EP they lie on as many ranks as possible."""
    count = min(experts, _EXPERTS)
    return tuple(sorted({index * experts // count for index in range(count)}))


def _sum_experts(
    reader: _Reader,
    names: dict[int, _Expert],
    weights: dict[int, float],
    tokens: "torch.Tensor",
    config: ModelConfig,
) -> "torch.Tensor":
    """The weighted sum of the outputs of experts, float64 `[tokens, hidden]`."""
    import torch

    total = torch.zeros(tokens.shape, dtype=torch.float64)
    for expert, weight in weights.items():
        total += weight * _run_expert(reader, names[expert], tokens, config)
    return total


def _run_expert(reader: _Reader, expert: _Expert, tokens: "torch.Tensor", config: ModelConfig) -> "torch.Tensor":
    """SwiGLU of one expert, or of a rank's part of it, for `tokens`, float32 `[tokens, hidden]`.

    Follows DeepSeek's model.py, with unquantized activations. The parts of an expert's intermediate size add up to the
    whole.

    Returns:
        float64 `[tokens, hidden]`.
    """
    import torch.nn.functional as functional

    gate = tokens @ reader.weight(expert.gate).T
    up = tokens @ reader.weight(expert.up).T
    if config.swiglu_limit:
        up = up.clamp(-config.swiglu_limit, config.swiglu_limit)
        gate = gate.clamp(max=config.swiglu_limit)
    return ((functional.silu(gate) * up) @ reader.weight(expert.down).T).double()


def _relative(found: "torch.Tensor", wanted: "torch.Tensor") -> float:
    """Relative error of `found` in the 2-norm."""
    return float((found - wanted).norm() / wanted.norm())
