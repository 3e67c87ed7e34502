"""A request → the deployment that it comes to, what that weighs on a rank, and the layouts near it that work."""

import itertools
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dsv4_shard.catalog.options import EXPERT_DTYPES, SHARED_EXPERTS
from dsv4_shard.catalog.rank_ranges import MAX_RANKS
from dsv4_shard.checkpoint.inventory import Group, Inventory
from dsv4_shard.engines import engine_for
from dsv4_shard.engines.base import Breach, Context, Deployment, Engine, Expert, Held, Request
from dsv4_shard.engines.common import fewest_nodes
from dsv4_shard.errors import UsageError
from dsv4_shard.models.roles import Module, Stage
from dsv4_shard.text.sanitize import short
from dsv4_shard.text.suggest import did_you_mean

_MAX_NAME_CHARS = 100


@dataclass(frozen=True, slots=True)
class Choice:
    """The deployment that a request comes to: the first candidate that breaks no rule, else the one nearest to it."""

    at: Deployment
    breaches: tuple[Breach, ...]
    rejected: tuple[tuple[Deployment, tuple[Breach, ...]], ...]

    @property
    def feasible(self) -> bool:
        return not self.breaches

    @property
    def departures(self) -> tuple[str, ...]:
        """What was chosen instead of the engine's own first choice, in a few words each."""
        if not self.rejected:
            return ()
        first, words = self.rejected[0][0], []
        if self.at.shared != first.shared:
            words.append(f"shared experts {self.at.shared}")
        if self.at.runner != first.runner:
            words.append(f"runner {self.at.runner}")
        return tuple(words)

    def notes(self) -> tuple[str, ...]:
        """What was chosen instead of the engine's own first choice, and the arithmetic that ruled that out."""
        if not self.rejected:
            return ()
        first = self.rejected[0][0]
        notes = []
        if self.at.shared != first.shared:
            reason = self._reason(Module.SHARED, first)
            notes.append(f"shared experts {_WAYS[self.at.shared]}: if {_WAYS[first.shared]}, {reason}")
        if self.at.runner != first.runner:
            reason = self._reason(Module.ROUTED, first)
            notes.append(f"runner {self.at.runner}: with the engine's default {first.runner}, {reason}")
        return tuple(notes)

    def _reason(self, module: Module, first: Deployment) -> str:
        reasons = [breach.reason for at, breaches in self.rejected for breach in breaches
                   if breach.module is module and (at.shared, at.runner) != (self.at.shared, self.at.runner)
                   and (at.shared == first.shared or at.runner == first.runner)]  # fmt: skip
        return reasons[0] if reasons else "another rule breaks"


_WAYS = {"whole": "whole on every rank", "split": "split", "pad": "padded", "subgroup": "split over a subgroup"}


def choose(inventory: Inventory, request: Request) -> Choice:
    """Weigh the engine's candidates. Raises UsageError for numbers that mean nothing and unknown names."""
    check_request(request)
    engine = engine_for(request.engine, inventory.family)
    rejected: list[tuple[Deployment, tuple[Breach, ...]]] = []
    for at in engine.candidates(inventory, request):
        breaches = tuple(engine.breaches(Context(inventory, at)))
        if not breaches:
            return Choice(at, (), tuple(rejected))
        rejected.append((at, breaches))
    at, breaches = min(rejected, key=lambda one: len(one[1]))
    return Choice(at, breaches, ())


def check_request(request: Request) -> None:
    """Refuse numbers, names and choices that mean nothing, also those of an edited plan. Raises UsageError."""
    for name, value in (("tp", request.tp), ("ep", request.ep), ("dp", request.dp), ("nodes", request.nodes)):
        if value is not None and not 1 <= value <= MAX_RANKS:
            raise UsageError(f"--{name} {value}: must be from 1 to {MAX_RANKS}")
    if _gpus(request) > MAX_RANKS:
        raise UsageError(f"--tp {request.tp} --dp {request.dp}: vLLM's {_gpus(request)} GPUs are over {MAX_RANKS}")
    names = {"engine": request.engine, "runner": request.runner, "a2a": request.a2a, "gpu": request.gpu,
             "engine-version": request.engine_version, "gpu-memory": request.gpu_memory}  # fmt: skip
    for name, text in names.items():
        if not ((isinstance(text, str) and len(text) <= _MAX_NAME_CHARS) or (text is None and name != "engine")):
            raise UsageError(f"--{name} {short(text)}: must be a name")
    if request.gpu is not None and request.gpu_memory is not None:
        raise UsageError(f"--gpu {short(request.gpu)} and --gpu-memory: a GPU that is named has its own memory")
    if request.shared not in tuple(SHARED_EXPERTS):
        hint = did_you_mean(str(request.shared), SHARED_EXPERTS)
        raise UsageError(f"--shared-experts {short(request.shared)}: there is no such way", hint=hint)
    if request.expert_dtype not in (None, *EXPERT_DTYPES):
        hint = did_you_mean(str(request.expert_dtype), EXPERT_DTYPES)
        raise UsageError(f"--expert-dtype {short(request.expert_dtype)}: no such format of experts", hint=hint)


# --- weights ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """A group on the ranks: what one tensor is there, and how many a rank has at least and at most."""

    group: Group
    count: int
    held: Held
    per_rank: tuple[int, int]
    replicated: bool


