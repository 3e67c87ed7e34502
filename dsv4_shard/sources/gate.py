"""A proxy on loopback, inside this process, through which an object store's client reaches the store's hosts alone.

obstore follows redirects to any host, sends them the session token and believes what they answer; it reads a body of
any size whole if the answer is an error or a listing. It has no setting against either, but takes a proxy. TLS stays
end to end: of https:// the gate sees the host and how many bytes pass, and `splice` moves them inside the kernel.
"""

import base64
import fcntl
import os
import re
import secrets
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

from dsv4_shard.errors import UsageError
from dsv4_shard.limits import GATE_HEAD, STORE_ANSWER
from dsv4_shard.sources.client_environment import check_client_environment
from dsv4_shard.sources.deadline import Deadline, Overdue, in_time
from dsv4_shard.sources.proxies import ServerOrigin, origin_of, plain_proxy

_PIPE_BYTES = 1 << 20
"""Bytes that one call moves: the largest pipe that Linux gives without privileges."""

_ASKS_BYTES = 100
"""A piece sent to the store that is shorter asks for nothing, so it allows no further answer."""

_END = b"\r\n\r\n"

_LINE = re.compile(rb"([A-Z]+) (\S+) (HTTP/1\.[01])\r\n", re.ASCII)

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n", re.IGNORECASE)

_PASS = re.compile(rb"\r\nproxy-authorization:[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)", re.IGNORECASE)


class _Refused(Exception):
    """The request is not passed on."""


@dataclass
class _GateState:
    """What the threads of a gate share. `allowed` is None while the gate learns: it then refuses all and notes it."""

    key: bytes
    proxy_of: Callable[[ServerOrigin], str | None]
    allowed: frozenset[ServerOrigin] | None = None
    asked: set[ServerOrigin] = field(default_factory=set)
    refused: list[ServerOrigin] = field(default_factory=list)
    flooded: list[ServerOrigin] = field(default_factory=list)
    unreachable: dict[ServerOrigin, str] = field(default_factory=dict)


class Gate:
    """Listens until it is garbage-collected, or the process ends.

    Attributes:
        url: URL for the client's option `proxy_url`, with a key that no other process knows.
    """

    def __init__(self, proxy_of: Callable[[ServerOrigin], str | None]) -> None:
        """`proxy_of` gives the user's own proxy for an origin, None to connect directly."""
        key = secrets.token_hex(16)
        self._state = _GateState(base64.b64encode(f"gate:{key}".encode()), proxy_of)
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://gate:{key}@127.0.0.1:{listener.getsockname()[1]}"
        threading.Thread(target=_listen, args=(listener, self._state), daemon=True).start()
        weakref.finalize(self, _shut, listener)

    def learn(self, ask: Callable[[], None]) -> None:
        """Allow the origins that `ask` connects to; the gate answers these requests itself. Before, it allows none.

        Raises UsageError if the user's proxy for one of them is of an unsupported kind.
        """
        ask()
        for origin in self._state.asked:
            _proxy_address(self._state.proxy_of(origin))
        self._state.allowed = frozenset(self._state.asked)

    @property
    def origins(self) -> frozenset[ServerOrigin]:
        """The origins that are allowed."""
        return self._state.allowed or frozenset()

    @property
    def stopped(self) -> bool:
        """Whether `refused` or `flooded` is set, so that asking again is useless."""
        return bool(self._state.refused or self._state.flooded)

    @property
    def refused(self) -> ServerOrigin | None:
        """The first origin that was asked for and is not allowed."""
        return next(iter(self._state.refused), None)

    @property
    def flooded(self) -> ServerOrigin | None:
        """The first origin that answered with more than STORE_ANSWER gives."""
        return next(iter(self._state.flooded), None)

    @property
    def unreachable(self) -> tuple[ServerOrigin, str] | None:
        """An allowed origin whose last connection failed, and why."""
        return next(iter(list(self._state.unreachable.items())), None)


