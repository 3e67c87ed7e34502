"""Plans → files that start what they plan: a run script for each node, and Kubernetes manifests."""

from dsv4_shard.launch_files.folder import is_folder, write_launch_files

__all__ = ["is_folder", "write_launch_files"]
