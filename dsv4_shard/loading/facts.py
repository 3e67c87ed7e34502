"""`Fact`: a property of a running engine that decides which bytes a rank needs, and its comparison with the files.

Shapes show little of it: a swapped rank, expert or half of w13 has the right shape. A fact that the engine does not
tell is a refusal too.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dsv4_shard.errors import LoadRefused
from dsv4_shard.loading.checks import check_fact
from dsv4_shard.text.sanitize import clean


@dataclass(frozen=True, slots=True)
class Running:
    """A running engine, in messages: its title, and its version."""

    title: str
    version: str

    @property
    def as_planned(self) -> str:
        """What to do where the model is not the one that the files are for."""
        return f"start {self.title} as `launch` in plan.json says, or reshard for this deployment"

    def told(self, name: str, read: Callable[[], Any]) -> Any:
        """What `read` returns. Raises LoadRefused if the engine does not have it."""
        try:
            return read()
        except Exception as error:
            said = clean(str(error).partition("\n")[0])[:200]
            raise LoadRefused(
                f"{name}: {self.title} {self.version} does not tell it ({type(error).__name__}: {said}): install it as "
                "it was released"
            ) from None


@dataclass(frozen=True, slots=True)
class Fact:
    """A property of the running engine.

    Attributes:
        name: What it is, in messages; a key of the manifest's identity if `expected` is None.
        read: Returns it, as the engine has it.
        remedy: What to do where the files are for another; None: as planned.
        expected: What all rank files are for; None: the manifest says.
        usual: What files are for whose manifest does not name it; None: such files are refused.
        of_draft: Whether the files of a draft model depend on it too.
    """

    name: str
    read: Callable[[], object]
    remedy: str | None = None
    expected: str | None = None
    usual: str | None = None
    of_draft: bool = True

    def due(self, identity: Mapping[str, str]) -> str:
        """What the files are for."""
        if self.expected is not None:
            return self.expected
        return identity.get(self.name, f"no {self.name}" if self.usual is None else self.usual)


def check_facts(facts: Iterable[Fact], identity: Mapping[str, str], running: Running, *, is_draft: bool) -> None:
    """Compare facts with what the files were made for. Raises LoadRefused with the first one that differs."""
    for fact in facts:
        if fact.of_draft or not is_draft:
            found = running.told(fact.name, fact.read)
            check_fact(fact.name, fact.due(identity), found, fact.remedy or running.as_planned)
