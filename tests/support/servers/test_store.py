"""The S3 server on loopback: obstore itself is its client, and meets each fault as S3's own."""

import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
import pytest
from obstore.exceptions import (
    AlreadyExistsError,
    GenericError,
    NotModifiedError,
    PermissionDeniedError,
    PreconditionError,
)
from obstore.store import S3Store, from_url
from support.servers.loopback import Fault

if TYPE_CHECKING:
    from support.servers.store import StoreServer


DATA = bytes(range(256)) * 4
MIB = 1 << 20
SOON = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2)}
AT_ONCE = {"max_retries": 5, "backoff": SOON}


@pytest.fixture
def server(store_server: "StoreServer") -> "StoreServer":
    store_server.put("prefix/a/b.bin", DATA)
    return store_server


@pytest.fixture
def store(server: "StoreServer") -> S3Store:
    return from_url("s3://bucket/prefix", retry_config=AT_ONCE)  # type: ignore[call-overload]


@pytest.mark.slow
def test_an_object_comes_whole_and_by_range_below_the_prefix(server: "StoreServer", store: S3Store) -> None:
    assert bytes(obstore.get(store, "a/b.bin").bytes()) == DATA
    assert bytes(obstore.get_range(store, "a/b.bin", start=3, end=9)) == DATA[3:9]
    assert [(r.route, r.file, r.range) for r in server.requests] == [
        ("get", "prefix/a/b.bin", None),
        ("get", "prefix/a/b.bin", "bytes=3-8"),
    ]
    assert server.bytes_sent() == len(DATA) + 6


def test_a_range_that_ends_beyond_the_object_comes_short(store: S3Store) -> None:
    assert len(obstore.get_range(store, "a/b.bin", start=1020, end=9999)) == 4
    with pytest.raises(GenericError, match="416"):
        obstore.get_range(store, "a/b.bin", start=2000, end=9999)


def test_objects_are_listed_with_their_sizes(server: "StoreServer", store: S3Store) -> None:
    server.put("elsewhere", b"x")
    [found] = [entry for page in obstore.list(store) for entry in page]
    assert (found["path"], found["size"]) == ("a/b.bin", len(DATA))
    assert obstore.head(store, "a/b.bin")["e_tag"] == found["e_tag"]
    assert [request.route for request in server.requests] == ["list", "head"]


def test_a_folder_is_uploaded_without_a_request(server: "StoreServer", store: S3Store, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c").write_bytes(b"c")
    server.upload(tmp_path, "prefix/folder")
    assert server.requests == []
    assert bytes(obstore.get(store, "folder/sub/c").bytes()) == b"c"


def test_a_large_object_is_put_in_parts(server: "StoreServer", store: S3Store) -> None:
    content = bytes(6 * MIB) + DATA
    obstore.put(store, "big", content, use_multipart=True, chunk_size=5 * MIB)
    assert server.objects()["prefix/big"] == content
    assert [len(server.seen(route=route)) for route in ("create", "part", "complete", "put")] == [1, 2, 1, 0]
    assert server.bytes_received(route="part") == len(content)
    assert server.uploads() == 0


def test_what_changed_meanwhile_is_noticed_by_its_etag(store: S3Store) -> None:
    tag = obstore.head(store, "a/b.bin")["e_tag"]
    unchanged = obstore.get(store, "a/b.bin", options={"if_match": tag, "range": (3, 9)})
    assert bytes(unchanged.bytes()) == DATA[3:9]
    with pytest.raises(NotModifiedError):
        obstore.get(store, "a/b.bin", options={"if_none_match": tag})
    obstore.put(store, "a/b.bin", b"other bytes")
    with pytest.raises(PreconditionError):
        obstore.get(store, "a/b.bin", options={"if_match": tag, "range": (3, 9)})


def test_an_object_is_not_written_over_where_that_was_asked(server: "StoreServer", store: S3Store) -> None:
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "a/b.bin", b"other", mode="create")
    assert server.objects()["prefix/a/b.bin"] == DATA


def test_what_is_not_there_is_a_missing_file(store: S3Store) -> None:
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "nothing")
    with pytest.raises(FileNotFoundError):
        obstore.head(store, "nothing")


