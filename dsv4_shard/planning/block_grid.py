"""Blocks along the axis on which a module is cut, and the cuts through them: the data of a plan's pictures.

Everything comes from the plan document alone, so a plan read from a file gives the same picture. This module draws
nothing.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dsv4_shard.catalog.rank_ranges import MAX_RANKS
from dsv4_shard.engines import Verdict
from dsv4_shard.models import Module, Role
from dsv4_shard.tensors.geometry import ceil_div

if TYPE_CHECKING:
    from dsv4_shard.planning.document import Plan

Way = Literal["whole", "split", "pad"]
"""How a module is held: whole, in parts of equal size, or in parts of whole blocks with zeros at the end."""


@dataclass(frozen=True, slots=True)
class BlockCut:
    """A cut between two parts, `at` elements from the start; `splits`: it falls inside a block.

    If the parts are not whole elements, `at` is rounded down; `splits` applies to the exact position.
    """

    at: int
    splits: bool


@dataclass(frozen=True, slots=True)
class RankBlocks:
    """Content of a part: the elements `[start, stop)` of the weight, then `padding` elements of zeros."""

    start: int
    stop: int
    padding: int


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """A weight's axis in blocks, over the ranks of a group. Positions and sizes are in elements and exact.

    Attributes:
        module: The weight's module.
        axis: Name of the axis in the engine's rule, such as "q_b rows".
        size: Elements along the axis.
        block: Elements per block.
        unit: Name of the blocks in the rule: "blocks", or "tiles" for a kernel's unit.
        group: Name of the group in the rule, such as "attention TP".
        ranks: Number of ranks in the group.
        parts: Number of parts: 1 for a whole axis, fewer than `ranks` if several ranks hold the same part.
        way: How the module is held.
    """

    module: Module
    axis: str
    size: int
    block: int
    unit: str
    group: str
    ranks: int
    parts: int
    way: Way

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: The axis is empty, or has more parts than ranks.
        """
        if min(self.size, self.block, self.parts) < 1 or not self.parts <= self.ranks <= MAX_RANKS:
            raise ValueError(f"{self.size=}, {self.block=}, {self.parts=}, {self.ranks=}")

    @property
    def blocks(self) -> int:
        """Number of blocks that cover the axis; the last one may be smaller."""
        return ceil_div(self.size, self.block)

    @property
    def step(self) -> int:
        """Elements per part, padding included; rounded down if a split is not whole."""
        if self.way == "pad":
            return ceil_div(self.blocks, self.parts) * self.block
        return self.size // self.parts

    @property
    def padding(self) -> int:
        """Elements of zeros in all parts together."""
        return self.step * self.parts - self.size if self.way == "pad" else 0

    @property
    def cuts(self) -> tuple[BlockCut, ...]:
        """Cuts between the parts; cuts in the padding may lie at or beyond `size`."""
        if self.way == "pad":
            return tuple(BlockCut(number * self.step, splits=False) for number in range(1, self.parts))
        return self._even(self.parts)

    @property
    def even_cuts(self) -> tuple[BlockCut, ...]:
        """Cuts if every rank of the group had an equal part, for comparison with `cuts`."""
        return self._even(self.ranks)

    @property
    def shares(self) -> tuple[RankBlocks, ...]:
        """Content of each part, first to last. The cuts of a split that is not whole are rounded down."""
        edges = [0, *(cut.at for cut in self.cuts), self.size + self.padding]
        shares = []
        for left, right in itertools.pairwise(edges):
            start, stop = min(left, self.size), min(right, self.size)
            shares.append(RankBlocks(start, stop, right - left - (stop - start)))
        return tuple(shares)

    @property
    def fits(self) -> bool:
        """Whether every part has whole blocks."""
        return not any(cut.splits for cut in self.cuts)

    def _even(self, parts: int) -> tuple[BlockCut, ...]:
        return tuple(
            BlockCut(number * self.size // parts, splits=number * self.size % (parts * self.block) != 0)
            for number in range(1, parts)
        )


def shared_grid(plan: "Plan") -> BlockGrid | None:
    """The shared expert's blocks as the plan places them.

    None if it places none, if they have no blocks, or if the plan only has a bound for their bytes.
    """
    row = next((row for row in plan.modules if row.part_of == "target" and row.role == Role.SHARED_GATE), None)
    if row is None or row.block is None:
        return None
    deployment = plan.deployment
    way: Way = "whole" if deployment.shared_parts == 1 else "pad" if deployment.shared == "pad" else "split"
    grid = BlockGrid(row.module, "shared intermediate size", row.shape[0], row.block[0], "blocks", "TP", deployment.tp,
                     deployment.shared_parts, way)  # fmt: skip
    return None if plan.verdict is Verdict.UNVERIFIED and grid.step != row.rank_shape[0] else grid


def broken_grids(plan: "Plan") -> tuple[BlockGrid, ...]:
    """The axes on which the plan breaks a rule about whole blocks, in the order of its breaches."""
    return tuple(_broken(plan))


def _broken(plan: "Plan") -> Iterator[BlockGrid]:
    checks = {check.rule: check for check in plan.checks if not check.holds}
    for breach in plan.breaches:
        check = checks.get(breach.rule)
        if check is not None and check.unit > 1:
            yield BlockGrid(check.module, check.size_name, check.size, check.unit, check.unit_name, check.parts_name,
                            check.parts, check.parts, "split")  # fmt: skip
