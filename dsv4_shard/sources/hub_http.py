"""Bytes of a repository's files from the Hub, or from a mirror of it.

A file of weights is not where it is asked for: the Hub answers with a redirect to a signed address elsewhere, which
holds for a while. It is asked for once a file, and again when it has expired; the token never goes there.
"""

import glob
import logging
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urljoin, urlsplit

from dsv4_shard.errors import AccessRefused, BadAnswer, NotFound, ShardError, Unreachable, WriteFailed
from dsv4_shard.sources.remote import Listed
from dsv4_shard.sources.retry import Transient, persist
from dsv4_shard.text.sanitize import short

_REDIRECTS = (301, 302, 303, 307, 308)

_EXPIRED = (400, 401, 403, 404, 410)
"""What a signed address answers that has expired, whoever it belongs to."""

_MAX_REDIRECTS = 5

_MAYBE_LATER = (408, 425, 429)

_NEVER_MENDED = (501, 505)
"""Of 5xx, those that say what a server does not do. All others, also those of proxies only, may be over soon."""

_LEAST_BYTES = 64 << 10
"""Below this, a request that broke off counts as one that failed."""

_HOPELESS = ("TooManyRedirects", "UnsupportedProtocol")
"""Failures of httpx that stay."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class _Place(NamedTuple):
    """Where a file is fetched from, and whether that is the Hub itself, which gets the token."""

    url: str
    is_hub: bool


class _Moved(Exception):
    """A file is elsewhere, or not any more where it was: the status says so."""


@dataclass(frozen=True, slots=True)
class HubFiles:
    """See `remote.Remote`. The files of `repo_id` at `commit`."""

    endpoint: str
    repo_id: str
    commit: str
    listing: Mapping[str, Listed]
    _places: dict[str, _Place] = field(default_factory=dict)
    _locks: dict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))

    @property
    def place(self) -> str:
        """The server."""
        return urlsplit(self.endpoint).netloc

    def download(self, names: Sequence[str]) -> Path:
        """The folder of this machine's Hub cache that holds these files, which are fetched as far as they are missing.

        Raises what `fetch` raises, and WriteFailed.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        def attempt() -> str:
            try:
                with transport_errors(self.place), _without_warnings():
                    return snapshot_download(
                        self.repo_id,
                        revision=self.commit,
                        endpoint=self.endpoint,
                        allow_patterns=[glob.escape(name) for name in names],
                    )
            except HfHubHTTPError as error:
                raise_for(error, self.repo_id, self.endpoint, self.repo_id)
            except OSError as error:
                raise WriteFailed(f"{error.filename or self.repo_id}: {error.strerror or error}") from error

        return Path(persist(attempt, Event()))

    def fetch(self, name: str, start: int, buffer: memoryview, stopped: Event) -> None:
        """Fill `buffer` from byte `start` of a file on; a connection that breaks is gone on with where it did.

        Raises NotFound, AccessRefused, BadAnswer, Throttled or ServerFailed.
        """
        done = 0

        def go_on() -> None:
            nonlocal done
            done += self._some(name, start + done, buffer[done:], stopped)
            if done < min(len(buffer), began + _LEAST_BYTES):
                raise Transient(f"{self.repo_id}: {name}: its bytes break off, the last time at {start + done}")

        while done < len(buffer):
            began = done
            persist(go_on, stopped)

    def _some(self, name: str, start: int, buffer: memoryview, stopped: Event) -> int:
        """As many bytes as one request gives, at least one. Raises Transient where there is none."""
        place = self._place(name, None)
        try:
            return self._read(name, place, start, buffer, stopped)
        except _Moved:
            place = self._place(name, place)
        try:
            return self._read(name, place, start, buffer, stopped)
        except _Moved as error:
            raise Transient(f"{self._what(name, place)} answered {error}, where {self.place} says that it is") from None

    def _place(self, name: str, gone: _Place | None) -> _Place:
        """Where a file is, but not `gone`: asked for by one thread. Of what is in Git itself, the Hub is the place."""
        with self._locks[name]:
            if name not in self._places and self.listing[name].sha256 is None:
                self._places[name] = self._at_hub(name)
            elif self._places.get(name) == gone:
                self._places[name] = self._resolve(name)
            return self._places[name]

    def _at_hub(self, name: str) -> _Place:
        from huggingface_hub import hf_hub_url

        return _Place(hf_hub_url(self.repo_id, name, revision=self.commit, endpoint=self.endpoint), True)

    def _resolve(self, name: str) -> _Place:
        place = self._at_hub(name)
        for _ in range(_MAX_REDIRECTS):
            with _request(place, {"Range": "bytes=0-0"}) as response:
                if response.status_code not in _REDIRECTS:
                    refuse(response, f"{self.repo_id}: {name}", self.endpoint, self.repo_id)
                    return place
                location = response.headers.get("Location", "")
            target = _target(place.url, location)
            if target is None:
                raise BadAnswer(f"{self._what(name, place)} says that it is at {short(location)}, which is no place")
            place = _Place(target, urlsplit(target)[:2] == urlsplit(self.endpoint)[:2])
            if not place.is_hub:
                return place
        raise BadAnswer(f"{self.repo_id}: {name}: more than {_MAX_REDIRECTS} redirects")

    def _read(self, name: str, place: _Place, start: int, buffer: memoryview, stopped: Event) -> int:
        stop = start + len(buffer)
        done = 0
        try:
            with _request(place, {"Range": f"bytes={start}-{stop - 1}"}) as response:
                if response.status_code in (_REDIRECTS if place.is_hub else _EXPIRED):
                    raise _Moved(response.status_code)
                refuse(response, f"{self.repo_id}: {name}", self.endpoint, self.repo_id)
                stop = self._check_range(name, response, start, stop)
                for chunk in response.iter_raw():
                    if done + len(chunk) > stop - start:
                        raise BadAnswer(
                            f"{self._what(name, place)} gave more than the {stop - start} bytes it announced"
                        )
                    buffer[done : done + len(chunk)] = chunk
                    done += len(chunk)
                    if stopped.is_set():
                        raise Unreachable(f"{name}: nobody waits for it any more")
        except Transient:
            if not done:
                raise
        if not done:
            raise Transient(f"{self._what(name, place)} gave no bytes from byte {start} on")
        return done

    def _check_range(self, name: str, response: Any, start: int, stop: int) -> int:
        """Where the bytes of an answer end. Raises BadAnswer where they are not those that were asked for."""
        what, due = self._what(name, _Place(str(response.url), True)), self.listing[name].nbytes
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise BadAnswer(f"{what} sends it packed: {response.headers['Content-Encoding'][:40]!r}")
        if response.status_code == 200:
            if (start, stop) == (0, due):
                return due
            raise BadAnswer(
                f"{what} ignores Range: it gave the whole file for bytes {start} to {stop}",
                hint="Reading from afar needs ranges. Use another endpoint (HF_ENDPOINT), or download: --download.",
            )
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        first, last, total = map(int, found.groups()) if found else (-1, -1, -1)
        if response.status_code != 206 or first != start or not first <= last < stop or total != due:
            raise BadAnswer(
                f"{what} answered {response.status_code}, {response.headers.get('Content-Range', 'no range')[:80]!r}, "
                f"for bytes {start} to {stop} of {due}"
            )
        return last + 1

    def _what(self, name: str, place: _Place) -> str:
        return f"{self.repo_id}: {name}: {urlsplit(place.url).netloc}"


