"""Rank files → the checkpoint that they hold, as a source that can be read like any other."""

from dsv4_shard.reassembly.detect import holds_ranks
from dsv4_shard.reassembly.merge_job import Merged, prepare_merge, source_of_ranks
from dsv4_shard.reassembly.rank_folder import open_ranks

__all__ = [
    "Merged",
    "holds_ranks",
    "open_ranks",
    "prepare_merge",
    "source_of_ranks",
]
