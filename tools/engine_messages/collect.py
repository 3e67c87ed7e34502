"""`collect`: the messages of a wheel that are on the way, and why the others are not."""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine_messages.facts import ENTRIES, KNOWN, excluded
from engine_messages.reach import Reach
from engine_messages.texts import Said, is_message, said_in
from engine_messages.wheel import Wheel

NOT_CALLED = "no call of the way leads to it, or the facts rule its branch out"


@dataclass(frozen=True, slots=True)
class Collected:
    """What a wheel says.

    Attributes:
        engine: Its name.
        version: Its version.
        said: The messages on the way.
        modules: The modules of the way.
        missing: Entries that the wheel does not have.
        reach: The functions and classes of the way.
    """

    engine: str
    version: str
    said: list[Said]
    modules: set[str]
    missing: list[str]
    reach: Reach


def collect(path: Path) -> Collected:
    """Follow the way through a wheel."""
    engine, version = path.name.split("-")[:2]
    reach = Reach(Wheel(path, engine, KNOWN), KNOWN, excluded)
    missing = [entry for entry in ENTRIES[engine] if not reach.enter(entry)]
    reach.run()
    return Collected(
        engine, version, list(_on_the_way(reach)), {module for module, _ in reach.functions}, missing, reach
    )


def _on_the_way(reach: Reach) -> Iterator[Said]:
    """Every message in the reached functions, each place once."""
    seen = set()
    for module, name in sorted(reach.functions):
        source = reach.wheel.module(module)
        scope = reach.scopes.scope(source, name) if source is not None else None
        if source is None or scope is None:
            continue
        for one in said_in(source.path, name, scope.nodes):
            if (one.file, one.line) not in seen:
                seen.add((one.file, one.line))
                yield one


def off_the_way(found: Collected) -> Counter[str]:
    """Reason → number of the wheel's other messages. Reads every module, which takes a minute."""
    places = {(one.file, one.line) for one in found.said}
    count: Counter[str] = Counter()
    for name in found.reach.wheel.names():
        module = found.reach.wheel.module(name)
        if module is None:
            continue
        reason = excluded(name) or NOT_CALLED
        lines = {
            node.lineno for node in ast.walk(module.tree) if isinstance(node, ast.stmt | ast.expr) and is_message(node)
        }
        count[reason] += sum((module.path, line) not in places for line in lines)
    return count
