"""Bodies of the Hub's answers are read up to a limit on decoded bytes, by whatever function of its client."""

import gzip
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import huggingface_hub
import pytest

from dsv4_shard.errors import BadAnswer
from dsv4_shard.limits import Limit
from dsv4_shard.sources.response_limits import limited_bodies


class Server:
    """Answers every request with one body."""

    def __init__(self, body: bytes | Iterator[bytes], encoding: str | None = None) -> None:
        headers = {"Content-Encoding": encoding} if encoding else {}

        def answer(_: httpx2.Request) -> httpx2.Response:  # as a stream: a body of bytes would count as read
            return httpx2.Response(200, headers=headers, content=iter([body]) if isinstance(body, bytes) else body)

        self.client = httpx2.Client(transport=httpx2.MockTransport(answer))

    def get(self) -> Any:
        return self.client.get("http://hub/api")


SMALL = Limit("answer", "BadAnswer", nbytes=1000, count=50, seconds=60)


def asked(server: Server, monkeypatch: pytest.MonkeyPatch, limit: Limit = SMALL) -> Any:
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: server.client)
    with limited_bodies(limit):
        return server.get()


@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_a_body_of_the_limit_is_read_and_one_byte_more_refused(
    encoding: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pack(body: bytes) -> bytes:
        return gzip.compress(body) if encoding else body

    assert asked(Server(pack(b"A" * 1000), encoding), monkeypatch).content == b"A" * 1000
    with pytest.raises(BadAnswer, match="hub: answered more than 1,000 bytes"):
        asked(Server(pack(b"A" * 1001), encoding), monkeypatch)


def test_a_body_of_more_values_than_are_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadAnswer, match="up to 501 values, more than the 50 that are read"):
        asked(Server(b"[" * 500), monkeypatch)


def test_a_body_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"A" * 100

    with pytest.raises(BadAnswer, match="more than 1,000 bytes"):
        asked(Server(endless()), monkeypatch)


def test_a_body_that_drips_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    def drip() -> Iterator[bytes]:
        while True:
            time.sleep(0.01)
            yield b"A"

    with pytest.raises(BadAnswer, match=r"did not end within 0\.05 seconds"):
        asked(Server(drip()), monkeypatch, replace(SMALL, seconds=0.05))


def test_an_encoding_that_nobody_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadAnswer, match="in the encoding 'br'"):
        asked(Server(b"\x00", "br"), monkeypatch)


def test_other_users_of_the_client_are_not_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(b"A" * 5000)
    with pytest.raises(BadAnswer):
        asked(server, monkeypatch)
    assert len(server.get().content) == 5000


def test_the_client_gets_one_hook_however_often_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(b"A")
    for _ in range(3):
        asked(server, monkeypatch)
    assert len(server.client.event_hooks["response"]) == 1


def test_a_stream_that_is_read_piece_by_piece_is_not_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(b"A" * 5000)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: server.client)
    with limited_bodies(SMALL), server.client.stream("GET", "http://hub/file") as answer:
        assert sum(map(len, answer.iter_raw())) == 5000
