"""The user's proxy for a server, from the environment."""

import base64
import os
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

PORTS = {"http": 80, "https": 443}


class ServerOrigin(NamedTuple):
    """Where a request goes."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == PORTS[self.scheme] else f":{self.port}")


class PlainProxy(NamedTuple):
    """A proxy that speaks HTTP without TLS. `authorization` is its Proxy-Authorization, empty without a login."""

    host: str
    port: int
    authorization: str


def origin_of(url: str) -> ServerOrigin:
    """Return the server of a URL. Raises ValueError if the URL is malformed or is not an HTTP URL."""
    parts = urlsplit(url)
    if parts.scheme not in PORTS or not parts.hostname:
        raise ValueError("not an HTTP URL")
    return ServerOrigin(parts.scheme, parts.hostname, parts.port or PORTS[parts.scheme])


def environment_proxy(origin: ServerOrigin) -> str | None:
    """Return the proxy that HTTPS_PROXY and its kin name for a server; None to connect directly."""
    proxies = getproxies_environment()
    if proxy_bypass_environment(origin.host, proxies):
        return None
    return proxies.get(origin.scheme) or proxies.get("all")


def proxy_from_environment(prefix: str) -> Callable[[ServerOrigin], str | None]:
    """Return the function that gives the user's proxy: by `{prefix}_PROXY_URL`, else by `environment_proxy`."""

    def proxy_of(origin: ServerOrigin) -> str | None:
        """The proxy for an origin; None to connect directly."""
        own = os.environ.get(f"{prefix}_PROXY_URL")
        if own:
            excluded = proxy_bypass_environment(origin.host, {"no": os.environ.get(f"{prefix}_PROXY_EXCLUDES", "")})
            return None if excluded else own
        return environment_proxy(origin)

    return proxy_of


def plain_proxy(proxy: str) -> PlainProxy | None:
    """Return host, port and login of an http:// proxy; None if it is of another kind, or malformed."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        return None
    if parts.scheme != "http" or not host:
        return None
    if parts.username is None:
        return PlainProxy(host, port, "")
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return PlainProxy(host, port, "Basic " + base64.b64encode(pair.encode()).decode())
