"""Byte ranges of files from the Hub or a mirror: redirects, signed URLs, tokens, error mapping.

The Hub answers a request for a weight file with a redirect to a signed URL on another host, valid for a limited time.
The URL is requested once per file, and again after it has expired. The token is sent to the Hub only.
"""

import logging
import re
import ssl
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any, NamedTuple, NoReturn, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from dsv4_shard.errors import (
    AccessRefused,
    BadAnswer,
    NoRepository,
    NotFound,
    ServerFailed,
    ShardError,
    Unreachable,
    WriteFailed,
)
from dsv4_shard.limits import HUB_ANSWER, HUB_DOWNLOAD, HUB_RANGE, HUB_REDIRECTS, Limit
from dsv4_shard.sources.client_environment import check_client_environment
from dsv4_shard.sources.deadline import Deadline, Overdue, for_each, in_time
from dsv4_shard.sources.direct_http import FAILURES, Body, Connections, route_to
from dsv4_shard.sources.proxies import environment_proxy, origin_of
from dsv4_shard.sources.remote import Listed
from dsv4_shard.sources.response_limits import limited_bodies
from dsv4_shard.sources.retry import Transient, retry
from dsv4_shard.text.sanitize import short, short_name

_HUB = "https://huggingface.co"

_REDIRECTS = (301, 302, 303, 307, 308)

_EXPIRED = (400, 401, 403, 404, 410)
"""Status codes of an expired signed URL, of any storage provider."""

_TRANSIENT_STATUSES = (408, 425, 429)
"""Client errors after which a retry may succeed."""

_PERMANENT_STATUSES = (501, 505)
"""Server errors that mean that the server lacks a feature. After all others, also of proxies, a retry may succeed."""

_MIN_PROGRESS_BYTES = 64 << 10
"""A request that breaks off before this many bytes counts as failed."""

_SLOW_SECONDS, _SLOW_BYTES = 15, 15 << 10
"""A connection that brings fewer bytes in so many seconds is given up, like one that broke off."""

_ONE_MORE = memoryview(bytearray(1))
"""Where the byte goes that comes behind the last one."""

_ERROR_BYTES = 64 << 10
"""Bytes of an error's body that are read, to tell what the server says."""

_FRAMING = ("content-encoding", "content-length", "transfer-encoding")
"""Headers that say how a body was sent."""

_DOWNLOADS_AT_ONCE = 8
"""Files that are downloaded at the same time, as huggingface_hub itself does."""

_PERMANENT_FAILURES = ("TooManyRedirects", "UnsupportedProtocol")
"""Exceptions of httpx for which a retry is useless."""

T = TypeVar("T")

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class _Location(NamedTuple):
    """URL of a file, and whether its host is the Hub itself, which gets the token."""

    url: str
    is_hub: bool


class _Moved(Exception):
    """A file is no longer at its URL. The message is the status code."""


def repository_uri(endpoint: str, repo_id: str, commit: str) -> str:
    """Return the package URL of a repository: its type is `huggingface`, and a mirror is named by `repository_url`.

    https://github.com/package-url/purl-spec/blob/main/types-doc/huggingface-definition.md
    """
    mirror = f"?repository_url={quote(endpoint, safe=':/')}" if endpoint != _HUB else ""
    return f"pkg:huggingface/{repo_id}@{commit}{mirror}"


