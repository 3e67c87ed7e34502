"""Stream a log; find known messages, each once, with the frames above them and clues to the deployment.

The log is read line by line in constant memory: long lines are cut, and the number of kept messages is limited. Ranks
repeat each other's lines, interleaved and with their own prefixes. Messages that span lines are therefore searched in
the last distinct lines.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from dsv4_shard.diagnosis.clues import Clues
from dsv4_shard.diagnosis.origin import FRAME, Frame
from dsv4_shard.diagnosis.patterns import Pattern, patterns
from dsv4_shard.errors import ReadFailed
from dsv4_shard.limits import LOG, LOG_LINE

_OVERLAP = 1 << 10
"""Bytes of a cut line that the next piece repeats, so that no message is lost at the cut."""

_MAX_FOUND = 32

_WINDOW_LINES = 40

_WINDOW_CHARS = 400

_MAX_ERRORS = 64

_ERRORS = ("Error", "Exception", "assert ", "ERROR", "CRITICAL", "Value error, ")

_MAX_FRAMES = 120

_NEAR = 256
"""Lines between the last frame and a message of that traceback, at most."""

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)?|[@-Z\\^_])")

_PREFIX = re.compile(
    r"(?:\s*(?:\([\w ]{1,60}(?:pid=\d+)?(?:, ip=[\d.:a-f]+)?\)|\[[^\]\n]{0,100}\]:?|[\w.-]{1,60} +\||\brank ?\d+:"
    r"|std(?:out|err) [FP]\b"
    r"|\d{2,4}-\d\d(?:-\d\d)?(?:[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?Z?)?|ERROR|INFO|WARNING|CRITICAL|DEBUG))+ ?"
)


@dataclass(slots=True)
class FoundMessage:
    """A known message in the log.

    Attributes:
        pattern: The pattern that matched.
        values: The numbers in it, in the order of `pattern.fields`.
        groups: Named groups of the regular expression.
        text: The message, with the exception's class if there is one.
        line: Line number of its first occurrence.
        frames: The frames of the traceback that it ends, outermost first.
        times: Number of occurrences.
    """

    pattern: Pattern
    values: tuple[str | None, ...]
    groups: dict[str, str]
    text: str
    line: int
    frames: tuple[Frame, ...] = ()
    times: int = 1


@dataclass(frozen=True, slots=True)
class ErrorLine:
    """A line that ends a traceback or reports an error, without prefixes, with the frames above it."""

    text: str
    line: int
    frames: tuple[Frame, ...]


@dataclass(slots=True)
class EngineLog:
    """The findings of a log.

    Attributes:
        found: Messages in the order of their first occurrence.
        clues: The deployment that it describes.
        lines: Number of lines read.
        bare: Name of an exception that stands without a message.
        errors: The first lines that end a traceback or report an error, whatever they say.
    """

    found: list[FoundMessage] = field(default_factory=list)
    clues: Clues = field(default_factory=Clues)
    lines: int = 0
    bare: str | None = None
    errors: list[ErrorLine] = field(default_factory=list)


def read_log(lines: Iterable[tuple[int, str]]) -> EngineLog:
    """Scan the numbered lines of a log of any length."""
    log, seen = EngineLog(), _Seen()
    anchors = _Anchors(anchor for pattern in patterns() for anchor in pattern.anchors)
    window: deque[str] = deque(maxlen=_WINDOW_LINES)
    for log.lines, line in lines:
        plain = _plain(line)
        log.clues.take(line, plain)
        seen.frames.take(log.lines, line)
        if plain and plain not in window:
            window.append(plain)
        if log.bare is None and _BARE.fullmatch(plain):
            log.bare = plain
        if len(log.errors) < _MAX_ERRORS and any(word in line for word in _ERRORS):
            log.errors.append(ErrorLine(plain, log.lines, seen.frames.at(log.lines)))
        if anchors.are_in(line):
            seen.look(log.lines, line, window)
    if not seen.found and log.lines <= _WINDOW_LINES:  # a terminal may have wrapped the message
        seen.look(log.lines, " ".join(window), window)
    log.found = list(seen.found.values())
    return log


_INNER = re.compile(r"(?<=\W)\w{4,}(?=\W)")

_WORDS = re.compile(r"\w{4,}")


class _Anchors:
    """Tells lines with an anchor from the many that have none.

    The longest word within an anchor is a word of every line with that anchor, so only the anchors of a line's words
    are searched in it, and those that have no word within.
    """

    def __init__(self, anchors: Iterable[str]) -> None:
        self._by_word: dict[str, list[str]] = {}
        self._plain: list[str] = []
        for anchor in dict.fromkeys(anchors):
            words = _INNER.findall(anchor)
            of_word = self._by_word.setdefault(max(words, key=len), []) if words else self._plain
            of_word.append(anchor)

    def are_in(self, line: str) -> bool:
        """Whether one of them is in the line."""
        words = self._by_word.keys() & _WORDS.findall(line)
        return any(anchor in line for word in words for anchor in self._by_word[word]) or any(
            anchor in line for anchor in self._plain
        )


class _Seen:
    """Messages found so far, by pattern and numbers."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, tuple[str | None, ...]], FoundMessage] = {}
        self.frames = _Frames()

    def look(self, number: int, line: str, window: Iterable[str]) -> None:
        """Search a line, or the window of lines before it, for every message."""
        for index, pattern in enumerate(patterns()):
            if not any(anchor in line for anchor in pattern.anchors):
                continue
            match = pattern.regex.search("\n".join(window) if pattern.spans else line)
            if match is None:
                continue
            key = (index, match.groups())
            if key in self.found:
                self.found[key].times += 1
            elif len(self.found) < _MAX_FOUND:
                groups = {name: value or "" for name, value in match.groupdict().items()}
                self.found[key] = FoundMessage(
                    pattern, match.groups(), groups, _text(match), number, self.frames.at(number)
                )


