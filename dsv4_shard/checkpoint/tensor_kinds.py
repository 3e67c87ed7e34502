"""Counts tensors by kind, so that each kind is checked once. Tensors of a kind differ only in their expert.

V4-Pro's 145,116 tensors are of 2,640 kinds. A defect of a kind is a defect of each of its tensors, so names are
gathered only for findings that list them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dsv4_shard.models import DSPARK, Draft, Family, ModelConfig, Part, Place, Role, Stage, TensorName, family_of
from dsv4_shard.tensors.header import Tensor

FLOATS = ("BF16", "F32")
"""Dtypes of weights that are not quantized."""


class TensorKind(NamedTuple):
    """The facts about a tensor that the checks use.

    The partner of a weight is its scale (a group scale before a block scale), the partner of a scale its weight.

    Attributes:
        role: Its role.
        part: Weight or scale.
        stage: Stage of the model.
        layer: Number of the layer or block, -1 for none.
        extra: Whether its expert is beyond the config's number.
        dtype: Stored dtype.
        shape: Stored shape in elements.
        partner_dtype: Dtype of the partner; None without a partner, or if the role is never quantized.
        partner_shape: Stored shape of the partner, or None.
        grouped: Whether the weight has a group scale.
    """

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
    """The tensors of known roles, counted by kind.

    Attributes:
        config: The checkpoint's config.
        tensors: Name → tensor, also of unknown roles.
        names: Name → parsed name, of known roles, in the order of the checkpoint.
        counts: Kind → number of tensors, in the order of the checkpoint.
        draft: The draft model that the MTP blocks make up.
    """

    config: ModelConfig
    tensors: dict[str, Tensor]
    names: dict[str, TensorName]
    counts: dict[TensorKind, int]
    draft: Draft

    @property
    def family(self) -> Family:
        """The family of the model."""
        return family_of(self.config)

    def place(self, stage: Stage, layer: int) -> Place:
        """Return a layer or block of this checkpoint."""
        return Place(stage, layer, self.draft)

    def names_of(self, kinds: Iterable[TensorKind]) -> list[str]:
        """Return the names of the tensors of `kinds`, in the order of the checkpoint."""
        wanted = frozenset(kinds)
        if not wanted:
            return []
        kind_of_each = _kinds(self.config, self.tensors, self.names)
        return [name for name, kind in zip(self.names, kind_of_each, strict=True) if kind in wanted]


def take_census(config: ModelConfig, tensors: dict[str, Tensor], names: dict[str, TensorName]) -> Census:
    """Count the tensors in `names` by kind. `tensors` must contain them."""
    counts = {TensorKind._make(kind): count for kind, count in Counter(_kinds(config, tensors, names)).items()}
    blocks = {kind.layer for kind in counts if kind.stage is Stage.MTP}
    draft = Draft(len(blocks), any(kind.role in DSPARK for kind in counts))
    return Census(config, tensors, names, counts, draft)


def _kinds(
    config: ModelConfig, tensors: dict[str, Tensor], names: dict[str, TensorName]
) -> Iterator[tuple[object, ...]]:
    """Yield the fields of each tensor's TensorKind as a plain tuple, because 145,116 of them are made only to count."""
    family = family_of(config)
    words = family.names(config)
    quantized = {stage: {spec.role for spec in specs if spec.quantized} for stage, specs in family.specs.items()}
    experts_in = {stage: config.experts_in(stage) for stage in Stage}
    weight, scale = family.grammar.parts[Part.WEIGHT], family.grammar.parts[Part.SCALE]
    cut = {part: -len(word) for part, word in family.grammar.parts.items()}
    has_groups = any(place.part is Part.GROUP_SCALE for place in names.values())
    for name, (role, part, stage, layer, expert) in names.items():
        dtype, shape = tensors[name][1:3]
        partner, grouped = None, False
        if role in quantized[stage]:
            if has_groups:
                own = name if part is Part.WEIGHT else words.weight_name(name)
                group_scale = tensors.get(words.part_name(own, Part.GROUP_SCALE) or "")
                grouped = group_scale is not None
                partner = group_scale if part is Part.WEIGHT else None
            partner = partner or tensors.get(name[: cut[part]] + (scale if part is Part.WEIGHT else weight))
        yield (
            role, part, stage, layer, expert >= experts_in[stage], dtype, shape,
            partner and partner[1], partner and partner[2], grouped,
        )  # fmt: skip
