"""Layouts near a request that run."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from dsv4_shard.catalog.rank_ranges import MAX_RANKS
from dsv4_shard.checkpoint import Inventory
from dsv4_shard.engines import Deployment, Engine, Request, engine_for, ep_option, fewest_nodes
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.outcome import LayoutOutcome, judge
from dsv4_shard.planning.request import gpus_of

_WINDOW = 16
"""Numbers of GPUs below the requested one that are tried one by one; below them, halves and powers of two are tried."""

_PLACE = ("tp", "ep", "dp", "nodes", "engine", "engine_version", "gpu", "gpu_memory", "part_size")
"""Fields of a request that no nearby layout drops."""


def _sizes(gpus: int) -> Iterator[int]:
    """Yield numbers of GPUs near `gpus`: the same number, then fewer, nearest first, then more."""
    near = {*range(gpus - _WINDOW, gpus + _WINDOW // 2 + 1), *(gpus << n for n in range(1, 5))}
    near |= {gpus >> n for n in range(1, gpus.bit_length())}
    near |= {1 << n for n in range(gpus.bit_length() + 4)}
    sizes = sorted(size for size in near if 1 <= size <= MAX_RANKS)
    yield from (size for size in reversed(sizes) if size <= gpus)
    yield from (size for size in sizes if size > gpus)


def _variations(engine: Engine, request: Request, world: int) -> Iterator[Request]:
    """Yield requests for `world` GPUs of a stage near `request`, nearest first.

    Requests with similar DP and EP and the same other options come before those with the engine's own choices, these
    before those without the draft model, and last are those with no other options at all.
    """
    for dp, ep in _pairs(engine, request, world):
        nodes = request.nodes if engine.by_node and request.nodes and world % request.nodes == 0 else None
        same = replace(request, tp=engine.tp_on(world, dp), dp=dp, ep=ep_option(ep), nodes=nodes)
        own = replace(same, runner=None, a2a=None, shared_experts="auto")
        bare = Request(**{name: getattr(same, name) for name in _PLACE})
        yield from dict.fromkeys((same, own, replace(own, draft=None), bare))


def _staged(request: Request, world: int) -> Iterator[tuple[Request, int]]:
    """Yield `request` and the GPUs of a stage: with its pipeline stages, the engine's own division of layers, none."""
    others = (replace(request, pp_partition=None), replace(request, pp=1, pp_partition=None))
    for staged in dict.fromkeys((request, *others)):
        if world % staged.pp == 0:
            yield staged, world // staged.pp


def _pairs(engine: Engine, request: Request, world: int) -> list[tuple[int, int]]:
    """Pairs of DP and EP that the engine offers on `world` GPUs, nearest to the request's first."""
    asked = request.ep or 1

    def far(pair: tuple[int, int]) -> tuple[float, int]:
        dp, ep = pair
        return max(dp, request.dp) / min(dp, request.dp) * max(ep, asked) / min(ep, asked), dp

    return sorted(engine.parallelism(world), key=far)


def nearest(inventory: Inventory, request: Request, limit: int, *, elsewhere: bool = True) -> Iterator[LayoutOutcome]:
    """Yield up to `limit` layouts that nothing speaks against, nearest to `request` first.

    Two layouts have the same number of GPUs, then one follows per smaller number, then larger numbers (`elsewhere`).
    Layouts with equal bytes appear once. Layouts that do not fit, or that leave hosts partly empty (9 GPUs on 3 hosts),
    are left out.
    """
    gpus, engine = gpus_of(request), engine_for(request.engine, inventory.family)
    for world in _sizes(gpus) if elsewhere else (gpus,):
        weights: set[int | None] = set()
        for variation in chain.from_iterable(_variations(engine, *staged) for staged in _staged(request, world)):
            most = min(limit, 2 if world == gpus else 1)
            if len(weights) >= most:
                break
            choice = choose(inventory, variation)
            if not choice.feasible or _leaves_hosts_empty(variation, choice.deployment):
                continue
            outcome = judge(inventory, variation, choice)
            if not outcome.breaches and outcome.weights not in weights:
                weights.add(outcome.weights)
                yield outcome
        limit -= len(weights)
        if not limit:
            return


def _leaves_hosts_empty(request: Request, deployment: Deployment) -> bool:
    """Whether a layout takes more hosts than hold its GPUs, although no number of hosts is asked for."""
    return request.nodes is None and deployment.nodes > fewest_nodes(deployment.world, deployment.gpu)
