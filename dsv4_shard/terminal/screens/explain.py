"""Prints the result of `explain`: the engine's message, the cause, and the remedies."""

from typing import TYPE_CHECKING

from rich.console import Console

from dsv4_shard.terminal.screens.plan import SIGNS, show_nodes
from dsv4_shard.terminal.shell_commands import to_copy
from dsv4_shard.terminal.text import heading, item, paragraph, title

if TYPE_CHECKING:
    from dsv4_shard.diagnosis import Case, Explanation


def show_explanation(console: Console, explanation: "Explanation") -> None:
    """Show the engine's message, the cause, and the remedies."""
    message = explanation.message
    if message is None:
        title(console, "not recognised")
        item(console, str(explanation.hint))
        return
    often = f", {message.times:,} times" if message.times > 1 else ""
    where = f" (line {message.line:,}{often})" if explanation.lines > 1 else ""
    said = ", ".join(explanation.engines)
    title(console, f"{said}{where}")
    item(console, message.text, "red")
    facts = explanation.log.in_words()
    if facts or explanation.notes:
        heading(console, "The log")
    for line in filter(None, (facts, *explanation.notes)):
        item(console, line)
    heading(console, "What broke")
    for line in explanation.meaning:
        item(console, line)
    if explanation.cases:
        item(console, f"in {_case(explanation.cases[0])}", "dim")
    for case in explanation.cases[1:]:
        item(console, f"or {case.module}: {case.arithmetic}, in {case.model} with {case.options}", "dim")
    if explanation.remedies:
        heading(console, "What helps")
    for remedy in explanation.remedies:
        item(console, remedy)
    way = explanation.way
    if way is not None:
        guess = f" ({' and '.join(way.guessed)}: a guess)" if way.guessed and not explanation.cases else ""
        sign, style = SIGNS[way.verdict]
        console.print()
        paragraph(console, f"{sign} {way.options}{guess}: {way.verdict}", f"bold {style}")
        for note in way.notes:
            item(console, note)
        if way.command is not None:
            show_nodes(console, way.command, way.elsewhere)
            to_copy(console, "".join(f"{key}={value} " for key, value in way.environment.items()) + way.command)
        for near in way.nearest:
            item(console, f"nearest that runs: {near}")
        heading(console, "Next")
        to_copy(console, way.next)
    if explanation.also:
        heading(console, "Other messages in the log")
        for other in explanation.also:
            item(console, f"line {other.line:,}: {other.text}", "dim")


def _case(case: "Case") -> str:
    guess = f" ({' and '.join(case.guessed)}: a guess)" if case.guessed else ""
    return f"{case.model} with {case.options}{guess}"
