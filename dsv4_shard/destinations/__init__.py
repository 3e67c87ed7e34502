"""Where a job's files go: a folder, an object store, the nodes of a Ray cluster."""

from dsv4_shard.destinations.documents import ClusterOutcome, DryRun, Uploaded
from dsv4_shard.destinations.finished import say_finished
from dsv4_shard.destinations.folder import (
    OutputTarget,
    WouldWrite,
    into_folder,
    into_store,
    left_to_write,
    nothing_done,
    nothing_to_do,
    onto_cluster,
    would_store,
    would_write,
)
from dsv4_shard.destinations.scratch_folder import scratch_result
from dsv4_shard.destinations.share_worker import ShareTask

__all__ = [
    "ClusterOutcome",
    "DryRun",
    "OutputTarget",
    "ShareTask",
    "Uploaded",
    "WouldWrite",
    "into_folder",
    "into_store",
    "left_to_write",
    "nothing_done",
    "nothing_to_do",
    "onto_cluster",
    "say_finished",
    "scratch_result",
    "would_store",
    "would_write",
]
