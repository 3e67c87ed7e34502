"""Stream a log; find known messages, each once, and clues to the deployment.

The log is read line by line in constant memory: long lines are cut, and the number of kept messages is limited. Ranks
repeat each other's lines, interleaved and with their own prefixes. Messages that span lines are therefore searched in
the last distinct lines.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from dsv4_shard.diagnosis.patterns import Pattern, patterns
from dsv4_shard.diagnosis.releases import find_release
from dsv4_shard.engines import ENGINES, find_engine

MAX_LINE = 1 << 14

_OVERLAP = 1 << 10
"""Bytes of a cut line that the next piece repeats, so that no message is lost at the cut."""

_MAX_FOUND = 32

_WINDOW_LINES = 40

_WINDOW_CHARS = 400

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)?|[@-Z\\^_])")

_PREFIX = re.compile(
    r"(?:\s*(?:\([\w ]{1,60}(?:pid=\d+)?(?:, ip=[\d.:a-f]+)?\)|\[[^\]\n]{0,100}\]:?|[\w.-]{1,60} +\||\brank ?\d+:"
    r"|\d{2,4}-\d\d(?:-\d\d)?(?:[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?Z?)?|ERROR|INFO|WARNING|CRITICAL|DEBUG))+ ?"
)

_OPTION = r"(?<![\w-])(?:--|-)?['\"]?(?:{})['\"]?\s{{0,2}}[=: (]\s{{0,2}}([1-9]\d{{0,3}})\b"

_CLUES = {
    "tp": (
        ("tp_", "tp-", "tp ", "tp=", "tp:", "tensor"),
        re.compile(_OPTION.format("tensor[_-]parallel[_-]size|tp[_-]size|tp")),
    ),
    "ep": (("ep_", "ep-", "ep ", "ep=", "ep:"), re.compile(_OPTION.format("ep[_-]size|ep"))),
    "attn_dp": (("attn",), re.compile(_OPTION.format("attn[_-]dp[_-]size"))),
    "dp": (
        ("dp_", "dp-", "dp ", "dp=", "dp:", "data"),
        re.compile(_OPTION.format("data[_-]parallel[_-]size|dp[_-]size|dp")),
    ),
    "dp_attention": (
        ("dp_attention", "dp-attention"),
        re.compile(r"(enable[_-]dp[_-]attention)(?!['\"]?\s{0,2}[=: ]\s{0,2}(?:false|0))"),
    ),
    "model": (
        ("deepseek",),
        re.compile(r"(?<!parser[ =:])(?<!parser=['\"])(?<!parser['\"]: ['\"])(deepseek[-_](?:v3|v4|r1)[\w.-]{0,60})"),
    ),
}
"""Property of the deployment -> (words that such a line contains, in lower case; regular expression for its value).

They match command-line options, arguments that an engine prints, and paths in tracebacks.
"""


@dataclass(slots=True)
class FoundMessage:
    """A known message in the log.

    Attributes:
        pattern: The pattern that matched.
        values: The numbers in it, in the order of `pattern.fields`.
        groups: Named groups of the regular expression.
        text: The message, with the exception's class if there is one.
        line: Line number of its first occurrence.
        times: Number of occurrences.
    """

    pattern: Pattern
    values: tuple[str | None, ...]
    groups: dict[str, str]
    text: str
    line: int
    times: int = 1


@dataclass(slots=True)
class EngineLog:
    """The findings of a log.

    Attributes:
        found: Messages in the order of their first occurrence.
        clues: Property of the deployment -> value.
        lines: Number of lines read.
        bare: Name of an exception that stands without a message.
    """

    found: list[FoundMessage] = field(default_factory=list)
    clues: dict[str, str] = field(default_factory=dict)
    lines: int = 0
    bare: str | None = None

    @property
    def dps(self) -> tuple[int, ...]:
        """Possible values of DP as `--dp` defines it.

        In some engines' logs, DP counts replicas unless attention DP is on.
        """
        if "attn_dp" in self.clues:
            return (int(self.clues["attn_dp"]),)
        dp, name = int(self.clues.get("dp", 1)), self.clues.get("engine")
        if "dp_attention" in self.clues:
            return (dp,)
        if name is None:
            return tuple({1, dp})
        return (1,) if find_engine(name).logs_count_replicas else (dp,)


def read_log(lines: Iterable[tuple[int, str]]) -> EngineLog:
    """Scan the numbered lines of a log of any length."""
    log, seen = EngineLog(), _Seen()
    anchors = tuple(dict.fromkeys(anchor for pattern in patterns() for anchor in pattern.anchors))
    window: deque[str] = deque(maxlen=_WINDOW_LINES)
    for log.lines, line in lines:
        _take_clues(line, log.clues)
        plain = _plain(line)
        if plain and plain not in window:
            window.append(plain)
        if log.bare is None and _BARE.fullmatch(plain):
            log.bare = plain
        if any(anchor in line for anchor in anchors):
            seen.look(log.lines, line, window)
    if not seen.found and log.lines <= _WINDOW_LINES:  # a terminal may have wrapped the message
        seen.look(log.lines, " ".join(window), window)
    log.found = list(seen.found.values())
    return log


class _Seen:
    """Messages found so far, by pattern and numbers."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, tuple[str | None, ...]], FoundMessage] = {}

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
                self.found[key] = FoundMessage(pattern, match.groups(), groups, _text(match), number)


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


def _log_words() -> dict[str, str]:
    """Engine -> the word that identifies its logs."""
    return {name: engine.log_word for name, engine in ENGINES.items() if engine.log_word}


def _place_of(word: str, line: str) -> int | None:
    """Position of a word in a line; None if it is not there."""
    if word not in line:
        return None
    match = re.search(rf"\b{re.escape(word)}\b", line)
    return match.start() if match else None


def _take_clues(line: str, clues: dict[str, str]) -> None:
    """Record a line's clues to the deployment. Earlier lines win."""
    lower = line.lower()
    if "engine" not in clues:
        found = [(place, name) for name, word in _log_words().items() if (place := _place_of(word, lower)) is not None]
        clues |= {"engine": min(found)[1]} if found else {}
    for name, (words, regex) in _CLUES.items():
        if name in clues or not any(word in lower for word in words):
            continue
        match = regex.search(lower)
        if match is not None and (name != "model" or find_release(match.group(1)) is not None):
            clues[name] = match.group(1)


_BREAK = re.compile(r"[\r\n]+|\\n")


def lines_of(stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """Numbered lines of a log as plain text: without colours, progress bars split, long lines in overlapping pieces."""
    number, rest = 1, b""
    while piece := stream.readline(MAX_LINE):
        text = (rest + piece).decode(errors="replace")
        if "\x1b" in text:
            text = _ANSI.sub("", text)
        text = text.rstrip("\r\n")
        for line in _BREAK.split(text) if "\r" in text or "\\n" in text else (text,):
            if line:
                yield number, line
        whole = piece.endswith(b"\n")
        number, rest = number + whole, b"" if whole else piece[-_OVERLAP:]
