"""Request → the first candidate deployment that breaks no rule."""

from dataclasses import dataclass, replace

from dsv4_shard.checkpoint import Inventory
from dsv4_shard.engines import Breach, Change, Context, Deployment, Engine, Request, engine_for, settings_of
from dsv4_shard.models import Module
from dsv4_shard.planning.request import check_request


@dataclass(frozen=True, slots=True)
class Choice:
    """The result of a request: the first candidate that breaks no rule, else the one with the fewest breaches."""

    deployment: Deployment
    breaches: tuple[Breach, ...]

    @property
    def feasible(self) -> bool:
        return not self.breaches

    @property
    def is_weighed(self) -> bool:
        """Whether bytes per rank are of use: the layout runs, or it is only not verified that it does."""
        return all(breach.unknown for breach in self.breaches)


def changes_of(inventory: Inventory, request: Request, choice: Choice) -> tuple[Change, ...]:
    """Return the differences of a feasible choice from the engine's defaults, whoever chose them.

    Shared experts and runner come first, with the arithmetic that rules out the default, then the engine's own changes.
    """
    engine = engine_for(request.engine, inventory.family)
    candidates = list(engine.candidates(inventory, replace(request, runner=None, shared_experts="auto")))
    default, chosen = candidates[0], choice.deployment
    changes = []
    if chosen.shared != default.shared:
        without = replace(chosen, shared=default.shared, shared_parts=default.shared_parts)
        broken = [one for one in candidates if one.shared == default.shared]
        needed = "as asked" if request.shared_experts != "auto" else f"runner {chosen.runner} needs it"
        reason = _reason(engine, inventory, broken, Module.SHARED)
        words = f"if {_WAYS[default.shared]}, {reason}" if reason else needed
        subject = f"shared experts {_WAYS[chosen.shared]}"
        changes.append(Change(subject, _settings(engine, inventory, chosen, without), words))
    if chosen.runner != default.runner:
        without = replace(chosen, runner=default.runner)
        broken = [one for one in candidates if one.runner == default.runner]
        reason = _reason(engine, inventory, broken, Module.ROUTED)
        words = f"with the default {default.runner}, {reason}" if reason else "as asked"
        changes.append(Change(f"runner {chosen.runner}", _settings(engine, inventory, chosen, without), words))
    return (*changes, *engine.changes(Context(inventory, chosen)))


def _reason(engine: Engine, inventory: Inventory, defaults: list[Deployment], module: Module) -> str | None:
    """The arithmetic of the first rule of `module` that breaks in any of `defaults`; None if all are feasible."""
    found = [engine.breaches(Context(inventory, deployment)) for deployment in defaults]
    if not all(found):
        return None
    reasons = (breach.reason for breaches in found for breach in breaches if breach.module is module)
    return next(reasons, found[0][0].reason)


def _settings(engine: Engine, inventory: Inventory, chosen: Deployment, without: Deployment) -> tuple[str, ...]:
    """The variables and options that the launch of `chosen` has, and that of `without` has not."""
    launch, other = (engine.launch(Context(inventory, one), "", False) for one in (chosen, without))
    variables = (f"{name}={value}" for name, value in sorted(launch.environment.items() - other.environment.items()))
    options, others = (one.program.options if one.program else {} for one in (launch, other))
    own = {name: value for name, value in options.items() if (name, value) not in others.items()}
    return (*variables, *settings_of(own))


_WAYS = {"whole": "whole", "split": "split", "pad": "padded", "subgroup": "split over a subgroup"}


def choose(inventory: Inventory, request: Request) -> Choice:
    """Return the first of the engine's candidates that breaks no rule, else the one with the fewest breaches.

    Of those that are only not verified, one is preferred whose tensors all divide, so that its bytes are of use.

    Raises:
        UsageError: A number or a name in the request is invalid.
    """
    check_request(request)
    engine = engine_for(request.engine, inventory.family)
    rejected: list[Choice] = []
    for deployment in engine.candidates(inventory, request):
        choice = Choice(deployment, tuple(engine.breaches(Context(inventory, deployment))))
        if choice.feasible:
            return choice
        rejected.append(choice)
    rejected.sort(key=lambda choice: (not choice.is_weighed, len(choice.breaches)))
    unverified = [choice for choice in rejected if choice.is_weighed]
    divided = (choice for choice in unverified if engine.divides(Context(inventory, choice.deployment)))
    return next(divided, rejected[0]) if len(unverified) > 1 else rejected[0]
