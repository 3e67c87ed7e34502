"""Each call to the Hub ends in time, with one line, in whatever way the server stalls."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from support.servers.redirecting import Answer, Handler, Server

from dsv4_shard.errors import AccessRefused, BadAnswer, NotFound, ServerFailed
from dsv4_shard.limits import HUB_ANSWER, HUB_DOWNLOAD, HUB_HEADERS, HUB_RANGE
from dsv4_shard.sources import hub, hub_files
from dsv4_shard.sources.hub import Repository, _ask_headers, _ask_listing
from dsv4_shard.sources.hub_files import HubFiles
from dsv4_shard.sources.remote import Listed

LISTING = {"in Git": Listed(100, "s"), "in LFS": Listed(100, "s", "0" * 64)}


def fetch(url: str, name: str) -> None:
    HubFiles(url, "org/model", "a" * 40, LISTING).fetch(name, 0, memoryview(bytearray(100)), Event())


def repository(url: str) -> Repository:
    return Repository(url, "org/model", "main", "org/model")


CALLS: dict[str, Callable[[str], object]] = {
    "listing": lambda url: _ask_listing(repository(url)),
    "range": lambda url: fetch(url, "in Git"),
    "where a file is, and its range": lambda url: fetch(url, "in LFS"),
}


def stall(handler: Handler) -> None:
    """No byte of an answer."""
    Event().wait(20)


def drip_head(handler: Handler) -> None:
    """A byte of the head now and then."""
    drip(handler, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000)


def drip_body(handler: Handler) -> None:
    """A byte of the body now and then."""
    begin(handler, 200)
    drip(handler, b" " * 100)


def drip_error(handler: Handler) -> None:
    """A byte of an error's body now and then."""
    begin(handler, 400)
    drip(handler, b" " * 100)


def redirect(handler: Handler) -> None:
    """Another place of its own, after a moment, for ever."""
    Event().wait(0.1)
    handler.say(302, Location=f"{handler.path}x")


def begin(handler: Handler, status: int) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", "100")
    handler.end_headers()


def drip(handler: Handler, content: bytes) -> None:
    for byte in content:
        handler.wfile.write(bytes([byte]))
        Event().wait(0.05)


@pytest.fixture(autouse=True)
def _lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HUB_ANSWER", replace(HUB_ANSWER, seconds=0.5))
    monkeypatch.setattr(hub, "HUB_HEADERS", replace(HUB_HEADERS, seconds=0.5))
    monkeypatch.setattr(hub_files, "HUB_RANGE", replace(HUB_RANGE, seconds=0.5))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("answer", [stall, drip_head, drip_body, drip_error])
def test_a_call_ends_at_its_deadline_with_one_line(answer: Answer, call: str) -> None:
    with Server(answer) as server:
        begun = time.monotonic()
        with pytest.raises(ServerFailed, match=r"within 0\.5 s") as raised:
            CALLS[call](server.url)
        assert 0.5 <= time.monotonic() - begun < 3
    assert "\n" not in str(raised.value)
    assert "Run again" in (raised.value.hint or "")


@pytest.mark.parametrize("answer", [stall, drip_head, drip_body, drip_error])
def test_the_answer_with_all_headers_is_given_up_at_its_deadline(answer: Answer) -> None:
    with Server(answer) as server:
        begun = time.monotonic()
        assert _ask_headers(repository(server.url), {}) is None
        assert 0.5 <= time.monotonic() - begun < 3


def test_redirects_take_no_longer_than_the_call() -> None:
    with Server(redirect) as server:
        begun = time.monotonic()
        with pytest.raises(ServerFailed, match=r"within 0\.5 s"):
            _ask_listing(repository(server.url))
        assert time.monotonic() - begun < 3


# --- --download ----------------------------------------------------------------------------------------------------


def on(method: str, answer: Answer) -> Answer:
    """Answer requests of a method so, and others as the Hub does."""

    def either(handler: Handler) -> None:
        if handler.command == method:
            answer(handler)
        else:
            handler.say(200, b"x" * 100, ETag=f'"{Path(handler.path).name}"', X_Repo_Commit="a" * 40)

    return either


DOWNLOADS = [("HEAD", stall), ("HEAD", drip_head), ("GET", stall), ("GET", drip_head), ("GET", drip_body)]


@pytest.mark.parametrize(("method", "answer"), DOWNLOADS)
def test_a_download_into_which_nothing_comes_ends_and_does_not_hold_the_process(
    method: str, answer: Answer, tmp_path: Path
) -> None:
    program = f"""
import sys
from dataclasses import replace
from dsv4_shard.errors import ServerFailed
from dsv4_shard.sources import hub_files
from dsv4_shard.sources.remote import Listed
hub_files.HUB_DOWNLOAD = replace(hub_files.HUB_DOWNLOAD, seconds=0.5)
try:
    names = [f"{{number}}" for number in range(20)]
    hub_files.HubFiles(sys.argv[1], "org/model", "{"a" * 40}", dict.fromkeys(names, Listed(100, "s"))).download(names)
except ServerFailed as error:
    print(error, error.hint, sep="\\n")
"""
    with Server(on(method, answer)) as server:
        begun = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-c", program, server.url],
            env={**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": server.url},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert time.monotonic() - begun < 10
    said, hint = ended.stdout.splitlines()
    assert said == "org/model: the Hub cache did not grow within 0.5 s"
    assert hint.startswith("Run again")


def test_a_download_that_grows_slowly_is_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lasts four times as long as silence may."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub_files, "HUB_DOWNLOAD", replace(HUB_DOWNLOAD, seconds=1))
    monkeypatch.setattr(hub_files, "_DOWNLOADS_AT_ONCE", 1)

    def slow(handler: Handler) -> None:
        Event().wait(0.5)
        handler.say(200, b"x" * 100)

    names = [f"folder/{number}" for number in range(8)]
    with Server(on("GET", slow)) as server:
        files = HubFiles(server.url, "org/model", "a" * 40, dict.fromkeys(names, Listed(100, "s")))
        begun = time.monotonic()
        folder = files.download(names)
        assert time.monotonic() - begun > 4 * 0.5
    assert all((folder / name).read_bytes() == b"x" * 100 for name in names)


@pytest.mark.parametrize(
    ("status", "error"), [(401, AccessRefused), (403, AccessRefused), (404, NotFound), (400, BadAnswer)]
)
def test_a_download_that_is_refused_says_so_at_once(
    status: int, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with Server(lambda handler: handler.say(status, X_Error_Code="EntryNotFound" * (status == 404))) as server:
        begun = time.monotonic()
        with pytest.raises(error):
            HubFiles(server.url, "org/model", "a" * 40, LISTING).download(list(LISTING))
        assert time.monotonic() - begun < 3
