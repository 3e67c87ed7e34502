"""Object stores by URL (s3://, gs://, az://), through obstore: read, list, put.

An object is read only with the content that was listed: each request names its ETag, and so must each answer. obstore
itself retries failed requests, and resumes interrupted bodies. Ranges come by URLs that it signed, where it can.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from threading import Event
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

import xxhash

from dsv4_shard.errors import BadAnswer, NotFound, ServerFailed, Unreachable, UsageError
from dsv4_shard.limits import STORE_ANSWER, STORE_CALL, STORE_LISTING
from dsv4_shard.sources.client_environment import check_client_environment
from dsv4_shard.sources.deadline import Deadline, Overdue, in_time
from dsv4_shard.sources.gate import Gate
from dsv4_shard.sources.object_store_errors import (
    AGAIN,
    CREDENTIALS,
    VARIABLES,
    first_line,
    gate_error,
    replaced,
    translate,
)
from dsv4_shard.sources.prefetch import BLOCK_BYTES
from dsv4_shard.sources.proxies import proxy_from_environment
from dsv4_shard.sources.remote import Listed, RemoteSource
from dsv4_shard.sources.remote_headers import HeaderCache, RemoteHeaders, read_headers, read_small, wanted_headers
from dsv4_shard.sources.signed_reads import SignedReads, may_sign
from dsv4_shard.text.sanitize import short, short_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obstore import GetOptions, ObjectMeta
    from obstore.store import ObjectStore, RetryConfig

_SUPPORTED = "Supported are s3://bucket/prefix, gs://bucket/prefix and az://container/prefix."

_BUCKET = re.compile(r"[\w.$-]+", re.ASCII)

_RETRIES: "RetryConfig" = {"max_retries": 10, "retry_timeout": timedelta(seconds=180)}
"""obstore's default. The last attempt begins within this time and a wait of at most 15 s."""

_PIECE_BYTES = 1 << 20
"""Smallest piece of a body that obstore hands over."""

PART_BYTES = 8 << 20
"""Part of an upload: long enough to hide its latency, short enough to beat the time limit on a slow connection."""

_MAX_IN_FLIGHT_BYTES = 4 * PART_BYTES
"""Bytes of one object that are uploaded at a time."""

_CODED = re.compile(r"%[0-9A-Fa-f]{2}")
"""A character in the form of URLs, which obstore decodes in prefixes."""

_MAX_PARTS = 10_000
"""Most parts of an object in S3."""

