"""`Message`: a message that belongs to no rule, and `Evidence`, from which its cause and remedies are computed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dsv4_shard.diagnosis.clues import Clues
from dsv4_shard.diagnosis.known_model import KnownModel
from dsv4_shard.diagnosis.origin import MessageOrigin
from dsv4_shard.engines import Request


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known about one message.

    Attributes:
        groups: Named groups of the regular expression; "" for a group that did not match.
        clues: The deployment that the log describes.
        origin: Engine, loader and stage that the traceback shows.
        models: The models that the message may be about; empty if the named one is not known.
    """

    groups: dict[str, str]
    clues: Clues
    origin: MessageOrigin
    models: tuple[KnownModel, ...]

    @property
    def engine(self) -> str | None:
        """Name of the engine, if the log or the traceback shows it."""
        return self.origin.engine or self.clues.engine

    @property
    def likely_engine(self) -> str:
        """The engine that placements are taken from."""
        return self.engine or Request(1).engine

    @property
    def model(self) -> KnownModel | None:
        """The model, if the user or the log names one that is known."""
        return self.models[0] if self.models and self.models[0].given else None

    def number(self, name: str) -> int:
        """The group `name` as a number; 0 if it did not match."""
        return int(self.groups.get(name) or 0)


Sentences = Callable[[Evidence], Iterable[str]]


@dataclass(frozen=True, eq=False, slots=True)
class Message:
    """A message that belongs to no rule.

    Attributes:
        engines: Names of the engines that print it.
        regex: Regular expression with named groups.
        means: Returns sentences about the cause, with numbers computed from the evidence.
        ways: Remedies, or a function that returns them.
        stage: The stage in which it is printed, if it is always the same.
        grave: Whether the message ends the run.
        anchors: Plain texts, one of them in the message's last line, for a `regex` that does not begin with plain text.
        spans: Whether the message may span several lines.
        planned: Whether the plan of the log's layout says more: for messages about the memory that a layout takes.
    """

    engines: tuple[str, ...]
    regex: str
    means: Sentences
    ways: tuple[str, ...] | Sentences = ()
    stage: str = ""
    grave: bool = True
    anchors: tuple[str, ...] = ()
    spans: bool = False
    planned: bool = False

    def remedies(self, evidence: Evidence) -> tuple[str, ...]:
        """Remedies for the evidence, each once."""
        return tuple(dict.fromkeys(self.ways(evidence) if callable(self.ways) else self.ways))


def say(*sentences: str) -> Sentences:
    """Return a function that puts the groups into the sentences."""
    return lambda evidence: (sentence.format(**evidence.groups) for sentence in sentences)


def by_engine(**ways: tuple[str, ...]) -> Sentences:
    """Return a function that returns the remedies of the log's engine; those of all engines if it is not known.

    Those called `any` follow, whatever the engine is.
    """
    common = ways.pop("any", ())

    def pick(evidence: Evidence) -> Iterable[str]:
        own = (ways.get(evidence.engine, ()),) if evidence.engine is not None else ways.values()
        return (*(way for named in own for way in named), *common)

    return pick


SHARDS = ("dsv4-shard verify OUT: is every file what was written",
          "make them again for the version that runs: dsv4-shard reshard ... --engine-version VERSION")  # fmt: skip

INSPECT = "dsv4-shard inspect REPO: the checkpoint's tensors, and what is missing or odd"

OWN_FILES = "dsv4-shard reshard: each rank reads a file of its own, once, in order"
