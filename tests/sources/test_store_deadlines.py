"""Each call to an object store ends in time, with one line, in whatever way the store stalls."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from threading import Event

import pytest
from support.servers.redirecting import Answer, Handler, Server

from dsv4_shard.errors import ServerFailed, Unreachable, UsageError
from dsv4_shard.limits import STORE_ANSWER, STORE_CALL, STORE_LISTING
from dsv4_shard.sources import object_store as stores
from dsv4_shard.sources.object_store import Store, connect
from dsv4_shard.sources.remote import Listed

NBYTES = 100
CALLS: dict[str, Callable[[Store], object]] = {
    "list": lambda store: store.everything(),
    "get": lambda store: store.read("a", Listed(NBYTES, '"e"'), 0, memoryview(bytearray(NBYTES)), Event()),
    "put": lambda store: store.put("a", b"weights"),
    "put in parts": lambda store: store.put_parts("a", iter([memoryview(b"weights")]), 7),
    "copy": lambda store: store.copy("a", "b"),
    "delete": lambda store: store.delete(["a"]),
    "head": lambda store: store._stamp("a", None),
}


def stall(handler: Handler) -> None:
    """No byte of an answer."""
    Event().wait(20)


def drip_head(handler: Handler) -> None:
    """A byte of the head now and then."""
    drip(handler, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000)


def stall_body(handler: Handler) -> None:
    """The head, and no byte of the body."""
    begin(handler)
    Event().wait(20)


def drip_body(handler: Handler) -> None:
    """A byte of the body now and then."""
    drip(handler, b"<" * begin(handler))


def begin(handler: Handler) -> int:
    """Send the head of the answer; return how many bytes of the body are due."""
    start = int(handler.headers.get("Range", "bytes=0-")[6:].split("-")[0])
    told = {"ETag": '"e"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "Content-Length": str(NBYTES - start)}
    if "Range" in handler.headers:
        told["Content-Range"] = f"bytes {start}-{NBYTES - 1}/{NBYTES}"
    handler.send_response(206 if "Range" in handler.headers else 200)
    for name, value in told.items():
        handler.send_header(name, value)
    handler.end_headers()
    return NBYTES - start


def drip(handler: Handler, content: bytes) -> None:
    for byte in content:
        handler.wfile.write(bytes([byte]))
        Event().wait(0.05)


STALLS = [stall, drip_head, stall_body, drip_body]

CASES = [
    (answer, call)
    for answer in STALLS
    for call in CALLS
    if answer in (stall, drip_head) or call not in ("put", "head")  # these are done with the head
]


@contextmanager
def store_of(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with Server(answer) as server:
        yield store_at(server.url, monkeypatch)


def store_at(url: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in {"ENDPOINT_URL": url, "ALLOW_HTTP": "true", "SKIP_SIGNATURE": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return connect("s3://bucket/model")


def ends_in_time(call: Callable[[], object], seconds: float) -> str:
    """The one line by which a call ends within so many seconds."""
    begun = time.monotonic()
    with pytest.raises(ServerFailed) as raised:
        call()
    assert time.monotonic() - begun < seconds
    assert "\n" not in str(raised.value)
    assert "Run again" in (raised.value.hint or "")
    return str(raised.value)


@pytest.mark.parametrize(("answer", "call"), CASES, ids=[f"{answer.__name__}-{call}" for answer, call in CASES])
def test_a_request_ends_with_the_limit_of_the_client(
    answer: Answer, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_RETRIES", {"max_retries": 1, "backoff": {"max_backoff": timedelta(seconds=0.1)}})
    monkeypatch.setenv("AWS_TIMEOUT", "300ms")
    with store_of(answer, monkeypatch) as store:
        assert "no answer in time" in ends_in_time(lambda: CALLS[call](store), 5)


@pytest.mark.parametrize(("answer", "call"), CASES, ids=[f"{answer.__name__}-{call}" for answer, call in CASES])
def test_a_call_ends_where_the_client_would_not(answer: Answer, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "STORE_CALL", replace(STORE_CALL, seconds=-3569.5))  # and what the client is given
    monkeypatch.setattr(stores, "STORE_LISTING", replace(STORE_LISTING, seconds=0.5))
    monkeypatch.setenv("AWS_TIMEOUT", "1h")
    with store_of(answer, monkeypatch) as store:
        assert store.seconds == 0.5
        begun = time.monotonic()
        with pytest.raises(Unreachable, match=r"within 0\.5 s"):
            CALLS[call](store)
        assert 0.5 <= time.monotonic() - begun < 3


@pytest.mark.parametrize("call", ["put", "put in parts"])
def test_an_upload_of_which_the_store_takes_nothing_ends(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_RETRIES", {"max_retries": 0})
    monkeypatch.setenv("AWS_TIMEOUT", "500ms")
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        store = store_at(f"http://127.0.0.1:{deaf.getsockname()[1]}", monkeypatch)
        said = ends_in_time(lambda: store.put("a", bytes(32 << 20)), 5)
    assert "no answer in time" in said


def test_an_upload_that_goes_on_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lasts three times as long as silence may."""

    def answer(handler: Handler) -> None:
        Event().wait(0.2)
        if handler.command == "POST" and "uploads" in handler.path:
            handler.say(200, b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
        elif handler.command == "POST":
            handler.say(200, b'<CompleteMultipartUploadResult><ETag>"e"</ETag></CompleteMultipartUploadResult>')
        else:
            handler.say(200, ETag='"p"')

    def pieces() -> Iterator[memoryview]:
        for _ in range(10):
            time.sleep(0.3)
            yield memoryview(bytes(stores.PART_BYTES // 4))

    monkeypatch.setattr(stores, "STORE_CALL", replace(STORE_CALL, seconds=1))
    with store_of(answer, monkeypatch) as store:
        begun = time.monotonic()
        assert store.put_parts("a", pieces(), 10 * stores.PART_BYTES // 4).stamp == '"e"'
        assert time.monotonic() - begun > 3


def test_the_limit_of_a_call_leaves_room_for_what_the_client_repeats() -> None:
    longest = stores._RETRIES["retry_timeout"].total_seconds() + 15 + STORE_ANSWER.seconds
    assert longest < STORE_CALL.seconds
    assert longest < STORE_LISTING.seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("300s", 510), ("5m", 510), ("5 minutes", 510), ("1h", 3810), ("20s", 240), ("500ms", 240)],
)
def test_a_longer_request_makes_a_longer_call(text: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_TIMEOUT", text)
    assert store_at("http://127.0.0.1:9", monkeypatch).seconds == seconds


@pytest.mark.parametrize("text", ["1h 3s", "2 weeks", "300", "", "-1s"])
def test_another_time_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_TIMEOUT", text)
    with pytest.raises(UsageError):
        store_at("http://127.0.0.1:9", monkeypatch)