@dataclass(frozen=True, slots=True)
class HubFiles:
    """The files of `repo_id` at `commit`, as a `remote.Remote`."""

    endpoint: str
    repo_id: str
    commit: str
    listing: Mapping[str, Listed]
    _locations: dict[str, _Location] = field(default_factory=dict)
    _locks: dict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))
    _connections: Connections = field(default_factory=lambda: Connections(_trust))

    @property
    def place(self) -> str:
        """Host name of the server."""
        return urlsplit(self.endpoint).netloc

    @property
    def uri(self) -> str:
        """The repository at its commit: see `repository_uri`."""
        return repository_uri(self.endpoint, self.repo_id, self.commit)

    def modified_ns(self) -> Mapping[str, int]:
        """Empty: the commit identifies the content."""
        return {}

    def download(self, names: Sequence[str]) -> Path:
        """Download the files that are missing in this machine's Hub cache, and return the folder that has all `names`.

        Raises the errors of `fetch`, and WriteFailed if the cache cannot be written.
        """
        cache, deadline = self._cache(), Deadline(HUB_DOWNLOAD.seconds)
        held = _held(cache)

        def look() -> None:
            nonlocal held
            if (now := _held(cache)) != held:
                held = now
                deadline.renew()
            elif not deadline.left:
                raise ServerFailed(
                    f"{self.repo_id}: the Hub cache did not grow within {deadline.seconds:g} s",
                    hint="Run again when the server answers: fetched files are kept.",
                )

        def attempt() -> None:
            look()
            for_each(names, self._download, _DOWNLOADS_AT_ONCE, look)

        with _without_warnings():
            retry(attempt, Event())
        return self._download(names[0]).parents[names[0].count("/")]

    def _download(self, name: str) -> Path:
        """Return where a file lies in this machine's Hub cache, downloaded if it is missing.

        Raises as `download` does, and Transient.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, LocalEntryNotFoundError

        try:
            with transport_errors(self.place):
                try:
                    return Path(hf_hub_download(self.repo_id, name, revision=self.commit, endpoint=self.endpoint))
                except LocalEntryNotFoundError as error:
                    raise error.__cause__ or error from None
        except FileMetadataError:
            raise BadAnswer(f"{self.repo_id}: {name}: {self.place} gives no commit and hash") from None
        except HfHubHTTPError as error:
            raise_for(error, self.repo_id, self.endpoint, self.repo_id)
        except OSError as error:
            raise WriteFailed(f"{error.filename or self.repo_id}: {error.strerror or error}") from error

    def _cache(self) -> Path:
        """The folder of this machine's Hub cache where downloads of the repository grow."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=self.repo_id, repo_type="model"), "blobs")

    def fetch(self, name: str, start: int, buffer: memoryview, stopped: Event) -> None:
        """Fill `buffer` as `remote.Remote.fetch` does. If a connection breaks, resume where it broke.

        Raises NotFound, AccessRefused, BadAnswer, Throttled or ServerFailed, and Unreachable if `stopped` is set.
        """
        done, deadline = 0, Deadline(HUB_RANGE.seconds)

        def resume() -> None:
            nonlocal done
            done += in_time(lambda: self._fetch_some(name, start + done, buffer[done:], stopped), deadline)
            if done < min(len(buffer), resumed_at + _MIN_PROGRESS_BYTES):
                raise Transient(
                    f"{self.repo_id}: {name}: the connection broke again and again, last at byte {start + done}"
                )

        try:
            while done < len(buffer):
                resumed_at = done
                retry(resume, stopped)
        except Overdue:
            raise ServerFailed(
                f"{self.repo_id}: {name}: {len(buffer):,} bytes from {start} on did not come within "
                f"{deadline.seconds:g} s",
                hint=AGAIN,
            ) from None

    def _fetch_some(self, name: str, start: int, buffer: memoryview, stopped: Event) -> int:
        """Return how many bytes one request put into `buffer`, at least 1. Raises Transient if there were none."""
        location = self._locate(name, None)
        try:
            return self._read(name, location, start, buffer, stopped)
        except _Moved:
            location = self._locate(name, location)
        try:
            return self._read(name, location, start, buffer, stopped)
        except _Moved as error:
            raise Transient(
                f"{self._what(name, location)} answered {error}, where {self.place} says that it is"
            ) from None

    def _locate(self, name: str, gone: _Location | None) -> _Location:
        """Return the download URL of a file; `gone` is one that expired. Only one thread resolves it.

        Files without SHA-256 are in Git itself, not in LFS, and are served by the Hub.
        """
        with self._locks[name]:
            if name not in self._locations and self.listing[name].sha256 is None:
                self._locations[name] = self._at_hub(name)
            elif self._locations.get(name) == gone:
                self._locations[name] = self._resolve(name)
            return self._locations[name]

    def _at_hub(self, name: str) -> _Location:
        from huggingface_hub import hf_hub_url

        return _Location(hf_hub_url(self.repo_id, name, revision=self.commit, endpoint=self.endpoint), True)

    def _resolve(self, name: str) -> _Location:
        """Follow the Hub's redirects to the first URL on another host. Raises BadAnswer for a bad redirect."""
        location = self._at_hub(name)
        for _ in range(HUB_REDIRECTS.count):
            with _stream(location, {"Range": "bytes=0-0"}) as response:
                if response.status_code not in _REDIRECTS:
                    refuse(response, f"{self.repo_id}: {name}", self.endpoint, self.repo_id)
                    return location
                redirect = response.headers.get("Location", "")
            target = self._target(name, location, redirect)
            location = _Location(target, urlsplit(target)[:2] == urlsplit(self.endpoint)[:2])
            if not location.is_hub:
                return location
        raise BadAnswer(f"{self.repo_id}: {name}: more than {HUB_REDIRECTS.count} redirects")

    def _read(self, name: str, location: _Location, start: int, buffer: memoryview, stopped: Event) -> int:
        """Fill `buffer` with one request; return how many bytes came, at least 1.

        Raises _Moved if the file is no longer there, Transient if no byte came, and Unreachable if `stopped` is set.
        """
        stop = start + len(buffer)
        done = before = 0
        since = time.monotonic()
        try:
            with self._request(name, location, {"Range": f"bytes={start}-{stop - 1}"}) as answer:
                if answer.status in (_REDIRECTS if location.is_hub else _EXPIRED):
                    raise _Moved(answer.status)
                if answer.status >= 400:
                    refuse(_whole(answer, location.url), f"{self.repo_id}: {name}", self.endpoint, self.repo_id)
                stop = self._check_range(name, location, answer, start, stop)
                while count := answer.receive(buffer[done : stop - start] or _ONE_MORE):
                    if done == stop - start:
                        raise BadAnswer(f"{self._what(name, location)} sent more than the announced {done} bytes")
                    done += count
                    if stopped.is_set():
                        raise Unreachable(f"{name}: cancelled, because the run ended")
                    if (now := time.monotonic()) - since >= _SLOW_SECONDS:
                        if done - before < _SLOW_BYTES:
                            break
                        since, before = now, done
        except Transient:
            if not done:
                raise
        if not done:
            raise Transient(f"{self._what(name, location)} sent nothing from byte {start} on")
        return done

    @contextmanager
    def _request(self, name: str, location: _Location, headers: dict[str, str]) -> Iterator[Body]:
        """Open a GET whose body is received piece by piece. Redirects are followed, but not the Hub's own.

        Raises Transient if the connection fails, and BadAnswer for a bad redirect.
        """
        for _ in range(HUB_REDIRECTS.count):
            with _open(location, headers, self._connections) as answer:
                if location.is_hub or answer.status not in _REDIRECTS:
                    yield answer
                    return
                redirect = answer.fields.get("location", "")
            location = _Location(self._target(name, location, redirect), False)
        raise BadAnswer(f"{self.repo_id}: {name}: more than {HUB_REDIRECTS.count} redirects")

    def _target(self, name: str, location: _Location, redirect: str) -> str:
        """Return the URL to which a redirect leads. Raises BadAnswer if it is no HTTP URL, or leaves TLS."""
        target = _target(location.url, redirect)
        if target is None:
            raise BadAnswer(f"{self._what(name, location)} redirects to {short(redirect)}, which is not an address")
        if location.url.startswith("https:") and not target.startswith("https:"):
            raise BadAnswer(
                f"{self._what(name, location)} redirects from https to {urlsplit(target).netloc} without TLS",
                hint="Use an endpoint (HF_ENDPOINT) whose files are all at https:// addresses.",
            )
        return target

    def _check_range(self, name: str, location: _Location, answer: Body, start: int, stop: int) -> int:
        """Return the end byte, exclusive, of an answer. Raises BadAnswer if it is not within the requested range."""
        what, nbytes = self._what(name, location), self.listing[name].nbytes
        if (encoding := answer.fields.get("content-encoding", "identity")) != "identity":
            raise BadAnswer(f"{what} sends it packed: {encoding[:40]!r}")
        if answer.status == 200:
            if (start, stop) == (0, nbytes):
                return nbytes
            raise BadAnswer(
                f"{what} ignores Range: it gave the whole file for bytes {start} to {stop}",
                hint="Reading parts of a file needs it. Use another endpoint (HF_ENDPOINT), or --download.",
            )
        content_range = answer.fields.get("content-range", "")
        found = _CONTENT_RANGE.fullmatch(content_range)
        first, last, total = map(int, found.groups()) if found else (-1, -1, -1)
        if answer.status != 206 or first != start or not first <= last < stop or total != nbytes:
            raise BadAnswer(
                f"{what} answered {answer.status}, {(content_range or 'no range')[:80]!r}, "
                f"for bytes {start} to {stop} of {nbytes}"
            )
        return last + 1

    def _what(self, name: str, location: _Location) -> str:
        return f"{self.repo_id}: {name}: {urlsplit(location.url).netloc}"


