"""The messages of engines as patterns: those of the rules, made of their own templates, and a table of all others.

A template `size {size} is not divisible by {parts}` becomes a regular expression in which each field is a number and
any white space stands for any other; `…` is whatever stands between, over several lines. A new rule is so known at
once. What a rule means in numbers is not said here: `explain` asks the rule itself.
"""

import re
from dataclasses import dataclass
from functools import cache
from string import Formatter

from dsv4_shard.engines.engine import UNKNOWN_FAMILY, Engine
from dsv4_shard.engines.other_messages import OTHERS, OtherMessage
from dsv4_shard.engines.registry import engine_for, serving
from dsv4_shard.engines.rules import Divides, Rule
from dsv4_shard.models.families import FAMILIES
from dsv4_shard.models.family import Family

SHORT = (
    "{part} is not divisible by {unit}",
    "{part} not divisible by block_n={unit}",
    "{part} not divisible by block_k={unit}",
)
"""How people quote a rule of blocks: said of every one."""

_GENERIC = "isnotdivisibleby"
"""All that the shortest templates say."""

_CLASS = re.compile(r"^(?:[A-Z]\w*(?:Error|Exception)(?:: ?|$)|Value error, )")

_NUMBER = r"(?<![\d.])(\d{1,9})(?![\d])"

_BETWEEN = r"(?s:.{0,600}?)"

_LEAST_LETTERS = 12
"""Of a template, for it to be told from other text: a bare class of exceptions is no message."""


@dataclass(frozen=True, slots=True)
class PatternSource:
    """A rule that shows by a message: of an engine as it treats a family."""

    engine: Engine
    family: Family
    rule: Rule


@dataclass(frozen=True, eq=False, slots=True)
class Pattern:
    """A message to look for. `fields` name the groups of a rule's template; `anchors` are plain text that stands in
    the last of its lines, one of them whatever the numbers; `spans` says whether it may be spread over several lines.
    """

    regex: re.Pattern[str]
    anchors: tuple[str, ...]
    template: str = ""
    fields: tuple[str, ...] = ()
    sources: tuple[PatternSource, ...] = ()
    known: OtherMessage | None = None
    spans: bool = False
    vague: bool = False
    """Whether anything may say so: it only counts where its numbers are those of a model."""

    @property
    def grave(self) -> bool:
        return self.known is None or self.known.grave


def compile_template(template: str) -> tuple[re.Pattern[str], tuple[str, ...], str] | None:
    """Regular expression, fields and anchor of a template; None where it has too little text to be told from others."""
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
    """Every message that is known: of the rules of all engines and families, then of none."""
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
    return (*found, *(Pattern(re.compile(known.regex), _anchors(known), known=known) for known in OTHERS))


def _short(rule: Rule) -> tuple[str, ...]:
    return SHORT if isinstance(rule, Divides) and rule.unit_name else ()


def _anchors(known: OtherMessage) -> tuple[str, ...]:
    """The plain text that a regular expression of the table begins with, up to its first group or class."""
    if known.anchor:
        return (known.anchor,)
    regex = known.regex
    alternatives = regex.removeprefix("(?:").split(")")[0].split("|") if regex.startswith("(?:") else [regex]
    return tuple(re.split(r"\\?[(\[{.*+?\\|^$]", one, maxsplit=1)[0] for one in alternatives)
