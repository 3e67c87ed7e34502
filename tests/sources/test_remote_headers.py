"""What is kept of a commit comes back as it was, or not at all."""

import os
import time
from pathlib import Path
from threading import Event

import pytest

from dsv4_shard.errors import NotFound
from dsv4_shard.sources import remote_headers
from dsv4_shard.sources.remote import Listed
from dsv4_shard.sources.remote_headers import HeaderCache, RemoteHeaders

COMMIT = "0123456789abcdef0123456789abcdef01234567"
KEPT = RemoteHeaders(
    {"a.bin": Listed(5, "tag", "ab" * 32), "b.json": Listed(0, "")}, {"a.bin": b"\0head", "b.json": b""}, False
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HeaderCache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return HeaderCache("https://host:1", "org/name")


def files(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_was_saved_is_loaded(cache: HeaderCache) -> None:
    cache.save(COMMIT, KEPT)
    assert cache.load(COMMIT) == KEPT
    assert cache.load(COMMIT[::-1]) is None
    assert HeaderCache("https://other", "org/name").load(COMMIT) is None
    assert HeaderCache("https://host:1", "org/other").load(COMMIT) is None


def test_every_cut_of_the_archive_is_no_archive(cache: HeaderCache, tmp_path: Path) -> None:
    cache.save(COMMIT, KEPT)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for stop in range(len(whole)):
        path.write_bytes(whole[:stop])
        assert cache.load(COMMIT) is None


def test_a_flipped_bit_gives_what_was_saved_or_nothing(cache: HeaderCache, tmp_path: Path) -> None:
    cache.save(COMMIT, KEPT)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        found = cache.load(COMMIT)
        assert found is None or dict(found.headers).get("a.bin") in (None, KEPT.headers["a.bin"])


def test_a_branch_is_remembered_for_an_hour_and_no_longer(cache: HeaderCache, tmp_path: Path) -> None:
    assert cache.commit_of("main") is None
    cache.remember("main", COMMIT)
    assert cache.commit_of("main") == COMMIT
    assert cache.commit_of("refs/pr/1") is None
    (path,) = files(tmp_path)
    for age in (3700, -100):  # a clock that was set back proves nothing
        os.utime(path, (time.time() - age, time.time() - age))
        assert cache.commit_of("main") is None


@pytest.mark.parametrize("content", ["", "no commit", COMMIT.upper(), COMMIT + "\n"])
def test_a_damaged_memory_is_none(content: str, cache: HeaderCache, tmp_path: Path) -> None:
    cache.remember("main", COMMIT)
    (path,) = files(tmp_path)
    path.write_text(content)
    assert cache.commit_of("main") is None


@pytest.mark.parametrize("name", ["..", "../..", "a/../../b"])
def test_names_do_not_lead_out_of_the_cache(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    HeaderCache("https://host", name).remember(name, COMMIT)
    HeaderCache("https://host", name).save(COMMIT, KEPT)
    assert all(path.is_relative_to(tmp_path / "cache" / "dsv4-shard") for path in files(tmp_path))
    assert files(tmp_path)


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache = HeaderCache("https://host", "org/name")
    cache.save(COMMIT, KEPT)
    cache.remember("main", COMMIT)
    assert cache.load(COMMIT) is None


def test_an_error_is_not_kept_back_by_a_request_that_waits() -> None:
    ended, begun = Event(), time.monotonic()

    def read(name: str) -> bytes:
        if name == "missing":
            raise NotFound("missing")
        ended.wait(20)
        return b""

    with pytest.raises(NotFound):
        remote_headers._in_parallel(read, ["stalled", "missing", "other"])
    assert time.monotonic() - begun < 5
    ended.set()


def test_what_is_read_in_parallel_is_in_order() -> None:
    names = [f"{number}" for number in range(100)]
    assert list(remote_headers._in_parallel(str.encode, names).items()) == [(name, name.encode()) for name in names]
    assert remote_headers._in_parallel(str.encode, []) == {}