def _held(folder: Path) -> tuple[int, int]:
    """Return the number of files in a folder, and a number that grows with the bytes in them."""
    count = nbytes = 0
    for path in folder.glob("*"):
        with suppress(OSError):  # renamed meanwhile
            found = path.stat(follow_symlinks=False)
            count, nbytes = count + 1, nbytes + found.st_size + found.st_blocks
    return count, nbytes


def _target(url: str, location: str) -> str | None:
    """Return the URL to which a redirect from `url` leads, None if it is not an HTTP URL."""
    try:
        target = urljoin(url, location)
        return target if is_server(target) else None
    except ValueError:
        return None


def is_server(url: str) -> bool:
    """Return whether a URL is an HTTP URL with a host. Raises ValueError if it is not a URL."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isascii() and url.isprintable()


@contextmanager
def _open(location: _Location, headers: Mapping[str, str], connections: Connections) -> Iterator[Body]:
    """Open a GET inside the block. Redirects are not followed. Raises Transient if the connection fails.

    What the user's proxy allows goes straight into the caller's buffer, the rest through huggingface_hub's client.
    """
    from huggingface_hub import constants

    host, route = urlsplit(location.url).netloc, route_to(location.url)
    if constants.HF_HUB_OFFLINE:
        raise _offline(host)
    if route is None:
        with _stream(location, headers) as response:
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
def _stream(location: _Location, headers: Mapping[str, str]) -> Iterator[Any]:
    """Open a GET inside the block by huggingface_hub's client. Raises as `_open` does."""
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


