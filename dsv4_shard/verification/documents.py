"""What `verify` finds."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field


class Problem(BaseModel):
    """Something that is not as it should be. `tensor` is None for what concerns a whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    file: str
    message: str
    tensor: str | None = None


TOLERANCE = 1e-5
"""Relative: the same products are summed in another order, partly in float32."""


class Numerics(BaseModel):
    """Relative errors (in the 2-norm) of the ranks' sum: with the shared expert counted once, and once for every rank.

    `shared_experts` says whether each rank holds it whole, or a part of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    experts: tuple[int, ...]
    ranks: int
    shared_experts: str
    error_once: float
    error_on_every_rank: float

    @property
    def ok(self) -> bool:
        return self.error_once <= TOLERANCE


class Verification(BaseModel):
    """What was verified and what was found; `ok` where all is as it should be: no `problems`, and sums that are right.

    `accounts` counts the source tensors by what became of them, where the source was compared. `numerics` is whether
    the experts of a layer add up, where that was asked for and the bytes are right.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class SharesVerification(BaseModel):
    """What was verified in each folder, and what of them does not fit together. `missing` ranks are in none of them.

    `ok` and `numerics` are as in `Verification`, over all folders.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
