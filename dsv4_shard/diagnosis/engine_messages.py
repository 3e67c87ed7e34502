"""The engines' own messages on the way from arguments to the first forward pass: which one a line of a log is.

`engine_messages.json` is made by tools/engine_messages from the engines' wheels. It is read only if neither a rule
nor a row of `messages` has answered.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Formatter

from dsv4_shard.diagnosis.origin import Frame

_LEAST_LETTERS = 12
"""Letters that a text needs to be told from others."""

_LEAST_ALONE = 24
"""Letters that it needs if nothing says that the log is of an engine."""

_MOST_LETTERS = 240
"""Letters that are compared, at most."""

_VALUE = r"(?s:.{0,300}?)"

_WORD = re.compile(r"[A-Za-z_]{4,}")


@dataclass(frozen=True, slots=True)
class EngineText:
    """A message of an engine.

    Attributes:
        engine: Name of the engine.
        version: Version whose source has it.
        place: Its file and line, below the engine's package.
        function: The function that raises it.
        error: Class of the exception; "log" for an error in the log.
        text: The text, with {} for values, and doubled braces; the source of an assertion without words.
        condition: When the engine says it, in its own source; empty if always.
    """

    engine: str
    version: str
    place: str
    function: str
    error: str
    text: str
    condition: str

    @property
    def bare(self) -> bool:
        """Whether it is an assertion without words."""
        return self.text.startswith("assert ")

    @property
    def first(self) -> str:
        """Its first line that has words, or its begin: lines of a log are searched one by one, and cut."""
        lines = self.text.split("\n")
        line = next((line for line in lines if len(_WORD.findall(line)) > 1), lines[0]).strip()
        return line if len(line) <= _MOST_LETTERS else line[:_MOST_LETTERS].rpartition(" ")[0]

    @property
    def words(self) -> list[str]:
        """The words of that line."""
        return _WORD.findall(self.first.replace("{}", " "))

    @property
    def letters(self) -> int:
        """Letters of its words."""
        return sum(map(len, self.words))

    @property
    def pattern(self) -> str:
        """Regular expression for that line."""
        parsed = list(Formatter().parse(self.first))
        pieces = (re.escape(literal) + ("" if field is None else _VALUE) for literal, field, _, _ in parsed)
        return re.sub(r"(?:\\ )+", r"\\s+", "".join(pieces))


@cache
def _texts() -> tuple[EngineText, ...]:
    document = json.loads(files("dsv4_shard.diagnosis").joinpath("engine_messages.json").read_text())
    return tuple(
        EngineText(engine, table["version"], f"{file}:{line}", function, error, text, condition)
        for engine, table in document.items()
        for file, entries in table["messages"].items()
        for line, function, error, text, condition in entries
    )


@cache
def _by_word() -> dict[str, list[EngineText]]:
    """Every message, by the longest word of its text."""
    found: dict[str, list[EngineText]] = defaultdict(list)
    for one in _texts():
        if one.letters >= _LEAST_LETTERS:
            found[max(one.words, key=len)].append(one)
    return found


@cache
def _by_place() -> dict[tuple[str, str], EngineText]:
    """Every message, by its place and function."""
    return {(one.place, one.function.rpartition(".")[2]): one for one in _texts()}


def find_at(frames: Iterable[Frame]) -> EngineText | None:
    """The message that the innermost frame raises: the same file, line and function, so the same version of it."""
    inner = list(frames)[-1:]
    for engine in {one.engine for one in _texts()}:
        for frame in inner:
            _, found, path = frame.path.rpartition(f"/{engine}/")
            if found:
                return _by_place().get((f"{engine}/{path}:{frame.line}", frame.function))
    return None


def find_text(lines: Iterable[str], engine: str | None) -> tuple[EngineText, str] | None:
    """The message that one of the lines is, with the line; the longest text of the first line that has one.

    `engine` is the engine that the log is of, whose messages alone count if it is known.
    """
    table = _by_word()
    for line in lines:
        texts = {one for word in set(_WORD.findall(line)) for one in table.get(word, ())}
        fitting = [
            one for one in texts
            if (engine == one.engine or (engine is None and one.letters >= _LEAST_ALONE)) and re.search(one.pattern,
            line)
        ]  # fmt: skip
        if fitting:
            return max(fitting, key=lambda one: (len(one.text), one.engine, one.place)), line
    return None
