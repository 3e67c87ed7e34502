"""Checkpoint + kind of GPU → the fewest GPUs whose memory holds the weights, and the best layout on them.

Numbers of GPUs are tried upwards, each with every layout that `search` knows, from the first number at which the bytes
that no layout can avoid leave room: those that every rank holds whole, and a rank's part of the routed experts. So no
smaller number can hold the weights, and a GPU that is too small for the whole part is too small in any number.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from dsv4_shard.catalog.request import Narrowing
from dsv4_shard.checkpoint import Checkpoint, Inventory
from dsv4_shard.engines import Context, Engine, Replicate, Request, engine_for, pick_gpu
from dsv4_shard.models import TARGET, Module, Part
from dsv4_shard.planning.layouts import ALL, Candidate, layouts_on, requests_on

EVERY_COUNT_TO = 128
"""Every number of GPUs up to this one is tried; then 192, 256, 384 and 512."""

MOST_GPUS = 512

_TRIED_ON = (4, 8)
"""Numbers of GPUs on which the requests show what an engine always holds whole."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a search for the fewest GPUs looked.

    Attributes:
        layouts: Best first, on the number of GPUs that was found; empty if none was.
        first, last: The first and last number of GPUs that were tried; 0 if none was.
        tried: Requests that were weighed.
        whole_bytes: Least bytes that every rank holds whole, in any layout of the engines.
    """

    layouts: tuple[Candidate, ...]
    first: int
    last: int
    tried: int
    whole_bytes: int

    @property
    def gpus(self) -> int | None:
        """The fewest GPUs; None if no number that was tried does."""
        return self.layouts[0].deployment.world if self.layouts else None

    @property
    def counts(self) -> str:
        """The numbers of GPUs that were tried, in words."""
        if self.first == self.last:
            return str(self.first)
        return say_counts(self.first, self.last)


NOT_TRIED = Reach((), 0, 0, 0, 0)
"""No other number of GPUs was looked at."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Bytes that an engine's ranks hold at least.

    Attributes:
        whole: Bytes on every rank, whatever the layout.
        shared_out: Bytes of routed experts, of which N ranks hold at least one Nth on the fullest.
    """

    whole: int
    shared_out: int

    def least_gpus(self, memory: int) -> float:
        """Return the first number of GPUs that could hold the weights; infinite if none can."""
        room = memory - self.whole
        return math.inf if room <= 0 else self.shared_out // room + 1


def bound_of(inventory: Inventory, asked: Request, engine: Engine) -> Bound:
    """Return what ranks of `engine` hold at least, from its placements in every request on a few numbers of GPUs."""
    roles = {group.role for group in inventory.groups}
    always, context = roles, None
    for gpus in _TRIED_ON:
        for request in requests_on(inventory, replace(asked, tp=gpus, nodes=None), (engine.name,)):
            for deployment in engine.candidates(inventory, request):
                context = Context(inventory, deployment)
                whole = {role for role in roles if isinstance(engine.place(role, context), Replicate)}
                always = always & whole
    nbytes = 0
    groups = [(group, count) for group, count in inventory.groups.items() if group.stage in TARGET]
    for group, count in groups:
        if context is not None and group.role in always:
            stored = engine.rank_tensor_of(group, context)
            nbytes += count * min(stored.nbytes, group.nbytes) if stored is not None else 0
    routed = sum(
        group.nbytes * count
        for group, count in groups
        if group.role.module is Module.ROUTED and group.part is Part.WEIGHT
    )
    return Bound(nbytes, routed)


def fewest_on(
    checkpoint: Checkpoint,
    inventory: Inventory,
    asked: Request,
    bounds: dict[str, Bound],
    session: int | None = None,
    above: int = 0,
    lightest: dict[int, float] | None = None,
    narrowing: Narrowing = ALL,
    *,
    verified: bool = True,
) -> Reach:
    """Return the fewest GPUs of the kind that `asked` names, more than `above`, that hold the weights.

    With `session`, a layout counts only if the KV cache of one session of so many tokens is not known to be too large.

    Args:
        checkpoint: The checkpoint.
        inventory: Its inventory, which needs only the names outside of layers.
        asked: The request; its TP is not looked at.
        bounds: What the ranks of each engine that is searched hold at least.
        session: Tokens of a session.
        above: Number of GPUs up to which nothing is tried.
        lightest: Number of GPUs → bytes of the lightest layout, of GPUs with the same rules. It is added to.
        narrowing: Parts of the layout that are given.
        verified: As in `layouts_on`.
    """
    lightest = {} if lightest is None else lightest
    memory = pick_gpu(asked).memory if asked.names_gpu else math.inf
    least = {name: bound.least_gpus(int(memory)) if memory < math.inf else 1 for name, bound in bounds.items()}
    whole = min((bound.whole for bound in bounds.values()), default=0)
    first, tried, last = 0, 0, 0
    for gpus in counts_from(max(above + 1, min(least.values(), default=math.inf)), asked.nodes):
        first, last = first or gpus, gpus
        if lightest.get(gpus, 0) >= memory:
            continue
        engines = [name for name, count in least.items() if count <= gpus]
        request = replace(asked, tp=gpus)
        found, weighed = layouts_on(checkpoint, inventory, request, engines, session, narrowing, verified=verified)
        tried += weighed
        if len(engines) == len(bounds):
            lightest[gpus] = min((one.layout.weight_bytes for one in found), default=math.inf)
        held = [one for one in found if one.layout.fits and (session is None or one.layout.sessions != 0)]
        if held:
            return Reach(tuple(held), first, last, tried, whole)
    return Reach((), first, last, tried, whole)


def counts_from(least: float, nodes: int | None = None) -> Iterator[int]:
    """Yield the numbers of GPUs that are tried, ascending; multiples of `nodes` if that is asked for."""
    if least > MOST_GPUS:
        return
    start = int(least)
    beyond = (EVERY_COUNT_TO * factor // 2 << power for power in range(MOST_GPUS.bit_length()) for factor in (3, 4))
    for gpus in chain(range(start, EVERY_COUNT_TO + 1), beyond):
        if start <= gpus <= MOST_GPUS and gpus % (nodes or 1) == 0:
            yield gpus


def say_counts(first: int, last: int) -> str:
    """Return the numbers of GPUs from `first` to `last` that are tried, in words."""
    beyond = [str(gpus) for gpus in counts_from(max(first, EVERY_COUNT_TO + 1)) if gpus <= last]
    every = f"{first} to {min(last, EVERY_COUNT_TO)}" if first <= EVERY_COUNT_TO else ""
    return ", then ".join(filter(None, (every, ", ".join(beyond))))


def bounds_of(inventory: Inventory, asked: Request, engines: tuple[str, ...]) -> dict[str, Bound]:
    """Return the bound of each engine."""
    return {name: bound_of(inventory, asked, engine_for(name, inventory.family)) for name in engines}
