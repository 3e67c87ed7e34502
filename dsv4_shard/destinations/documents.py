"""Results of `reshard_to_store`, `reshard_on_cluster` and the dry runs."""

from typing import Literal

from dsv4_shard.sharding.outcome import ResultDocument, Written
from dsv4_shard.text.document import Document
from dsv4_shard.text.units import counted, size
from dsv4_shard.verification import SharesVerification


class Uploaded(ResultDocument):
    """Result of an upload to the object store at `out`: `bytes` in `objects`, the manifest's bytes not counted.

    The store now holds `ranks` of `world`. `was_complete` is true if a finished result had all that the run would have
    uploaded, so that nothing was written. `sent` bytes were sent from this machine, `copied` bytes were copied within
    the store, and `resumed` bytes were there from an earlier run. `written` describes the scratch folder; it is null if
    an earlier run had written all of it.
    """

    kind: Literal["reshard-store"] = "reshard-store"
    out: str
    ranks: tuple[int, ...]
    world: int
    objects: int
    bytes: int
    sent: int
    copied: int
    resumed: int
    written: Written | None
    was_complete: bool = False

    def in_short(self) -> str:
        """Objects, bytes, bytes sent and URL in one line."""
        return f"{counted(self.objects, 'object')}, {size(self.bytes)}, {size(self.sent)} sent, {self.out}"


class ClusterShare(Document):
    """The ranks that a node wrote; `written` is null if they were there already.

    `lost_on` has the nodes that the share was lost with before, in order.
    """

    ranks: tuple[int, ...]
    node: str
    written: Written | None
    lost_on: tuple[str, ...]


class ClusterOutcome(ResultDocument):
    """Result of a run on a cluster: the `shares` of its nodes, and their verification.

    `one_folder` is true if all nodes see one shared folder. `files` and `bytes` are as in `Outcome`, over all shares:
    a file that several shares wrote into one folder counts once.
    """

    kind: Literal["reshard-cluster"] = "reshard-cluster"
    schema_version: Literal[3] = 3  # type: ignore[assignment]
    shares: tuple[ClusterShare, ...]
    one_folder: bool
    files: int
    bytes: int
    verification: SharesVerification

    def in_short(self) -> str:
        """Shares, files, bytes and verdict in one line."""
        wrote = f"{counted(self.files, 'file')}, {size(self.bytes)}"
        return f"{counted(len(self.shares), 'share')}, {wrote}, {self.verification.in_short()}"


class DryShare(Document):
    """A node's share of a run: its `ranks`, the bytes that it reads from the checkpoint, and those of its rank files.

    `bytes_used` of `bytes_read` go into its files. The others are columns of other ranks.
    """

    ranks: tuple[int, ...]
    bytes_read: int
    bytes_used: int
    bytes: int


class DryRun(ResultDocument):
    """Files and space that a run needs: the bytes of each weight file, and `bytes` in all, links not counted.

    The run reads `bytes_read` of the checkpoint's tensors, which have `source_bytes`. `shares` has what each node reads
    and writes if each writes its ranks by itself (`--ranks`); it is empty if this run is a share, or there is one node.
    `free` bytes are available; they include those of an unfinished run. `left_out` maps each source tensor that no file
    would have to the reason. `left_behind` maps each small file or folder of the checkpoint that the result would not
    have to the reason. `notes` has sentences about small files that are missing or lie elsewhere.
    """

    kind: Literal["dry-run"] = "dry-run"
    schema_version: Literal[4] = 4  # type: ignore[assignment]
    files: dict[str, int]
    bytes: int
    free: int
    bytes_read: int
    source_bytes: int
    shares: tuple[DryShare, ...]
    left_out: dict[str, str]
    left_behind: dict[str, str]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether there is enough space."""
        return self.bytes <= self.free

    def in_short(self) -> str:
        """Whether there is enough space, files and bytes in one line."""
        room = "fits" if self.fits else f"{size(self.bytes - self.free)} short"
        held = f"{counted(len(self.files), 'file')}, {size(self.bytes)}, {size(self.free)} free"
        return f"{room}: {held}, {size(self.bytes_read)} to read"
