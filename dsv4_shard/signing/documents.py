"""`Signed`, the result of `sign`."""

from typing import Literal

from dsv4_shard.sharding.outcome import ResultDocument
from dsv4_shard.text.units import counted, size
from dsv4_shard.verification.documents import SignatureFound


class Signed(SignatureFound, ResultDocument):
    """A signature that was made. `out` is its file, `bytes` are those of all files that it is of.

    `hashed` bytes were read, because the manifest has no SHA-256 for them. `others` are signed files that are not part
    of the result.
    """

    kind: Literal["signed"] = "signed"
    out: str
    bytes: int
    hashed: int
    others: tuple[str, ...]

    def in_short(self) -> str:
        """Signer, files and signature in one line."""
        return f"{self.how}: {counted(self.files, 'file')}, {size(self.bytes)}, {self.out}"