class _Frames:
    """The frames of the last traceback, each once: ranks print theirs interleaved."""

    def __init__(self) -> None:
        self._frames: dict[Frame, None] = {}
        self._line = 0

    def take(self, number: int, line: str) -> None:
        """Take in a line: the head of a traceback starts anew, a frame is added."""
        if "Traceback (most recent call last)" in line:
            self._frames.clear()
        elif 'File "' in line and len(self._frames) < _MAX_FRAMES and (match := FRAME.search(line)):
            self._frames[Frame(match[1].replace("\\", "/"), match[3], int(match[2]))] = None
            self._line = number

    def at(self, number: int) -> tuple[Frame, ...]:
        """The frames above a line; none if they are far above."""
        return tuple(self._frames) if number - self._line <= _NEAR else ()


def _plain(line: str) -> str:
    """A line without the prefixes of loggers and launchers, cut to `_WINDOW_CHARS`."""
    prefix = _PREFIX.match(line)
    return line[prefix.end() if prefix else 0 :][:_WINDOW_CHARS].strip()


_BARE = re.compile(
    r"(?:\w+\.)*\w+(?:Error|Exception)(?:: ?(?:integer (?:division or )?modulo by zero|division by zero)?)?"
)

_CLASS = re.compile(r"[\w.]{1,80}(?:Error|Exception): \Z")

_CLASS_CHARS = 100


def _text(match: "re.Match[str]") -> str:
    """The matched message, with the exception's class in front if there is one."""
    before = _CLASS.search(match.string[max(0, match.start() - _CLASS_CHARS) : match.start()])
    start = match.start() - (len(before.group()) if before else 0)
    return " ".join(match.string[start : match.end()].split())


_BREAK = re.compile(r"[\r\n]+|\\n")


def lines_of(stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """Numbered lines of a log as plain text: without colours, progress bars split, long lines in overlapping pieces.

    Raises ReadFailed beyond LOG.
    """
    number, rest, left = 1, b"", LOG.nbytes
    while piece := stream.readline(LOG_LINE.nbytes):
        left -= len(piece)
        if left < 0:
            raise ReadFailed(
                f"a log of over {LOG.nbytes:,} bytes, too large to be read", hint="Give its end: tail -c 1G LOG"
            )
        text = (rest + piece).decode(errors="replace")
        if "\x1b" in text or "\\u001b" in text:
            text = _ANSI.sub("", text.replace("\\u001b", "\x1b"))
        if '\\"' in text:  # a message in a line of JSON
            text = text.replace('\\"', '"')
        text = text.rstrip("\r\n")
        for line in _BREAK.split(text) if "\r" in text or "\\n" in text else (text,):
            if line:
                yield number, line
        whole = piece.endswith(b"\n")
        number, rest = number + whole, b"" if whole else piece[-_OVERLAP:]
