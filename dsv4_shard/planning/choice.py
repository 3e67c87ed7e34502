"""Request → the first candidate deployment that breaks no rule."""

from dataclasses import dataclass

from dsv4_shard.checkpoint import Inventory
from dsv4_shard.engines import Breach, Context, Deployment, Request, engine_for
from dsv4_shard.models import Module
from dsv4_shard.planning.request import check_request


@dataclass(frozen=True, slots=True)
class Choice:
    """The result of a request: the first candidate that breaks no rule, else the one with the fewest breaches."""

    deployment: Deployment
    breaches: tuple[Breach, ...]
    rejected: tuple[tuple[Deployment, tuple[Breach, ...]], ...]

    @property
    def feasible(self) -> bool:
        return not self.breaches

    @property
    def departures(self) -> tuple[str, ...]:
        """Differences from the engine's own first choice, in a few words each."""
        if not self.rejected:
            return ()
        first, words = self.rejected[0][0], []
        if self.deployment.shared != first.shared:
            words.append(f"shared experts {self.deployment.shared}")
        if self.deployment.runner != first.runner:
            words.append(f"runner {self.deployment.runner}")
        return tuple(words)

    def notes(self) -> tuple[str, ...]:
        """Differences from the engine's own first choice, with the arithmetic that ruled that choice out."""
        if not self.rejected:
            return ()
        first = self.rejected[0][0]
        notes = []
        if self.deployment.shared != first.shared:
            reason = self._reason(Module.SHARED, first)
            notes.append(f"shared experts {_WAYS[self.deployment.shared]}: if {_WAYS[first.shared]}, {reason}")
        if self.deployment.runner != first.runner:
            reason = self._reason(Module.ROUTED, first)
            notes.append(f"runner {self.deployment.runner}: with the engine's default {first.runner}, {reason}")
        return tuple(notes)

    def _reason(self, module: Module, first: Deployment) -> str:
        reasons = [breach.reason for deployment, breaches in self.rejected for breach in breaches
                   if breach.module is module and (deployment.shared, deployment.runner) != (self.deployment.shared,
                   self.deployment.runner)
                   and (deployment.shared == first.shared or deployment.runner == first.runner)]  # fmt: skip
        return reasons[0] if reasons else "another rule breaks"


_WAYS = {"whole": "whole on every rank", "split": "split", "pad": "padded", "subgroup": "split over a subgroup"}


def choose(inventory: Inventory, request: Request) -> Choice:
    """Return the first of the engine's candidates that breaks no rule, else the one with the fewest breaches.

    Raises:
        UsageError: A number or a name in the request is invalid.
    """
    check_request(request)
    engine = engine_for(request.engine, inventory.family)
    rejected: list[tuple[Deployment, tuple[Breach, ...]]] = []
    for deployment in engine.candidates(inventory, request):
        breaches = tuple(engine.breaches(Context(inventory, deployment)))
        if not breaches:
            return Choice(deployment, (), tuple(rejected))
        rejected.append((deployment, breaches))
    deployment, breaches = min(rejected, key=lambda one: len(one[1]))
    return Choice(deployment, breaches, ())
