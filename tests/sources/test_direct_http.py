"""Bodies come whole over kept connections, by the routes that the environment names, and each way of sending them."""

import base64
import os
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from support.servers.redirecting import Answer, ForwardProxy, Handler, Server, write_certificate

from dsv4_shard.errors import BadAnswer, ServerFailed, Unreachable
from dsv4_shard.sources import hub_http, retry
from dsv4_shard.sources.direct_http import FAILURES, Connections, route_to
from dsv4_shard.sources.hub_files import HubFiles
from dsv4_shard.sources.remote import Listed

CONTENT = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(retry, "_FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(retry, "LONGEST_WAIT_SECONDS", 0.02)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_certificate(tmp_path_factory.mktemp("tls") / "loopback.pem")


@pytest.fixture
def connections(certificate: Path) -> Connections:
    return Connections(lambda: ssl.create_default_context(cafile=certificate))


def read(connections: Connections, url: str, timeout: float = 5.0) -> bytes:
    """The whole body of an answer."""
    route = route_to(url)
    assert route is not None
    content = bytearray(len(CONTENT) + 1)
    done = 0
    with connections.get(url, route, {}, timeout) as answer:
        while count := answer.receive(memoryview(content)[done:]):
            done += count
    return bytes(content[:done])


def of_known_length(handler: Handler) -> None:
    handler.say(200, CONTENT)


def in_chunks(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for start in range(0, len(CONTENT), 100_000):
        piece = CONTENT[start : start + 100_000]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    handler.wfile.write(b"0\r\n\r\n")


def until_the_end(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(CONTENT)
    handler.close_connection = True


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("answer", "connects"), [(of_known_length, 1), (in_chunks, 1), (until_the_end, 3)])
def test_bodies_of_every_framing_come_whole_over_as_few_connections_as_they_allow(
    answer: Answer, connects: int, scheme: str, connections: Connections, certificate: Path
) -> None:
    ports = set()

    def note(handler: Handler) -> None:
        ports.add(handler.client_address[1])
        answer(handler)

    with Server(note, certificate=certificate if scheme == "https" else None) as server:
        assert [read(connections, f"{server.url}/a?b=c%20d") for _ in range(3)] == [CONTENT] * 3
        assert {path for _, path, _ in server.requests} == {"/a?b=c%20d"}
    assert len(ports) == connects


def test_a_connection_that_the_server_closed_meanwhile_is_not_used(connections: Connections) -> None:
    def once(handler: Handler) -> None:
        handler.say(200, CONTENT)
        handler.close_connection = True  # without a word in the head

    with Server(once) as server:
        for _ in range(3):
            assert read(connections, server.url) == CONTENT
            Event().wait(0.05)


def test_a_body_that_was_not_read_to_its_end_costs_its_connection(connections: Connections) -> None:
    with Server(of_known_length) as server:
        route = route_to(server.url)
        assert route is not None
        with connections.get(server.url, route, {}, 5.0) as answer:
            answer.receive(memoryview(bytearray(10)))
        assert read(connections, server.url) == CONTENT


def test_what_has_arrived_is_given_before_the_rest_has(connections: Connections) -> None:
    may_end = Event()

    def slow(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"a")
        may_end.wait(10)
        handler.wfile.write(b"b")

    with Server(slow) as server:
        route = route_to(server.url)
        assert route is not None
        with connections.get(server.url, route, {}, 5.0) as answer:
            buffer = memoryview(bytearray(10))
            assert answer.receive(buffer) == 1
            may_end.set()
            assert (answer.receive(buffer), answer.receive(buffer)) == (1, 0)


def test_silence_ends_by_the_timeout_of_each_request(connections: Connections) -> None:
    """The second one goes over the connection of the first, which had a longer one."""
    waits = iter((0.0, 5.0))
    with Server(lambda handler: (Event().wait(next(waits)), handler.say(200, CONTENT))[1]) as server:  # type: ignore[func-returns-value]
        read(connections, server.url)
        began = time.monotonic()
        with pytest.raises(FAILURES):
            read(connections, server.url, 0.2)
        assert time.monotonic() - began < 2


def test_a_forked_process_leaves_the_connections_of_its_parent_alone(connections: Connections) -> None:
    with Server(of_known_length) as server:
        assert read(connections, server.url) == CONTENT
        child = os.fork()
        if not child:
            os._exit(read(connections, server.url) != CONTENT)
        found = [read(connections, server.url) for _ in range(20)]
        assert os.waitpid(child, 0)[1] == 0
        assert found == [CONTENT] * 20


def test_a_certificate_that_is_not_trusted_is_refused(certificate: Path) -> None:
    with Server(of_known_length, certificate=certificate) as server, pytest.raises(ssl.SSLCertVerificationError):
        read(Connections(ssl.create_default_context), server.url)


# --- the user's proxy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_proxy_of_the_environment_is_used_with_its_login(
    scheme: str, connections: Connections, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = ForwardProxy()
    monkeypatch.setenv(f"{scheme}_proxy", proxy.url.replace("://", "://user:p%40ss@"))
    with Server(of_known_length, certificate=certificate if scheme == "https" else None) as server:
        assert read(connections, f"{server.url}/a?b") == CONTENT
        host = server.url.partition("://")[2]
    ((line, login),) = proxy.asked
    assert line.startswith(f"CONNECT {host} " if scheme == "https" else f"GET http://{host}/a?b ")
    assert login == f"Proxy-Authorization: Basic {base64.b64encode(b'user:p@ss').decode()}"


def test_a_host_that_goes_without_the_proxy_is_asked_directly(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = ForwardProxy()
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(of_known_length) as server:
        assert read(connections, server.url) == CONTENT
    assert proxy.asked == []


@pytest.mark.parametrize("proxy", ["https://proxy:1", "socks5://proxy:1", "http://[::bad", "http://"])
def test_a_proxy_of_another_kind_is_left_to_the_client_of_the_hub(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    assert route_to("https://cdn/file") is None


# --- as files of the Hub -------------------------------------------------------------------------------------------

FILE = Listed(len(CONTENT), "s", "0" * 64)


def ranged(handler: Handler) -> None:
    """The range that is asked for, of CONTENT."""
    first, last = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
    handler.say(206, CONTENT[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(CONTENT)}")


def fetch(hub: Server, nbytes: int = len(CONTENT)) -> bytes:
    """The first bytes of a file that is in LFS."""
    buffer = bytearray(nbytes)
    HubFiles(hub.url, "org/name", "a" * 40, {"f": FILE}).fetch("f", 0, memoryview(buffer), Event())
    return bytes(buffer)


def leading_to(url: str) -> Answer:
    return lambda handler: handler.say(302, Location=url)


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A certificate that httpx trusts, by the environment."""
    from huggingface_hub import close_session

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    close_session()
    yield certificate
    close_session()


def test_the_certificates_of_the_environment_hold_and_the_cdn_gets_no_token(
    trusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with (
        Server(ranged, "127.0.0.2", trusted) as cdn,
        Server(leading_to(f"{cdn.url}/f?signed"), certificate=trusted) as hub,
    ):
        assert fetch(hub) == CONTENT
        assert all("hf_secret" in str(headers) for _, _, headers in hub.requests)
        assert not any("hf_secret" in str(headers) for _, _, headers in cdn.requests)


def test_no_redirect_leaves_tls(trusted: Path) -> None:
    with Server(ranged, "127.0.0.2") as plain:
        with Server(leading_to(plain.url), certificate=trusted) as hub, pytest.raises(BadAnswer, match="without TLS"):
            fetch(hub)
        with (
            Server(leading_to(plain.url), "127.0.0.2", trusted) as cdn,
            Server(leading_to(cdn.url), certificate=trusted) as hub,
            pytest.raises(BadAnswer, match="without TLS"),
        ):
            fetch(hub)
        assert plain.requests == []


def test_a_cdn_that_leads_on_is_followed_without_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with (
        Server(ranged, "127.0.0.2") as last,
        Server(leading_to(f"{last.url}/f"), "127.0.0.2") as cdn,
        Server(leading_to(cdn.url)) as hub,
    ):
        assert fetch(hub) == CONTENT
        assert not any("hf_secret" in str(headers) for _, _, headers in cdn.requests + last.requests)


def test_a_proxy_of_another_kind_reads_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_http, "route_to", lambda _: None)
    with Server(ranged, "127.0.0.2") as cdn, Server(leading_to(cdn.url)) as hub:
        assert fetch(hub) == CONTENT


@pytest.mark.parametrize("direct", [True, False])
def test_a_body_longer_than_it_said_is_refused(direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def longer(handler: Handler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-9/{len(CONTENT)}")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"b\r\n" + CONTENT[:11] + b"\r\n0\r\n\r\n")

    if not direct:
        monkeypatch.setattr(hub_http, "route_to", lambda _: None)
    with (
        Server(longer, "127.0.0.2") as cdn,
        Server(leading_to(cdn.url)) as hub,
        pytest.raises(BadAnswer, match="sent more than the announced 10 bytes"),
    ):
        fetch(hub, 10)


def test_a_server_that_does_not_speak_http_fails_with_one_line() -> None:
    def babble(handler: Handler) -> None:
        handler.wfile.write(b"\x00\xff no http\r\n\r\n")

    with (
        Server(babble, "127.0.0.2") as cdn,
        Server(leading_to(f"{cdn.url}/?Signature=secret")) as hub,
        pytest.raises(ServerFailed) as raised,
    ):
        fetch(hub)
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_an_error_is_told_by_its_first_bytes_however_long_it_is() -> None:
    sent = threading.Event()

    def flood(handler: Handler) -> None:
        handler.send_response(400)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        while not sent.is_set():
            handler.wfile.write(bytes(1 << 16))

    with Server(flood) as hub:
        files = HubFiles(hub.url, "org/name", "a" * 40, {"f": Listed(10, "s")})  # not in LFS: the Hub has it
        began = time.monotonic()
        with pytest.raises(BadAnswer, match="answered 400"):
            files.fetch("f", 0, memoryview(bytearray(10)), Event())
        sent.set()
        assert time.monotonic() - began < 3


def test_nothing_is_asked_in_offline_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with Server(ranged) as hub:
        files = HubFiles(hub.url, "org/name", "a" * 40, {"f": Listed(10, "s")})
        with pytest.raises(Unreachable, match="HF_HUB_OFFLINE"):
            files.fetch("f", 0, memoryview(bytearray(10)), Event())
        assert hub.requests == []


def test_a_dead_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(ranged) as hub:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        files = HubFiles(hub.url, "org/name", "a" * 40, {"f": Listed(10, "s")})
        with pytest.raises(ServerFailed, match=r"through the proxy 127\.0\.0\.1:9"):
            files.fetch("f", 0, memoryview(bytearray(10)), Event())
