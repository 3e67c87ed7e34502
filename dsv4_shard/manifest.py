"""manifest.json: what a result folder holds, and the digests that bind it to its plan and its source.

All digests are xxh3-128 (fast, against damage, not against forgery). A tensor's digest is that of its bytes where it
came in one piece; where it came in several, it is that of the pieces' digests in order, and `pieces` has their lengths.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from dsv4_shard import __version__
from dsv4_shard.commit import MANIFEST_NAME
from dsv4_shard.copying import PieceDigest
from dsv4_shard.errors import NotAResult
from dsv4_shard.plan import PlanSource
from dsv4_shard.recipe import OutputFile

SCHEMA_VERSION: Literal[1] = 1
PLAN_NAME = "plan.json"
MAX_MANIFEST_BYTES = 1 << 30


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ManifestFile(_Document):
    """A rank's file. `tensors` maps names to digests, `pieces` the names of tensors in several pieces to lengths."""

    name: str
    rank: int
    nbytes: int
    header_digest: str
    tensors: dict[str, str]
    pieces: dict[str, tuple[int, ...]] = {}


class ManifestCompanion(_Document):
    """A small file beside the ranks' files."""

    name: str
    nbytes: int
    digest: str


class Manifest(_Document):
    """The document. `ranks` of `world` are in this folder; `digest` is over the manifest with an empty digest."""

    schema_version: Literal[1]
    tool_version: str
    digest: str
    layout: str
    world: int
    ranks: tuple[int, ...]
    source: PlanSource
    plan_digest: str
    files: tuple[ManifestFile, ...]
    companions: tuple[ManifestCompanion, ...]
    left_out: dict[str, str]

    def sealed(self) -> "Manifest":
        """This manifest with its digest."""
        blank = self.model_copy(update={"digest": ""})
        return self.model_copy(update={"digest": digest_of(blank.model_dump_json().encode())})

    def to_bytes(self) -> bytes:
        """As it stands in the folder."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def digest_of(data: bytes | memoryview) -> str:
    """xxh3-128 in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(data)


def tensor_digest(pieces: Iterable[str]) -> str:
    """The digest of a tensor from those of its pieces, in order."""
    digests = list(pieces)
    return digests[0] if len(digests) == 1 else digest_of("".join(digests).encode())


def manifest_files(files: tuple[OutputFile, ...], digests: Iterable[PieceDigest]) -> tuple[ManifestFile, ...]:
    """The entries of rank files, from what copying hashed (in order of file and offset)."""
    pieces: list[dict[str, list[PieceDigest]]] = [{} for _ in files]
    for piece in digests:
        pieces[piece.file].setdefault(piece.tensor, []).append(piece)
    return tuple(
        ManifestFile(
            name=file.name,
            rank=file.rank,
            nbytes=file.nbytes,
            header_digest=digest_of(file.header),
            tensors={name: tensor_digest(p.digest for p in parts) for name, parts in found.items()},
            pieces={name: tuple(p.stop - p.start for p in parts) for name, parts in found.items() if len(parts) > 1},
        )
        for file, found in zip(files, pieces, strict=True)
    )


def load_manifest(folder: Path) -> Manifest:
    """The checked manifest of a result. Raises NotAResult where there is none, or it is damaged."""
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise NotAResult(f"{folder}: no such folder")
    if not path.is_file():
        raise NotAResult(
            f"{folder}: no {MANIFEST_NAME}: not a result of reshard, or one that never finished",
            hint="Nothing in it can be trusted. Run `dsv4-shard reshard` again.",
        )
    raw = path.read_bytes() if path.stat().st_size <= MAX_MANIFEST_BYTES else b""
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise NotAResult(f"{path}: damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if manifest.tool_version != __version__:
        raise NotAResult(f"{path}: made by dsv4-shard {manifest.tool_version}, this is {__version__}")
    if manifest.sealed().digest != manifest.digest or manifest.to_bytes() != raw:
        raise NotAResult(f"{path}: damaged: its content does not match its own digest")
    return manifest