def test_another_access_key_is_refused(server: "StoreServer", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASTRANGER")
    with pytest.raises(PermissionDeniedError, match="SignatureDoesNotMatch"):
        obstore.get(from_url("s3://bucket/prefix"), "a/b.bin")
    assert [request.status for request in server.requests] == [403]


def test_http_must_be_allowed(server: "StoreServer", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(GenericError, match="builder error"):
        obstore.get(from_url("s3://bucket/prefix", retry_config={"max_retries": 0}), "a/b.bin")
    assert server.requests == []


def test_options_of_the_caller_hide_that_the_environment_allows_http(server: "StoreServer") -> None:
    with pytest.raises(GenericError, match="builder error"):
        obstore.get(from_url("s3://bucket/prefix", client_options={"timeout": "9s"}), "a/b.bin")
    allowed = from_url("s3://bucket/prefix", client_options={"timeout": "9s", "allow_http": True})
    assert bytes(obstore.get(allowed, "a/b.bin").bytes()) == DATA


def test_a_refusal_is_not_tried_again(server: "StoreServer", store: S3Store) -> None:
    server.faults.append(Fault("forbidden"))
    with pytest.raises(PermissionDeniedError, match="AccessDenied"):
        obstore.get(store, "a/b.bin")
    assert len(server.requests) == 1


@pytest.mark.parametrize(("kind", "status"), [("status", 503), ("status", 500), ("too_many", 429)])
def test_an_error_of_the_server_is_tried_again(server: "StoreServer", store: S3Store, kind: str, status: int) -> None:
    server.faults.append(Fault(kind, times=2, status=status))
    assert bytes(obstore.get(store, "a/b.bin").bytes()) == DATA
    assert [request.status for request in server.requests] == [status, status, 200]


def test_an_error_that_lasts_is_said(server: "StoreServer", store: S3Store) -> None:
    server.faults.append(Fault("status", times=None))
    with pytest.raises(GenericError, match="503"):
        obstore.get(store, "a/b.bin")
    assert len(server.requests) == 1 + AT_ONCE["max_retries"]


def test_a_body_that_was_cut_is_taken_up_where_it_ended(server: "StoreServer", store: S3Store) -> None:
    server.faults.append(Fault("cut", at=100))
    assert bytes(obstore.get(store, "a/b.bin").bytes()) == DATA
    assert [request.range for request in server.requests] == [None, "bytes=100-1023"]
    assert server.bytes_sent() == len(DATA)


HURRIED = {"timeout": "200ms", "allow_http": True}


@pytest.mark.parametrize("kind", ["stall", "stall_body"])
def test_a_stall_ends_with_the_timeout_of_the_client(server: "StoreServer", kind: str) -> None:
    server.faults.append(Fault(kind, times=None))
    hurried = from_url("s3://bucket/prefix", retry_config={"max_retries": 0}, client_options=HURRIED)  # type: ignore[call-overload]
    with pytest.raises(GenericError, match="kind: Timeout"):
        obstore.get(hurried, "a/b.bin").bytes()
    assert server.bytes_sent() == (len(DATA) // 2 if kind == "stall_body" else 0)


def test_a_body_that_stalled_is_taken_up_where_it_ended(server: "StoreServer") -> None:
    server.faults.append(Fault("stall_body"))
    hurried = from_url("s3://bucket/prefix", retry_config=AT_ONCE, client_options=HURRIED)  # type: ignore[call-overload]
    assert bytes(obstore.get(hurried, "a/b.bin").bytes()) == DATA
    assert [request.range for request in server.requests] == [None, "bytes=512-1023"]


def test_a_stall_may_be_released(server: "StoreServer", store: S3Store) -> None:
    server.faults.append(Fault("stall"))
    threading.Timer(0.05, server.release).start()
    assert bytes(obstore.get(store, "a/b.bin").bytes()) == DATA


def test_a_range_that_is_ignored_is_refused_by_the_client(server: "StoreServer", store: S3Store) -> None:
    server.faults.append(Fault("ignore_range"))
    with pytest.raises(GenericError, match="non-partial"):
        obstore.get_range(store, "a/b.bin", start=3, end=9)


def test_one_byte_is_corrupted(server: "StoreServer", store: S3Store) -> None:
    server.faults.append(Fault("corrupt", at=3))
    got = bytes(obstore.get(store, "a/b.bin").bytes())
    assert [n for n in range(len(DATA)) if DATA[n] != got[n]] == [3]


def test_a_part_that_fails_for_good_leaves_no_object(server: "StoreServer", store: S3Store) -> None:
    server.faults.append(Fault("forbidden", route="part", after=1))
    with pytest.raises(PermissionDeniedError):
        obstore.put(store, "big", bytes(11 * MIB), use_multipart=True, chunk_size=5 * MIB)
    assert "prefix/big" not in server.objects()


def test_the_same_objects_are_served_as_google_cloud_storage(
    server: "StoreServer", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.google_env(tmp_path / "account.json").items():
        monkeypatch.setenv(name, value)
    store = from_url("gs://bucket/prefix", retry_config=AT_ONCE)  # type: ignore[call-overload]
    server.faults.append(Fault("cut", at=100))
    assert bytes(obstore.get(store, "a/b.bin").bytes()) == DATA
    with pytest.raises(PreconditionError):
        obstore.get(store, "a/b.bin", options={"if_match": '"other"', "range": (3, 9)})
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "a/b.bin", b"other", mode="create")
    obstore.put(store, "big", bytes(6 * MIB), use_multipart=True, chunk_size=5 * MIB)
    assert [entry["path"] for page in obstore.list(store) for entry in page] == ["a/b.bin", "big"]
    assert len(server.seen(route="part")) == 2


def test_each_server_begins_empty(store_server: "StoreServer") -> None:
    assert store_server.objects() == {}
