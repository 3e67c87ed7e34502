"""A request → the deployment that it comes to, what that weighs on a rank, and the layouts near it that work."""

import itertools
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dsv4_shard.engines import engine_for
from dsv4_shard.engines.base import MAX_RANKS, Breach, Context, Deployment, Engine, Expert, Held, Request
from dsv4_shard.errors import UsageError
from dsv4_shard.escape import short
from dsv4_shard.inventory import Group, Inventory
from dsv4_shard.names import EXPERT_DTYPES, SHARED_EXPERTS, did_you_mean
from dsv4_shard.roles import Module, Stage

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


# --- layouts nearby --------------------------------------------------------------------------------------------------


def divisors(number: int) -> list[int]:
    """Whole numbers that divide `number`, ascending."""
    return [n for n in range(1, number + 1) if number % n == 0]


def _gpus(request: Request) -> int:
    """vLLM's replicas have GPUs of their own; elsewhere DP divides those of TP."""
    return request.tp * (request.dp if request.engine == "vllm" else 1)


def _variations(request: Request) -> Iterator[Request]:
    """Requests near `request`, nearest first: same GPUs with other DP and EP, then fewer and more GPUs."""
    free = replace(request, runner=None, a2a=None, shared="auto")
    gpus = _gpus(request)
    for world in dict.fromkeys((gpus, *(gpus // 2**n for n in range(1, 7)), gpus * 2)):
        if not 1 <= world <= MAX_RANKS:
            continue
        if request.engine == "vllm":
            for tp in reversed(divisors(world)):
                yield from (replace(free, tp=tp, dp=world // tp, ep=ep, nodes=None) for ep in (None, world))
        elif request.engine == "node":
            nodes = request.nodes if request.nodes and world % request.nodes == 0 else None
            yield from (replace(free, tp=world, dp=dp, ep=None, nodes=nodes) for dp in divisors(world))
        elif request.engine == "sglang":
            pairs = itertools.product(divisors(world), divisors(world))
            for dp, ep in sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair[0])):
                yield replace(free, tp=world, dp=dp, ep=ep if ep > 1 else None, nodes=None)
        else:
            pairs = itertools.product(dict.fromkeys((1, world)), divisors(world))
            if request.engine == "reference":
                pairs = itertools.product((1,), (world,))
            for dp, ep in pairs:
                yield replace(free, tp=world, dp=dp, ep=ep if 1 < ep < world else None, nodes=None)


def nearest(inventory: Inventory, request: Request, limit: int) -> Iterator[tuple[Request, Choice]]:
    """Layouts that work, nearest to `request` first: on as many GPUs, then on others; at most two of a size, and no two
    that weigh the same."""
    found: list[tuple[int, int]] = []
    for variation in _variations(request):
        world = _gpus(variation)
        if len(found) >= limit:
            return
        if sum(gpus == world for gpus, _ in found) >= 2:
            continue
        choice = choose(inventory, variation)
        if not choice.feasible:
            continue
        weight = (world, rank_nbytes(inventory, choice.at, TARGET))
        loaded = rank_nbytes(inventory, choice.at, tuple(Stage) if choice.at.engine == "reference" else TARGET)
        if weight not in found and not (choice.at.gpu_named and loaded >= choice.at.gpu.memory):
            found.append(weight)
            yield variation, choice


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
