"""manifest.json: the content of a result folder, and the digests that bind it to its plan and its source.

Each file has its SHA-256, which `sha256sum` and the Hub compute too. All other digests are xxh3-128: they detect
damage, not forgery. The digest of a tensor of one piece is that of its bytes. The digest of a tensor of several pieces
is that of the pieces' digests in order; `pieces` has their lengths.
"""

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import xxhash
from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import to_json

from dsv4_shard.catalog.rank_ranges import MAX_RANKS
from dsv4_shard.checkpoint import Origin, differences, refuse_other_folders, results_in, some
from dsv4_shard.errors import NoResultNamed, NotAResult, ReadFailed, ShardError, UsageError
from dsv4_shard.limits import MANIFEST
from dsv4_shard.sharding.recipe import Recipe
from dsv4_shard.sources.base import CHUNK_BYTES
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE, SINGLE_FILE
from dsv4_shard.sources.hub_names import HubName, download_of, hub_id
from dsv4_shard.sources.local import LocalFile, LocalSource
from dsv4_shard.storage import MANIFEST_NAME, digest_of, read_regular, tensor_digest
from dsv4_shard.tensors.header import Header
from dsv4_shard.text.document import Document
from dsv4_shard.text.document_problems import first_error
from dsv4_shard.text.sanitize import short_name
from dsv4_shard.text.schema_versions import JsonObject, Steps, check_schema, upgraded
from dsv4_shard.text.shell import shell_word
from dsv4_shard.text.strict_json import BadJson, check_size, parse_json

SCHEMA_VERSION: Literal[3] = 3

PLAN_NAME = "plan.json"

NATIVE = "native"
"""The layout of the checkpoints that `merge` writes."""

_PART = r"[^\x00-\x20\x7f/\\:.\u202a-\u202e\u2066-\u2069-][^\x00-\x1f\x7f/\\:\u202a-\u202e\u2066-\u2069]*"

Name = Annotated[str, StringConstraints(pattern=f"^{_PART}(/{_PART})*$", max_length=255)]
"""A file of the result. The pattern excludes `..`, absolute paths, hidden files, separators and control characters."""

Rank = Annotated[int, Field(ge=0, lt=MAX_RANKS)]

Bytes = Annotated[int, Field(ge=0, lt=2**63)]

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

Run = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
"""(number of pieces, bytes of each)."""


class Provenance(NamedTuple):
    """The properties that all shares of one result have in common: the target of the files, and their source."""

    layout: str
    world: int
    identity: dict[str, str]
    source: Origin
    plan_digest: str | None


def made_differences(then: Provenance, now: Provenance) -> Iterator[str]:
    """Each difference that keeps two shares from being one result, as a line of text."""
    if then.layout != now.layout:
        yield f"its layout is {short_name(then.layout)}, this run's is {short_name(now.layout)}"
    if then.world != now.world:
        yield f"it has {then.world} ranks, this run has {now.world}"
    for key in sorted(then.identity.keys() | now.identity.keys()):
        was, now_is = (short_name(str(one.identity.get(key))) for one in (then, now))
        if was != now_is:
            yield f"its {short_name(key)} is {was}, this run's is {now_is}"
    yield from differences(then.source, now.source)
    if then.source.label != now.source.label:
        yield (
            f"its checkpoint is called {short_name(then.source.label)}, this run's {short_name(now.source.label)}: "
            "use the same name, or give all shares one --plan file"
        )
    if then.plan_digest != now.plan_digest:
        yield "it follows another plan"


class ManifestFile(Document):
    """A weight file, which `ranks` read. `links` are its other names in the folder.

    `payload` is the part of `nbytes` that tensors take. `sha256` is null if an earlier version wrote the file.
    `tensors` maps names to digests. `pieces` lists the tensors that were put together from several pieces: runs of
    (number of pieces, bytes of each), in order.
    """

    name: Name
    ranks: Annotated[tuple[Rank, ...], Field(min_length=1)]
    nbytes: Bytes
    payload: Bytes
    sha256: Sha256 | None = None
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
        """All names of the file in the folder."""
        return (self.name, *self.links)


class ManifestCompanion(Document):
    """A small file beside the rank files. `sha256` is null if an earlier version wrote the file."""

    name: Name
    nbytes: Bytes
    sha256: Sha256 | None = None
    digest: str


