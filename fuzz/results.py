"""What must hold for any bytes in a manifest, a journal or source.zip."""

import json
import re
import struct
import tempfile
import zipfile
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random

import xxhash

from dsv4_shard.checkpoint import origin_of
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import ShardError
from dsv4_shard.sharding.header_archive import read_skeleton, write_skeleton
from dsv4_shard.sharding.journal import Finished, Journal, RunIdentity, read_journal
from dsv4_shard.sharding.manifest import SCHEMA_VERSION, Manifest, ManifestCompanion, ManifestFile, read_manifest
from dsv4_shard.storage import digest_of
from fuzz.checkpoints import small_checkpoint
from fuzz.mutate import mutate_json
from fuzz.target import Target, check_message, memory_folder, mutate_bytes

# --- manifests -----------------------------------------------------------------------------------------------------


@cache
def _manifest_seeds() -> list[bytes]:
    """A result of two ranks with a link, pieces and a companion; and the same as schema 1 wrote it."""
    names = [f"model-rank-{rank}-part-0.safetensors" for rank in range(3)]
    tensors = {f"layers.{n}.attn_norm.weight": f"{n:032x}" for n in range(3)}
    files = (
        ManifestFile(name=names[0], ranks=(0,), nbytes=900, payload=800, sha256="a" * 64, header_digest="0" * 32,
                     tensors=tensors, pieces={"layers.0.attn_norm.weight": ((2, 8), (1, 4))}),
        ManifestFile(name=f"draft/{names[1]}", ranks=(0, 1), nbytes=90, payload=8, sha256=None, header_digest="1" * 32,
                     tensors={}, pieces={}, links=(f"draft/{names[2]}",)),
    )  # fmt: skip
    manifest = Manifest(
        schema_version=3, tool_version="0.1.0", written_by={"0.1.0": (0, 1)}, digest="", layout="sglang", world=2,
        ranks=(0, 1), source=origin_of(small_checkpoint()[0], "org/model"), plan_digest="2" * 32,
        identity={"engine": "sglang"}, files=files,
        companions=(ManifestCompanion(name="plan.json", nbytes=5, sha256="b" * 64, digest="3" * 32),),
        left_out={"a": "is not read"},
    ).sealed()  # fmt: skip
    earlier = json.loads(manifest.to_bytes())
    for entry in (earlier, *earlier["files"], *earlier["companions"]):
        entry.pop("written_by", None)
        entry.pop("sha256", None)
    return [manifest.to_bytes(), _sealed(json.dumps(earlier | {"schema_version": 1}).encode())]


def _sealed(data: bytes) -> bytes:
    """The document with its digest made right, written as manifests are; `data` itself if it is no object."""
    try:
        document = json.loads(data)
        blank = json.dumps(document | {"digest": ""}, ensure_ascii=False, separators=(",", ":")).encode()
        return json.dumps(document | {"digest": digest_of(blank)}, ensure_ascii=False, indent=1).encode() + b"\n"
    except (ValueError, TypeError, RecursionError):
        return data


def _mutate_manifest(data: bytes, random: Random) -> bytes:
    damaged = mutate_json(data, random)
    return _sealed(damaged) if random.random() < 0.7 else damaged


def _check_manifest(data: bytes) -> None:
    """A manifest that is accepted says what its JSON says, names no path out of the folder, and fits itself."""
    try:
        manifest = read_manifest(data, "manifest.json")
    except ShardError as error:
        check_message(error)
        return
    read, document = json.loads(manifest.to_bytes()), json.loads(data)
    if document["schema_version"] == SCHEMA_VERSION:
        assert manifest.to_bytes() == data
        assert read == document
    else:
        for entry in (*document["files"], *document["companions"]):
            entry["sha256"] = None  # earlier schemas have none
        kept = document.keys() - {"schema_version", "digest"}
        assert _covers({key: read[key] for key in kept}, {key: document[key] for key in kept})
    names = [name for file in manifest.files for name in file.names] + [entry.name for entry in manifest.companions]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"(?!\.)[^/\x00\\]+(/(?!\.)[^/\x00\\]+)?", name) for name in names)
    assert all(0 <= rank < manifest.world for file in manifest.files for rank in file.ranks)
    assert read_manifest(manifest.to_bytes(), "manifest.json") == manifest


def _covers(whole: object, part: object) -> bool:
    """Whether a document has all of another; fields that an earlier schema could leave out come on top."""
    if isinstance(whole, dict) and isinstance(part, dict):
        return part.keys() <= whole.keys() and all(_covers(whole[key], part[key]) for key in part)
    if isinstance(whole, list) and isinstance(part, list):
        return len(whole) == len(part) and all(map(_covers, whole, part))
    return type(whole) is type(part) and whole == part