def _all_headers(location: _Location, headers: Mapping[str, str]) -> dict[str, str]:
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


def _whole(answer: Body, url: str) -> Any:
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
    return sys.modules[_http_error().__module__.partition(".")[0]]


def _http_error() -> type[Exception]:
    """Return the base of the errors of `_httpx`, from which huggingface_hub's own error derives."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")


def _trust() -> ssl.SSLContext:
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


AGAIN = "Run again when the server answers: finished work is kept."


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence huggingface_hub inside the block: its warnings about broken connections show signed URLs."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def transport_errors(host: str, limit: Limit | None = None) -> Iterator[None]:
    """Turn connection failures inside the block into Transient, and offline mode into Unreachable.

    Bodies are limited by `limit`, HUB_ANSWER if it is None.

    Raises BadAnswer for failures for which a retry is useless.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    http_error = _http_error()
    try:
        with limited_bodies(limit or HUB_ANSWER):
            yield
    except OfflineModeIsEnabled:
        raise _offline(host) from None
    except HfHubHTTPError:
        raise
    except (ImportError, ValueError):
        check_client_environment(hub=True)
        raise
    except (http_error, OSError) as error:
        check_client_environment(hub=True)
        if not isinstance(error, http_error):
            raise
        if type(error).__name__ in _PERMANENT_FAILURES:
            raise BadAnswer(f"{host}: {type(error).__name__}: {error}".rstrip(": ")) from None
        raise Transient(f"{host}{_by_proxy(host)}: {type(error).__name__}: {error}".rstrip(": ")) from None