class Manifest(Document):
    """The content of a result folder: `ranks` of `world` are in it.

    `digest` is that of the manifest with an empty `digest`. `identity` has the properties of the target that shapes do
    not show: engine, runner, parallelism. `layout` is that of the rank files, made by the plan with `plan_digest`. For
    a merged checkpoint, `layout` is `native` and `plan_digest` is null. `tool_version` wrote the manifest, and
    `written_by` maps each version to the ranks that it wrote. `left_out` maps source tensors to the reason why no rank
    has them.
    """

    schema_version: Literal[3]
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
            raise ValueError("a file is listed twice")
        return self

    @model_validator(mode="after")
    def _ranks_are_of_the_world(self) -> "Manifest":
        ranks = set(self.ranks)
        if len(ranks) != len(self.ranks) or max(ranks, default=0) >= self.world:
            raise ValueError(f"ranks outside of {self.world}, or listed twice")
        if any(not ranks.issuperset(file.ranks) for file in self.files):
            raise ValueError("a file of ranks that the manifest does not list")
        return self

    @property
    def made(self) -> Provenance:
        return Provenance(self.layout, self.world, self.identity, self.source, self.plan_digest)

    @property
    def names(self) -> set[str]:
        """All names of files in the folder, except the manifest's own."""
        return {name for file in self.files for name in file.names} | {entry.name for entry in self.companions}

    def sealed(self) -> "Manifest":
        """A copy of this manifest with its digest set."""
        blank = self.model_copy(update={"digest": ""})
        return self.model_copy(update={"digest": digest_of(to_json(blank))})

    def to_bytes(self) -> bytes:
        """The bytes of manifest.json."""
        return to_json(self, indent=1) + b"\n"


def ranks_written_by(manifests: Iterable[Manifest]) -> dict[str, tuple[int, ...]]:
    """Tool version -> the ranks that it wrote, over several shares."""
    ranks: dict[str, set[int]] = {}
    for manifest in manifests:
        for version, written in manifest.written_by.items():
            ranks.setdefault(version, set()).update(written)
    return {version: tuple(sorted(ranks[version])) for version in sorted(ranks)}