# --- journals ------------------------------------------------------------------------------------------------------

_STEPS = [Finished(0, bytes(16), 0, 64), Finished(7, bytes(range(48)), 3, 1 << 40), Finished(1, b"", 0, 0)]


@cache
def _journal_seeds() -> list[bytes]:
    origin = origin_of(small_checkpoint()[0], "org/model")
    run = RunIdentity(
        schema_version=4, tool_version="0.1.0", origin=origin, request=Request(2), ranks=(0, 1),
        times={"a.safetensors": 5}, files={"b.safetensors": 900}, recipe_digest="4" * 32,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        journal = Journal(path, run, 0, lambda: None, lambda: None)
        for step in _STEPS[:2]:
            journal.note(step)
        journal.mark()
        for step in _STEPS[2:]:
            journal.note(step)
        journal.save()
        return [path.read_bytes()]


def _entries_of(data: bytes) -> list[bytes]:
    """The payloads of the sound entries, as the format's description has them."""
    found, at = [], 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        payload, digest = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 24 + length]
        if len(payload) != length or xxhash.xxh3_128(payload).digest() != digest:
            break
        found.append(payload)
        at += 24 + length
    return found


def _journal(entries: list[bytes]) -> bytes:
    return b"".join(len(entry).to_bytes(8, "little") + entry + xxhash.xxh3_128(entry).digest() for entry in entries)


def _mutate_journal(data: bytes, random: Random) -> bytes:
    """Another identity, other steps or another order, with digests that fit mostly."""
    entries = _entries_of(data)
    if not entries or random.random() < 0.2:
        return mutate_bytes(data, random)
    at = random.randrange(len(entries))
    match random.randrange(4):
        case 0:
            entries[0] = mutate_json(entries[0], random)
        case 1:
            entries[at] = mutate_bytes(entries[at], random)
        case 2:
            entries.insert(at, random.choice(entries))
        case _:
            del entries[at]
    return _journal(entries)


def _check_journal(data: bytes) -> None:
    """The steps of a journal that is accepted are exactly those of its sound entries."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        path = Path(folder) / "journal"
        path.write_bytes(data)
        try:
            found = read_journal(path)
        except ShardError as error:
            check_message(error)
            return
    entries = _entries_of(data)
    if found is None:
        return
    steps = b"".join(entry for entry in entries[1:] if len(entry) != 8)
    assert found.stop == len(_journal(entries))
    listed = [*found.finished, *found.unconfirmed]
    packed = (struct.pack("<IIQQ", s.number, len(s.digests), s.inexact, s.nbytes) + s.digests for s in listed)
    assert b"".join(packed) == steps
    if found.unconfirmed:
        assert json.loads(entries[0])["schema_version"] >= 3, "before, every step was on disk"
    document = json.loads(entries[0])
    if document.get("schema_version") == 4:
        assert json.loads(found.run.model_dump_json())["files"] == document["files"]


# --- source.zip ----------------------------------------------------------------------------------------------------


@cache
def _archive_seeds() -> list[bytes]:
    return [write_skeleton(small_checkpoint()[0])]


def _mutate_archive(data: bytes, random: Random) -> bytes:
    """Other entries, well packed; or the bytes of the archive."""
    if random.random() < 0.5:
        return mutate_bytes(data, random)
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except Exception:
        return mutate_bytes(data, random)
    if not entries:
        return data
    at = random.randrange(len(entries))
    name, content = entries[at]
    match random.randrange(5):
        case 0:
            entries[at] = (name, mutate_bytes(content, random))
        case 1:
            entries[at] = (
                random.choice(("", "../x", "/etc/passwd", name + "/", "a\\b", "x.safetensors", "\u202e")),
                content,
            )
        case 2:
            entries.append(entries[at])
        case 3:
            del entries[at]
        case _:
            entries[at] = (name, bytes(random.choice((0, 1, 8, 4 << 20))))
    packed = BytesIO()
    way = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(packed, "w", way) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name) if name else "x", content, way)
    return packed.getvalue()


def _check_archive(data: bytes) -> None:
    """An archive that is accepted holds what the zipfile module finds in it, and nothing besides."""
    try:
        found = read_skeleton(data, "source.zip")
    except ShardError as error:
        check_message(error)
        return
    with zipfile.ZipFile(BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert {entry.filename: archive.read(entry) for entry in archive.infolist()} == found
    assert all(re.fullmatch(r"[\w.+-]+", name) for name in found)
    assert "config.json" in found


TARGETS = {
    "manifest": Target(_manifest_seeds, _mutate_manifest, _check_manifest),
    "journal": Target(_journal_seeds, _mutate_journal, _check_journal),
    "archive": Target(_archive_seeds, _mutate_archive, _check_archive),
}