def loads(engine: Engine, context: Context) -> Iterator[Load]:
    """Every group as the ranks hold it."""
    at = context.at
    for group, count in context.inventory.groups.items():
        placement = engine.place(group.role, context)
        held = engine.hold(group, placement, context)
        if held is None:
            continue
        per_rank = (count, count)
        if isinstance(placement, Expert):
            experts = context.config.experts_in(group.stage)
            layers = count // experts
            per_rank = (layers * (experts // at.ep), layers * -(-experts // at.ep))
        whole = held.shape == group.shape and not isinstance(placement, Expert)
        yield Load(group, count, held, per_rank, whole and at.world > 1)


def rank_nbytes(inventory: Inventory, at: Deployment, stages: tuple[Stage, ...] = tuple(Stage)) -> int:
    """Payload bytes of the heaviest rank, over the tensors of `stages`."""
    weights = loads(engine_for(at.engine, inventory.family), Context(inventory, at))
    return sum(load.held.nbytes * load.per_rank[1] for load in weights if load.group.stage in stages)


TARGET = (Stage.MODEL, Stage.LAYER, Stage.VISION)
"""The stages of the target model; what is left is the draft's."""


def fits(inventory: Inventory, at: Deployment) -> bool:
    """Whether what is loaded fits on the GPU, if one is named; the reference has the draft in the same model."""
    loaded = tuple(Stage) if at.engine == "reference" else TARGET
    return not at.gpu_named or rank_nbytes(inventory, at, loaded) < at.gpu.memory


# --- layouts nearby --------------------------------------------------------------------------------------------------


def divisors(number: int) -> list[int]:
    """Whole numbers that divide `number`, ascending."""
    return [n for n in range(1, number + 1) if number % n == 0]


def _gpus(request: Request) -> int:
    """vLLM's replicas have GPUs of their own; elsewhere DP divides those of TP."""
    return request.tp * (request.dp if request.engine == "vllm" else 1)


_WINDOW = 16
"""How many numbers of GPUs below the one asked for are tried one by one; beyond them halves and powers of two."""


def _sizes(gpus: int) -> Iterator[int]:
    """Numbers of GPUs near `gpus`: as many, then fewer, the nearest first, then more."""
    near = {*range(gpus - _WINDOW, gpus + _WINDOW // 2 + 1), *(gpus << n for n in range(1, 5))}
    near |= {gpus >> n for n in range(1, gpus.bit_length())}
    near |= {1 << n for n in range(gpus.bit_length() + 4)}
    sizes = sorted(size for size in near if 1 <= size <= MAX_RANKS)
    yield from (size for size in reversed(sizes) if size <= gpus)
    yield from (size for size in sizes if size > gpus)


def _variations(request: Request, world: int) -> Iterator[Request]:
    """Requests for `world` GPUs near `request`, nearest first: DP and EP like its own, with its other options before
    what the engine chooses."""
    for dp, ep in _pairs(request, world):
        tp = world // dp if request.engine == "vllm" else world
        nodes = request.nodes if request.engine == "node" and request.nodes and world % request.nodes == 0 else None
        same = replace(request, tp=tp, dp=dp, ep=ep, nodes=nodes)
        yield from dict.fromkeys((same, replace(same, runner=None, a2a=None, shared="auto")))


def _pairs(request: Request, world: int) -> Iterator[tuple[int, int | None]]:
    """DP and EP for `world` GPUs, those nearest to the request's first."""
    dps, eps = divisors(world), divisors(world)
    if request.engine == "vllm":
        eps = [1, world]
    elif request.engine == "node":
        eps = [1]
    elif request.engine == "reference":
        dps, eps = [1], [1]
    elif request.engine == "trtllm":
        dps, eps = [1, world], [1, *eps[1:-1]]
    asked = request.ep or 1

    def far(pair: tuple[int, int]) -> tuple[float, int]:
        dp, ep = pair
        return max(dp, request.dp) / min(dp, request.dp) * max(ep, asked) / min(ep, asked), dp

    for dp, ep in sorted(dict.fromkeys(itertools.product(dps, eps)), key=far):
        yield dp, ep if ep > 1 else None


def nearest(
    inventory: Inventory, request: Request, limit: int, *, elsewhere: bool = True
) -> Iterator[tuple[Request, Choice]]:
    """Up to `limit` layouts that work, nearest to `request` first: two on as many GPUs, then one on each smaller number
    of them, then on larger ones (`elsewhere`). Those that weigh the same stand once, and none that does not fit, or
    would leave hosts half empty, as 9 GPUs on 3 of them."""
    gpus = _gpus(request)
    for world in _sizes(gpus) if elsewhere else (gpus,):
        weights: set[int] = set()
        for variation in _variations(request, world):
            most = min(limit, 2 if world == gpus else 1)
            if len(weights) >= most:
                break
            choice = choose(inventory, variation)
            at = choice.at
            if not choice.feasible or (request.nodes is None and at.nodes > fewest_nodes(world, at.gpu)):
                continue
            weight = rank_nbytes(inventory, choice.at, TARGET)
            if weight not in weights and fits(inventory, choice.at):
                weights.add(weight)
                yield variation, choice
        limit -= len(weights)
        if not limit:
            return


def options_of(request: Request, *, engine: bool = True) -> str:
    """The request as options of `plan` and `reshard`."""
    options = [f"--tp {request.tp}"]
    if request.ep is not None:
        options.append(f"--ep {request.ep}")
    if request.dp != 1:
        options.append(f"--dp {request.dp}")
    if engine and request.engine != "sglang":
        options.append(f"--engine {request.engine}")
    for name, value in (("runner", request.runner), ("a2a", request.a2a), ("gpu", request.gpu),
                        ("gpu-memory", request.gpu_memory and shlex.quote(request.gpu_memory)),
                        ("nodes", request.nodes), ("expert-dtype", request.expert_dtype),
                        ("engine-version", request.engine_version)):  # fmt: skip
        if value is not None:
            options.append(f"--{name} {value}")
    if request.shared != "auto":
        options.append(f"--shared-experts {request.shared}")
    return " ".join(options)
