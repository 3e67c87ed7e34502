"""Rule templates → regular expressions, plus the table of other messages.

The template `size {size} is not divisible by {parts}` becomes a regular expression: each field matches a number, white
space matches any white space, and `…` matches any text over several lines. A new rule is therefore recognised at once.
This module does not interpret the numbers: `cases` evaluates the rules.
"""

import re
from dataclasses import dataclass
from functools import cache
from string import Formatter

from dsv4_shard.diagnosis.messages import MESSAGES, Message
from dsv4_shard.engines import UNKNOWN_FAMILY, Divides, Engine, Rule, engine_for, serving
from dsv4_shard.models import FAMILIES, Family

SHORT = (
    "{part} is not divisible by {unit}",
    "{part} not divisible by block_n={unit}",
    "{part} not divisible by block_k={unit}",
)
"""Short forms in which people quote the rules of blocks. They fit every such rule."""

_GENERIC = "isnotdivisibleby"
"""The only words of the shortest templates."""

_CLASS = re.compile(r"^(?:[A-Z]\w*(?:Error|Exception)(?:: ?|$)|Value error, )")

_NUMBER = r"(?<![\d.])(\d{1,9})(?![\d])"

_BETWEEN = r"(?s:.{0,600}?)"

_LEAST_LETTERS = 12
"""Letters that a template needs to be distinct from other text. A bare exception class is not a message."""


@dataclass(frozen=True, slots=True)
class PatternSource:
    """A rule that shows by a message, for one engine and one family."""

    engine: Engine
    family: Family
    rule: Rule


@dataclass(frozen=True, eq=False, slots=True)
class Pattern:
    """A message to search for.

    Attributes:
        regex: Matches the message.
        anchors: Plain texts; one of them is in the message's last line, whatever its numbers are.
        template: The rule's template; empty for the table's messages.
        fields: Names of the regex groups of a template.
        sources: The rules behind the template.
        known: The table's entry, if the message comes from there.
        spans: Whether the message may span several lines.
        vague: Whether other programs may print it too. It counts only if its numbers fit a model.
    """

    regex: re.Pattern[str]
    anchors: tuple[str, ...]
    template: str = ""
    fields: tuple[str, ...] = ()
    sources: tuple[PatternSource, ...] = ()
    known: Message | None = None
    spans: bool = False
    vague: bool = False

    @property
    def grave(self) -> bool:
        return self.known is None or self.known.grave


def compile_template(template: str) -> tuple[re.Pattern[str], tuple[str, ...], str] | None:
    """Regular expression, fields and anchor of a template; None if it has too little text to be distinct."""
    text = _CLASS.sub("", template).rstrip(".")
    parts, fields, literals = [], [], []
    for literal, field, _, _ in Formatter().parse(text):
        literals.append(literal)
        for number, piece in enumerate(literal.split("…")):
            parts.append(_BETWEEN if number else "")
            parts.append(r"\s+".join(re.escape(word) for word in re.split(r"\s+", piece)))
        if field is not None:
            fields.append(field)
            parts.append(_NUMBER)
    if len(re.sub(r"\W", "", "".join(literals))) < _LEAST_LETTERS:
        return None
    last = re.split(r"\n|…", "\0".join(literals))[-1]
    anchor = max((piece.strip() for piece in last.split("\0")), key=len)
    return re.compile("".join(parts)), tuple(fields), anchor


def patterns() -> tuple[Pattern, ...]:
    """All known messages: first those of the rules of all engines and families, then those of the table."""
    return _patterns(serving())


@cache
def _patterns(engines: tuple[str, ...]) -> tuple[Pattern, ...]:
    sources: dict[str, list[PatternSource]] = {}
    for name in engines:
        for family in FAMILIES:
            engine = engine_for(name, family)
            for rule in (*engine.rules, *engine.others):
                if rule.name != UNKNOWN_FAMILY:
                    for template in dict.fromkeys((*rule.messages, *_short(rule))):
                        sources.setdefault(template, []).append(PatternSource(engine, family, rule))
    found = []
    for template, of in sources.items():
        compiled = compile_template(template)
        if compiled is not None:
            regex, fields, anchor = compiled
            words = re.sub(r"\W", "", _CLASS.sub("", re.sub(r"{.*?}", "", template)))
            vague, spans = words == _GENERIC or fields == ("parts",), "\n" in template or "…" in template
            found.append(Pattern(regex, (anchor,), template, fields, tuple(of), spans=spans, vague=vague))
    return (
        *found,
        *(Pattern(re.compile(known.regex), _anchors(known), known=known, spans=known.spans) for known in MESSAGES),
    )


def _short(rule: Rule) -> tuple[str, ...]:
    return SHORT if isinstance(rule, Divides) and rule.unit_name else ()


def _anchors(known: Message) -> tuple[str, ...]:
    """The plain text at the start of a table's regular expression, up to its first group or class."""
    if known.anchors:
        return known.anchors
    regex = known.regex
    alternatives = regex.removeprefix("(?:").split(")")[0].split("|") if regex.startswith("(?:") else [regex]
    return tuple(re.split(r"\\?[(\[{.*+?\\|^$]", one, maxsplit=1)[0] for one in alternatives)
