"""The models that a message may be about: the given checkpoint, the release that the log names, or any release."""

import re
from dataclasses import dataclass

from dsv4_shard.checkpoint import Inventory
from dsv4_shard.diagnosis.clues import Clues
from dsv4_shard.diagnosis.releases import RELEASES, Release, find_release, inventory_of
from dsv4_shard.inspection import UnknownInspection

_OTHER_FORMAT = re.compile(
    r"(?i)awq|gptq|int4|int8|w[48]a\d+|nvfp4|gguf|mlx|bnb|[34568][-_]?bits?|bf16|quark|autoround|(?<=r1-)fp4|(?<=3-)fp4"
)
"""Formats in names of checkpoints whose sizes are a release's and whose dtypes are not."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that a message may be about.

    Attributes:
        label: Its name as the user or the log has it, else that of the release.
        inventory: Its sizes and formats.
        given: Whether the user or the log named it.
        release: The release that the sizes are from; None for a checkpoint that was read.
    """

    label: str
    inventory: Inventory
    given: bool
    release: Release | None = None

    @property
    def sizes(self) -> str:
        """Where the sizes are from, if not from the checkpoint or a release of that very name; else empty."""
        if self.release is None or self.label == self.release.repo:
            return ""
        if self.label.rpartition("/")[2].lower() == self.release.title.lower():
            return f"sizes are those of {self.release.repo}, by the name"
        other = _OTHER_FORMAT.search(self.label.rpartition("/")[2])
        formats = f"; its own tensors are stored otherwise ({other[0]})" if other else ""
        return f"sizes are those of {self.release.repo}, a related release{formats}"


@dataclass(frozen=True, slots=True)
class OtherFamily:
    """The given checkpoint, if its family is not known, or its experts are odd: its name and what its headers show.

    `errors` are findings, for a known family.
    """

    label: str
    inspection: UnknownInspection
    errors: tuple[str, ...] = ()


def models_for(clues: Clues, given: KnownModel | OtherFamily | None) -> tuple[KnownModel, ...]:
    """The given checkpoint, else the release that the log names, else every release.

    Empty if the log or the user names a model that is not known: then nothing may be guessed.
    """
    if isinstance(given, KnownModel):
        return (given,)
    if given is not None:
        return ()
    if clues.named is not None:
        release = find_release(clues.named)
        return (KnownModel(clues.named, inventory_of(release), True, release),) if release else ()
    return tuple(KnownModel(release.repo, inventory_of(release), False, release) for release in RELEASES)
