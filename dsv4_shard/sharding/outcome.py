"""`Outcome`, the result of `reshard`, and `Written`, the part of it that other verbs share."""

from typing import Literal

from dsv4_shard.catalog.rank_ranges import say_ranks
from dsv4_shard.text.document import Document
from dsv4_shard.text.units import counted, size
from dsv4_shard.version import __version__


class ResultDocument(Document):
    """Base of the results of verbs that write."""

    kind: str
    schema_version: Literal[2] = 2
    tool_version: str = __version__


WRITTEN = """

    `linked` files are links to the checkpoint's own files; `files` and `bytes` do not count them. `bytes_resumed` are
    the bytes of tensors that an earlier run wrote. `bytes_read` were read from the checkpoint. `intact` is the number
    of files that were downloaded whole and match the SHA-256 of their repository, `unchecked` that of files that came
    from this machine's Hub cache and were not compared with it. `inexact` maps each tensor that a cast rounded to the
    number of its rounded elements.
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
    unchecked: int = 0
    inexact: dict[str, int]

    @property
    def was_complete(self) -> bool:
        """Whether a finished result had all that the run would have written, so that nothing was written."""
        return not (self.files or self.linked)

    def in_short(self) -> str:
        """Files, bytes and folder in one line."""
        linked = f" and {counted(self.linked, 'link')}" if self.linked else ""
        return f"{counted(self.files, 'file')}{linked}, {size(self.bytes)}, {self.out}"


class Outcome(Written, ResultDocument):
    __doc__ = (
        "Result of a run that wrote the ranks `wrote` into the folder `out`, which now holds `ranks` of "
        f"`world`.{WRITTEN}"
    )

    kind: Literal["reshard"] = "reshard"
    schema_version: Literal[3] = 3  # type: ignore[assignment]
    ranks: tuple[int, ...]
    world: int
    wrote: tuple[int, ...] = ()

    def in_short(self) -> str:
        """Ranks, files, bytes and folder in one line."""
        return f"{say_ranks(self.ranks)} of {self.world}, {super().in_short()}"

    @classmethod
    def nothing(cls, out: str, ranks: tuple[int, ...], world: int) -> "Outcome":
        """The outcome where there was nothing to do."""
        return cls(out=out, files=0, linked=0, bytes=0, bytes_resumed=0, bytes_read=0, intact=0, inexact={},
                   ranks=ranks, world=world)  # fmt: skip

    @property
    def written(self) -> Written:
        """The same result without the ranks."""
        return Written(**{name: getattr(self, name) for name in Written.model_fields})
