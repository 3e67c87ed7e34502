"""Which routed experts each EP rank holds, in the order of its slots."""

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise

from dsv4_shard.engines.deployment import Context
from dsv4_shard.models import Stage


@dataclass(frozen=True, eq=False)
class Places:
    """Where the experts of a layer are. `experts` has, for each EP rank, the expert in each of its slots."""

    experts: tuple[tuple[int, ...], ...]

    @cached_property
    def slots(self) -> tuple[dict[int, tuple[int, ...]], ...]:
        """For each EP rank, the slots of each expert there."""
        found: tuple[dict[int, tuple[int, ...]], ...] = tuple({} for _ in self.experts)
        for of_rank, experts in zip(found, self.experts, strict=True):
            for slot, expert in enumerate(experts):
                of_rank[expert] = (*of_rank.get(expert, ()), slot)
        return found

    @cached_property
    def holders(self) -> dict[int, tuple[int, ...]]:
        """The EP ranks that hold each expert."""
        found: dict[int, tuple[int, ...]] = {}
        for rank, of_rank in enumerate(self.slots):
            for expert in of_rank:
                found[expert] = (*found.get(expert, ()), rank)
        return found


def places_of(context: Context, stage: Stage, layer: int) -> Places:
    """The places of a layer's experts. Layers with equal places share one object.

    A draft has neither a map nor redundant experts.
    """
    at, experts = context.deployment, context.config.experts_in(stage)
    if stage is not Stage.MTP and at.locations:
        return _in_slots(at.locations.rows[layer], at.ep)
    return _repeated(experts, at.redundant_experts, at.ep) if stage is not Stage.MTP else in_order(experts, at.ep)


@cache
def _repeated(experts: int, redundant: int, ep: int) -> Places:
    """Slot s holds expert s, and redundant slots the first experts again."""
    if not redundant:
        return in_order(experts, ep)
    return _in_slots(tuple(slot % experts for slot in range(experts + redundant)), ep)


@cache
def _in_slots(slots: tuple[int, ...], ep: int) -> Places:
    each = len(slots) // ep
    return Places(tuple(slots[rank * each : (rank + 1) * each] for rank in range(ep)))


@cache
def in_order(experts: int, ep: int) -> Places:
    """A contiguous block for each rank. If the experts do not divide, the first ranks hold one more, as in vLLM."""
    least, more = divmod(experts, ep)
    starts = [rank * least + min(rank, more) for rank in range(ep + 1)]
    return Places(tuple(tuple(range(start, stop)) for start, stop in pairwise(starts)))
