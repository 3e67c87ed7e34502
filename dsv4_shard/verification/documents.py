"""What `verify` finds."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import ModelWrapValidatorHandler, computed_field, model_validator

from dsv4_shard.catalog.rank_ranges import say_ranks
from dsv4_shard.text.document import Document
from dsv4_shard.text.units import counted, size


class Problem(Document):
    """Something that is not as it should be. `tensor` is None for what concerns a whole file."""

    kind: str
    file: str
    message: str
    tensor: str | None = None


TOLERANCE = 1e-5
"""Relative: the same products are summed in another order, partly in float32."""


class Numerics(Document):
    """Relative errors (in the 2-norm) of the ranks' sum: with the shared expert counted once, and once for every rank.

    `shared_experts` says whether each rank holds it whole, or a part of it.
    """

    layer: int
    experts: tuple[int, ...]
    ranks: int
    shared_experts: str
    error_once: float
    error_on_every_rank: float

    @property
    def ok(self) -> bool:
        return self.error_once <= TOLERANCE


class _Verdict(Document):
    """A document with an `ok` that follows from the rest: input may have it, as the JSON has, if it is right."""

    @model_validator(mode="wrap")
    @classmethod
    def _takes_its_own_json(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(value, dict):
            return handler(value)
        found = handler({name: field for name, field in value.items() if name not in cls.model_computed_fields})
        for name in cls.model_computed_fields.keys() & value.keys():
            if value[name] is not getattr(found, name):
                raise ValueError(f"{name} is {value[name]!r}, which does not follow from the rest")
        return found


class Verification(_Verdict):
    """What was verified and what was found; `ok` where all is as it should be: no `problems`, and sums that are right.

    `accounts` counts the source tensors by what became of them, where the source was compared. `numerics` is whether
    the experts of a layer add up, where that was asked for and the bytes are right.
    """

    schema_version: Literal[1] = 1
    folder: str
    layout: str
    ranks: tuple[int, ...]
    world: int
    files: int
    tensors: int
    bytes: int
    against: str | None
    accounts: dict[str, int]
    left_out: dict[str, int]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    numerics: Numerics | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        return not self.problems and (self.numerics is None or self.numerics.ok)

    def in_short(self) -> str:
        """Folder, verdict, counts."""
        held = f"{say_ranks(self.ranks)} of {self.world}, {counted(self.files, 'file')}, {size(self.bytes)}"
        return f"{_verdict(self.ok, self.problems)}: {held}, {self.folder}"


class SharesVerification(_Verdict):
    """What was verified in each folder, and what of them does not fit together. `missing` ranks are in none of them.

    `ok` and `numerics` are as in `Verification`, over all folders.
    """

    schema_version: Literal[1] = 1
    layout: str
    world: int
    ranks: tuple[int, ...]
    missing: tuple[int, ...]
    folders: tuple[Verification, ...]
    problems: tuple[Problem, ...]
    numerics: Numerics | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        sound = not self.problems and all(found.ok for found in self.folders)
        return sound and (self.numerics is None or self.numerics.ok)

    def in_short(self) -> str:
        """Verdict, and how many folders and ranks there are."""
        problems = [problem for folder in self.folders for problem in folder.problems]
        missing = f", missing {say_ranks(self.missing)}" if self.missing else ""
        held = f"{say_ranks(self.ranks)} of {self.world}{missing}, {counted(len(self.folders), 'folder')}"
        return f"{_verdict(self.ok, [*problems, *self.problems])}: {held}"


def _verdict(ok: bool, problems: Iterable[Problem]) -> str:
    if ok:
        return "ok"
    kinds = Counter(problem.kind for problem in problems)
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "experts do not add up"
