"""Object stores by URL (s3://, gs://, az://), through obstore: a checkpoint that is read there, and objects put there.

An object is read as it was listed or not at all: each request names its ETag, and each answer must. obstore itself
tries again what may be over soon, and goes on with a body that broke off where it did.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import xxhash

from dsv4_shard.errors import BadAnswer, NotFound, Unreachable, UsageError
from dsv4_shard.sources.object_store_errors import CREDENTIALS, VARIABLES, first_line, replaced, translate
from dsv4_shard.sources.remote import Listed, RemoteSource
from dsv4_shard.sources.remote_headers import HeaderCache, RemoteHeaders, read_headers, read_small, wanted_headers
from dsv4_shard.text.sanitize import short_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obstore import ObjectMeta
    from obstore.store import ObjectStore, RetryConfig

_SUPPORTED = "Supported are s3://bucket/prefix, gs://bucket/prefix and az://container/prefix."

_BUCKET = re.compile(r"[\w.$-]+", re.ASCII)

_RETRIES: "RetryConfig" = {}
"""obstore's own: ten times in three minutes, with back-off."""

_PIECE_BYTES = 1 << 20
"""Handed over at a time while a range comes in."""

PART_BYTES = 8 << 20
"""Of an upload: long enough that its latency does not count, short enough that a slow line sends it in time."""

_AT_ONCE_BYTES = 4 * PART_BYTES
"""Parts of one object on their way."""

_MAX_PARTS = 10_000
"""That S3 puts together."""


