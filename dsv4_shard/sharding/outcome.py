"""`Outcome`, the result of `reshard`, and `Written`, the part of it that other verbs share."""

from typing import Literal

from dsv4_shard.catalog.rank_ranges import say_ranks
from dsv4_shard.text.document import Document
from dsv4_shard.text.units import counted, size
from dsv4_shard.version import __version__


class ResultDocument(Document):
    """Base of the results of verbs that write."""

    schema_version: Literal[1] = 1
    tool_version: str = __version__


WRITTEN = """

    `linked` files are links to the checkpoint's own files; `files` and `bytes` do not count them. `bytes_resumed` are
    the bytes of tensors that an earlier run wrote. `bytes_read` were read from the checkpoint. `intact` is the number
    of files that were downloaded whole and match the SHA-256 of their repository. `inexact` maps each tensor that a
    cast rounded to the number of its rounded elements.
    """


class Written(Document):
    __doc__ = f"Result of a run that wrote into the folder `out`.{WRITTEN}"

    out: str
    files: int
    linked: int
    bytes: int
    bytes_resumed: int
    bytes_read: int
    intact: int
    inexact: dict[str, int]

    def in_short(self) -> str:
        """Files, bytes and folder in one line."""
        linked = f" and {counted(self.linked, 'link')}" if self.linked else ""
        return f"{counted(self.files, 'file')}{linked}, {size(self.bytes)}, {self.out}"


class Outcome(Written, ResultDocument):
    __doc__ = f"Result of a run that wrote into the folder `out`, which now holds `ranks` of `world`.{WRITTEN}"

    ranks: tuple[int, ...]
    world: int

    def in_short(self) -> str:
        """Ranks, files, bytes and folder in one line."""
        return f"{say_ranks(self.ranks)} of {self.world}, {super().in_short()}"

    @property
    def written(self) -> Written:
        """The same result without the ranks."""
        return Written(**{name: getattr(self, name) for name in Written.model_fields})
