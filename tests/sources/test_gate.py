"""An object store's client reaches the store's own server and no other, however it is redirected."""

import base64
import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import pytest
from support.servers.redirecting import Answer, ForwardProxy, Handler, Server, write_certificate

from dsv4_shard.errors import BadAnswer, ServerFailed, UsageError
from dsv4_shard.limits import STORE_ANSWER
from dsv4_shard.sources import gate as gates
from dsv4_shard.sources import object_store as stores
from dsv4_shard.sources.gate import Gate
from dsv4_shard.sources.object_store import Store, connect
from dsv4_shard.sources.proxies import ServerOrigin
from dsv4_shard.sources.remote import Listed

LISTED = Listed(4, '"e"')
SECRETS = ("SECRETKEY", "SECRETSESSION", "c2VjcmV0")
CALLS = {
    "list": lambda store: store.everything(),
    "get": lambda store: store.read("a", LISTED, 0, memoryview(bytearray(4)), Event()),
    "put": lambda store: store.put("a", b"weights"),
    "put in parts": lambda store: store.put_parts("a", iter([memoryview(b"weights")]), 7),
    "copy": lambda store: store.copy("a", "b"),
    "delete": lambda store: store.delete(["a"]),
}
SCHEMES = ("s3", "gs", "az")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(stores, "_RETRIES", {"max_retries": 1})


