"""Rules of an engine as data: `Divides`, `Requires`, and what a broken rule leads to (`Breach`, `Remedy`).

A *rule* is a condition that the engine's code puts on a module, with its arithmetic. Most rules say that a size must
divide into equal parts, and each part into whole units: `Divides`. An empty `quote` marks a rule that the engine does
not check itself; then only this tool warns. The rules of an engine stand in the order in which it would stop: by stage,
then in the order of its code.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.stages import StartStage
from dsv4_shard.models import Module
from dsv4_shard.text.suggest import as_option
from dsv4_shard.text.units import quotient

NOT_VERIFIED = "not verified"
"""Consequence of a broken rule if it is unknown whether the layout runs."""

REFUSED = "{engine} refuses it"

NO_OPTION = "{engine} has no such option"

SILENT = "{engine} does not say so: "
"""Consequences, as templates over `engine`, the engine's title.

In this order: the engine stops with an error, whether or not its text is known; the engine lacks the option; the engine
starts, and the text that follows says what happens then.
"""

WOULD_FOLLOW = "would follow{when}: {{engine}} has stopped by then"
"""Consequence of further broken rules, as a template over their stage: the engine has stopped at an earlier one."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """A remedy that is an option of this tool.

    Attributes:
        words: The remedy in general words.
        tries: Returns the requests that apply the remedy to a request, the likeliest first.
        said: Template over `asked` that describes the remedy for the request that helps (empty: use `words`).
        left_out: Fields of the request that the remedy leaves out; only those that were asked for are said.
    """

    words: str
    tries: Callable[[Request], Iterable[Request]]
    said: str = ""
    left_out: tuple[str, ...] = ()

    def say(self, asked: Request, before: Request) -> str:
        """Describe the remedy for the request that helps, in place of the request `before`."""
        given = [as_option(name) for name in self.left_out if getattr(asked, name) != getattr(before, name)]
        if given:
            return f"leave {' and '.join(given)} out"
        return (self.said or self.words).format(asked=asked, attention_tp=asked.tp // asked.dp)


Remedies = tuple[Remedy | str, ...]
"""Remedies; a plain string is a remedy that is not an option of this tool."""


@dataclass(frozen=True, slots=True)
class Breach:
    """A rule that a deployment breaks.

    Attributes:
        rule: Name of the rule.
        module: The module that the rule is about.
        reason: The arithmetic.
        quote: The text that the engine prints. None if it prints nothing, if its text is not known, or if it has
            stopped at another rule.
        consequence: What happens, which also tells these cases of None apart.
        remedies: Possible remedies; not every one helps every deployment.
        stage: The stage in which the engine stops or fails. None for what it is never asked: it has no such option.
        stops: Whether the engine stops here with an error; if not, it starts, it has stopped before, or the outcome is
            not verified.
        division: Size in elements and number of parts, if the rule is a division.
    """

    rule: str
    module: Module
    reason: str
    quote: str | None
    consequence: str
    remedies: Remedies
    stage: StartStage | None = None
    stops: bool = False
    division: tuple[int, int] | None = None

    @property
    def unknown(self) -> bool:
        """Whether the outcome is unknown, rather than a failure."""
        return self.consequence == NOT_VERIFIED

    def after_the_stop(self) -> "Breach":
        """The breach if the engine has stopped at another one."""
        when = f" in {self.stage}" if self.stage else ""
        return replace(self, quote=None, consequence=WOULD_FOLLOW.format(when=when), stops=False)


def _always(_: Context) -> bool:
    return True


def _one(_: Context) -> int:
    return 1


Template = str | Callable[[Context], str | None] | None
"""A template, a function that picks a template for a deployment, or None."""


def _pick(words: Template, context: Context) -> str | None:
    return words(context) if callable(words) else words


def _stops(quote: str | None, consequence: str) -> bool:
    return quote is not None or consequence == REFUSED


def _stage_of(quote: str | None, consequence: str, checked: StartStage | None) -> StartStage | None:
    """The stage of a breach of a rule that is checked in `checked`: what the engine does not say shows in service."""
    return StartStage.SERVING if quote is None and consequence.startswith(SILENT) else checked


@dataclass(frozen=True, slots=True)
class Symptom:
    """How a breach shows.

    Attributes:
        quote: The text that the engine prints: a template over `size`, `parts`, `part`, `unit` and `context`, or a
            function that picks one of `quotes`. None if it prints nothing or its text is not known.
        consequence: What happens.
        remedies: Possible remedies.
        heard: Other messages of the same breach: from other versions, and from earlier or later checks.
        quotes: The templates that a function in `quote` picks from.
    """

    quote: Template = None
    consequence: str = REFUSED
    remedies: Remedies = ()
    heard: tuple[str, ...] = ()
    quotes: tuple[str, ...] = ()

    @property
    def messages(self) -> tuple[str, ...]:
        """Every template of a message for the breach."""
        return (*((self.quote,) if isinstance(self.quote, str) else self.quotes), *self.heard)

    def says(self, template: str, context: Context) -> bool:
        """Whether the breach can print `template` in a deployment."""
        return template in self.heard or template == _pick(self.quote, context)


@dataclass(frozen=True, slots=True)
class Divides:
    """Rule: `size / parts` must be whole and a multiple of `unit`. Sizes are in elements.

    Attributes:
        name: Name of the rule.
        module: The module that the rule is about.
        size: The size that is divided; `size_name` is its name in the arithmetic.
        parts: The number of parts; `parts_name` is its name in the arithmetic.
        unit: Elements that must stay together; `unit_name` is their name in the plural.
        uneven: How the breach shows if `size / parts` is not whole.
        cut: How the breach shows if the parts are whole but cut a unit.
        when: Whether the rule applies to a deployment.
        fatal: Whether later rules make no sense if this one breaks.
        stage: The stage in which the engine stops or fails; `in_stage` sets it.
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
    stage: StartStage | None = None

    @property
    def messages(self) -> tuple[str, ...]:
        """Every template of a message for the rule."""
        return (*self.cut.messages, *self.uneven.messages)

    def unit_word(self, context: Context) -> str:
        """Plural name of the units; empty if they are single elements."""
        return _pick(self.unit_name, context) or ""

    def explain(self, context: Context) -> str | None:
        """The arithmetic in words; None if the rule does not apply."""
        return self._arithmetic(context) if self.when(context) else None

    def _arithmetic(self, context: Context) -> str:
        size, parts, unit = self.size(context), self.parts(context), self.unit(context)
        part, rest = divmod(size, parts)
        head = f"{self.size_name} {size} / {self.parts_name} {parts} = "
        if rest:
            return f"{head}{quotient(size, parts)}: not whole"
        if unit == 1:
            return f"{head}{part}"
        return f"{head}{part}, which is {quotient(part, unit)} {self.unit_word(context)} of {unit}"

    def shows(self, context: Context) -> Symptom | None:
        """How the rule breaks; None if it holds or does not apply."""
        if not self.when(context):
            return None
        part, rest = divmod(self.size(context), self.parts(context))
        if rest:
            return self.uneven
        return self.cut if part % self.unit(context) else None

    def check(self, context: Context) -> Breach | None:
        """Breach with the numbers; None if the rule holds or does not apply."""
        shows = self.shows(context)
        if shows is None:
            return None
        size, parts, unit = self.size(context), self.parts(context), self.unit(context)
        words, numbers = (
            _pick(shows.quote, context),
            {"size": size, "parts": parts, "part": size // parts, "unit": unit},
        )
        quote = words.format(**numbers, context=context) if words else None
        consequence = shows.consequence.format(**numbers, engine="{engine}")
        return Breach(
            self.name, self.module, self._arithmetic(context), quote, consequence, shows.remedies,
            _stage_of(quote, consequence, self.stage), _stops(quote, consequence), (size, parts),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Requires:
    """Rule: a condition that is not a division.

    `reason` and `quote` are templates over `at` (the deployment), `config` and `context`; a function may pick `quote`.
    The other fields are as in `Divides` and `Symptom`.
    """

    name: str
    module: Module
    holds: Callable[[Context], bool]
    reason: str
    quote: Template = None
    consequence: str = REFUSED
    remedies: Remedies = ()
    fatal: bool = False
    heard: tuple[str, ...] = ()
    stage: StartStage | None = None

    @property
    def messages(self) -> tuple[str, ...]:
        """Every template of a message for the rule."""
        return tuple(words for words in (self.quote, *self.heard) if isinstance(words, str))

    def explain(self, context: Context) -> str | None:
        """None: the rule has no arithmetic."""
        return None

    def check(self, context: Context) -> Breach | None:
        """Breach; None if the condition holds."""
        if self.holds(context):
            return None
        words = {"at": context.deployment, "config": context.config, "context": context}
        template = _pick(self.quote, context)
        quote = template.format(**words) if template else None
        return Breach(
            self.name, self.module, self.reason.format(**words), quote, self.consequence, self.remedies,
            _stage_of(quote, self.consequence, self.stage), _stops(quote, self.consequence),
        )  # fmt: skip


Rule = Divides | Requires


def in_stage(stage: StartStage, *rules: Rule) -> tuple[Rule, ...]:
    """The rules that an engine checks in `stage`, in the order of its code."""
    return tuple(replace(rule, stage=stage) for rule in rules)
