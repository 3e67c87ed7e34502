"""Direct reads return the file's bytes, whatever the page cache holds and wherever they begin."""

import os
from pathlib import Path

import numpy as np
import pytest

from dsv4_shard.errors import ReadFailed
from dsv4_shard.storage import PAGE, DirectFile
from dsv4_shard.storage import direct_file as module

SIZE = 10 * PAGE + 123
RANGES = [(0, SIZE), (0, PAGE), (PAGE, 3 * PAGE), (5, 6), (PAGE - 1, PAGE + 1), (9 * PAGE + 7, SIZE), (SIZE - 1, SIZE)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return path


def aligned(nbytes: int) -> memoryview:
    memory = np.empty(nbytes + PAGE, np.uint8)
    return memory[-memory.ctypes.data % PAGE :][:nbytes].data


def drop_from_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("is_cached", [False, True])
@pytest.mark.parametrize(("start", "stop"), RANGES)
def test_bytes_are_those_of_the_file(shared: bool, is_cached: bool, start: int, stop: int, path: Path) -> None:
    content = path.read_bytes()
    if not is_cached:
        drop_from_cache(path)
    file, buffer = DirectFile(path, shared=shared), aligned(SIZE + 2 * PAGE)
    at = file.read(start, stop, buffer)
    assert buffer[at : at + stop - start] == content[start:stop]
    file.close()


def test_a_direct_read_leaves_the_page_cache_as_it_was(path: Path) -> None:
    file, buffer = DirectFile(path, shared=False), aligned(SIZE + 2 * PAGE)
    if file._direct is None:
        pytest.skip("no direct reads on this file system")
    drop_from_cache(path)
    file.read(0, SIZE, buffer)
    assert not file._is_cached(0, SIZE)
    path.read_bytes()
    assert file._is_cached(0, SIZE)
    file.close()


def test_a_file_system_without_direct_reads_is_read_through_the_page_cache(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_open_direct", lambda _: None)
    file, buffer = DirectFile(path, shared=False), aligned(SIZE + 2 * PAGE)
    at = file.read(5, SIZE, buffer)
    assert buffer[at : at + SIZE - 5] == path.read_bytes()[5:]
    file.close()


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_that_ends_early_is_an_error_with_the_offset(shared: bool, path: Path) -> None:
    file, buffer = DirectFile(path, shared=shared), aligned(SIZE + 4 * PAGE)
    with pytest.raises(ReadFailed, match=f"ends at byte {SIZE}, 77 bytes too early"):
        file.read(0, SIZE + 77, buffer)
    file.close()
