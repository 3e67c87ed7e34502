"""Shell text → its commands, without a shell: quotes, comments, line breaks, and variables that the text itself sets.

Nothing is run, and nothing of this process's environment is put in. A variable that the text does not set, a
substitution of a command, or arithmetic on such a variable stays as it is written.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile

from dsv4_shard.errors import UsageError
from dsv4_shard.limits import CONFIGURATION, CONFIGURED_VARIABLES

_PIECE = re.compile(
    r"""(?P<blank>[ \t\r]+|\\\r?\n)
    |(?P<end>[\n;&|()]+|[<>])
    |(?P<single>'[^']*')
    |(?P<double>"(?:[^"\\]|\\.)*")
    |(?P<escaped>\\.)
    |(?P<plain>\$\(\([^()]*\)\)|\$\([^()]*\)|\$\{[^{}]*\}|\$\w+|`[^`]*`|[^\s'"\\;&|()<>])""",
    re.VERBOSE | re.DOTALL,
)

_COMMENT = re.compile(r"#[^\n]*")

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL | re.ASCII)

_VARIABLE = re.compile(
    r"\$\(\((?P<sum>[^()]*)\)\)|\$\{(?P<braced>\w+)(?::?-(?P<default>[^{}]*))?\}|\$(?P<bare>[A-Za-z_]\w*)|\$\((?P<field>\w+)\)",
    re.ASCII,
)
"""`$NAME`, `${NAME}`, `${NAME:-default}`, `$((A * B))`, and Kubernetes's `$(NAME)`."""

_TERM = re.compile(r"\$?\{?(\w+)(?::-(\w*))?\}?", re.ASCII)

_MOST_DIGITS = 9

_LARGEST = 1 << 63
"""Shells compute in 64 bits."""


_SHORTER = "Give the command that starts the engine alone."


@dataclass(slots=True)
class ShellCommand:
    """A command: its words without quotes, and the variables that are set when it runs."""

    words: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)


def commands_of(text: str, variables: Mapping[str, str]) -> Iterator[ShellCommand]:
    """Yield the commands of a text, in order; `variables` are set before it.

    An assignment, exported or not, holds for what follows; before a command, for that command.

    Raises:
        UsageError: A quote is not closed, or the text sets too many variables, or is too long with their values.
    """
    known = dict(variables)
    for words in _split(text, Filler(known)):
        start = 1 if words[0] == "export" else 0
        matches = takewhile(bool, map(_ASSIGNMENT.fullmatch, words[start:]))
        set_here = [(match[1], match[2]) for match in matches if match]
        if len(words) > start + len(set_here):
            yield ShellCommand(words[start + len(set_here) :], {**known, **dict(set_here)})
            continue
        known.update(set_here)
        if len(known) > len(variables) + CONFIGURED_VARIABLES.count:
            raise UsageError(f"variables: more than the {CONFIGURED_VARIABLES.count:,} that are read", hint=_SHORTER)


def _split(text: str, fill: "Filler") -> Iterator[list[str]]:
    """Yield the words of each command. The variables of `fill` may grow between two of them."""
    words: list[str] = []
    word: list[str] | None = None
    at = 0
    while at < len(text):
        if word is None and (match := _COMMENT.match(text, at)) is not None:
            at = match.end()
            continue
        match = _PIECE.match(text, at)
        if match is None:
            line = text.count("\n", 0, at) + 1
            raise UsageError(
                f"line {line}: a quote is not closed", hint="Quote the whole command line in '…' or \"…\"."
            )
        at, kind, piece = match.end(), match.lastgroup, match[0]
        if kind in ("blank", "end"):
            words += [] if word is None else ["".join(word)]
            word = None
            if kind == "end" and words:
                yield words
                words = []
        else:
            word = word or []
            word.append(_unquoted(kind, piece, fill))
    words += [] if word is None else ["".join(word)]
    if words:
        yield words


def _unquoted(kind: str | None, piece: str, fill: "Filler") -> str:
    """Return a piece of a word without its quotes, with the known variables in it filled in."""
    match kind:
        case "single":
            return piece[1:-1]
        case "double":
            return fill(re.sub(r'\\(["\\$`])|\\\n', r"\1", piece[1:-1]))
        case "escaped":
            return piece[1]
    return fill(piece) if piece.startswith("$") and len(piece) > 1 else piece


class Filler:
    """Fills the variables in `known` into texts, and computes sums and products of whole numbers.

    Values have `CONFIGURATION.nbytes` characters in all: a short text with variables of variables could grow without
    end.
    """

    __slots__ = ("_known", "_left")

    def __init__(self, known: Mapping[str, str]) -> None:
        self._known, self._left = known, CONFIGURATION.nbytes

    def __call__(self, text: str) -> str:
        """Return a text with its variables filled in. Raises UsageError if its values are too long."""
        return _VARIABLE.sub(self._value, text)

    def _value(self, match: re.Match[str]) -> str:
        if match["sum"] is not None:
            result = _sum(match["sum"], self._known)
            return match[0] if result is None else str(result)
        found = self._known.get(match["braced"] or match["bare"] or match["field"] or "")
        if found is None:
            return match[0] if match["default"] is None else match["default"]
        self._left -= len(found)
        if self._left < 0:
            raise UsageError(f"variables: more than {CONFIGURATION.nbytes:,} characters where they are used",
                             hint=_SHORTER)  # fmt: skip
        return found


def _sum(text: str, known: Mapping[str, str]) -> int | None:
    """Return the value of a sum of products of whole numbers and known variables; None of anything else."""
    total = 0
    for part in text.split("+"):
        product = 1
        for term in part.split("*"):
            name = _TERM.fullmatch(term.strip())
            value = name and known.get(name[1], name[1] if name[1].isdecimal() else name[2])
            if not value or not value.isdecimal() or len(value) > _MOST_DIGITS:
                return None
            product *= int(value)
            if product >= _LARGEST:
                return None
        total += product
    return total if total < _LARGEST else None
