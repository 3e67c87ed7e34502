"""Where a checkpoint's bytes come from: a folder, the Hugging Face Hub, an object store."""

from dsv4_shard.sources.base import CHUNK_BYTES, COMMIT, FolderlessSource, OpenFile, Source, Span, open_all
from dsv4_shard.sources.checkpoint_files import (
    CONFIG_FILE,
    INDEX_FILE,
    MAX_CONFIG_BYTES,
    MAX_INDEX_BYTES,
    SINGLE_FILE,
    is_plain_name,
)
from dsv4_shard.sources.hub import open_repository
from dsv4_shard.sources.hub_http import HubFiles
from dsv4_shard.sources.known_repos import cached_repos, near_repos
from dsv4_shard.sources.local import LocalFile, LocalSource
from dsv4_shard.sources.object_store import PART_BYTES, Store, connect, open_store
from dsv4_shard.sources.remote import Listed, RemoteSource
from dsv4_shard.sources.sha256_check import check_downloads

__all__ = [
    "CHUNK_BYTES",
    "COMMIT",
    "CONFIG_FILE",
    "INDEX_FILE",
    "MAX_CONFIG_BYTES",
    "MAX_INDEX_BYTES",
    "PART_BYTES",
    "SINGLE_FILE",
    "FolderlessSource",
    "HubFiles",
    "Listed",
    "LocalFile",
    "LocalSource",
    "OpenFile",
    "RemoteSource",
    "Source",
    "Span",
    "Store",
    "cached_repos",
    "check_downloads",
    "connect",
    "is_plain_name",
    "near_repos",
    "open_all",
    "open_repository",
    "open_store",
]
