"""manifest.json: what a result folder holds, and the digests that bind it to its plan and its source.

All digests are xxh3-128 (fast, against damage, not against forgery). A tensor's digest is that of its bytes where it
came in one piece; where it was put together from several, it is that of the pieces' digests in order, and `pieces` has
their lengths.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dsv4_shard import __version__
from dsv4_shard.digests import digest_of
from dsv4_shard.errors import NotAResult
from dsv4_shard.origin import Origin

SCHEMA_VERSION: Literal[1] = 1
MANIFEST_NAME = "manifest.json"
PLAN_NAME = "plan.json"
MAX_MANIFEST_BYTES = 1 << 30


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ManifestFile(_Document):
    """A file of weights, read by `ranks`; `links` are the other names under which it stands in the folder.

    `payload` is the bytes of tensors within `nbytes`. `tensors` maps names to digests. `pieces` has the tensors that
    were put together from several pieces: runs of (count, bytes), in order.
    """

    name: str
    ranks: tuple[int, ...]
    nbytes: int
    payload: int
    header_digest: str
    tensors: dict[str, str]
    pieces: dict[str, tuple[tuple[int, int], ...]] = {}
    links: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names under which the file stands in the folder."""
        return (self.name, *self.links)


class ManifestCompanion(_Document):
    """A small file beside the ranks' files."""

    name: str
    nbytes: int
    digest: str


class Manifest(_Document):
    """The document. `ranks` of `world` are in this folder; `digest` is over the manifest with an empty digest.

    `identity` is what the files were made for, as far as shapes cannot tell: engine, runner, parallelism.
    """

    schema_version: Literal[1]
    tool_version: str
    digest: str
    layout: str
    world: int
    ranks: tuple[int, ...]
    source: Origin
    plan_digest: str
    identity: dict[str, str]
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
