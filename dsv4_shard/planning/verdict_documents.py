"""The parts of a plan that its verdict rests on: breaches, checks, changes and losses."""

from dsv4_shard.engines import NOT_VERIFIED, Breach, Change, Loss, StartStage
from dsv4_shard.models import Module
from dsv4_shard.text.document import Document


class PlanBreach(Document):
    """A rule that breaks, for one module or for the whole model.

    `reason` is the arithmetic; `remedies` are remedies that help, as options. `stage` is the stage of the engine's
    start in which it stops or fails: conversion, configuration, construction, loading, KV planning or serving. It is
    None for a choice that the engine does not offer, or if the stage is not known. `is_first_stop` marks the breach
    that stops the engine, which is the first in a plan; the others would follow. `engine_says` is the text that the
    engine prints. It is None if the engine prints nothing, if its text is not known, or if it has stopped at another
    rule. `consequence` says what happens, and tells these cases of None apart.
    """

    rule: str
    module: Module | None
    reason: str
    stage: StartStage | None
    is_first_stop: bool
    engine_says: str | None
    consequence: str
    remedies: tuple[str, ...]

    def words(self, engine: str) -> str:
        """What the engine does, in its own words where they are known; `engine` is its title."""
        said = f"{engine} says: {' '.join(self.engine_says.split())}" if self.engine_says else self.consequence
        return f"first stop, in {self.stage}: {said}" if self.is_first_stop and self.stage else said

    @property
    def unknown(self) -> bool:
        """Whether the outcome is unknown, rather than a failure."""
        return self.consequence == NOT_VERIFIED

    def __str__(self) -> str:
        return f"{self.module}: {self.reason}" if self.module not in (None, Module.DEPLOYMENT) else self.reason

    @classmethod
    def of(cls, breach: Breach, remedies: tuple[str, ...] = ()) -> "PlanBreach":
        """Return the document of a breach of an engine's rule, with the remedies that help."""
        return cls(
            rule=breach.rule,
            module=breach.module,
            reason=breach.reason,
            stage=breach.stage,
            is_first_stop=breach.stops,
            engine_says=breach.quote,
            consequence=breach.consequence,
            remedies=remedies,
        )


class PlanCheck(Document):
    """A rule that was checked, with its arithmetic: `size` / `parts` must be whole and a multiple of `unit`."""

    rule: str
    module: Module
    arithmetic: str
    holds: bool
    size: int
    size_name: str
    parts: int
    parts_name: str
    unit: int
    unit_name: str


class PlanChange(Document):
    """A difference from the engine's defaults, which the launch commands contain.

    `settings` are the variables (`NAME=value`) and options that it takes; empty if the engine does it unasked.
    """

    subject: str
    settings: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}"

    @classmethod
    def of(cls, change: Change) -> "PlanChange":
        """Return the document of a change."""
        return cls(subject=change.subject, settings=change.settings, reason=change.reason)


class PlanLoss(Document):
    """A part of the checkpoint that the shards lack; `bytes` are those of its tensors."""

    part: str
    bytes: int
    reason: str

    def __str__(self) -> str:
        return f"without {self.part}: {self.reason}"

    @classmethod
    def of(cls, loss: Loss) -> "PlanLoss":
        """Return the document of a loss."""
        return cls(part=loss.part, bytes=loss.nbytes, reason=loss.reason)
