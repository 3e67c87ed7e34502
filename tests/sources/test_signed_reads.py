"""Signed URLs bring the same bytes as obstore, and whatever goes wrong with them leaves the reading to obstore."""

import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
import pytest
from support.checkpoints.small import small_config
from support.servers.loopback import Fault
from support.servers.redirecting import ForwardProxy, Handler, Server

from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.errors import SourceChanged
from dsv4_shard.sources import object_store, signed_reads
from dsv4_shard.sources.object_store import connect, open_store
from dsv4_shard.sources.remote import Listed, RemoteSource

if TYPE_CHECKING:
    from support.servers.store import StoreServer

URL = "s3://bucket/models/small"
START = 1000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("stores") / "small", small_config(), seed=3)


@pytest.fixture
def server(
    store_server: "StoreServer", checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> "StoreServer":
    """A store that holds the checkpoint; the shortest reads are by signed URLs too."""
    quick = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2)}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(object_store, "_RETRIES", {"max_retries": 2, "backoff": quick})
    monkeypatch.setattr(signed_reads, "LEAST_BYTES", 1)
    store_server.upload(checkpoint, "models/small")
    return store_server


def read(source: RemoteSource, checkpoint: Path) -> None:
    """Read a weight file from START on as from a store, and hold it against the folder."""
    path = next(checkpoint.glob("model-00002-of-*"))
    content = bytearray(path.stat().st_size - START)
    source.remote.fetch(path.name, START, memoryview(content), threading.Event())
    assert bytes(content) == path.read_bytes()[START:]


def ways(server: "StoreServer") -> list[str]:
    """How each object was asked for."""
    return ["obstore" if request.authorized else "signed" for request in server.seen(route="get")]


def test_bytes_come_once_and_by_one_signed_url_for_each_object(
    server: "StoreServer", checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "BLOCK_BYTES", 100_000)
    source = open_store(URL)
    server.reset()
    read(source, checkpoint)
    asked = set(ways(server))
    assert asked == {"signed"}
    assert server.bytes_sent(route="get") == next(checkpoint.glob("model-00002-of-*")).stat().st_size - START


PASSING = [Fault(kind) for kind in ("too_many", "wrong_range", "wrong_total", "short_range", "long_range", "cut")]
PASSING += [Fault("cut", at=0), Fault("cut", at=1000), Fault("stall_body", at=1000), Fault("stall")]
PASSING += [Fault("status", status=status) for status in (408, 500, 503)]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.at}")
def test_what_passes_is_read_by_obstore_and_the_next_by_signed_urls(
    fault: Fault, server: "StoreServer", checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_TIMEOUT", "300ms")
    source = open_store(URL)
    server.reset()
    server.faults.append(Fault(fault.kind, route="get", status=fault.status, at=fault.at))
    read(source, checkpoint)
    read(source, checkpoint)
    assert ways(server) == ["signed", "obstore", "signed"]


@pytest.mark.parametrize("kind", ["forbidden", "unauthorized", "redirect", "ignore_range", "other_region"])
def test_a_store_that_refuses_signed_urls_is_not_asked_by_them_again(
    kind: str, server: "StoreServer", checkpoint: Path
) -> None:
    source = open_store(URL)
    server.reset()
    server.faults.append(Fault(kind, route="get"))
    read(source, checkpoint)
    read(source, checkpoint)
    assert ways(server) == ["signed", "obstore", "obstore"]


@pytest.mark.parametrize("conditions", [[], [Fault("ignore_match", times=None)]], ids=["count", "are ignored"])
def test_an_object_that_was_replaced_is_not_read(
    conditions: list[Fault], server: "StoreServer", checkpoint: Path
) -> None:
    source = open_store(URL)
    path = next(checkpoint.glob("model-00002-of-*"))
    server.put(f"models/small/{path.name}", bytes(path.stat().st_size))
    server.faults += conditions
    with pytest.raises(SourceChanged):
        read(source, checkpoint)


def test_a_signature_is_made_anew_before_it_expires(
    server: "StoreServer", checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_store(URL)
    monkeypatch.setattr(signed_reads, "_VALID_SECONDS", 1)
    now = [time.monotonic() + 10_000]  # what was signed for the header has expired
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    made: list[str] = []
    sign = obstore.sign

    def note(*arguments: Any) -> str:
        made.append(sign(*arguments))
        return made[-1]

    monkeypatch.setattr(obstore, "sign", note)
    for seconds, count in ((0.0, 1), (0.4, 1), (0.2, 2)):
        now[0] += seconds
        read(source, checkpoint)
        assert len(made) == count


@pytest.mark.parametrize("variable", [{"AWS_SKIP_SIGNATURE": "true"}, {}])
def test_nothing_is_signed_without_credentials_or_for_other_stores(
    variable: dict[str, str], server: "StoreServer", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (variable or server.google_env(tmp_path / "account.json")).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("obstore.sign", lambda *_: pytest.fail("signed"))
    store = connect(URL if variable else URL.replace("s3:", "gs:"))
    assert store.signed.read("f", Listed(1, '"e"'), 0, memoryview(bytearray(1)), threading.Event()) == 0


def test_a_redirect_of_a_signed_url_gets_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signed_reads, "LEAST_BYTES", 1)
    with Server(lambda handler: handler.say(200, b"x"), "127.0.0.2") as stranger:

        def lead(handler: Handler) -> None:
            handler.say(307, Location=f"{stranger.url}/x")

        with Server(lead) as server:
            settings = {"ENDPOINT_URL": server.url, "ALLOW_HTTP": "true", "ACCESS_KEY_ID": "x", "REGION": "x",
                        "SECRET_ACCESS_KEY": "x"}  # fmt: skip
            for name, value in settings.items():
                monkeypatch.setenv(f"AWS_{name}", value)
            signed = connect("s3://bucket/m").signed
            assert signed.read("f", Listed(1, '"e"'), 0, memoryview(bytearray(1)), threading.Event()) == 0
            assert "X-Amz-Signature" in server.requests[-1][1]
        assert stranger.requests == []


def test_the_proxy_of_the_environment_is_used(
    server: "StoreServer", checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = ForwardProxy()
    monkeypatch.setenv("AWS_PROXY_URL", proxy.url)
    source = open_store(URL)
    server.reset()
    read(source, checkpoint)
    assert ways(server) == ["signed"]
    assert any("X-Amz-Signature" in line for line, _ in proxy.asked)


def test_a_proxy_of_another_kind_leaves_the_reading_to_obstore(
    server: "StoreServer", checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_store(URL)
    monkeypatch.setattr(source.remote.store.signed, "proxy_of", lambda _: "socks5://127.0.0.1:9")  # type: ignore[attr-defined]
    server.reset()
    read(source, checkpoint)
    assert ways(server) == ["obstore"]
