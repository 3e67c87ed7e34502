"""A request → the deployment that it comes to, what that weighs on a rank, and the layouts near it that work."""

from dataclasses import dataclass

from dsv4_shard.checkpoint.inventory import Inventory
from dsv4_shard.engines.deployment import Context, Deployment, Request
from dsv4_shard.engines.registry import engine_for
from dsv4_shard.engines.rules import Breach
from dsv4_shard.models.roles import Module
from dsv4_shard.planning.request import check_request


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
