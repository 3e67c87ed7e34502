"""Requests to the Hub, straight into the caller's buffer or through huggingface_hub's client."""

import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from dsv4_shard.errors import (
    ServerFailed,
)
from dsv4_shard.limits import Limit
from dsv4_shard.sources.deadline import Deadline, Overdue, in_time
from dsv4_shard.sources.direct_http import FAILURES, Body, Connections, route_to
from dsv4_shard.sources.hub_errors import AGAIN, client_error, offline_error, transport_errors
from dsv4_shard.sources.retry import Transient
from dsv4_shard.text.sanitize import short_name

_ERROR_BYTES = 64 << 10
"""Bytes of an error's body that are read, to tell what the server says."""

_FRAMING = ("content-encoding", "content-length", "transfer-encoding")
"""Headers that say how a body was sent."""

T = TypeVar("T")


class Location(NamedTuple):
    """URL of a file, and whether its host is the Hub itself, which gets the token."""

    url: str
    is_hub: bool


def is_server(url: str) -> bool:
    """Return whether a URL is an HTTP URL with a host. Raises ValueError if it is not a URL."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isascii() and url.isprintable()


@contextmanager
def open_url(location: Location, headers: Mapping[str, str], connections: Connections) -> Iterator[Body]:
    """Open a GET inside the block. Redirects are not followed. Raises Transient if the connection fails.

    What the user's proxy allows goes straight into the caller's buffer, the rest through huggingface_hub's client.
    """
    from huggingface_hub import constants

    host, route = urlsplit(location.url).netloc, route_to(location.url)
    if constants.HF_HUB_OFFLINE:
        raise offline_error(host)
    if route is None:
        with stream(location, headers) as response:
            yield _StreamedBody(response)
        return
    try:
        with connections.get(
            location.url, route, _all_headers(location, headers), constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as answer:
            yield answer
    except FAILURES as error:
        proxy = f" through the proxy {route.proxy.host}:{route.proxy.port}" if route.proxy else ""
        raise Transient(f"{host}{proxy}: {type(error).__name__}: {short_name(str(error))}".rstrip(": ")) from None


@contextmanager
def stream(location: Location, headers: Mapping[str, str]) -> Iterator[Any]:
    """Open a GET inside the block by huggingface_hub's client. Raises as `open_url` does."""
    from huggingface_hub import constants, get_session

    # httpx does not follow redirects: it would drop the token, or send it to hosts that must not get it.
    with (
        transport_errors(urlsplit(location.url).netloc),
        get_session().stream(
            "GET",
            location.url,
            headers=_all_headers(location, headers),
            follow_redirects=False,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        ) as response,
    ):
        yield response


def _all_headers(location: Location, headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a request for a file. Only the Hub gets the token."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return {**(build_hf_headers() if location.is_hub else {}), **headers, "Accept-Encoding": "identity"}


class _StreamedBody:
    """A streamed response of httpx as a `Body`."""

    def __init__(self, response: Any) -> None:
        self.status: int = response.status_code
        self.fields: Mapping[str, str] = response.headers
        self._pieces = response.iter_raw()
        self._rest = memoryview(b"")

    def receive(self, buffer: memoryview) -> int:
        """Fill the start of `buffer`. See `Body`."""
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def whole_error(answer: Body, url: str) -> Any:
    """Return an error's answer as a response of httpx with the first _ERROR_BYTES of its body, for huggingface_hub."""
    content, done = memoryview(bytearray(_ERROR_BYTES)), 0
    while count := answer.receive(content[done:]):
        done += count
    library = _httpx()
    fields = {name: value for name, value in answer.fields.items() if name not in _FRAMING}
    return library.Response(
        answer.status, headers=fields, content=bytes(content[:done]), request=library.Request("GET", url)
    )


def _httpx() -> ModuleType:
    """Return the library that huggingface_hub asks by: httpx in its release 1, httpx2 in 2."""
    return sys.modules[client_error().__module__.partition(".")[0]]


def trusted_certificates() -> ssl.SSLContext:
    """Return the certificates that huggingface_hub's client trusts by default: SSL_CERT_FILE and its kin count."""
    made: ssl.SSLContext = _httpx().create_ssl_context()
    return made


def ask(host: str, call: Callable[[], T], limit: Limit) -> T:
    """Return what `call` returns, an answer of the Hub that is read whole, within the limit.

    Raises the errors of `transport_errors`, and ServerFailed if the call does not end in time. The client's own
    timeouts end neither a head that drips nor a chain of slow redirects.
    """
    try:
        with transport_errors(host, limit):
            return in_time(call, Deadline(limit.seconds))
    except Overdue:
        raise ServerFailed(f"{host}: no complete answer within {limit.seconds:g} s", hint=AGAIN) from None