def _proxy_address(proxy: str | None) -> tuple[str, int, bytes] | None:
    """Return host, port and the header with credentials of a user's proxy.

    Raises UsageError if it is no http:// URL.
    """
    if proxy is None:
        return None
    found = plain_proxy(proxy)
    if found is None:
        check_client_environment()
        scheme = proxy.partition("://")[0]
        raise UsageError(
            f"the environment's proxy is a {scheme}:// proxy; object stores need an http:// proxy",
            hint="Set HTTPS_PROXY to an http:// proxy, or add the store's host to NO_PROXY.",
        )
    login = f"Proxy-Authorization: {found.authorization}\r\n" if found.authorization else ""
    return found.host, found.port, login.encode()


# --- threads -------------------------------------------------------------------------------------------------------


def _shut(listener: socket.socket) -> None:
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def _listen(listener: socket.socket, state: _GateState) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_serve, args=(client, state), daemon=True).start()


def _serve(client: socket.socket, state: _GateState) -> None:
    """Pass one connection on, or refuse it. Every way out closes it."""
    with closing(client), suppress(OSError, _Refused):
        head = _read_head(client)
        method, target, _ = _request_line(head)
        origin = _origin(method, target)
        _check(client, head, origin, state)
        with closing(_connect(client, origin, method, state)) as store:
            traffic = _Traffic(origin, client, store, state)
            answers = threading.Thread(target=traffic.pass_answers, daemon=True)
            answers.start()
            try:
                if method == b"CONNECT":
                    traffic.pass_all()
                else:
                    traffic.pass_requests(head)
            finally:
                traffic.end_requests()
                answers.join(STORE_ANSWER.seconds)  # a store may never end its answer
                traffic.end()


def _check(client: socket.socket, head: bytes, origin: ServerOrigin, state: _GateState) -> None:
    """Note the origin. Raises _Refused, after an answer, if it is not allowed or the key is not ours.

    obstore drops the key when it follows a redirect to another server, which nobody else asks this gate for.
    """
    key = _PASS.search(head)
    is_ours = key is not None and secrets.compare_digest(key[1], b"Basic " + state.key)
    if state.allowed is None and is_ours:
        state.asked.add(origin)
    elif state.allowed is not None and origin not in state.allowed:
        state.refused.append(origin)
    elif is_ours:
        return
    client.sendall(b"HTTP/1.1 403 Forbidden" + _EMPTY)
    raise _Refused


_EMPTY = b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

_CONNECT_SECONDS = 5.0
"""obstore's own limit, which ends at the gate."""


def _connect(client: socket.socket, origin: ServerOrigin, method: bytes, state: _GateState) -> socket.socket:
    """Return a connection to the origin, through the user's proxy if there is one. Answers a CONNECT.

    Raises _Refused, after the reason was noted, if there is none.
    """
    proxy = _proxy_address(state.proxy_of(origin))
    try:
        store = socket.create_connection(proxy[:2] if proxy else (origin.host, origin.port), _CONNECT_SECONDS)
        if method == b"CONNECT" and proxy:
            host = f"[{origin.host}]" if ":" in origin.host else origin.host
            store.sendall(f"CONNECT {host}:{origin.port} HTTP/1.1\r\nHost: {host}:{origin.port}\r\n".encode()
                          + proxy[2] + b"\r\n")  # fmt: skip
            status = in_time(lambda: _read_head(store), Deadline(_CONNECT_SECONDS)).split(b" ", 2)[1]
            if status != b"200":
                raise OSError(0, f"the environment's proxy answered {status.decode(errors='replace')[:20]}")
    except (OSError, _Refused, IndexError, Overdue) as error:
        state.unreachable[origin] = getattr(error, "strerror", None) or str(error) or "the proxy does not answer"
        client.sendall(b"HTTP/1.1 502 Bad Gateway" + _EMPTY)
        raise _Refused from None
    state.unreachable.pop(origin, None)
    store.settimeout(None)
    store.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if method == b"CONNECT":
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    return store