def _target(url: str, location: str) -> str | None:
    """Where a redirect from `url` leads, None where that is no address of a server."""
    try:
        target = urljoin(url, location)
        return target if is_server(target) else None
    except ValueError:
        return None


def is_server(url: str) -> bool:
    """Whether a URL is one of HTTP with a host. Raises ValueError where it is no URL."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isascii() and url.isprintable()


@contextmanager
def _request(place: _Place, headers: dict[str, str]) -> Iterator[Any]:
    """A streamed GET; redirects of the Hub are the caller's affair. Raises Transient where the connection fails."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    # Redirects of the Hub to itself keep the token; httpx would drop it, and follow to hosts that must not get it.
    headers = {**build_hf_headers(), **headers} if place.is_hub else dict(headers)
    headers["Accept-Encoding"] = "identity"
    with transport_errors(urlsplit(place.url).netloc):
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream(
            "GET", place.url, headers=headers, follow_redirects=not place.is_hub, timeout=timeout
        ) as response:
            yield response


@contextmanager
def _without_warnings() -> Iterator[None]:
    """huggingface_hub warns of each connection that broke with the signed address, which whoever reads it could use."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def transport_errors(host: str) -> Iterator[None]:
    """Turn failures of a connection into Transient, and the offline mode into Unreachable."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # huggingface_hub 1 is built on httpx, 2 on httpx2: the one in use is where its own error comes from.
    http_error: type[Exception] = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    try:
        yield
    except OfflineModeIsEnabled:
        raise Unreachable(
            f"{host}: not asked: HF_HUB_OFFLINE is set",
            hint="Unset it, or name a folder or a repository that this machine's Hub cache holds whole.",
        ) from None
    except HfHubHTTPError:
        raise
    except http_error as error:
        if type(error).__name__ in _HOPELESS:
            raise BadAnswer(f"{host}: {type(error).__name__}: {error}".rstrip(": ")) from None
        raise Transient(f"{host}: {type(error).__name__}: {error}".rstrip(": ")) from None


def refuse(response: Any, what: str, endpoint: str, repo_id: str) -> None:
    """Raise what an answer's status means: Transient, NotFound, AccessRefused or BadAnswer."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    if response.status_code < 400:
        return
    try:
        hf_raise_for_status(response)
    except HfHubHTTPError as error:
        raise_for(error, what, endpoint, repo_id)


def raise_for(error: Any, what: str, endpoint: str, repo_id: str) -> NoReturn:
    """Raise what an error of huggingface_hub means; see `refuse`."""
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
            return NotFound(f"{what}: no such revision at {host}", hint=f"See {endpoint}/{repo_id}/tree/main.")
        case RepositoryNotFoundError():
            hint = (
                "Check the name." if has_token else f"Check the name; if it is private: {log_in[0].lower()}{log_in[1:]}"
            )
            return NotFound(f"{what}: no such repository at {host}, or it is private ({status})", hint=hint)
        case EntryNotFoundError():
            return NotFound(f"{what}: not there at {host} ({status})", hint="The repository lacks it: see its files.")
    if status in (401, 403):
        reason = (error.server_message or "").strip().splitlines()
        why = f": {reason[0][:120]}" if reason else ""
        return AccessRefused(f"{what}: {host} refused access ({status}){why}", hint=log_in)
    if status in _MAYBE_LATER or (status >= 500 and status not in _NEVER_MENDED):
        return Transient(f"{what}: {host} answered {status}", _asked_wait(error.response), throttled=status == 429)
    return BadAnswer(f"{what}: {host} answered {status}")


def _asked_wait(response: Any) -> float | None:
    """Seconds that a server asks to wait, by Retry-After (RFC 9110, 10.2.3) or the headers of its rate limit."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    asked = response.headers.get("Retry-After", "")
    if asked.isdecimal():
        return float(asked)
    with suppress(ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    limit = parse_ratelimit_headers(response.headers)
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else None