def store_at(url: str, scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """A store whose server is at `url`, with credentials of every kind that it can have."""
    account = tmp_path / "account.json"
    keys = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    account.write_text(json.dumps({"gcs_base_url": url, "disable_oauth": True, **keys}))
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "SECRETKEY",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_SESSION_TOKEN": "SECRETSESSION",
        "AWS_REGION": "us-east-1",
        "GOOGLE_SERVICE_ACCOUNT": str(account),
        "AZURE_ENDPOINT": url,
        "AZURE_STORAGE_ACCOUNT_NAME": "account",
        "AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0",
    }
    for prefix in ("AWS", "GOOGLE", "AZURE"):
        settings |= {f"{prefix}_ALLOW_HTTP": "true", f"{prefix}_ALLOW_INVALID_CERTIFICATES": "true"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return connect(f"{scheme}://bucket/model")


def redirect(status: int, place: str) -> Answer:
    return lambda handler: handler.say(status, Location=place + handler.path)


# --- redirects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("host", ["127.0.0.2", "127.0.0.1"], ids=["another host", "another port"])
def test_a_server_to_which_the_store_redirects_gets_no_request(
    call: str, scheme: str, host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Server(lambda handler: handler.say(200), host) as stranger, Server(redirect(307, stranger.url)) as server:
        store = store_at(server.url, scheme, monkeypatch, tmp_path)
        refused = f"redirects to {stranger.url}; not followed|redirects \\(307\\); redirects are not followed"
        with pytest.raises(BadAnswer, match=refused) as raised:
            CALLS[call](store)
        assert server.requests, "the store itself is asked"
        assert stranger.requests == []
        assert not any(secret in str(raised.value) for secret in SECRETS)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_kind_of_redirect_leads_to_another_server(
    status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (
        Server(lambda handler: handler.say(200), "127.0.0.2") as stranger,
        Server(redirect(status, stranger.url)) as server,
    ):
        with pytest.raises(BadAnswer, match="redirects to"):
            store_at(server.url, "s3", monkeypatch, tmp_path).everything()
        assert stranger.requests == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_encrypted_redirects_are_refused_at_once(scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stores, "_RETRIES", {})
    certificate = write_certificate(tmp_path / "certificate.pem")
    with (
        Server(lambda handler: handler.say(200), "127.0.0.2", certificate) as stranger,
        Server(redirect(307, stranger.url), certificate=certificate) as server,
    ):
        store = store_at(server.url, scheme, monkeypatch, tmp_path)
        begun = time.monotonic()
        with pytest.raises(BadAnswer, match=f"redirects to {stranger.url}"):
            store.everything()
        assert time.monotonic() - begun < 5, "obstore alone would try for three minutes"
        assert server.requests
        assert stranger.requests == []


def test_a_redirect_on_the_store_itself_is_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def answer(handler: Handler) -> None:
        if handler.path.endswith("moved"):
            handler.say(
                206, b"four", ETag='"e"', Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT", Content_Range="bytes 0-3/4"
            )
        else:
            handler.say(307, Location=f"{handler.path}moved")

    with Server(answer) as server:
        buffer = bytearray(4)
        store = store_at(server.url, "s3", monkeypatch, tmp_path)
        store.read("a", LISTED, 0, memoryview(buffer), Event())
        assert buffer == b"four"


# --- floods --------------------------------------------------------------------------------------------------------


def flood(status: int) -> Answer:
    """Answer with a status and a gigabyte."""

    def answer(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(1 << 30))
        handler.end_headers()
        for _ in range(1 << 10):
            handler.wfile.write(b" " * (1 << 20))
            handler.server.requests.append(("sent", "", {}))

    return answer


@pytest.mark.parametrize("is_encrypted", [False, True])
@pytest.mark.parametrize("status", [200, 403, 500])
def test_an_answer_is_cut_off_at_its_limit(
    status: int, is_encrypted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    certificate = write_certificate(tmp_path / "certificate.pem") if is_encrypted else None
    with Server(flood(status), certificate=certificate) as server:
        with pytest.raises(BadAnswer, match=f"more than {STORE_ANSWER.nbytes:,} bytes"):
            store_at(server.url, "s3", monkeypatch, tmp_path).everything()
        sent = sum(request[0] == "sent" for request in server.requests)
        assert sent < 100, "what the sockets hold comes on top"


# --- the store's own server ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "settings", "origins"),
    [
        ("s3://b/m", {"AWS_REGION": "eu-west-3"}, {"https://s3.eu-west-3.amazonaws.com"}),
        ("s3://b/m", {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"}, {"https://b.s3.us-east-1.amazonaws.com"}),
        ("s3://b/m", {"AWS_ENDPOINT_URL_S3": "https://minio.corp:9000"}, {"https://minio.corp:9000"}),
        ("s3://b/m", {"AWS_ENDPOINT_URL": "https://[::1]:9000"}, {"https://[::1]:9000"}),
        ("gs://b/m", {"GOOGLE_SKIP_SIGNATURE": "true"}, {"https://storage.googleapis.com"}),
        (
            "gs://b/m",
            {},
            {"http://metadata.google.internal", "http://169.254.169.254", "https://storage.googleapis.com"},
        ),
        (
            "az://b/m",
            {"AZURE_STORAGE_ACCOUNT_NAME": "acc", "AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0"},
            {"https://acc.blob.core.windows.net"},
        ),
        (
            "az://b/m",
            {
                "AZURE_STORAGE_ACCOUNT_NAME": "acc",
                "AZURE_CLIENT_ID": "i",
                "AZURE_CLIENT_SECRET": "s",
                "AZURE_TENANT_ID": "t",
            },
            {"https://login.microsoftonline.com", "https://acc.blob.core.windows.net"},
        ),
    ],
)
def test_only_the_server_of_the_store_and_of_its_credentials_is_allowed(
    url: str, settings: dict[str, str], origins: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    static = {} if url.startswith("gs") else {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for name, value in (static | settings).items():
        monkeypatch.setenv(name, value)
    assert {str(origin) for origin in connect(url).gate.origins} == origins


def test_the_server_that_gives_out_tokens_for_a_role_is_allowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/r")
    origins = {str(origin) for origin in connect("s3://b/m").gate.origins}
    assert origins == {"https://sts.us-east-1.amazonaws.com", "https://s3.us-east-1.amazonaws.com"}


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = store_at("https://127.0.0.1:9", "s3", monkeypatch, tmp_path)
    with pytest.raises(ServerFailed, match=r"no connection to https://127\.0\.0\.1:9: Connection refused"):
        store.everything()


# --- the gate itself -----------------------------------------------------------------------------------------------


@pytest.fixture
def opened() -> Iterator[tuple[Gate, Server]]:
    """A gate that allows one server."""
    with Server(lambda handler: handler.say(200, b"hello")) as server:
        gate = Gate(lambda origin: None)
        gate.learn(lambda: None)
        gate._state.allowed = frozenset({ServerOrigin("http", "127.0.0.1", server.server_port)})
        yield gate, server


def talk(gate: Gate, *requests: str, key: bool = True) -> bytes:
    """What the gate answers to requests on one connection."""
    parts = urlsplit(gate.url)
    assert parts.port
    pair = base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
    header = f"Proxy-Authorization: Basic {pair}\r\n" if key else ""
    answers = b""
    with socket.create_connection(("127.0.0.1", parts.port), 5) as client:
        for request in requests:
            client.sendall(f"{request}\r\n{header}\r\n".encode())
            answers += client.recv(1 << 16)
        client.shutdown(socket.SHUT_WR)
        while more := client.recv(1 << 16):
            answers += more
    return answers


def test_a_process_that_does_not_know_the_key_gets_nothing(opened: tuple[Gate, Server]) -> None:
    gate, server = opened
    assert talk(gate, f"GET {server.url}/ HTTP/1.1", key=False).startswith(b"HTTP/1.1 403")
    assert server.requests == []


def test_the_key_does_not_leave_the_gate(opened: tuple[Gate, Server]) -> None:
    gate, server = opened
    assert b"hello" in talk(gate, f"GET {server.url}/a?b HTTP/1.1", f"GET {server.url} HTTP/1.1")
    assert [(path, headers) for _, path, headers in server.requests] == [("/a?b", {}), ("/", {})]


def test_a_second_request_of_a_connection_is_checked_as_the_first(opened: tuple[Gate, Server]) -> None:
    gate, server = opened
    with Server(lambda handler: handler.say(200, b"stranger"), "127.0.0.2") as stranger:
        answers = talk(gate, f"GET {server.url}/ HTTP/1.1", f"GET {stranger.url}/ HTTP/1.1")
        assert b"stranger" not in answers
        assert len(server.requests) == 1
        assert stranger.requests == []


@pytest.mark.parametrize(
    "line", ["", "GET / HTTP/1.1", "CONNECT x:99999 HTTP/1.1", "GET ftp://x/ HTTP/1.1", "x" * 99_999]
)
def test_other_bytes_end_the_connection(opened: tuple[Gate, Server], line: str) -> None:
    gate, server = opened
    with suppress(ConnectionError):
        assert talk(gate, line) == b""
    assert server.requests == []


def test_a_store_that_never_ends_is_left_after_its_client(
    opened: tuple[Gate, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "STORE_ANSWER", replace(STORE_ANSWER, seconds=0.2))
    gate, server = opened
    left = Event()

    def answer(handler: Handler) -> None:
        try:
            while True:
                handler.wfile.write(b"x")
                Event().wait(0.02)
        except ConnectionError:
            left.set()

    server.answer = answer
    assert set(talk(gate, f"GET {server.url}/ HTTP/1.1")) == {ord("x")}
    assert left.wait(5)


# --- the user's proxy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_the_proxy_of_the_environment_is_used(
    is_encrypted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listing = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></ListBucketResult>'
    certificate = write_certificate(tmp_path / "certificate.pem") if is_encrypted else None
    proxy = ForwardProxy()
    monkeypatch.setenv("HTTPS_PROXY" if is_encrypted else "http_proxy", proxy.url.replace("://", "://user:p%40ss@"))
    with Server(lambda handler: handler.say(200, listing), certificate=certificate) as server:
        assert store_at(server.url, "s3", monkeypatch, tmp_path).everything() == {}
        assert len(server.requests) == 1
        assert (
            not any("proxy" in name.lower() for _, _, headers in server.requests for name in headers)
            or not is_encrypted
        )
    pair = base64.b64encode(b"user:p@ss").decode()
    assert [credentials for _, credentials in proxy.asked] == [f"Proxy-Authorization: Basic {pair}"]


def test_a_host_that_goes_without_the_proxy_is_asked_directly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proxy = ForwardProxy()
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(lambda handler: handler.say(403)) as server, pytest.raises(Exception, match="refused access"):
        store_at(server.url, "s3", monkeypatch, tmp_path).everything()
    assert proxy.asked == []


def test_a_proxy_that_drips_its_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def drip(handler: Handler) -> None:
        for _ in range(1000):
            handler.wfile.write(b"x")
            Event().wait(0.05)

    monkeypatch.setattr(gates, "_CONNECT_SECONDS", 0.3)
    with Server(drip) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        store = store_at("https://127.0.0.1:9", "s3", monkeypatch, tmp_path)
        begun = time.monotonic()
        with pytest.raises(ServerFailed, match=r"no connection to https://127\.0\.0\.1:9: the proxy does not answer"):
            store.everything()
        assert time.monotonic() - begun < 10


def test_a_proxy_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(UsageError, match="the environment's proxy is a socks5:// proxy"):
        store_at("https://127.0.0.1:9", "s3", monkeypatch, tmp_path)
