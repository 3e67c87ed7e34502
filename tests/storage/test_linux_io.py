"""What passes by the page cache is what was to be read and written, whatever the kernel and the file system have."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv4_shard.storage.linux_io import RWF_DONTCACHE, WRITE_BYTES, UncachedFile
from dsv4_shard.storage.staged_file import StagedFile

CONTENT = os.urandom(1_000_003)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[UncachedFile]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    fd = os.open(path, os.O_RDWR)
    yield UncachedFile(fd)
    os.close(fd)


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """As a kernel that knows no RWF_DONTCACHE; counts the calls with it."""
    refused = []

    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            refused.append(flags)
            raise OSError(number, os.strerror(number))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    return refused


def read_all(file: UncachedFile, start: int, stop: int) -> bytes:
    buffer = memoryview(bytearray(stop - start))
    done = 0
    while done < len(buffer) and (count := file.read(buffer[done:], start + done)):
        done += count
    return bytes(buffer[:done])


def write_all(file: UncachedFile, offset: int, data: bytes) -> None:
    done = 0
    while done < len(data):
        done += file.write(memoryview(data)[done:], offset + done)


@pytest.mark.slow
@settings(max_examples=60)
@given(data=st.data())
def test_bytes_at_any_place_are_written_and_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("pages") / "file"
    expected = bytearray(CONTENT)
    path.write_bytes(expected)
    fd = os.open(path, os.O_RDWR)
    file = UncachedFile(fd)
    for _ in range(4):
        start = data.draw(st.integers(0, len(CONTENT)))
        piece = os.urandom(data.draw(st.integers(0, len(CONTENT) - start)))
        write_all(file, start, piece)
        expected[start : start + len(piece)] = piece
        assert read_all(file, start, start + len(piece)) == piece
        if data.draw(st.booleans()):
            file.flush()
    os.close(fd)
    assert path.read_bytes() == expected


@pytest.mark.parametrize("offset", [0, 100, WRITE_BYTES - 1])
def test_long_pieces_are_written_in_short_calls_that_end_between_pages(
    offset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    real = os.pwritev

    def pwritev(fd: int, buffers: list[memoryview], at: int) -> int:
        count = real(fd, buffers, at)
        calls.append((at, at + count))
        return count

    monkeypatch.setattr(os, "pwritev", pwritev)
    with (tmp_path / "file").open("wb") as file:
        StagedFile(file.fileno(), tmp_path / "file").write(offset, memoryview(CONTENT))
    assert (tmp_path / "file").read_bytes() == bytes(offset) + CONTENT
    assert all(stop - start <= WRITE_BYTES for start, stop in calls)
    assert all(stop % WRITE_BYTES == 0 for _, stop in calls[:-1])


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_kernel_without_the_flag_is_asked_once(
    number: int, file: UncachedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = refuse(monkeypatch, number)
    for _ in range(3):
        write_all(file, 100, CONTENT[:500_000])
        assert read_all(file, 100, 500_100) == CONTENT[:500_000]
    assert refused == [RWF_DONTCACHE]


def test_threads_that_are_refused_at_once_all_go_on_without_it(
    file: UncachedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(4)
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            together.wait()
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    found = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: read_all(file, n, n + 1000)})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: CONTENT[n : n + 1000] for n in range(4)}


@pytest.mark.parametrize(("call", "system_call"), [("read", "preadv"), ("write", "pwritev")])
def test_other_errors_are_raised(
    call: str, system_call: str, file: UncachedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, system_call, fail)
    with pytest.raises(OSError, match="Input/output error"):
        getattr(file, call)(memoryview(bytearray(1 << 20)), 0)


def test_what_could_not_be_flushed_once_is_never_said_to_be(
    file: UncachedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    write_all(file, 0, b"data")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            file.flush()
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            file.flush()
    with pytest.raises(OSError, match="Input/output error"):
        file.fsync()


def test_each_flush_waits_for_the_disk(file: UncachedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have written."""
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    file.flush()
    file.flush()
    assert flushed == [file.fd, file.fd]


@pytest.mark.parametrize("knows_the_flag", [True, False])
def test_what_was_read_and_written_does_not_stay_in_the_page_cache(
    knows_the_flag: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    nbytes = 64 << 20
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    if not knows_the_flag:
        refuse(monkeypatch, errno.EOPNOTSUPP)
    file = UncachedFile(fd)
    try:
        chunk = os.urandom(1 << 20)
        for offset in range(0, nbytes, len(chunk)):
            write_all(file, offset + 7, chunk)
        file.flush()
        for offset in range(0, nbytes, len(chunk)):
            read_all(file, offset, offset + len(chunk))
        cached = pages_cached(fd)
        if cached is None:
            pytest.skip("this kernel does not say what is cached")
        assert cached * 4096 < nbytes // 8
    finally:
        os.close(fd)


def pages_cached(fd: int) -> int | None:
    """Pages of a file in the page cache, by cachestat(2); None where the kernel has it not."""
    import ctypes

    cachestat = 451
    libc = ctypes.CDLL(None, use_errno=True)
    whole = (ctypes.c_uint64 * 2)(0, 0)
    found = (ctypes.c_uint64 * 5)()
    if libc.syscall(cachestat, fd, ctypes.byref(whole), ctypes.byref(found), 0):
        return None
    return int(found[0])