_UNITS = {"ms": 0.001, "s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600}
"""Units in which a time is written for obstore: some of those that it knows."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Store:
    """The objects below `url`. Each method raises an Unreachable with a hint if its request fails.

    `client` reaches the store through `gate`. A call that shows no sign of life for `seconds` is given up. Bytes come
    by `signed`, and by `client` what does not.
    """

    url: str
    client: "ObjectStore"
    gate: Gate
    signed: SignedReads
    seconds: float

    @property
    def place(self) -> str:
        """URL of the bucket."""
        return "/".join(self.url.split("/")[:3])

    def everything(self) -> dict[str, Listed]:
        """Return name → object for all objects below the URL.

        Raises BadAnswer if there are more than STORE_LISTING gives, or if the store does not end its listing in time.
        """
        import obstore

        with self.errors(self.url):
            return _listed(self._entries(iter(obstore.list(self.client))))

    def modified_ns(self) -> dict[str, int]:
        """Return name → time of the last modification of all objects, in ns since 1970. Raises as `everything` does."""
        import obstore

        with self.errors(self.url):
            entries = self._entries(iter(obstore.list(self.client)))
            return {entry["path"]: int(entry["last_modified"].timestamp()) * 10**9 for entry in entries}

    def _entries(self, pages: "Iterator[Sequence[ObjectMeta]]") -> "Iterator[ObjectMeta]":
        """Yield the entries of a listing within its limits. A store may send empty pages, or the same one, for ever."""
        seen: set[str] = set()
        deadline = Deadline(STORE_LISTING.seconds)
        while (page := self._next_page(pages, deadline)) is not None:
            for entry in page:
                if entry["path"] in seen:
                    raise BadAnswer(f"{self.url}: lists {short_name(entry['path'])} twice")
                seen.add(entry["path"])
                yield entry
            if len(seen) > STORE_LISTING.count:
                raise BadAnswer(
                    f"{self.url}: lists more than {STORE_LISTING.count:,} objects",
                    hint="Name the prefix that holds one checkpoint or one result.",
                )

    def _next_page(self, pages: "Iterator[Sequence[ObjectMeta]]", deadline: Deadline) -> "Sequence[ObjectMeta] | None":
        """Return the next page, None after the last."""
        try:
            return self._in_time(lambda: next(pages, None), deadline)
        except Overdue:
            raise BadAnswer(f"{self.url}: the listing did not end within {STORE_LISTING.seconds} seconds") from None

    def _in_time(self, call: Callable[[], T], deadline: Deadline) -> T:
        """Return what `call` returns. It is left behind at the deadline, or if the gate refuses it.

        Each request of obstore ends in time, but a call may be many, and it asks again where the gate refuses.
        """
        try:
            answer = in_time(call, deadline, lambda: self.gate.stopped)
        except Exception:
            if not self.gate.stopped:
                raise
        if self.gate.stopped:
            raise gate_error(self.gate, self.url)
        return answer

    def read(self, name: str, listed: Listed, start: int, buffer: memoryview, stopped: Event) -> None:
        """Fill `buffer` with bytes of an object from `start` on.

        Args:
            name: Name of the object below the URL.
            listed: The object as it was listed.
            start: First byte.
            buffer: Where the bytes go; its length is the number of bytes to read.
            stopped: Ends the reading when set.

        Raises:
            SourceChanged: The object is not the one that was listed.
            BadAnswer: The store gave other bytes than requested.
            Unreachable: The request failed, or `stopped` was set.
        """
        for done in range(0, len(buffer), BLOCK_BYTES):
            self._read_block(name, listed, start + done, buffer[done : done + BLOCK_BYTES], stopped)

    def _read_block(self, name: str, listed: Listed, start: int, buffer: memoryview, stopped: Event) -> None:
        """Fill `buffer` with one request, as `read` does. No more than BLOCK_BYTES fit through the gate."""
        with self.errors(f"{self.url}/{name}") as deadline:
            done = self._in_time(lambda: self.signed.read(name, listed, start, buffer, stopped), deadline)
            if done < len(buffer):
                self._in_time(lambda: self._fill(name, listed, start + done, buffer[done:], stopped), deadline)

    def _fill(self, name: str, listed: Listed, start: int, buffer: memoryview, stopped: Event) -> None:
        import obstore

        if stopped.is_set():
            raise Unreachable(f"{name}: cancelled, because the run ended")
        what, done = f"{self.url}/{name}", 0
        options: GetOptions = {"if_match": listed.stamp, "range": (start, start + len(buffer))}
        answer = obstore.get(self.client, name, options=options)
        if _quoted(answer.meta["e_tag"], name) != listed.stamp:
            raise replaced(what)  # the store ignores If-Match
        if answer.range != (start, start + len(buffer)) or answer.meta["size"] != listed.nbytes:
            raise BadAnswer(
                f"{what}: sent bytes {answer.range[0]} to {answer.range[1]} of {answer.meta['size']}, "
                f"not {start} to {start + len(buffer)} of {listed.nbytes}"
            )
        for piece in answer.stream(min_chunk_size=_PIECE_BYTES):
            if stopped.is_set():
                raise Unreachable(f"{name}: cancelled, because the run ended")
            if len(piece) > len(buffer) - done:
                raise BadAnswer(f"{what}: sent more than the announced {len(buffer)} bytes")
            buffer[done : done + len(piece)] = memoryview(piece)
            done += len(piece)
        if done < len(buffer):
            raise BadAnswer(f"{what}: ended {len(buffer) - done} bytes too early")

    def put(self, name: str, content: bytes) -> Listed:
        """Write a small object in one request, and return its listing entry."""
        import obstore

        with self.errors(f"{self.url}/{name}") as deadline:
            made = self._in_time(lambda: obstore.put(self.client, name, content, use_multipart=False), deadline)
        return Listed(len(content), self._stamp(name, made["e_tag"]))

    def put_parts(self, name: str, pieces: Iterator[memoryview], nbytes: int) -> Listed:
        """Write an object of `nbytes` bytes in parts, and return its listing entry. It appears complete or not at all.

        An error that `pieces` raises ends the upload, and is raised.
        """
        import obstore

        part = max(PART_BYTES, -(-nbytes // _MAX_PARTS))
        parallel = max(1, _MAX_IN_FLIGHT_BYTES // part)
        with self.errors(f"{self.url}/{name}") as deadline:
            taken = _renewing(pieces, deadline)
            made = self._in_time(
                lambda: obstore.put(
                    self.client, name, taken, use_multipart=True, chunk_size=part, max_concurrency=parallel
                ),
                deadline,
            )
        return Listed(nbytes, self._stamp(name, made["e_tag"]))

    def copy(self, name: str, twin: str) -> Listed:
        """Copy the object `name` to `twin` on the server; return the new object's listing entry."""
        import obstore

        with self.errors(f"{self.url}/{twin}") as deadline:
            self._in_time(lambda: obstore.copy(self.client, name, twin), deadline)
            deadline.renew()
            made = self._in_time(lambda: obstore.head(self.client, twin), deadline)
        return Listed(made["size"], _quoted(made["e_tag"], twin))

    def delete(self, names: "Sequence[str]") -> None:
        """Delete existing objects."""
        import obstore

        with self.errors(self.url) as deadline:
            self._in_time(lambda: obstore.delete(self.client, names), deadline)

    def _stamp(self, name: str, tag: str | None) -> str:
        """Return an object's ETag in quotes, with a request for it if the store's answer had none."""
        import obstore

        with self.errors(f"{self.url}/{name}") as deadline:
            return _quoted(tag or self._in_time(lambda: obstore.head(self.client, name), deadline)["e_tag"], name)

    @contextmanager
    def errors(self, what: str) -> Iterator[Deadline]:
        """Turn obstore's errors inside the block into errors of this package, also for its deadline, which it gets.

        `what` is the URL that was requested.
        """
        from obstore.exceptions import BaseError

        deadline = Deadline(self.seconds)
        try:
            yield deadline
        except Overdue:
            raise ServerFailed(f"{what}: the store did not respond within {self.seconds:g} s", hint=AGAIN) from None
        except (BaseError, FileNotFoundError) as error:
            if self.gate.stopped:
                raise gate_error(self.gate, self.url) from None
            check_client_environment()
            raise translate(error, what, self.place, deadline.waited, self.gate.unreachable) from None


def _renewing(pieces: Iterator[memoryview], deadline: Deadline) -> Iterator[memoryview]:
    """Yield the pieces. That one is asked for, or comes, is a sign of life."""
    for piece in pieces:
        deadline.renew()
        yield piece
        deadline.renew()


@dataclass(frozen=True, slots=True)
class StoreFiles:
    """The objects of a listing, as a `remote.Remote`."""

    store: Store
    listing: Mapping[str, Listed]

    @property
    def place(self) -> str:
        """URL of the bucket."""
        return self.store.place

    @property
    def uri(self) -> str:
        """URL of the bucket and the prefix."""
        return self.store.url

    def modified_ns(self) -> Mapping[str, int]:
        """Return name → time of the last modification, as the store lists it now."""
        return self.store.modified_ns()

    def fetch(self, name: str, start: int, buffer: memoryview, stopped: Event) -> None:
        """Fill `buffer` as `Store.read` does."""
        self.store.read(name, self.listing[name], start, buffer, stopped)


def connect(url: str) -> Store:
    """Return the store that a URL names, without any request to it. Raises UsageError if the URL is not supported.

    Credentials, endpoint, region and other settings come from the environment.
    """
    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    scheme, store_url = _normalize(url)
    proxy_of = proxy_from_environment(VARIABLES[scheme])
    gate = Gate(proxy_of)
    options = {"timeout": f"{STORE_ANSWER.seconds}s"} | _client_options(VARIABLES[scheme]) | {"proxy_url": gate.url}

    def ask() -> None:
        """Request an object with credentials and without, so that their server and the store are asked for."""
        for config in ({}, {"skip_signature": "true"}):
            once = from_url(store_url, config=config, client_options=options, retry_config={"max_retries": 0})  # type: ignore[call-overload]
            with suppress(BaseError, FileNotFoundError):
                obstore.head(once, "config.json")

    try:
        gate.learn(ask)
        client: ObjectStore = from_url(store_url, client_options=options, retry_config=_RETRIES)  # type: ignore[call-overload]
    except BaseError as error:
        raise UsageError(f"{url}: {first_line(error)}", hint=CREDENTIALS[scheme]) from None
    own = _seconds(f"{VARIABLES[scheme]}_TIMEOUT")
    signed = SignedReads(client, gate, proxy_of, own or STORE_ANSWER.seconds, is_allowed=may_sign(scheme))
    return Store(store_url, client, gate, signed, STORE_CALL.seconds + max(0.0, own - STORE_ANSWER.seconds))


def _seconds(variable: str) -> float:
    """Return the time that an environment variable gives, 0 if it is not set. Raises UsageError if it is not one."""
    text = os.environ.get(variable, "0s")
    found = re.fullmatch(r"(\d{1,9}) ?([a-z]+)", text, re.ASCII)
    unit = found and (_UNITS.get(found[2]) or _UNITS.get(found[2].removesuffix("s")))
    if not found or not unit:
        raise UsageError(f"{variable}={short(text)}: not a time", hint=f"Write it as {variable}=300s.")
    return int(found[1]) * unit


_CLIENT_OPTIONS = (
    "allow_http", "allow_invalid_certificates", "connect_timeout", "default_content_type", "http1_only",
    "pool_idle_timeout", "pool_max_idle_per_host", "proxy_ca_certificate", "randomize_addresses", "read_timeout",
    "timeout", "user_agent",
)  # fmt: skip
"""Options that obstore takes from the environment, if it is given none. Those of HTTP/2 are not: the gate bounds each
answer, which HTTP/2 would mix."""


def _client_options(prefix: str) -> dict[str, str]:
    """Return the options for obstore's HTTP client that the environment gives."""
    return {name: os.environ[key] for name in _CLIENT_OPTIONS if (key := f"{prefix}_{name.upper()}") in os.environ}


def _normalize(url: str) -> tuple[str, str]:
    """Return the scheme of a URL and its only spelling, by which plans and journals identify a place.

    Raises UsageError if the URL is malformed, not supported, or has credentials, a query or a fragment.
    """
    try:
        url.encode()
        parts = urlsplit(url)
    except ValueError:  # not UTF-8, or malformed brackets
        raise UsageError(f"{url.partition(':')[0]}://...: not a URL", hint=_SUPPORTED) from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"{parts.scheme}://...: a URL with credentials, a query or a fragment: plans would record it",
            hint="Name bucket and prefix alone; credentials come from the environment.",
        )
    if parts.scheme not in VARIABLES or not _BUCKET.fullmatch(parts.netloc):
        raise UsageError(f"{url}: unsupported address", hint=_SUPPORTED)
    path = parts.path.rstrip("/")
    if coded := _CODED.search(path):
        raise UsageError(
            f"{url}: {coded[0]} in a name, which would be read as {unquote(coded[0])!r}",
            hint="Write the character itself: names in stores are not decoded.",
        )
    if not {"", ".", ".."}.isdisjoint(path.split("/")[1:]):
        raise UsageError(
            f"{url}: a part of the path is empty, . or ..", hint="Remove it: stores do not normalize names."
        )
    return parts.scheme, f"{parts.scheme}://{parts.netloc}{path}"


