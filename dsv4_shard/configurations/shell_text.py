"""Shell text → its commands, without a shell: quotes, comments, line breaks, and variables that the text itself sets.

Nothing is run, and nothing of this process's environment is put in. A variable that the text does not set, a
substitution of a command, or arithmetic on such a variable stays as it is written.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from dsv4_shard.errors import UsageError

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

_LONGEST_VALUE = 1000
"""Characters of a value that is filled in. A longer one would let a short text grow without end."""


@dataclass(slots=True)
class ShellCommand:
    """A command: its words without quotes, and the variables that are set when it runs."""

    words: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)


def commands_of(text: str, variables: Mapping[str, str]) -> Iterator[ShellCommand]:
    """Yield the commands of a text, in order; `variables` are set before it.

    An assignment, exported or not, holds for what follows; before a command, for that command.

    Raises:
        UsageError: A quote is not closed.
    """
    known = dict(variables)
    for words in _split(text, known):
        if words and words[0] == "export":
            words = words[1:]
        set_here = dict(known)
        while words and (match := _ASSIGNMENT.fullmatch(words[0])) is not None:
            set_here[match[1]] = match[2]
            words = words[1:]
        if words:
            yield ShellCommand(words, set_here)
        else:
            known.update(set_here)


def _split(text: str, known: Mapping[str, str]) -> Iterator[list[str]]:
    """Yield the words of each command. `known` may grow between two of them."""
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
            word.append(_unquoted(kind, piece, known))
    words += [] if word is None else ["".join(word)]
    if words:
        yield words


def _unquoted(kind: str | None, piece: str, known: Mapping[str, str]) -> str:
    """Return a piece of a word without its quotes, with the known variables in it filled in."""
    match kind:
        case "single":
            return piece[1:-1]
        case "double":
            return filled(re.sub(r'\\(["\\$`])|\\\n', r"\1", piece[1:-1]), known)
        case "escaped":
            return piece[1]
    return filled(piece, known) if piece.startswith("$") and len(piece) > 1 else piece


def filled(text: str, known: Mapping[str, str]) -> str:
    """Return text with the variables in `known` filled in, and sums and products of whole numbers computed."""
    return _VARIABLE.sub(lambda match: _value(match, known), text)


def _value(match: re.Match[str], known: Mapping[str, str]) -> str:
    if match["sum"] is not None:
        result = _sum(match["sum"], known)
        return match[0] if result is None else str(result)
    found = known.get(match["braced"] or match["bare"] or match["field"] or "")
    if found is not None and len(found) > _LONGEST_VALUE:
        return match[0]
    if found is None and match["default"] is not None:
        return match["default"]
    return match[0] if found is None else found


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
        total += product
    return total