def load_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a result, whatever version of the tool wrote it.

    Raises:
        UsageError: The folder does not exist.
        NotAResult: The folder has no manifest, or the manifest is damaged.
        NewerSchema: A newer version of the tool wrote it.
    """
    path = folder / MANIFEST_NAME
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise _no_folder(folder)
        has_manifest = path.exists()
    except FileNotFoundError:
        named = hub_id(str(folder))
        on_hub = f" One on the Hub is verified here: {download_of(HubName(*named))}." if named else ""
        raise UsageError(f"{folder}: no such folder", hint=f"{_NAME_A_RESULT}{on_hub}") from None
    except OSError as error:
        raise NotAResult(f"{folder}: {error.strerror}") from None
    if not has_manifest:
        raise _no_result(folder)
    try:
        return read_manifest(read_regular(path, MANIFEST), str(path))
    except ReadFailed as error:
        raise NotAResult(str(error)) from None


def _no_folder(path: Path) -> UsageError:
    """Return the error for a file in place of a result, which names the result that it is in."""
    folder = path.absolute().parent
    if (folder / MANIFEST_NAME).is_file():
        return UsageError(f"{path}: a file of a result, not the result's folder", hint=f"Name {path.parent}.")
    if (folder / CONFIG_FILE).is_file():
        return UsageError(f"{path}: a file in a checkpoint's folder, not a result of reshard", hint=_NAME_A_RESULT)
    return UsageError(f"{path}: not a folder", hint=_NAME_A_RESULT)


def _no_result(folder: Path) -> ShardError:
    """Return the error about a folder without a manifest, which says what the folder is and what to name."""
    if (folder / MANIFEST_NAME).is_symlink():
        return NotAResult(
            f"{folder}: {MANIFEST_NAME} is a link to {os.readlink(folder / MANIFEST_NAME)}, which does not exist",
            hint="Copy the folder with the files that its links name: `cp -aL`.",
        )
    if (folder.absolute().parent / MANIFEST_NAME).is_file():
        return NoResultNamed(f"{folder}: only a part of the result in {folder.parent}",
                          hint=f"Name the result: {folder.parent}.")  # fmt: skip
    word = shell_word(folder)
    if (folder / CONFIG_FILE).exists() and ((folder / INDEX_FILE).exists() or (folder / SINGLE_FILE).exists()):
        return NoResultNamed(
            f"{folder}: a checkpoint, not a result of reshard: it has no {MANIFEST_NAME}",
            hint=f"`dsv4-shard inspect {word}` checks it; `dsv4-shard verify OUT --against {word}` checks a result.",
        )
    if folder.name.startswith(".") and folder.name.endswith(".partial"):
        return NotAResult(f"{folder}: an unfinished run, not a result: it has no {MANIFEST_NAME}",
                          hint="The command that began it resumes it.")  # fmt: skip
    if (folder / "model-rank-0-part-0.safetensors").exists():
        return NotAResult(
            f"{folder}: rank files without {MANIFEST_NAME}: an engine's own saver wrote them, or the manifest is lost",
            hint="Without it they cannot be checked. Use the checkpoint that they were made from.",
        )
    try:
        source = LocalSource(folder, str(folder))
        if results := results_in(source):
            return NotAResult(f"{folder}: not a result of reshard, but folders that hold one: {some(results)}",
                              hint=f"Name one: `dsv4-shard verify {shell_word(folder / results[0])}`.")  # fmt: skip
        refuse_other_folders(source, source.sizes())
    except ShardError as error:
        return NotAResult(f"{error}; and not a result of reshard: {MANIFEST_NAME} is missing",
                          hint=f"{_NAME_A_RESULT} The same command resumes an unfinished run.")  # fmt: skip
    return NotAResult(
        f"{folder}: no {MANIFEST_NAME}: not a result of reshard, or an unfinished one",
        hint="Do not use it. Run `dsv4-shard reshard` again.",
    )


_NAME_A_RESULT = "Name the folder that reshard or merge wrote."


class _Schema(BaseModel):
    """The part of a document that names its schema."""

    schema_version: Any = None


def read_manifest(raw: bytes, where: str) -> Manifest:
    """Parse and check the manifest in `raw`. Raises NotAResult and NewerSchema, with `where` in the message."""
    try:
        check_size(raw, MANIFEST)
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
    """A manifest of an earlier schema, upgraded to this one and sealed again.

    Raises BadJson or ValidationError.
    """
    document = parse_json(raw, MANIFEST)
    blank = json.dumps(document | {"digest": ""}, ensure_ascii=False, separators=(",", ":"))
    as_written = json.dumps(document, ensure_ascii=False, indent=1).encode() + b"\n"
    if document.get("digest") != digest_of(blank.encode()) or as_written != raw:
        raise BadJson(_OTHER_DIGEST)
    newest = json.dumps(upgraded(document, version, _STEPS))
    return Manifest.model_validate_json(newest, strict=True).sealed()


def _from_1(manifest: JsonObject) -> JsonObject:
    """Schema 2 added `written_by`; before it, one version of the tool wrote the whole result."""
    written_by = {str(manifest.get("tool_version")): manifest.get("ranks")}
    return manifest | {"schema_version": 2, "written_by": written_by}


def _from_2(manifest: JsonObject) -> JsonObject:
    """Schema 3 added the SHA-256 of each file, and names in folders within folders."""
    return manifest | {
        "schema_version": 3,
        "files": _without_sha256(manifest.get("files")),
        "companions": _without_sha256(manifest.get("companions")),
    }


def _without_sha256(entries: object) -> list[object]:
    """The entries of files with a null `sha256`. Anything else is left for the validation to refuse."""
    listed = entries if isinstance(entries, list) else [entries]
    return [entry | {"sha256": None} if isinstance(entry, dict) else entry for entry in listed]


_STEPS: Steps = {1: _from_1, 2: _from_2}


def has_pieces_of(manifest: Manifest, recipe: Recipe) -> bool:
    """Whether the digests in a manifest are those of the pieces that a recipe makes."""
    pieces = {file.name: file.pieces for file in recipe.files}
    return all(entry.pieces == pieces.get(entry.name, entry.pieces) for entry in manifest.files)


def hash_tensor(
    file: LocalFile,
    header: Header,
    name: str,
    pieces: tuple[tuple[int, int], ...] | None,
    on_data: Callable[[memoryview], None],
    *,
    once: bool = False,
) -> str:
    """Digest of a tensor in `file`, computed as in `reshard`: see `tensor_digest`.

    Args:
        file: The open rank file.
        header: Its header.
        name: The tensor.
        pieces: Runs of equal pieces as (number, bytes); None for a tensor of one piece.
        on_data: Receives the tensor's bytes in order. The buffer is reused after the call.
        once: Keep the bytes out of the page cache.

    Raises:
        ReadFailed: The file ends early or cannot be read.
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
                on_data(data)
            digests.append(running.digest())
            start += nbytes
    return tensor_digest(digests)