@dataclass(frozen=True, slots=True)
class Store:
    """What is below `url`, the name that users know it by. Its methods raise an Unreachable that says what to do."""

    url: str
    client: "ObjectStore"

    @property
    def place(self) -> str:
        """The bucket."""
        return "/".join(self.url.split("/")[:3])

    def files(self) -> dict[str, Listed]:
        """The objects that are in no folder below the URL."""
        import obstore

        with self.errors(self.url):
            return _listed(obstore.list_with_delimiter(self.client)["objects"])

    def everything(self) -> dict[str, Listed]:
        """All objects below the URL."""
        import obstore

        with self.errors(self.url):
            return _listed(entry for page in obstore.list(self.client) for entry in page)

    def read(self, name: str, listed: Listed, start: int, buffer: memoryview, stopped: Event) -> None:
        """Fill `buffer` from byte `start` of an object on, unless the event is set. Raises SourceChanged too."""
        import obstore

        what, done = f"{self.url}/{name}", 0
        with self.errors(what):
            got = obstore.get(
                self.client, name, options={"if_match": listed.stamp, "range": (start, start + len(buffer))}
            )
            if _quoted(got.meta["e_tag"], name) != listed.stamp:
                raise replaced(what)  # by a store that does not look at If-Match
            if got.range != (start, start + len(buffer)) or got.meta["size"] != listed.nbytes:
                raise BadAnswer(
                    f"{what}: gave bytes {got.range[0]} to {got.range[1]} of {got.meta['size']}, "
                    f"not {start} to {start + len(buffer)} of {listed.nbytes}"
                )
            for piece in got.stream(min_chunk_size=_PIECE_BYTES):
                if stopped.is_set():
                    raise Unreachable(f"{name}: nobody waits for it any more")
                if len(piece) > len(buffer) - done:
                    raise BadAnswer(f"{what}: gave more than the {len(buffer)} bytes that it told of")
                buffer[done : done + len(piece)] = memoryview(piece)
                done += len(piece)
        if done < len(buffer):
            raise BadAnswer(f"{what}: ended {len(buffer) - done} bytes early")

    def put(self, name: str, content: bytes) -> Listed:
        """Make a small object, whole."""
        import obstore

        with self.errors(f"{self.url}/{name}"):
            made = obstore.put(self.client, name, content, use_multipart=False)
        return Listed(len(content), self._stamp(name, made["e_tag"]))

    def put_parts(self, name: str, pieces: Iterator[memoryview], nbytes: int) -> Listed:
        """Make an object of `nbytes` in parts, some at a time; it is there whole or not at all.

        What `pieces` raise ends it, and is raised.
        """
        import obstore

        part = max(PART_BYTES, -(-nbytes // _MAX_PARTS))
        at_once = max(1, _AT_ONCE_BYTES // part)
        with self.errors(f"{self.url}/{name}"):
            made = obstore.put(self.client, name, pieces, use_multipart=True, chunk_size=part, max_concurrency=at_once)
        return Listed(nbytes, self._stamp(name, made["e_tag"]))

    def copy(self, name: str, twin: str) -> Listed:
        """Make an object of one that is there, within the store; what it is like then."""
        import obstore

        with self.errors(f"{self.url}/{twin}"):
            obstore.copy(self.client, name, twin)
            made = obstore.head(self.client, twin)
        return Listed(made["size"], _quoted(made["e_tag"], twin))

    def delete(self, names: "Sequence[str]") -> None:
        """Remove objects that are there."""
        import obstore

        with self.errors(self.url):
            obstore.delete(self.client, names)

    def _stamp(self, name: str, tag: str | None) -> str:
        import obstore

        with self.errors(f"{self.url}/{name}"):
            return _quoted(tag or obstore.head(self.client, name)["e_tag"], name)

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Turn obstore's errors into ours; `what` is what was asked for."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            raise translate(error, what, self.place) from None


@dataclass(frozen=True, slots=True)
class StoreFiles:
    """See `remote.Remote`. The objects of a listing."""

    store: Store
    listing: Mapping[str, Listed]

    @property
    def place(self) -> str:
        return self.store.place

    def fetch(self, name: str, start: int, buffer: memoryview, stopped: Event) -> None:
        self.store.read(name, self.listing[name], start, buffer, stopped)


def connect(url: str) -> Store:
    """The store that a URL names; nothing is asked yet. Raises UsageError where it is none that is supported.

    Credentials, endpoint, region and all else come from the environment.
    """
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    scheme, store_url = _one_url(url)
    try:
        return Store(store_url, from_url(store_url, retry_config=_RETRIES))
    except BaseError as error:
        raise UsageError(f"{url}: {first_line(error)}", hint=CREDENTIALS[scheme]) from None


def _one_url(url: str) -> tuple[str, str]:
    """The scheme of a URL, and the URL as each place has one: plans and journals know a place by it."""
    try:
        url.encode()
        parts = urlsplit(url)
    except ValueError:  # of either: not UTF-8, or brackets that stand for no address
        raise UsageError(f"{url.partition(':')[0]}://...: not a URL", hint=_SUPPORTED) from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"{parts.scheme}://...: a URL with credentials, a query or a fragment: it would be written down in plans",
            hint="Name bucket and prefix alone; credentials come from the environment.",
        )
    if parts.scheme not in VARIABLES or not _BUCKET.fullmatch(parts.netloc):
        raise UsageError(f"{url}: not a place that is read or written", hint=_SUPPORTED)
    path = parts.path.rstrip("/")
    if not {"", ".", ".."}.isdisjoint(path.split("/")[1:]):
        raise UsageError(f"{url}: a name in it is empty, . or ..", hint="Leave it out: stores take names as they are.")
    return parts.scheme, f"{parts.scheme}://{parts.netloc}{path}"


def open_store(url: str) -> RemoteSource:
    """The checkpoint below a URL: lists it, and reads config, index and headers, unless that is known already.

    What was read is kept for as long as the listing stays the same. Raises UsageError, or an Unreachable that says what
    to do.
    """
    store = connect(url)
    listing = store.files()
    if not listing:
        raise NotFound(
            f"{url}: nothing there", hint="Name the bucket and the prefix under which config.json and the weights are."
        )
    source = RemoteSource(StoreFiles(store, listing), store.url, None, listing, {})
    cache, digest = HeaderCache("stores", store.url), _digest(listing)
    kept = cache.load(digest)
    if kept is None or kept.listing != listing:
        small = read_small(source)
        kept = RemoteHeaders(listing, small | read_headers(source, wanted_headers(source, small)), False)
        cache.save(digest, kept)
    return replace(source, heads=kept.heads)


def _listed(entries: "Iterable[ObjectMeta] | Sequence[ObjectMeta]") -> dict[str, Listed]:
    """Name → size and ETag; what some tools put in a folder's place is none of it."""
    return {
        entry["path"]: Listed(entry["size"], _quoted(entry["e_tag"], entry["path"]))
        for entry in entries
        if entry["path"]
    }


def _quoted(tag: str | None, name: str) -> str:
    """An ETag in quotes, as a condition wants it: Azure lists them without."""
    if not tag:
        raise BadAnswer(f"{short_name(name)}: the store gives no ETag, by which a change could be noticed")
    return tag if tag.endswith('"') else f'"{tag}"'


def _digest(listing: Mapping[str, Listed]) -> str:
    """Another one where any object is."""
    digest = xxhash.xxh3_128()
    for name, listed in sorted(listing.items()):
        digest.update(f"{name}\0{listed.nbytes}\0{listed.stamp}\0".encode())
    return digest.hexdigest()
