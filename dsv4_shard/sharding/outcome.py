"""What a run wrote: `Written`, and `Outcome`, the result of `reshard`."""

from typing import Literal

from dsv4_shard.catalog.rank_ranges import say_ranks
from dsv4_shard.text.document import Document
from dsv4_shard.text.units import counted, size
from dsv4_shard.version import __version__


class ResultDocument(Document):
    """A result of a verb that writes."""

    schema_version: Literal[1] = 1
    tool_version: str = __version__


WRITTEN = """

    `linked` files are links to the checkpoint's own, and not in `files` and `bytes`. Of `bytes`, an earlier run had
    written `bytes_resumed` of tensors. `intact` files of the checkpoint came whole over a network, with the SHA-256
    that their repository gives. `inexact` are the tensors that a cast has rounded, with the number of elements.
    """


class Written(Document):
    __doc__ = f"What a run wrote into the folder `out`.{WRITTEN}"

    out: str
    files: int
    linked: int
    bytes: int
    bytes_resumed: int
    bytes_read: int
    intact: int
    inexact: dict[str, int]

    def in_short(self) -> str:
        """What was written, and where."""
        linked = f" and {counted(self.linked, 'link')}" if self.linked else ""
        return f"{counted(self.files, 'file')}{linked}, {size(self.bytes)}, {self.out}"


class Outcome(Written, ResultDocument):
    __doc__ = f"What a run wrote into the folder `out`, which holds `ranks` of `world` now.{WRITTEN}"

    ranks: tuple[int, ...]
    world: int

    def in_short(self) -> str:
        """What was written, and where."""
        return f"{say_ranks(self.ranks)} of {self.world}, {super().in_short()}"

    @property
    def written(self) -> Written:
        """What was written, without the ranks."""
        return Written(**{name: getattr(self, name) for name in Written.model_fields})