class _Traffic:
    """The bytes of one connection, both ways."""

    def __init__(self, origin: ServerOrigin, client: socket.socket, store: socket.socket, state: _GateState) -> None:
        self._origin, self._client, self._store, self._state = origin, client, store, state
        self._answered = 0

    def pass_answers(self) -> None:
        """Pass on what the store sends, at most STORE_ANSWER bytes after each request."""
        with suppress(OSError), _pipe() as pipe:
            while nbytes := _splice(self._store, self._client, pipe, _PIPE_BYTES):
                self._answered += nbytes
                if self._answered > STORE_ANSWER.nbytes:
                    self._state.flooded.append(self._origin)
                    break
        self.end()

    def end(self) -> None:
        """End both connections."""
        for end in (self._store, self._client):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def pass_all(self) -> None:
        """Pass on what the client sends."""
        with _pipe() as pipe:
            while nbytes := _splice(self._client, self._store, pipe, _PIPE_BYTES):
                if nbytes >= _ASKS_BYTES:
                    self._answered = 0

    def pass_requests(self, head: bytes) -> None:
        """Pass on requests of http://, each checked and without the gate's key. Raises _Refused."""
        proxy = _proxy_address(self._state.proxy_of(self._origin))
        with _pipe() as pipe:
            while True:
                method, target, version = _request_line(head)
                origin = _origin(method, target)
                if origin != self._origin:
                    raise _Refused
                place = target if proxy else _path(target)
                rest = _PASS.sub(b"", head[head.index(b"\r\n") :])
                extra = proxy[2] if proxy else b""
                self._answered = 0
                self._store.sendall(b"%s %s %s%s" % (method, place, version, rest[:-2]) + extra + b"\r\n")
                left = _body_nbytes(head)
                while left:
                    nbytes = _splice(self._client, self._store, pipe, min(left, _PIPE_BYTES))
                    if not nbytes:
                        return
                    left -= nbytes
                head = _read_head(self._client)

    def end_requests(self) -> None:
        """Tell the store that no request follows."""
        with suppress(OSError):
            self._store.shutdown(socket.SHUT_WR)


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    source, sink = os.pipe2(os.O_CLOEXEC)
    try:
        with suppress(OSError):  # beyond the user's share of large pipes
            fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        yield source, sink
    finally:
        os.close(source)
        os.close(sink)


def _splice(source: socket.socket, sink: socket.socket, pipe: tuple[int, int], most: int) -> int:
    """Move at most `most` bytes, as soon as there are some; return how many, 0 at the end."""
    moved = left = os.splice(source.fileno(), pipe[1], most, flags=os.SPLICE_F_MOVE)
    while left:
        left -= os.splice(pipe[0], sink.fileno(), left, flags=os.SPLICE_F_MOVE)
    return moved


# --- requests ------------------------------------------------------------------------------------------------------


def _read_head(end: socket.socket) -> bytes:
    """Read one head, to its empty line and not a byte further. Raises _Refused if it ends early or is too long."""
    head = b""
    while not head.endswith(_END):
        seen = end.recv(4096, socket.MSG_PEEK)
        stop = (head + seen).find(_END)
        head += end.recv(len(seen) if stop < 0 else stop + len(_END) - len(head))
        if not seen or len(head) > GATE_HEAD.nbytes:
            raise _Refused
    return head


def _request_line(head: bytes) -> tuple[bytes, bytes, bytes]:
    found = _LINE.match(head)
    if found is None:
        raise _Refused
    return found[1], found[2], found[3]


def _origin(method: bytes, target: bytes) -> ServerOrigin:
    """Return where a request to a proxy goes. Raises _Refused if it does not say so."""
    try:
        text = target.decode("ascii")
        return origin_of(f"https://{text}" if method == b"CONNECT" else text)
    except ValueError:
        raise _Refused from None


def _path(target: bytes) -> bytes:
    """Return path and query of an absolute URL, as they stand."""
    rest = target.split(b"://", 1)[1]
    start = re.search(rb"[/?]", rest)
    path = rest[start.start() :] if start else b"/"
    return path if path.startswith(b"/") else b"/" + path


def _body_nbytes(head: bytes) -> int:
    """Return the length of a request's body. Raises _Refused if it is not told beforehand."""
    if b"\r\ntransfer-encoding:" in head.lower():
        raise _Refused
    found = _LENGTH.search(head)
    return int(found[1]) if found else 0
