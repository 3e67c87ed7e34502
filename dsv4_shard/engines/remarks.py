"""What differs in a deployment from what its user may expect: changes from the engine's defaults, and losses."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """A difference from the engine's defaults, which the launch commands contain.

    Attributes:
        subject: What differs: `shared experts whole`.
        settings: The variables and options that the engine needs for it: `SGLANG_SHARED_EXPERT_TP1=1`. Empty if the
            engine does it unasked.
        reason: Why the default does not do, with the arithmetic.
    """

    subject: str
    settings: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Loss:
    """A part of the checkpoint that the shards lack.

    Attributes:
        part: The part, in a few words: `DSpark`.
        nbytes: Bytes of its tensors in the checkpoint.
        reason: Why the shards lack it, and what they then cannot do.
    """

    part: str
    nbytes: int
    reason: str

    def __str__(self) -> str:
        return f"without {self.part}: {self.reason}"
