"""The largest input of each kind that is read from outside: one table, each row enforced in one place.

Bytes count after decoding, and before anything is made of them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """The largest input of one kind. 0 where a measure does not apply.

    Attributes:
        what: The input.
        nbytes: Bytes.
    """

    what: str
    nbytes: int = 0


STORE_ANSWER = Limit("answer of an object store to one request", nbytes=9 << 20)

GATE_HEAD = Limit("request head at the gate", nbytes=64 << 10)
