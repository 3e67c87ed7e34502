"""The documents that `explain` returns."""

from typing import Literal

from dsv4_shard.engines import ENGINES, Verdict
from dsv4_shard.models import Module
from dsv4_shard.text.document import Document
from dsv4_shard.text.units import counted
from dsv4_shard.version import __version__

Basis = Literal["rule", "table", "kind", "assertion", "place"]
"""What an answer is from, the most specific first."""


class Case(Document):
    """A layout in which the message appears. `guessed` names what neither the message nor the log contains."""

    model: str
    engine: str
    options: str
    rule: str
    module: Module
    arithmetic: str
    guessed: tuple[str, ...]
    remedies: tuple[str, ...]


class WayOut(Document):
    """The plan for the GPUs of the first case: its `verdict`, and the `nearest` layouts that run if it does not.

    `notes` are the changes that it needs, the rules that it breaks, or why it is not verified, with its weights per
    rank. `command` is for every node, and `elsewhere` are options to add on all nodes but the first; it is null if the
    layout is not known to run. `next` is the `plan` command to run next. `guessed` is as in the first case.
    """

    options: str
    verdict: Verdict
    notes: tuple[str, ...]
    environment: dict[str, str]
    command: str | None
    elsewhere: tuple[str, ...]
    nearest: tuple[str, ...]
    next: str
    guessed: tuple[str, ...] = ()


class LogFacts(Document):
    """The deployment that a log describes; null where it does not.

    `model` is its repository or path as the log has it. `known` is false for a model whose sizes are not known, `sizes`
    says whose sizes are used if not its own. DP is counted as `--dp` of plan counts it. `loader` is a `--load-format`,
    `stage` is configuration, construction, loading, KV planning or serving.
    """

    model: str | None = None
    known: bool | None = None
    sizes: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    tp: int | None = None
    ep: int | None = None
    dp: int | None = None
    pp: int | None = None
    loader: str | None = None
    stage: str | None = None

    def in_words(self) -> str:
        """The facts in one line; empty without any."""
        known = " (not known here)" if self.model and not self.known else ""
        engine = ENGINES[self.engine].title if self.engine in ENGINES else self.engine
        parallel = (("TP", self.tp), ("EP", self.ep), ("DP", self.dp), ("PP", self.pp))
        words = (
            f"{self.model}{known}" if self.model else "",
            " ".join(filter(None, (engine, self.engine_version))),
            " ".join(f"{name} {value}" for name, value in parallel if value),
            f"loader {self.loader}" if self.loader else "",
            f"stage: {self.stage}" if self.stage else "",
        )
        return ", ".join(filter(None, words))


class EngineMessage(Document):
    """A message as it appears in the log. Escape its text before you show it."""

    text: str
    line: int
    times: int


class Explanation(Document):
    """The explanation of a text or log.

    `recognised` is false if it contains no known message; then `hint` says what to provide. `message` is the first
    grave message, `engines` are those that print it, and `also` lists other known messages. `log` is the deployment
    that the text describes, and `notes` say what the answer takes from elsewhere. `meaning` describes the fault.
    `remedies` follow from the rules, `way` from the plan. `basis` tells what the answer is from: a rule of `plan`, the
    table of messages, the kind of a message of the engine's source, the condition of an internal check, or only its
    place.
    """

    kind: Literal["explanation"] = "explanation"
    schema_version: Literal[3] = 3
    tool_version: str = __version__
    recognised: bool
    lines: int
    message: EngineMessage | None = None
    engines: tuple[str, ...] = ()
    log: LogFacts = LogFacts()
    notes: tuple[str, ...] = ()
    basis: Basis | None = None
    meaning: tuple[str, ...] = ()
    cases: tuple[Case, ...] = ()
    remedies: tuple[str, ...] = ()
    way: WayOut | None = None
    also: tuple[EngineMessage, ...] = ()
    hint: str | None = None

    def in_short(self) -> str:
        """Engines, number of cases and fixes, and the message in one line."""
        if self.message is None:
            return f"not recognised, {counted(self.lines, 'line')}"
        ways = f"{counted(len(self.cases), 'case')}, {counted(len(self.remedies), 'way')} out"
        return f"{', '.join(self.engines)}: {ways}, line {self.message.line}: {self.message.text!r}"
