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

from dsv4_shard.errors import (
    AccessRefused,
    BadAnswer,
    NotFound,
    ServerFailed,
    ShardError,
    SourceChanged,
    Throttled,
    Unreachable,
    UsageError,
)
from dsv4_shard.headcache import HeadCache, Heads
from dsv4_shard.heads import read_headers, read_small, wanted_headers
from dsv4_shard.remote import Listed, RemoteSource
from dsv4_shard.text.sanitize import short_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obstore import ObjectMeta
    from obstore.store import ObjectStore, RetryConfig

_VARIABLES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
"""scheme → how the environment variables begin that configure its client."""

_CREDENTIALS = {
    "s3": "Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION (`aws configure export-credentials --format "
    "env` prints those of a profile), or AWS_SKIP_SIGNATURE=true for a public bucket.",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS to a file of credentials, or GOOGLE_SKIP_SIGNATURE=true for a public "
    "bucket.",
    "az": "Set AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN.",
}

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
                raise _replaced(what)  # by a store that does not look at If-Match
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
            raise _meaning(error, what, self.place) from None


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
        raise UsageError(f"{url}: {_first_line(error)}", hint=_CREDENTIALS[scheme]) from None


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
    if parts.scheme not in _VARIABLES or not _BUCKET.fullmatch(parts.netloc):
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
    cache, digest = HeadCache("stores", store.url), _digest(listing)
    kept = cache.load(digest)
    if kept is None or kept.listing != listing:
        small = read_small(source)
        kept = Heads(listing, small | read_headers(source, wanted_headers(source, small)), False)
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


# --- what obstore's errors mean ------------------------------------------------------------------------------------

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_RETRIED = re.compile(r"after ([1-9]\d*) retries")
_REGION = re.compile(r"region\b[^<]{0,60} is wrong; expecting '([\w-]{1,40})'")
_BROKEN = re.compile(r"\bkind: (Timeout|Connect|Interrupted)\b")
_IDENTITY = re.compile(
    r"://169\.254\.|/latest/(api/token|meta-data)|/computeMetadata/|/metadata/identity|token request"
)
"""Asked were those who give a machine in a cloud its credentials."""

_SAID = {"Timeout": "no answer in time", "Connect": "no connection", "Interrupted": "connections broke off"}
_THROTTLED = ("SlowDown", "TooManyRequests", "RequestLimitExceeded", "ServerBusy")


def _meaning(error: Exception, what: str, place: str) -> ShardError:
    """The error to raise. Of the client's own text, which has addresses and may have signatures, little is shown."""
    text = str(error)
    scheme = place.partition(":")[0]
    found = {key: match[1] for key, pattern in _FOUND.items() if (match := pattern.search(text))}
    status, code = int(found.get("status", 0)), found.get("code", "")
    answer = f"{status} {code}".strip()
    tried = f", after {found['retries']} retries" if "retries" in found else ""
    if _IDENTITY.search(text):
        return AccessRefused(f"{what}: no credentials for {scheme}:// are set", hint=_CREDENTIALS[scheme])
    if status in (401, 403):
        return AccessRefused(f"{what}: {place} refused access ({answer})", hint=_CREDENTIALS[scheme])
    if code == "NoSuchUpload":
        return ServerFailed(f"{what}: the upload broke off at its end", hint=_AGAIN)
    if code in ("NoSuchBucket", "ContainerNotFound"):
        return NotFound(f"{what}: no bucket {place} ({answer})", hint="Check the name, the region and endpoint.")
    if status == 404 or isinstance(error, FileNotFoundError):
        return NotFound(f"{what}: not there", hint="It is listed, or was: see what else writes to this place.")
    if status == 412:
        return _replaced(what)
    if status == 429 or code in _THROTTLED:
        return Throttled(f"{what}: {place} answered {answer}{tried}", hint="The store limits how often it is "
                         "asked. Run again later: what is done is not done again.")  # fmt: skip
    if status == 408 or status >= 500:
        return ServerFailed(f"{what}: {place} answered {answer}{tried}", hint=_AGAIN)
    if "non-partial" in text:
        return BadAnswer(f"{what}: the server ignores Range: it gave the whole object", hint="Reading from afar needs "
                         "ranges. Use another endpoint, or download the checkpoint.")  # fmt: skip
    if "BadScheme" in text:
        variable = f"{_VARIABLES[scheme]}_ALLOW_HTTP"
        return Unreachable(f"{what}: its endpoint is http://, which is not encrypted", hint=f"Set {variable}=true.")
    if "region" in found or "redirect without LOCATION" in text:
        where = f", {found['region']}" if "region" in found else ""
        return BadAnswer(f"{what}: {place} is in another region{where}", hint="Set AWS_REGION to the bucket's.")
    if "redirect" in text:
        return BadAnswer(f"{what}: {place} answered with nothing but redirects", hint="Check endpoint and region.")
    if broken := found.get("broken"):
        return ServerFailed(f"{what}: {_SAID[broken]}{tried}", hint=f"{_AGAIN} The endpoint is that of "
                            f"{_VARIABLES[scheme]}_ENDPOINT_URL, or the cloud's own.")  # fmt: skip
    return BadAnswer(f"{what}: {place} answered {answer}" if status else f"{what}: {_first_line(error)}")


def _replaced(what: str) -> SourceChanged:
    return SourceChanged(f"{what}: replaced by another object since it was listed")


_FOUND = {"status": _STATUS, "code": _CODE, "retries": _RETRIED, "region": _REGION, "broken": _BROKEN}
_AGAIN = "Run again when the store answers: what is done is not done again."


def _first_line(error: Exception) -> str:
    """What an error says first, without what may be secret in an address."""
    line = re.sub(r"\?\S*|^Generic \w+ error: ", "", str(error).partition("\n")[0])
    return short_name(re.sub(r"://[^\s/]*@", "://", line))
