"""The JSON documents of the commands that move bytes, which `--json` prints: what was written, or would be."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from dsv4_shard.reassembly.source import ChangedTensor
from dsv4_shard.verification.documents import SharesVerification
from dsv4_shard.version import __version__

if TYPE_CHECKING:
    from dsv4_shard.destinations.folder import DryRun
    from dsv4_shard.destinations.ray_cluster import ClusterOutcome
    from dsv4_shard.reassembly.merge_job import Merged
    from dsv4_shard.sharding.job import Outcome


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Document(_Model):
    schema_version: Literal[1] = 1
    tool_version: str = __version__


_WRITTEN = """

    `linked` files are links to the checkpoint's own, and not in `files` and `bytes`. Of `bytes`, an earlier run had
    written `bytes_resumed` of tensors. `intact` files of the checkpoint came whole over a network, with the SHA-256
    that their repository gives. `inexact` are the tensors that a cast has rounded, with the number of elements.
    """


class Written(_Model):
    __doc__ = f"What a run wrote into the folder `out`.{_WRITTEN}"

    out: str
    files: int
    linked: int
    bytes: int
    bytes_resumed: int
    bytes_read: int
    intact: int
    inexact: dict[str, int]


class Resharded(Written, _Document):
    __doc__ = f"What a run wrote into the folder `out`, which holds `ranks` of `world` now.{_WRITTEN}"

    ranks: tuple[int, ...]
    world: int


class Stored(_Document):
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


class Share(_Model):
    """The ranks of a node; `written` is null where they were there already."""

    ranks: tuple[int, ...]
    node: str
    written: Written | None


class Clustered(_Document):
    """What the nodes of a cluster wrote, and what verifying it found. `one_folder`: all of them see it in one."""

    shares: tuple[Share, ...]
    one_folder: bool
    verification: SharesVerification


class DryRunDocument(_Document):
    """What would be written: the bytes of each weight file, and `bytes` in all, links not counted; `free` are there.

    `left_out` tensors of the checkpoint would be in no file, each for its reason.
    """

    files: dict[str, int]
    bytes: int
    free: int
    left_out: dict[str, str]


class MergedDocument(Written, _Document):
    __doc__ = f"What was merged; `notes` and `changes` say in what it is not the original checkpoint.{_WRITTEN}"

    notes: tuple[str, ...]
    changes: tuple[ChangedTensor, ...]


def of_outcome(outcome: "Outcome") -> Resharded | Stored:
    """The document of a run into a folder, or into an object store."""
    uploaded = outcome.uploaded
    if uploaded is None:
        return Resharded(**dict(_written(outcome)), ranks=outcome.ranks, world=outcome.world)
    written = _written(outcome) if outcome.files or outcome.linked else None
    return Stored(**asdict(uploaded), written=written)


def of_cluster(outcome: "ClusterOutcome") -> Clustered:
    """The document of a run on a cluster."""
    return Clustered(
        shares=tuple(
            Share(ranks=one.ranks, node=one.node, written=_written(one.outcome) if one.outcome else None)
            for one in outcome.written
        ),
        one_folder=outcome.is_one_folder,
        verification=outcome.together,
    )


def of_dry_run(found: "DryRun") -> DryRunDocument:
    """The document of a dry run."""
    return DryRunDocument(
        files=found.files, bytes=found.needed, free=found.free, left_out=dict(found.job.recipe.left_out)
    )


def of_merged(merged: "Merged") -> MergedDocument:
    """The document of a merge."""
    return MergedDocument(**dict(_written(merged.outcome)), notes=merged.notes, changes=merged.changes)


def _written(outcome: "Outcome") -> Written:
    return Written(
        out=str(outcome.out),
        files=outcome.files,
        linked=outcome.linked,
        bytes=outcome.nbytes,
        bytes_resumed=outcome.resumed,
        bytes_read=outcome.bytes_read,
        intact=outcome.intact,
        inexact=outcome.inexact,
    )