def open_store(url: str) -> RemoteSource:
    """Return the checkpoint below a URL, with listing, config, index and headers read.

    Headers are cached until the listing changes. Raises UsageError for a bad URL, and an Unreachable with a hint if the
    store cannot be read.
    """
    store = connect(url)
    listing = {name: listed for name, listed in store.everything().items() if not name.endswith("/")}
    if not listing:
        raise NotFound(
            f"{url}: nothing there", hint="Name the bucket and the prefix under which config.json and the weights are."
        )
    source = RemoteSource(StoreFiles(store, listing), store.url, None, listing, {})
    cache, digest = HeaderCache("stores", store.url), _digest(listing)
    found = cache.load(digest)
    if found is None or found.listing != listing:
        small = read_small(source)
        found = RemoteHeaders(listing, small | read_headers(source, wanted_headers(source, small)), False)
        cache.save(digest, found)
    return replace(source, headers=found.headers)


def _listed(entries: "Iterable[ObjectMeta] | Sequence[ObjectMeta]") -> dict[str, Listed]:
    """Return name → size and ETag. Entries without a name, which some tools write for folders, are left out."""
    return {
        entry["path"]: Listed(entry["size"], _quoted(entry["e_tag"], entry["path"]))
        for entry in entries
        if entry["path"]
    }


def _quoted(tag: str | None, name: str) -> str:
    """Return an ETag in quotes, as If-Match needs it: Azure lists them without. Raises BadAnswer if there is none."""
    if not tag:
        raise BadAnswer(f"{short_name(name)}: the store gives no ETag, so a change would not be noticed")
    return tag if tag.endswith('"') else f'"{tag}"'


def _digest(listing: Mapping[str, Listed]) -> str:
    """Return a digest that changes if any object in the listing changes."""
    digest = xxhash.xxh3_128()
    for name, listed in sorted(listing.items()):
        digest.update(f"{name}\0{listed.nbytes}\0{listed.stamp}\0".encode())
    return digest.hexdigest()
