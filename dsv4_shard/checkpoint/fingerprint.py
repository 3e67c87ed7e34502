"""The fingerprint that identifies a checkpoint: digests of its headers and of config.json.

Plans and results record it, so that they can be matched with their checkpoint later.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.text.document import Document
from dsv4_shard.text.sanitize import short_name


class OriginFile(Document):
    """A weight file of the checkpoint: name, size in bytes, and xxh3-128 of its header."""

    name: str
    nbytes: int
    header_digest: str


class Origin(Document):
    """The fingerprint of a checkpoint.

    `label` is how the user named it, and does not identify it. `revision` is the Hub commit, if known. `config_digest`
    is the SHA-256 of config.json's content with sorted keys. Header digests are xxh3-128.
    """

    label: str
    revision: str | None
    config_digest: str
    files: tuple[OriginFile, ...]


def config_digest(document: dict[str, Any]) -> str:
    """Return the SHA-256 of config.json's content with sorted keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def origin_of(checkpoint: Checkpoint, label: str) -> Origin:
    """Return the checkpoint's fingerprint. `label` is how the user named it."""
    files = tuple(OriginFile(name=f.name, nbytes=f.nbytes, header_digest=f.header_digest) for f in checkpoint.files)
    return Origin(
        label=label,
        revision=checkpoint.source.revision,
        config_digest=config_digest(checkpoint.document),
        files=files,
    )


def modified_since(checkpoint: Checkpoint, then_ns: int) -> list[str]:
    """Return the sorted names of the files that were modified after `then_ns`, in ns since 1970.

    A fingerprint has no bytes of tensors: a file with an equal header and size may have other ones. Raises ReadFailed,
    and the errors of a store's listing.
    """
    times = checkpoint.source.modified_ns([file.name for file in checkpoint.files])
    return sorted(name for name, modified in times.items() if modified > then_ns)


def differences(then: Origin, now: Origin) -> Iterator[str]:
    """Yield a line for each difference between two fingerprints. Labels are not compared."""
    before = {file.name: file for file in then.files}
    after = {file.name: file for file in now.files}
    if before.keys() != after.keys():
        only = sorted(before.keys() ^ after.keys())
        label = short_name(then.label)
        yield f"{label} had {len(before)} weight files, this has {len(after)}: {short_name(only[0])} differs"
    for name in sorted(before.keys() & after.keys()):
        if before[name].nbytes != after[name].nbytes:
            yield f"{name}: {before[name].nbytes} bytes then, {after[name].nbytes} now"
        elif before[name].header_digest != after[name].header_digest:
            yield f"{name}: its header differs"
    if None not in (then.revision, now.revision) and then.revision != now.revision:
        yield f"revision {short_name(str(then.revision))} then, {now.revision} now"
    if then.config_digest != now.config_digest:
        yield "config.json differs"
