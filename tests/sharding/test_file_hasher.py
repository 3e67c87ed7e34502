"""The SHA-256 in a manifest is that of the file on disk, in whatever order its bytes came."""

import hashlib
import itertools
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints.small import small_config

import dsv4_shard
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.errors import ReadFailed
from dsv4_shard.sharding.file_hasher import FileHasher, HashedFile
from dsv4_shard.sharding.manifest import load_manifest
from dsv4_shard.sources.base import CHUNK_BYTES
from dsv4_shard.tensors.header import build_header

LAYOUTS: dict[str, dict[str, Any]] = {
    "sglang": {"engine": "sglang"},
    "reference": {"engine": "reference"},
    "node": {"engine": "node", "nodes": 2},
    "cast": {"engine": "reference", "expert_dtype": "fp8"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("small") / "model", small_config(), 31)


def sha256sum(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file but the manifest, by coreutils."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    names.remove("manifest.json")
    lines = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, text=True, check=True).stdout
    return {name: digest for digest, name in (line.split("  ") for line in lines.splitlines())}


def recorded(folder: Path) -> dict[str, str | None]:
    manifest = load_manifest(folder)
    files: dict[str, str | None] = {name: entry.sha256 for entry in manifest.files for name in entry.names}
    return files | {entry.name: entry.sha256 for entry in manifest.companions}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("workers", [1, 3])
def test_the_manifest_has_what_sha256sum_prints(layout: str, workers: int, model: Path, tmp_path: Path) -> None:
    dsv4_shard.reshard(model, tmp_path / "out", tp=2, jobs=workers, **LAYOUTS[layout])
    assert recorded(tmp_path / "out") == sha256sum(tmp_path / "out")


def test_shares_that_join_keep_the_sha256_of_their_files(model: Path, tmp_path: Path) -> None:
    for rank in (1, 0):
        dsv4_shard.reshard(model, tmp_path / "out", tp=2, ranks=[rank])
    assert recorded(tmp_path / "out") == sha256sum(tmp_path / "out")


def test_files_that_are_links_to_the_checkpoint_are_read_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_again: list[Path] = []
    read_back, put = FileHasher._read_back, FileHasher.put

    def noted(hasher: FileHasher, progress: Any) -> None:
        read_again.append(progress.file.path)
        read_back(hasher, progress)

    pauses = itertools.cycle([0.02, 0])  # a thread that takes the next tensor overtakes

    def slow(hasher: FileHasher, *piece: Any) -> None:
        time.sleep(next(pauses))
        put(hasher, *piece)

    monkeypatch.setattr(FileHasher, "_read_back", noted)
    monkeypatch.setattr(FileHasher, "put", slow)
    written = dsv4_shard.reshard(model, tmp_path / "out", tp=4, engine="node", nodes=2, jobs=3)
    own = {path.name for path in model.iterdir() if path.stat().st_nlink > 1}
    assert written.linked == len(own) > 0
    assert own.isdisjoint(path.name for path in read_again)
    assert recorded(tmp_path / "out") == sha256sum(tmp_path / "out")


@pytest.mark.parametrize("layout", ["sglang", "reference"])
def test_a_folder_is_read_in_the_order_of_the_output(
    layout: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        FileHasher, "_read_back", lambda _, progress: pytest.fail(f"{progress.file.path} is read again")
    )
    dsv4_shard.reshard(model, tmp_path / "out", tp=2, jobs=1, **LAYOUTS[layout])
    assert recorded(tmp_path / "out") == sha256sum(tmp_path / "out")


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 5000), max_size=8), seed=st.integers(0, 2**32), chunk=st.integers(1, 3000))
def test_any_order_of_pieces_gives_the_sha256_of_the_file(
    sizes: list[int], seed: int, chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    order = random.Random(seed)
    header, placed = build_header({f"t{n}": ("U8", (size,)) for n, size in enumerate(sizes)})
    content = header + order.randbytes(sum(sizes))
    path = tmp_path_factory.mktemp("hash") / "file"
    path.write_bytes(header.ljust(len(content), b"\0"))
    pieces = [
        (name, len(header) + start, min(chunk, info.stop - start))
        for name, info in placed.items()
        for start in range(info.start, info.stop, chunk)
    ]
    if order.random() < 0.7:
        order.shuffle(pieces)
    left = {name: sum(piece[0] == name for piece in pieces) for name in placed}
    with FileHasher({0: HashedFile(path, header, len(content))}, workers=2) as hasher, path.open("r+b") as file:
        for name, offset, nbytes in pieces:
            os.pwrite(file.fileno(), content[offset : offset + nbytes], offset)
            if order.random() < 0.8:  # an earlier run wrote the others
                hasher.put(0, offset, memoryview(content)[offset : offset + nbytes])
            left[name] -= 1
            if not left[name]:
                info = placed[name]
                hasher.complete(0, len(header) + info.start, len(header) + info.stop)
        assert hasher.digests() == {0: hashlib.sha256(content).hexdigest()}


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, 100)


@pytest.mark.parametrize("damage", [lose, cut])
def test_a_file_that_cannot_be_read_back_is_an_error(damage: Callable[[Path], None], tmp_path: Path) -> None:
    header, _ = build_header({"a": ("U8", (CHUNK_BYTES + 1,))})
    path = tmp_path / "file"
    path.write_bytes(header + bytes(CHUNK_BYTES + 1))
    damage(path)
    with FileHasher({0: HashedFile(path, header, len(header) + CHUNK_BYTES + 1)}, workers=1) as hasher:
        hasher.complete(0, len(header), len(header) + CHUNK_BYTES + 1)
        with pytest.raises(ReadFailed, match="file"):
            hasher.digests()
