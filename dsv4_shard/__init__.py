"""dsv4-shard: from a DeepSeek-V4 checkpoint to a deployment plan to per-rank shards."""

__version__ = "0.1.0"
