"""What an engine is to the plan: rules, placements, and how it is launched, as data.

A *rule* is a condition that the engine's code puts on a module, with its arithmetic. Most say that a size must fall
into equal parts, and each part into whole units; `Divides` is that sentence. A rule that the engine itself does not
check is marked by an empty `quote`: there the tool is the only one who warns.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.models.roles import Module
from dsv4_shard.text.units import quotient

# --- rules ---------------------------------------------------------------------------------------------------------

NOT_VERIFIED = "nothing is claimed of it"
"""The consequence of a rule that breaks where nothing is known: neither that it runs nor that it does not."""

REFUSED = "{engine} refuses it"

NO_OPTION = "{engine} has no such option"

SILENT = "{engine} does not say so: "
"""Consequences, in which `engine` is what it is called: it ends with an error, be its words known or not; it cannot be
asked; it starts, and what then becomes of it."""

BREAKS_TOO = "breaks as well: {engine} has stopped by then"
"""Of a rule beside the one at which the engine stops: what would come of it alone does not come."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """A way out that is an option of this tool.

    `words` say it in general; `tries` are the requests that take it, the likeliest first; `said`, a template over
    `asked`, says it of the one that helps (empty: `words`).
    """

    words: str
    tries: Callable[[Request], Iterable[Request]]
    said: str = ""

    def say(self, asked: Request) -> str:
        """What it is for the request that helps."""
        return (self.said or self.words).format(asked=asked, attention_tp=asked.tp // asked.dp)


Remedies = tuple[Remedy | str, ...]
"""Ways out; those that are no option of this tool are words alone."""


@dataclass(frozen=True, slots=True)
class Breach:
    """A rule that a deployment breaks.

    `reason` is the arithmetic. `quote` is what the engine itself prints, None where it prints nothing, its words are
    not known, or it has stopped at another rule; `consequence` says which. `remedies` are ways out, of which not each
    helps every deployment.
    """

    rule: str
    module: Module
    reason: str
    quote: str | None
    consequence: str
    remedies: Remedies

    @property
    def stops(self) -> bool:
        """Whether the engine ends here, with an error; else it starts, or nothing is claimed of it."""
        return self.quote is not None or self.consequence == REFUSED

    @property
    def unknown(self) -> bool:
        """Whether it says that nothing is known, and not that it does not run."""
        return self.consequence == NOT_VERIFIED


def _always(_: Context) -> bool:
    return True


def _one(_: Context) -> int:
    return 1


Template = str | Callable[[Context], str | None] | None
"""A template, or a function that picks one for a deployment."""


def _pick(words: Template, context: Context) -> str | None:
    return words(context) if callable(words) else words


@dataclass(frozen=True, slots=True)
class Symptom:
    """How a breach shows.

    `quote` is what the engine prints: a template over `size`, `parts`, `part`, `unit` and `context`, or a function that
    picks one of `quotes`; None where it prints nothing, or its words are not known, and `consequence` says which.
    `heard` are other messages by which it shows: those of other versions, and of checks before and after it.
    """

    quote: Template = None
    consequence: str = REFUSED
    remedies: Remedies = ()
    heard: tuple[str, ...] = ()
    quotes: tuple[str, ...] = ()

    @property
    def messages(self) -> tuple[str, ...]:
        """Every template by which the breach shows."""
        return (*((self.quote,) if isinstance(self.quote, str) else self.quotes), *self.heard)

    def says(self, template: str, context: Context) -> bool:
        """Whether `template` is of this breach in a deployment."""
        return template in self.heard or template == _pick(self.quote, context)


@dataclass(frozen=True, slots=True)
class Divides:
    """`size / parts` must be whole and a multiple of `unit`.

    `size_name`, `parts_name` and `unit_name` are the words of the arithmetic. It breaks in two ways that have nothing
    else in common: `uneven` is how it shows where the parts are not whole, `cut` where they are, and cut a unit. A
    `fatal` rule is one without which the later ones make no sense.
    """

    name: str
    module: Module
    size: Callable[[Context], int]
    size_name: str
    parts: Callable[[Context], int]
    parts_name: str
    unit: Callable[[Context], int] = _one
    unit_name: Template = ""
    uneven: Symptom = Symptom()
    cut: Symptom = Symptom()
    when: Callable[[Context], bool] = _always
    fatal: bool = False

    @property
    def messages(self) -> tuple[str, ...]:
        """Every template by which the rule shows."""
        return (*self.cut.messages, *self.uneven.messages)

    def unit_word(self, context: Context) -> str:
        """What the units are called, in the plural; empty where they are single elements."""
        return _pick(self.unit_name, context) or ""

    def explain(self, context: Context) -> str | None:
        """The arithmetic in words, or None where the rule does not apply."""
        if not self.when(context):
            return None
        size, parts, unit = self.size(context), self.parts(context), self.unit(context)
        part, rest = divmod(size, parts)
        head = f"{self.size_name} {size} / {self.parts_name} {parts} = "
        if rest:
            return f"{head}{quotient(size, parts)}: not whole"
        if unit == 1:
            return f"{head}{part}"
        return f"{head}{part}, which is {quotient(part, unit)} {self.unit_word(context)} of {unit}"

    def shows(self, context: Context) -> Symptom | None:
        """How it breaks, or None where the rule holds or does not apply."""
        if not self.when(context):
            return None
        part, rest = divmod(self.size(context), self.parts(context))
        if rest:
            return self.uneven
        return self.cut if part % self.unit(context) else None

    def check(self, context: Context) -> Breach | None:
        """Breach with the numbers, or None where the rule holds or does not apply."""
        shows, reason = self.shows(context), self.explain(context)
        if shows is None or reason is None:
            return None
        size, parts, unit = self.size(context), self.parts(context), self.unit(context)
        words, numbers = (
            _pick(shows.quote, context),
            {"size": size, "parts": parts, "part": size // parts, "unit": unit},
        )
        quote = words.format(**numbers, context=context) if words else None
        consequence = shows.consequence.format(**numbers, engine="{engine}")
        return Breach(self.name, self.module, reason, quote, consequence, shows.remedies)


@dataclass(frozen=True, slots=True)
class Requires:
    """A condition that is not a division. `reason` and `quote` are templates over `at` (the deployment).

    The rest is as in `Symptom`.
    """

    name: str
    module: Module
    holds: Callable[[Context], bool]
    reason: str
    quote: str | None = None
    consequence: str = REFUSED
    remedies: Remedies = ()
    fatal: bool = False
    heard: tuple[str, ...] = ()

    @property
    def messages(self) -> tuple[str, ...]:
        """Every template by which the rule shows."""
        return tuple(words for words in (self.quote, *self.heard) if words)

    def explain(self, context: Context) -> str | None:
        """None: there is no arithmetic in it."""
        return None

    def check(self, context: Context) -> Breach | None:
        """Breach, or None where the condition holds."""
        if self.holds(context):
            return None
        words = {"at": context.deployment, "config": context.config, "context": context}
        quote = self.quote.format(**words) if self.quote else None
        return Breach(self.name, self.module, self.reason.format(**words), quote, self.consequence, self.remedies)


Rule = Divides | Requires
