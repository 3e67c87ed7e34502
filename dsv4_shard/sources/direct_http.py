"""GET requests over kept connections, whose bodies the kernel copies straight into the caller's buffer.

The standard library's client parses the head, and `recv_into` fills the buffer: no piece of a body becomes an object of
its own. On 8 MiB ranges from nginx on loopback, 16 at a time, on two cores, that was 1.3 times as fast as parallel
`curl` at 1.0 times its CPU time, where urllib3, obstore's HTTP store and httpx took 2.5, 3.0 and 5.7 times
(`python -m benchmarks.against_clients`). With TLS it was 0.45 times as fast at 3.0 times, since Python's TLS takes one
record of 16 KiB at a time; obstore took 2.3 and httpx 7.2 times.
"""

import os
import select
import ssl
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from dsv4_shard.sources.prefetch import CONNECTIONS
from dsv4_shard.sources.proxies import PlainProxy, ServerOrigin, environment_proxy, origin_of, plain_proxy

_CHUNKED_BYTES = 16 << 10
"""Bytes of a chunked body that one call waits for."""

FAILURES = (OSError, HTTPException)
"""What requests and bodies raise if the connection fails, or if the server does not speak HTTP."""


class Body(Protocol):
    """An answer whose body has not been read. `fields` has its headers, with names in lower case.

    `receive` fills the start of a buffer with the bytes that have arrived, waits only if there are none, and returns
    their number; 0 at the end of the body.
    """

    @property
    def status(self) -> int: ...

    @property
    def fields(self) -> Mapping[str, str]: ...

    def receive(self, buffer: memoryview) -> int: ...


class Route(NamedTuple):
    """A server, and the proxy to it."""

    origin: ServerOrigin
    proxy: PlainProxy | None


def route_to(url: str) -> Route | None:
    """Return the route to a URL's server; None if the user's proxy is of a kind that this module does not speak to."""
    origin = origin_of(url)
    proxy = environment_proxy(origin)
    if proxy is None:
        return Route(origin, None)
    plain = plain_proxy(proxy)
    return Route(origin, plain) if plain else None


class _Response(HTTPResponse):
    """`HTTPResponse.readinto` waits until the buffer is full, by which a server that drips is not noticed."""

    @property
    def fields(self) -> Mapping[str, str]:
        """The headers. See `Body`."""
        return {name.lower(): value for name, value in self.headers.items()}

    def receive(self, buffer: memoryview) -> int:
        """Fill the start of `buffer` with bytes of the body that have arrived. See `Body`."""
        if self.isclosed():
            return 0
        if self.chunked:
            return self.readinto(buffer[:_CHUNKED_BYTES])
        if self.length is None:
            return self.fp.readinto1(buffer)
        count = self.fp.readinto1(buffer[: self.length])
        self.length -= count
        if not self.length:
            self.read()  # nothing is left, but this frees the connection
        return count


@dataclass(slots=True)
class Connections:
    """Open connections that wait for their next request. Thread-safe.

    `trust` makes the settings of TLS when they are first needed.
    """

    trust: Callable[[], ssl.SSLContext]
    _idle: dict[Route, list[HTTPConnection]] = field(default_factory=lambda: defaultdict(list))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _process: int = field(default_factory=os.getpid)
    _tls: ssl.SSLContext | None = None

    @contextmanager
    def get(self, url: str, route: Route, headers: Mapping[str, str], timeout: float) -> Iterator[Body]:
        """Send a GET, and give its answer inside the block. Redirects are answers like others.

        The connection is kept if the body was read to its end.

        Args:
            url: An HTTP URL in printable ASCII.
            route: See `route_to`.
            headers: Headers to send.
            timeout: Seconds of silence, at any point, after which TimeoutError is raised.

        Raises:
            FAILURES: The connection failed, in the block too.
        """
        connection = self._take(route, timeout)
        try:
            connection.request("GET", _target(url, route), headers=_headers(route, headers))
            with closing(connection.getresponse()) as response:
                assert isinstance(response, _Response), "the connection's response_class"
                yield response
                is_free = response.isclosed() and not response.will_close
        except BaseException:
            connection.close()
            raise
        if is_free:
            self._keep(route, connection)
        else:
            connection.close()

    def _take(self, route: Route, timeout: float) -> HTTPConnection:
        """Return a connection that waits, or a new one, which connects with its first request."""
        with self._lock:
            if self._process != os.getpid():  # forked: these are the parent's
                self._process, self._idle = os.getpid(), defaultdict(list)
            waiting = self._idle[route]
            while waiting:
                connection = waiting.pop()
                if _is_silent(connection):
                    connection.sock.settimeout(timeout)
                    return connection
                connection.close()
            if self._tls is None and route.origin.scheme == "https":
                self._tls = self.trust()
                self._tls.set_alpn_protocols(["http/1.1"])
        return _new_connection(route, timeout, self._tls)

    def _keep(self, route: Route, connection: HTTPConnection) -> None:
        with self._lock:
            if len(self._idle[route]) < CONNECTIONS and self._process == os.getpid():
                self._idle[route].append(connection)
                return
        connection.close()


def _new_connection(route: Route, timeout: float, tls: ssl.SSLContext | None) -> HTTPConnection:
    (scheme, host, port), proxy = route
    first = (proxy.host, proxy.port) if proxy else (host, port)
    if scheme == "http":
        connection = HTTPConnection(*first, timeout=timeout)
    else:
        connection = HTTPSConnection(*first, timeout=timeout, context=tls)
        if proxy:
            connection.set_tunnel(host, port, _login(proxy))
    connection.response_class = _Response
    return connection


def _is_silent(connection: HTTPConnection) -> bool:
    """Return whether the server neither closed the connection nor sent something unasked."""
    if connection.sock is None:
        return False
    look = select.poll()
    look.register(connection.sock, select.POLLIN)
    return not look.poll(0)


def _target(url: str, route: Route) -> str:
    """Return what the request line names: path and query, or the whole URL for a proxy that passes http:// on."""
    parts = urlsplit(url.replace(" ", "%20"))
    path = parts.path or "/"
    target = f"{path}?{parts.query}" if parts.query else path
    return f"{route.origin}{target}" if route.proxy and route.origin.scheme == "http" else target


def _headers(route: Route, headers: Mapping[str, str]) -> dict[str, str]:
    passes_on = route.proxy is not None and route.origin.scheme == "http"
    return {**headers, **(_login(route.proxy) if route.proxy and passes_on else {})}


def _login(proxy: PlainProxy) -> dict[str, str]:
    return {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
