"""manifest.json: what a result folder holds, and the digests that bind it to its plan and its source.

All digests are xxh3-128 (fast, against damage, not against forgery). A tensor's digest is that of its bytes where it
came in one piece; where it was put together from several, it is that of the pieces' digests in order, and `pieces` has
their lengths.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import xxhash
from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator

from dsv4_shard.catalog.rank_ranges import MAX_RANKS
from dsv4_shard.checkpoint.fingerprint import Origin, differences
from dsv4_shard.errors import NotAResult, UsageError
from dsv4_shard.sources.base import CHUNK_BYTES
from dsv4_shard.sources.local import LocalFile
from dsv4_shard.storage.digests import digest_of, tensor_digest
from dsv4_shard.storage.output_folder import MANIFEST_NAME
from dsv4_shard.tensors.header import Header
from dsv4_shard.text.document import Document
from dsv4_shard.text.sanitize import short_name
from dsv4_shard.text.schema_versions import JsonObject, Steps, check_schema, upgraded
from dsv4_shard.text.strict_json import BadJson, check_size, first_error, parse_json

SCHEMA_VERSION: Literal[2] = 2

PLAN_NAME = "plan.json"

NATIVE = "native"
"""The layout of checkpoints themselves, which `merge` writes."""

MAX_MANIFEST_BYTES = 256 << 20
"""Sixteen ranks of V4-Pro for the reference, which has the most tensors, come to 16 MB and 200,000 values."""

MAX_MANIFEST_VALUES = 4_000_000

Name = Annotated[str, StringConstraints(pattern=r"^\w[\w.+-]*(/\w[\w.+-]*)?$", max_length=255)]
"""A file of the result, at most one folder deep: never `..`, never elsewhere."""

Rank = Annotated[int, Field(ge=0, lt=MAX_RANKS)]

Bytes = Annotated[int, Field(ge=0, lt=2**63)]

Run = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
"""So many pieces of so many bytes."""


class Provenance(NamedTuple):
    """What all shares of one result have in common: what their files were made for, and from."""

    layout: str
    world: int
    identity: dict[str, str]
    source: Origin
    plan_digest: str | None


def made_differences(then: Provenance, now: Provenance) -> Iterator[str]:
    """How two shares are not of one result, each in a line."""
    if then.layout != now.layout:
        yield f"its layout is {short_name(then.layout)}, here it is {short_name(now.layout)}"
    if then.world != now.world:
        yield f"it is of {then.world} ranks, here they are {now.world}"
    for key in sorted(then.identity.keys() | now.identity.keys()):
        was, now_is = (short_name(str(one.identity.get(key))) for one in (then, now))
        if was != now_is:
            yield f"its {short_name(key)} is {was}, here it is {now_is}"
    yield from differences(then.source, now.source)
    if then.source.label != now.source.label:
        yield (
            f"its checkpoint was called {short_name(then.source.label)}, here it is {short_name(now.source.label)}: "
            "call it the same, or give all shares one --plan file"
        )
    if then.plan_digest != now.plan_digest:
        yield "it follows another plan"


class ManifestFile(Document):
    """A file of weights, read by `ranks`; `links` are the other names under which it stands in the folder.

    `payload` is the bytes of tensors within `nbytes`. `tensors` maps names to digests. `pieces` has the tensors that
    were put together from several pieces: runs of (count, bytes), in order.
    """

    name: Name
    ranks: Annotated[tuple[Rank, ...], Field(min_length=1)]
    nbytes: Bytes
    payload: Bytes
    header_digest: str
    tensors: dict[str, str]
    pieces: dict[str, tuple[Run, ...]] = Field({})
    links: tuple[Name, ...] = ()

    @model_validator(mode="after")
    def _fits_itself(self) -> "ManifestFile":
        if self.links and len(self.names) != len(self.ranks):
            raise ValueError(f"{len(self.names)} names for {len(self.ranks)} ranks")
        if not self.pieces.keys() <= self.tensors.keys():
            raise ValueError("pieces of a tensor that the file does not hold")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """All names under which the file stands in the folder."""
        return (self.name, *self.links)


class ManifestCompanion(Document):
    """A small file beside the ranks' files."""

    name: Name
    nbytes: Bytes
    digest: str


