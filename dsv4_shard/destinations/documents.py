"""What `reshard_to_store`, `reshard_on_cluster` and the dry runs return."""

from dsv4_shard.sharding.outcome import ResultDocument, Written
from dsv4_shard.text.document import Document
from dsv4_shard.text.units import counted, size
from dsv4_shard.verification.documents import SharesVerification


class Uploaded(ResultDocument):
    """What a run put into the object store at `out`: `bytes` in `objects`, of which `sent` came from here.

    `copied` bytes were copied within the store, and `resumed` bytes were there from an earlier run. `written` is what
    was made in the scratch folder first; null where an earlier run had made all of it.
    """

    out: str
    objects: int
    bytes: int
    sent: int
    copied: int
    resumed: int
    written: Written | None

    def in_short(self) -> str:
        """What was put, and where."""
        return f"{counted(self.objects, 'object')}, {size(self.bytes)}, {size(self.sent)} sent, {self.out}"


class ClusterShare(Document):
    """The ranks of a node; `written` is null where they were there already."""

    ranks: tuple[int, ...]
    node: str
    written: Written | None


class ClusterOutcome(ResultDocument):
    """What the nodes of a cluster wrote, and what verifying it found. `one_folder`: all of them see it in one."""

    shares: tuple[ClusterShare, ...]
    one_folder: bool
    verification: SharesVerification

    def in_short(self) -> str:
        """How many shares there are, and the verdict on them."""
        written = [share.written for share in self.shares if share.written is not None]
        wrote = f"{counted(sum(one.files for one in written), 'file')}, {size(sum(one.bytes for one in written))}"
        return f"{counted(len(self.shares), 'share')}, {wrote}, {self.verification.in_short()}"


class DryRun(ResultDocument):
    """What would be written: the bytes of each weight file, and `bytes` in all, links not counted; `free` are there.

    `left_out` tensors of the checkpoint would be in no file, each for its reason.
    """

    files: dict[str, int]
    bytes: int
    free: int
    left_out: dict[str, str]

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return self.bytes <= self.free

    def in_short(self) -> str:
        """How much would be written, and whether there is room."""
        room = "fits" if self.fits else f"{size(self.bytes - self.free)} short"
        return f"{room}: {counted(len(self.files), 'file')}, {size(self.bytes)}, {size(self.free)} free"
