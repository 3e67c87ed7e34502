"""Byte ranges of files from the Hub or a mirror, by redirects to signed URLs.

The Hub answers a request for a weight file with a redirect to a signed URL on another host, valid for a limited time.
The URL is requested once per file, and again after it has expired. The token is sent to the Hub only.
"""

import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from urllib.parse import quote, urljoin, urlsplit

from dsv4_shard.errors import (
    BadAnswer,
    ServerFailed,
    Unreachable,
    WriteFailed,
)
from dsv4_shard.limits import HUB_DOWNLOAD, HUB_RANGE, HUB_REDIRECTS
from dsv4_shard.sources.deadline import Deadline, Overdue, for_each, in_time
from dsv4_shard.sources.direct_http import Body, Connections
from dsv4_shard.sources.hub_errors import AGAIN, raise_for, refuse, transport_errors, without_warnings
from dsv4_shard.sources.hub_http import Location, is_server, open_url, stream, trusted_certificates, whole_error
from dsv4_shard.sources.remote import Listed
from dsv4_shard.sources.retry import Transient, retry
from dsv4_shard.text.sanitize import short

_HUB = "https://huggingface.co"

_REDIRECTS = (301, 302, 303, 307, 308)

_EXPIRED = (400, 401, 403, 404, 410)
"""Status codes of an expired signed URL, of any storage provider."""

_MIN_PROGRESS_BYTES = 64 << 10
"""A request that breaks off before this many bytes counts as failed."""

_SLOW_SECONDS, _SLOW_BYTES = 15, 15 << 10
"""A connection that brings fewer bytes in so many seconds is given up, like one that broke off."""

_ONE_MORE = memoryview(bytearray(1))
"""Where the byte goes that comes behind the last one."""

_DOWNLOADS_AT_ONCE = 8
"""Files that are downloaded at the same time, as huggingface_hub itself does."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


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
    _locations: dict[str, Location] = field(default_factory=dict)
    _locks: dict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))
    _connections: Connections = field(default_factory=lambda: Connections(trusted_certificates))

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

        with without_warnings():
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

    def _locate(self, name: str, gone: Location | None) -> Location:
        """Return the download URL of a file; `gone` is one that expired. Only one thread resolves it.

        Files without SHA-256 are in Git itself, not in LFS, and are served by the Hub.
        """
        with self._locks[name]:
            if name not in self._locations and self.listing[name].sha256 is None:
                self._locations[name] = self._at_hub(name)
            elif self._locations.get(name) == gone:
                self._locations[name] = self._resolve(name)
            return self._locations[name]

    def _at_hub(self, name: str) -> Location:
        from huggingface_hub import hf_hub_url

        return Location(hf_hub_url(self.repo_id, name, revision=self.commit, endpoint=self.endpoint), True)

    def _resolve(self, name: str) -> Location:
        """Follow the Hub's redirects to the first URL on another host. Raises BadAnswer for a bad redirect."""
        location = self._at_hub(name)
        for _ in range(HUB_REDIRECTS.count):
            with stream(location, {"Range": "bytes=0-0"}) as response:
                if response.status_code not in _REDIRECTS:
                    refuse(response, f"{self.repo_id}: {name}", self.endpoint, self.repo_id)
                    return location
                redirect = response.headers.get("Location", "")
            target = self._target(name, location, redirect)
            location = Location(target, urlsplit(target)[:2] == urlsplit(self.endpoint)[:2])
            if not location.is_hub:
                return location
        raise BadAnswer(f"{self.repo_id}: {name}: more than {HUB_REDIRECTS.count} redirects")

    def _read(self, name: str, location: Location, start: int, buffer: memoryview, stopped: Event) -> int:
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
                    refuse(whole_error(answer, location.url), f"{self.repo_id}: {name}", self.endpoint, self.repo_id)
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
    def _request(self, name: str, location: Location, headers: dict[str, str]) -> Iterator[Body]:
        """Open a GET whose body is received piece by piece. Redirects are followed, but not the Hub's own.

        Raises Transient if the connection fails, and BadAnswer for a bad redirect.
        """
        for _ in range(HUB_REDIRECTS.count):
            with open_url(location, headers, self._connections) as answer:
                if location.is_hub or answer.status not in _REDIRECTS:
                    yield answer
                    return
                redirect = answer.fields.get("location", "")
            location = Location(self._target(name, location, redirect), False)
        raise BadAnswer(f"{self.repo_id}: {name}: more than {HUB_REDIRECTS.count} redirects")

    def _target(self, name: str, location: Location, redirect: str) -> str:
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

    def _check_range(self, name: str, location: Location, answer: Body, start: int, stop: int) -> int:
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

    def _what(self, name: str, location: Location) -> str:
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
