"""Tensors counted by kind: those that are alike in all but their expert are one kind, and are checked once.

V4-Pro's 145,116 tensors are of 2,640 kinds. What is odd about a kind is odd about each of its tensors, so names
are only gathered for what a finding has to name.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dsv4_shard.models.families import family_of
from dsv4_shard.models.family import Family, ModelConfig
from dsv4_shard.models.roles import DSPARK, Draft, Part, Place, Role, Stage, TensorName
from dsv4_shard.tensors.header import Tensor


class TensorKind(NamedTuple):
    """All that checks look at. `extra`: of an expert beyond those of the config; `partner` is the scale that stands
    beside a weight (that of groups before that of blocks), or the weight beside a scale, None where there is none or
    its role is never quantized; `grouped` weights have a scale of groups."""

    role: Role
    part: Part
    stage: Stage
    layer: int
    extra: bool
    dtype: str
    shape: tuple[int, ...]
    partner_dtype: str | None
    partner_shape: tuple[int, ...] | None
    grouped: bool


@dataclass(frozen=True, slots=True)
class Census:
    """Every tensor of a known role, and how many there are of each kind, in the order of the checkpoint."""

    config: ModelConfig
    tensors: dict[str, Tensor]
    names: dict[str, TensorName]
    counts: dict[TensorKind, int]
    draft: Draft

    @property
    def family(self) -> Family:
        return family_of(self.config)

    def place(self, stage: Stage, layer: int) -> Place:
        """A layer or block of this checkpoint."""
        return Place(stage, layer, self.draft)

    def names_of(self, kinds: Iterable[TensorKind]) -> list[str]:
        """The tensors of `kinds`, in the order of the checkpoint."""
        wanted = frozenset(kinds)
        if not wanted:
            return []
        kind_of_each = _kinds(self.config, self.tensors, self.names)
        return [name for name, kind in zip(self.names, kind_of_each, strict=True) if kind in wanted]


def take_census(config: ModelConfig, tensors: dict[str, Tensor], names: dict[str, TensorName]) -> Census:
    """Count the tensors called `names`, which are among `tensors`."""
    counts = {TensorKind._make(kind): count for kind, count in Counter(_kinds(config, tensors, names)).items()}
    blocks = {kind.layer for kind in counts if kind.stage is Stage.MTP}
    draft = Draft(len(blocks), any(kind.role in DSPARK for kind in counts))
    return Census(config, tensors, names, counts, draft)


def _kinds(
    config: ModelConfig, tensors: dict[str, Tensor], names: dict[str, TensorName]
) -> Iterator[tuple[object, ...]]:
    """The kind of each tensor, as the tuple that a Kind is: made 145,116 times, counted, and gone."""
    family = family_of(config)
    words = family.names(config)
    quantized = {key for key, spec in family.rows.items() if spec.quantized}
    experts_in = {stage: config.experts_in(stage) for stage in Stage}
    has_groups = any(at.part is Part.GROUP_SCALE for at in names.values())
    for name, (role, part, stage, layer, expert) in names.items():
        partner, grouped = None, False
        if (stage, role) in quantized:
            if has_groups:
                weight = name if part is Part.WEIGHT else words.weight_name(name)
                group_scale = tensors.get(words.part_name(weight, Part.GROUP_SCALE) or "")
                grouped = group_scale is not None
                partner = group_scale if part is Part.WEIGHT else None
            partner = partner or tensors.get(words.scale_name(name) if part is Part.WEIGHT else words.weight_name(name))
        tensor = tensors[name]
        yield (
            role, part, stage, layer, expert >= experts_in[stage], tensor.dtype, tensor.shape,
            partner and partner.dtype, partner and partner.shape, grouped,
        )  # fmt: skip


FLOATS = ("BF16", "F32")
"""Dtypes of weights that are not quantized."""
