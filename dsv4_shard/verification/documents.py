"""Results of `verify`: problems, verdicts and the numerics of the experts."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import ModelWrapValidatorHandler, computed_field, model_validator

from dsv4_shard.catalog.rank_ranges import say_ranks
from dsv4_shard.text.document import Document
from dsv4_shard.text.units import counted, size
from dsv4_shard.version import __version__


class Problem(Document):
    """A deviation that `verify` found. `tensor` is null if it concerns a whole file."""

    kind: str
    file: str
    message: str
    tensor: str | None = None


class SignatureFound(Document):
    """A signature of `files`, made by the expected signer.

    `how` it was made: with a "key", a "certificate", or by "sigstore" for an identity. `by` names the signer: the
    SHA-256 of the public key's PEM form, the subject of the certificate, or the identity.
    """

    how: Literal["key", "certificate", "sigstore"]
    by: str
    files: int


TOLERANCE = 1e-5
"""Relative. The same products are summed in another order, partly in float32."""


class Numerics(Document):
    """Relative errors of the sum over ranks, in the 2-norm.

    `error_once` counts the shared expert once, `error_on_every_rank` once per rank. `shared_experts` is "whole" if each
    rank holds the whole shared expert, else "in parts". `experts` are the routed experts that were computed.
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
    """A document whose `ok` follows from its other fields. Input JSON may contain `ok` if the value is right."""

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
    """The result of verifying one folder.

    `ok` is true if there are no `problems` and the sums of `numerics`, if present, are right. `missing` are the ranks
    of `world` that the folder does not hold. `sampled_bytes` are the bytes of tensors that were read; null if all were.
    `accounts` counts the source tensors by their fate; it is empty if no checkpoint was compared (`against`).
    `left_out` counts the tensors that no rank has, by reason. `unknown` are sentences on what this way to verify cannot
    know. `numerics` tells whether the experts of a layer add up; it is null if this was not requested, or if there are
    problems. `signature` is the one that was verified; null if none was named.
    """

    kind: Literal["verification"] = "verification"
    schema_version: Literal[3] = 3
    tool_version: str = __version__
    folder: str
    layout: str
    ranks: tuple[int, ...]
    world: int
    missing: tuple[int, ...]
    files: int
    tensors: int
    bytes: int
    sampled_bytes: int | None = None
    against: str | None
    accounts: dict[str, int]
    left_out: dict[str, int]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    signature: SignatureFound | None = None
    numerics: Numerics | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        return not self.problems and (self.numerics is None or self.numerics.ok)

    def in_short(self) -> str:
        """Verdict, counts and folder in one line."""
        missing = f", missing {say_ranks(self.missing)}" if self.missing else ""
        held = f"{say_ranks(self.ranks)} of {self.world}{missing}, {counted(self.files, 'file')}, {size(self.bytes)}"
        return f"{_verdict(self.ok, self.problems)}: {held}, {self.folder}"


class SharesVerification(_Verdict):
    """The result of verifying several folders as one result.

    `problems` are contradictions between the folders. `missing` ranks are in no folder. `ok` and `numerics` are as in
    `Verification`, over all folders.
    """

    kind: Literal["together"] = "together"
    schema_version: Literal[3] = 3
    tool_version: str = __version__
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
        """Verdict and number of ranks and folders in one line."""
        problems = [problem for folder in self.folders for problem in folder.problems]
        missing = f", missing {say_ranks(self.missing)}" if self.missing else ""
        held = f"{say_ranks(self.ranks)} of {self.world}{missing}, {counted(len(self.folders), 'folder')}"
        return f"{_verdict(self.ok, [*problems, *self.problems])}: {held}"


def _verdict(ok: bool, problems: Iterable[Problem]) -> str:
    if ok:
        return "ok"
    kinds = Counter(problem.kind for problem in problems)
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "experts do not add up"
