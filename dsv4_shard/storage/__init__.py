"""Files and folders that appear complete or not at all: direct I/O, locks, staging, durable renames."""

from dsv4_shard.storage.digests import DIGEST_BYTES, digest_of, tensor_digest
from dsv4_shard.storage.direct_file import PAGE, DirectFile
from dsv4_shard.storage.linux_io import MAX_CALL_BYTES, UncachedFile, die_with_parent, punch_hole
from dsv4_shard.storage.locks import LockedFolder
from dsv4_shard.storage.output_folder import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    check_output,
    check_room,
    check_writable,
    folders_of,
    free_bytes,
    plain,
    refuse_strangers,
    write_new,
    write_text,
)
from dsv4_shard.storage.regular_file import digest_of_file, digests_of_file, open_regular, read_regular
from dsv4_shard.storage.runtime import collector_paused, default_workers
from dsv4_shard.storage.staged_file import StagedFile, fsync_folder
from dsv4_shard.storage.staging import Staging

__all__ = [
    "DIGEST_BYTES",
    "MANIFEST_NAME",
    "MAX_CALL_BYTES",
    "PAGE",
    "SIGNATURE_NAME",
    "DirectFile",
    "LockedFolder",
    "StagedFile",
    "Staging",
    "UncachedFile",
    "check_output",
    "check_room",
    "check_writable",
    "collector_paused",
    "default_workers",
    "die_with_parent",
    "digest_of",
    "digest_of_file",
    "digests_of_file",
    "folders_of",
    "free_bytes",
    "fsync_folder",
    "open_regular",
    "plain",
    "punch_hole",
    "read_regular",
    "refuse_strangers",
    "tensor_digest",
    "write_new",
    "write_text",
]