class Manifest(Document):
    """The document. `ranks` of `world` are in this folder; `digest` is over the manifest with an empty digest.

    `identity` is what the files were made for, as far as shapes cannot tell: engine, runner, parallelism. `layout` is
    that of rank files, made by the plan with `plan_digest`; or `native`, a checkpoint that was merged, without a plan.
    `tool_version` wrote the manifest, and `written_by` has the ranks that each version wrote.
    """

    schema_version: Literal[2]
    tool_version: str
    written_by: dict[str, tuple[Rank, ...]]
    digest: str
    layout: str
    world: Annotated[int, Field(gt=0, le=MAX_RANKS)]
    ranks: tuple[Rank, ...]
    source: Origin
    plan_digest: str | None
    identity: dict[str, str]
    files: tuple[ManifestFile, ...]
    companions: tuple[ManifestCompanion, ...]
    left_out: dict[str, str]

    @model_validator(mode="after")
    def _each_name_stands_once(self) -> "Manifest":
        names = [name for file in self.files for name in file.names] + [entry.name for entry in self.companions]
        if len(set(names)) != len(names) or MANIFEST_NAME in names:
            raise ValueError("a file stands twice")
        return self

    @model_validator(mode="after")
    def _ranks_are_of_the_world(self) -> "Manifest":
        ranks = set(self.ranks)
        if len(ranks) != len(self.ranks) or max(ranks, default=0) >= self.world:
            raise ValueError(f"ranks of a world of {self.world} that are not there, or twice")
        if any(not ranks.issuperset(file.ranks) for file in self.files):
            raise ValueError("a file of ranks that are not in this folder")
        return self

    @property
    def made(self) -> Provenance:
        return Provenance(self.layout, self.world, self.identity, self.source, self.plan_digest)

    @property
    def names(self) -> set[str]:
        """All names under which files stand in the folder, the manifest's own apart."""
        return {name for file in self.files for name in file.names} | {entry.name for entry in self.companions}

    def sealed(self) -> "Manifest":
        """This manifest with its digest."""
        blank = self.model_copy(update={"digest": ""})
        return self.model_copy(update={"digest": digest_of(blank.model_dump_json().encode())})

    def to_bytes(self) -> bytes:
        """As it stands in the folder."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def ranks_written_by(manifests: Iterable[Manifest]) -> dict[str, tuple[int, ...]]:
    """The ranks that each version of the tool wrote of several shares."""
    ranks: dict[str, set[int]] = {}
    for manifest in manifests:
        for version, written in manifest.written_by.items():
            ranks.setdefault(version, set()).update(written)
    return {version: tuple(sorted(ranks[version])) for version in sorted(ranks)}


def load_manifest(folder: Path) -> Manifest:
    """The checked manifest of a result, whatever version of the tool wrote it.

    Raises UsageError where there is no such folder, NotAResult where it has no manifest, or that is damaged, and
    NewerSchema where a newer version wrote it.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", hint="Name the folder that reshard or merge wrote.")
    if not path.is_file():
        raise NotAResult(
            f"{folder}: no {MANIFEST_NAME}: not a result of reshard, or one that never finished",
            hint="Nothing in it can be trusted. Run `dsv4-shard reshard` again.",
        )
    try:
        nbytes = path.stat().st_size
        if nbytes > MAX_MANIFEST_BYTES:
            raise NotAResult(f"{path}: {nbytes} bytes, over {MAX_MANIFEST_BYTES}")
        return read_manifest(path.read_bytes(), str(path))
    except OSError as error:
        raise NotAResult(f"{path}: {error.strerror}") from None


class _Schema(BaseModel):
    """What of a document says which schema it has."""

    schema_version: Any = None


def read_manifest(raw: bytes, where: str) -> Manifest:
    """The checked manifest in `raw`. Raises NotAResult and NewerSchema, with `where` in the message."""
    try:
        check_size(raw, MAX_MANIFEST_VALUES)
        found = _Schema.model_validate_json(raw).schema_version
        version = check_schema(found, "manifest", where, SCHEMA_VERSION)
        if version < SCHEMA_VERSION:
            return _of_earlier(raw, version)
        manifest = Manifest.model_validate_json(raw, strict=True)
        if manifest.sealed().digest != manifest.digest or manifest.to_bytes() != raw:
            raise BadJson(_OTHER_DIGEST)
    except BadJson as error:
        raise NotAResult(f"{where}: damaged: {error}") from None
    except ValidationError as error:
        raise NotAResult(f"{where}: damaged: {first_error(error)}") from None
    return manifest


_OTHER_DIGEST = "its content does not match its own digest"


def _of_earlier(raw: bytes, version: int) -> Manifest:
    """A manifest of an earlier schema as this version has it, with a digest of its own.

    Raises BadJson or ValidationError.
    """
    document = parse_json(raw, MAX_MANIFEST_VALUES)
    blank = json.dumps(document | {"digest": ""}, ensure_ascii=False, separators=(",", ":"))
    as_written = json.dumps(document, ensure_ascii=False, indent=1).encode() + b"\n"
    if document.get("digest") != digest_of(blank.encode()) or as_written != raw:
        raise BadJson(_OTHER_DIGEST)
    newest = json.dumps(upgraded(document, version, _STEPS))
    return Manifest.model_validate_json(newest, strict=True).sealed()


def _from_1(manifest: JsonObject) -> JsonObject:
    """Schema 2 added `written_by`; before, a result was of one version of the tool."""
    written_by = {str(manifest.get("tool_version")): manifest.get("ranks")}
    return manifest | {"schema_version": 2, "written_by": written_by}


_STEPS: Steps = {1: _from_1}


def hash_tensor(
    file: LocalFile,
    header: Header,
    name: str,
    pieces: tuple[tuple[int, int], ...] | None,
    on_progress: Callable[[int], None],
    *,
    once: bool = False,
) -> str:
    """The digest of a tensor as it stands in `file`, computed as `reshard` did: see `tensor_digest`.

    `pieces` are its runs of equal pieces as (count, bytes), None for a tensor of one piece. `on_progress` is given the
    bytes of each read; `once` keeps them out of the page cache. Raises ReadFailed.
    """
    info = header.tensors[name]
    start = header.data_start + info.start
    buffer = memoryview(bytearray(min(CHUNK_BYTES, info.nbytes)))
    digests = []
    for count, nbytes in pieces or ((1, info.nbytes),):
        for _ in range(count):
            running = xxhash.xxh3_128()
            for position in range(start, start + nbytes, CHUNK_BYTES):
                data = buffer[: min(CHUNK_BYTES, start + nbytes - position)]
                file.readinto(position, data, once=once)
                running.update(data)
                on_progress(len(data))
            digests.append(running.digest())
            start += nbytes
    return tensor_digest(digests)