def _by_proxy(place: str) -> str:
    """Return the words for the proxy that the environment names for a host or an endpoint; empty without one."""
    try:
        found = environment_proxy(origin_of(place if "://" in place else f"https://{place}"))
        if found is None:
            return ""
        proxy = urlsplit(found if "://" in found else f"http://{found}")
        return f" through the proxy {proxy.hostname}:{proxy.port or 80}"
    except ValueError:
        return ""


def _offline(host: str) -> Unreachable:
    return Unreachable(
        f"{host}: not asked: HF_HUB_OFFLINE is set",
        hint="Unset it, or name a folder or a repository that is complete in this machine's Hub cache.",
    )


def refuse(response: Any, what: str, endpoint: str, repo_id: str) -> None:
    """Raise the error for an answer's status, if it is one: Transient, NotFound, AccessRefused or BadAnswer.

    Args:
        response: The answer.
        what: What was requested, for the message.
        endpoint: URL of the Hub.
        repo_id: The repository, for hints.
    """
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    if response.status_code < 400:
        return
    try:
        hf_raise_for_status(response)
    except HfHubHTTPError as error:
        raise_for(error, what, endpoint, repo_id)


def raise_for(error: Any, what: str, endpoint: str, repo_id: str) -> NoReturn:
    """Raise the error for an error of huggingface_hub. See `refuse`."""
    raise _meaning(error, what, endpoint, repo_id) from None


def _meaning(error: Any, what: str, endpoint: str, repo_id: str) -> ShardError | Transient:
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code
    host = urlsplit(str(error.response.url)).netloc
    has_token = get_token() is not None
    log_in = "Set HF_TOKEN, or `hf auth login`, to an account that may read it."
    refused = "The token that is set (HF_TOKEN, or of `hf auth login`) was refused: `hf auth whoami` says whose it is."
    match error:
        case GatedRepoError() if has_token:
            return AccessRefused(
                f"{what}: gated, and this token's account was not granted access ({status})",
                hint=f"Ask for access at {endpoint}/{repo_id}, then run again.",
            )
        case GatedRepoError():
            return AccessRefused(
                f"{what}: gated, and no token is set ({status})",
                hint=f"Ask for access at {endpoint}/{repo_id}, then set HF_TOKEN, or `hf auth login`.",
            )
        case DisabledRepoError():
            return AccessRefused(f"{what}: the Hub has disabled this repository ({status})")
        case RevisionNotFoundError():
            short = re.fullmatch(r"[0-9a-f]{6,39}", what.rpartition("@")[2])
            digits = "A commit has 40 digits; fewer name only a commit that was read on this machine. " if short else ""
            return NotFound(f"{what}: no such revision at {host}", hint=f"{digits}See {endpoint}/{repo_id}/tree/main.")
        case RepositoryNotFoundError():
            hint = (
                "Check the name." if has_token else f"Check the name; if it is private: {log_in[0].lower()}{log_in[1:]}"
            )
            return NoRepository(f"{what}: no such repository at {host}, or it is private ({status})", hint=hint)
        case EntryNotFoundError():
            return NotFound(f"{what}: not there at {host} ({status})", hint="The repository does not have this file.")
    if status in (401, 403):
        reason = (error.server_message or "").strip().splitlines()
        why = f": {short_name(reason[0])}" if reason else ""
        return AccessRefused(f"{what}: {host} refused access ({status}){why}", hint=refused if has_token else log_in)
    if status in _TRANSIENT_STATUSES or (status >= 500 and status not in _PERMANENT_STATUSES):
        return Transient(f"{what}: {host} answered {status}", _asked_wait(error.response), throttled=status == 429)
    return BadAnswer(f"{what}: {host} answered {status}")


def _asked_wait(response: Any) -> float | None:
    """Return the seconds that a server asks to wait, by Retry-After (RFC 9110, 10.2.3) or its rate-limit headers."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    asked = response.headers.get("Retry-After", "")
    if asked.isdecimal():
        return float(asked)
    with suppress(ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    limit = parse_ratelimit_headers(response.headers)
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else None
