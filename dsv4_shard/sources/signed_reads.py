"""Ranges of a store's objects by signed URLs, received straight into the caller's buffer.

obstore signs the URLs and this module reads them, which takes half of the CPU time that reading through obstore and the
gate takes (`python -m benchmarks --only network`). It only ever helps: bytes that do not come this way come through
obstore, which tries again, renews credentials, and knows the errors. No redirect is followed.
"""

import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Event
from typing import TYPE_CHECKING

from dsv4_shard.sources.direct_http import FAILURES, Body, Connections, Route
from dsv4_shard.sources.gate import Gate
from dsv4_shard.sources.proxies import ServerOrigin, origin_of, plain_proxy
from dsv4_shard.sources.remote import Listed

if TYPE_CHECKING:
    from obstore.store import ObjectStore

LEAST_BYTES = 256 << 10
"""Shorter reads gain nothing."""

_VALID_SECONDS = 900
"""How long a signed URL is valid: as long as the shortest session of any store. It is used half as long."""

_PASSING = (408, 412, 416, 429)
"""Client errors that say nothing about signed URLs."""


def may_sign(scheme: str) -> bool:
    """Return whether signing a URL needs no server and no credentials that are not there.

    Google's signatures may need another server and a right of their own, and Azure's were not run.
    """
    return scheme == "s3" and not os.environ.get("AWS_SKIP_SIGNATURE")


@dataclass(slots=True)
class SignedReads:
    """Reads by signed URLs until the store, its account or the user's proxy turns out not to allow them.

    `client` signs, the servers that `gate` allows are asked, through the proxy that `proxy_of` gives. An answer may
    take `seconds`, and so may silence.
    """

    client: "ObjectStore"
    gate: Gate
    proxy_of: Callable[[ServerOrigin], str | None]
    seconds: float
    is_allowed: bool
    _connections: Connections = field(default_factory=lambda: Connections(ssl.create_default_context))
    _urls: dict[str, tuple[str, float]] = field(default_factory=dict)

    def read(self, name: str, listed: Listed, start: int, buffer: memoryview, stopped: Event) -> int:
        """Fill the start of `buffer` with bytes of an object from `start` on; return how many came, without any error.

        Fewer than wanted come if anything is not as it should be, or if `stopped` is set: 0 where it is no use at all.
        """
        if not self.is_allowed or len(buffer) < LEAST_BYTES:
            return 0
        done = 0
        try:
            url = self._url(name)
            route = self._route(url)
            if route is None:
                self.is_allowed = False
                return 0
            headers = {
                "Range": f"bytes={start}-{start + len(buffer) - 1}",
                "If-Match": listed.stamp,
                "Accept-Encoding": "identity",
            }
            end = time.monotonic() + self.seconds
            with self._connections.get(url, route, headers, self.seconds) as answer:
                if not self._is_right(answer, listed, start, start + len(buffer)):
                    return 0
                while not stopped.is_set() and time.monotonic() < end:
                    count = answer.receive(buffer[done:])
                    done += count
                    if not count or done == len(buffer):
                        break
        except ssl.SSLError:
            self.is_allowed = False  # obstore trusts other certificates
        except FAILURES:
            pass
        return done

    def _url(self, name: str) -> str:
        """Return the signed URL of an object. Raises OSError if none can be made."""
        import obstore
        from obstore.exceptions import BaseError

        url, until = self._urls.get(name, ("", 0.0))
        if time.monotonic() < until:
            return url
        until = time.monotonic() + _VALID_SECONDS / 2
        try:
            url = str(obstore.sign(self.client, "GET", name, timedelta(seconds=_VALID_SECONDS)))  # type: ignore[call-overload]
        except (BaseError, ValueError, TypeError, FileNotFoundError) as error:
            self.is_allowed = False
            raise OSError("not signed") from error
        self._urls[name] = url, until
        return url

    def _route(self, url: str) -> Route | None:
        """Return the route to a signed URL's server; None if it may not be asked, or not from here."""
        origin = origin_of(url)
        if origin not in self.gate.origins:
            return None
        proxy = self.proxy_of(origin)
        plain = plain_proxy(proxy) if proxy else None
        return None if proxy and plain is None else Route(origin, plain)

    def _is_right(self, answer: Body, listed: Listed, start: int, stop: int) -> bool:
        """Return whether an answer is the range of the object that was listed. One that refuses ends signed reads."""
        if answer.status < 500 and answer.status not in (206, *_PASSING):
            self.is_allowed = False
        fields: Mapping[str, str] = answer.fields
        return (
            answer.status == 206
            and fields.get("etag") == listed.stamp
            and fields.get("content-range") == f"bytes {start}-{stop - 1}/{listed.nbytes}"
            and fields.get("content-length") == str(stop - start)
            and fields.get("content-encoding", "identity") == "identity"
        )
