"""A Hub repository at a pinned commit as a source.

The commit is pinned first, so that a branch may move during the run. The Hub can return all headers of `main` in one
answer; otherwise, parallel range requests read them. Listing and headers of a commit are cached, so that the next
command needs no request. Files in this machine's Hub cache are read from there.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import quote, urlsplit

from dsv4_shard.errors import BadAnswer, NoRepository, ServerFailed, Unreachable, UsageError
from dsv4_shard.limits import HUB_ANSWER, HUB_HEADERS, INDEX
from dsv4_shard.sources.base import COMMIT, Source
from dsv4_shard.sources.checkpoint_files import CARD_FILE, CONFIG_FILE, INDEX_FILE, SINGLE_FILE, is_plain_name
from dsv4_shard.sources.client_environment import variable_of
from dsv4_shard.sources.hub_errors import raise_for, refuse
from dsv4_shard.sources.hub_files import HubFiles, repository_uri
from dsv4_shard.sources.hub_http import ask, is_server
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.sources.release_files import travelling
from dsv4_shard.sources.remote import Listed, RemoteSource
from dsv4_shard.sources.remote_headers import (
    HeaderCache,
    RemoteHeaders,
    names_in,
    read_headers,
    read_small,
    wanted_headers,
    weight_map_of,
)
from dsv4_shard.sources.retry import retry
from dsv4_shard.tensors.header import LENGTH_BYTES
from dsv4_shard.text.sanitize import short, short_name
from dsv4_shard.text.strict_json import parse_json

_MAIN = "main"

_NEVER = Event()

_HEADERS_SECONDS = 30
"""Silence after which the answer with all headers is given up: the server makes it first."""

_FIRST_TRIES = 4
"""Attempts of the first request. They take some seconds, because a user is waiting."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A revision of a repository on a server. `label` is how the user named both."""

    endpoint: str
    repo_id: str
    revision: str
    label: str

    @property
    def cache(self) -> HeaderCache:
        """The cache of its headers and commits."""
        return HeaderCache(self.endpoint, self.repo_id)


def open_repository(label: str, repo_id: str, revision: str | None, *, refresh: bool, exact: bool) -> Source:
    """Return the source of a repository, with listing, config, index and headers read.

    Without a connection, or in offline mode, the source is what this machine's caches hold.

    Args:
        label: How the user named the repository.
        repo_id: `org/name`.
        revision: Branch, tag or commit; default: main.
        refresh: Whether to ask for the branch's commit even if it was asked for within the last hour.
        exact: Whether the exact bytes of the headers are needed, which the answer with all headers does not have.

    Raises:
        UsageError: Name, endpoint or token is malformed.
        Unreachable: Neither the Hub nor the caches have the repository. The hint says what to do.
    """
    from huggingface_hub import constants

    _check_names(constants.ENDPOINT, repo_id, label)
    repository = Repository(constants.ENDPOINT, repo_id, revision or _MAIN, label)
    if (commit := _known_by_its_beginning(repository)) is not None:
        repository = replace(repository, revision=commit)
    if constants.HF_HUB_OFFLINE:
        return _from_caches(repository, exact, "HF_HUB_OFFLINE is set")
    commit = _known_commit(repository, refresh)
    cached = repository.cache.load(commit) if commit else None
    if commit is None or cached is None:
        beside = (CARD_FILE,) if exact else ()  # results also need small files, which a download may have left out
        if COMMIT.fullmatch(repository.revision) and (whole := _whole_snapshot(repository, *beside)):
            return whole
        try:
            commit, listing = _ask_listing(repository)
        except ServerFailed as error:
            if not _is_cached(repository):
                raise
            return _from_caches(repository, exact, str(error))
        repository.cache.remember(repository.revision, commit)
        cached = repository.cache.load(commit) or RemoteHeaders(listing, {}, False)
    return _source(repository, commit, cached, exact)


def _check_names(endpoint: str, repo_id: str, label: str) -> None:
    """Raise UsageError if repository name, endpoint or token is malformed."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_TOKEN_PATH
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise UsageError(
            f"{label}: not the name of a repository",
            hint="A name has at most 96 letters, digits, - _ and ., no -- or .., and no - . or .git at its end.",
        ) from None
    try:
        server, login = is_server(endpoint), urlsplit(endpoint).username
    except ValueError:
        server, login = False, None
    if not server:
        raise UsageError(
            f"HF_ENDPOINT: {short(endpoint)}: not the address of a server", hint="Write it as https://HOST."
        )
    if login is not None:
        raise UsageError(
            "HF_ENDPOINT has a user name or password, and messages, plans and caches would show it",
            hint="Remove it, and set HF_TOKEN instead.",
        )
    try:
        token = get_token() or ""
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else "not text"
        raise UsageError(
            f"{variable_of(HF_TOKEN_PATH) or 'the saved token'}: {HF_TOKEN_PATH}: {problem}",
            hint="It must name a file with a token; `hf auth login` writes one.",
        ) from None
    if not token.isascii():
        raise UsageError(
            "HF_TOKEN, or the saved token, is not ASCII, so it is not a token",
            hint="Set HF_TOKEN, or run `hf auth login`.",
        )


def _known_by_its_beginning(repository: Repository) -> str | None:
    """Return the commit that begins as the revision does, as messages print it, if the caches know just one."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if not _BEGINNING.fullmatch(repository.revision):
        return None
    folder = repo_folder_name(repo_id=repository.repo_id, repo_type="model")
    commits = {*repository.cache.commits(), *names_in(Path(constants.HF_HUB_CACHE, folder, "snapshots"))}
    found = [one for one in commits if COMMIT.fullmatch(one) and one.startswith(repository.revision)]
    return found[0] if len(found) == 1 else None


def _known_commit(repository: Repository, refresh: bool) -> str | None:
    """Return the revision's commit if no request is needed: it is a commit itself, or was asked for recently."""
    if COMMIT.fullmatch(repository.revision):
        return repository.revision
    return None if refresh else repository.cache.commit_of(repository.revision)


def _source(repository: Repository, commit: str, found: RemoteHeaders, exact: bool) -> Source:
    """Return the cached folder if it has all files of a commit, else a source that fetches what is missing."""
    snapshot = _snapshot(repository, commit, found.listing)
    files = HubFiles(repository.endpoint, repository.repo_id, commit, found.listing)
    source = RemoteSource(files, repository.label, commit, found.listing, {}, local=snapshot)
    if snapshot is not None and _holds(snapshot, found.listing):
        return replace(snapshot, revision=commit, uri=source.uri, sha256_listed=source.sha256_listed)
    if not found.headers or (exact and found.rebuilt):
        small = {name: content for name, content in found.headers.items() if name in (CONFIG_FILE, INDEX_FILE)}
        found = _fetch_headers(repository, replace(source, headers=small), exact)
        repository.cache.save(commit, found)
    return replace(source, headers=found.headers, notes=_notes(source, commit))


def _notes(source: RemoteSource, commit: str) -> tuple[str, ...]:
    local = [name for name in source.listing if source.original(name) is not None and name.endswith(".safetensors")]
    cached = f"; {len(local)} of its weight files are in this machine's Hub cache, and read there" if local else ""
    return (f"read from {source.remote.place} at commit {commit}{cached}",)


def _snapshot(repository: Repository, commit: str | None = None, names: Iterable[str] = ()) -> LocalSource | None:
    """Return the folder of a commit in this machine's Hub cache, complete or not; None if there is none.

    The default is the commit that the cache has for the revision. The folder is found by one of its files: one of
    `names`, or one that every checkpoint has.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    revision = commit or repository.revision
    for name in (CONFIG_FILE, INDEX_FILE, SINGLE_FILE, *names):
        try:
            found = try_to_load_from_cache(repository.repo_id, name, revision=revision)
        except HFValidationError:
            return None
        if isinstance(found, str):
            folder = Path(found).parent
            held = folder.name if COMMIT.fullmatch(folder.name) else commit
            uri = repository_uri(repository.endpoint, repository.repo_id, held) if held else None
            return LocalSource(folder, repository.label, held, uri)
    return None


def _whole_snapshot(repository: Repository, *more: str) -> LocalSource | None:
    """Return the cached folder of a commit if it has all files that its index names; in that case no request is needed.

    Otherwise, return None, also if it lacks one of `more`: files that a download of weights alone leaves out.
    """
    snapshot = _snapshot(repository)
    if snapshot is None or not {CONFIG_FILE, *more} <= (sizes := snapshot.sizes()).keys():
        return None
    if INDEX_FILE not in sizes:
        return snapshot if SINGLE_FILE in sizes else None
    if sizes[INDEX_FILE] > INDEX.nbytes:
        return None
    with snapshot.open(INDEX_FILE) as file:
        weight_map = weight_map_of(file.read(0, file.nbytes))
    return snapshot if weight_map and set(weight_map.values()) <= sizes.keys() else None


def _holds(snapshot: LocalSource, listing: Mapping[str, Listed]) -> bool:
    """Return whether a folder has config, index, all weight files of a listing, and the files that travel with them."""
    found = snapshot.tree()
    release = travelling({name: listed.nbytes for name, listed in listing.items()})
    weights = [name for name in listing if is_plain_name(name)]
    needed = [name for name in (CONFIG_FILE, INDEX_FILE, *weights, *release.sizes) if name in listing]
    return all(found.get(name) == listing[name].nbytes for name in needed)


def _is_cached(repository: Repository) -> bool:
    """Return whether `_from_caches` may find something."""
    commit = _last_commit(repository)
    return _snapshot(repository) is not None or (commit is not None and repository.cache.holds(commit))


def _last_commit(repository: Repository) -> str | None:
    """Return the commit that the revision had when it was last asked for, no matter how long ago."""
    is_commit = COMMIT.fullmatch(repository.revision)
    return repository.revision if is_commit else repository.cache.commit_of(repository.revision, within=inf)


def _from_caches(repository: Repository, exact: bool, reason: str) -> Source:
    """Return the best source that needs no request: all files, or the headers, or some files.

    If files are missing, later checks report them, as for any folder. Raises NoRepository if the caches have nothing;
    `reason` says why the Hub cannot be asked.
    """
    if (whole := _whole_snapshot(repository)) is not None:
        return whole
    commit = _last_commit(repository)
    cached = repository.cache.load(commit) if commit else None
    if commit is not None and cached is not None and not (exact and cached.rebuilt):
        return _source(repository, commit, cached, exact)
    if (partial := _snapshot(repository)) is not None:
        return partial
    revision = f" --revision {shlex.quote(repository.revision)}" if repository.revision != _MAIN else ""
    raise NoRepository(
        f"{repository.label}: not in this machine's Hub cache, and the Hub cannot be asked: {reason}",
        hint=f"Download it where there is a connection: `hf download {shlex.quote(repository.repo_id)}{revision}`.",
    )


def _ask_listing(repository: Repository) -> tuple[str, dict[str, Listed]]:
    """Return the current commit of a revision and its files, with one request.

    Raises BadAnswer for an answer that is not the Hub's, and the errors of `raise_for` and `retry`.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    what = f"{repository.repo_id}@{repository.revision}"

    def attempt() -> Any:
        try:
            return ask(
                repository.endpoint,
                lambda: HfApi(endpoint=repository.endpoint).model_info(
                    repository.repo_id,
                    revision=repository.revision,
                    files_metadata=True,
                    timeout=constants.HF_HUB_ETAG_TIMEOUT,
                ),
                HUB_ANSWER,
            )
        except HfHubHTTPError as error:
            raise_for(error, what, repository.endpoint, repository.repo_id)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise BadAnswer(
                f"{what}: the answer of {repository.endpoint} is not the Hub's: {short_name(str(error))}"
            ) from None

    info = retry(attempt, _NEVER, 2 if _is_cached(repository) else _FIRST_TRIES)
    if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
        raise BadAnswer(f"{what}: {repository.endpoint} names no commit")
    return info.sha, dict(_listed(info.siblings or (), what))


_FILE_NAME = re.compile(r"(?!\.{1,2}$)[^\x00-\x1f\x7f-\x9f/\\:\u202a-\u202e\u2066-\u2069\ud800-\udfff]{1,255}")
"""The name of a file on every system: no separators, control characters or half characters, neither `.` nor `..`."""


_SHA256 = re.compile(r"[0-9a-f]{64}")

_BEGINNING = re.compile(r"[0-9a-f]{7,39}")
"""The first digits of a commit."""


def _is_path(name: str) -> bool:
    """Return whether Git can have a file by this name. Files in folders are only looked at after further checks."""
    if "/" not in name:
        return _FILE_NAME.fullmatch(name) is not None
    return {"", ".", ".."}.isdisjoint(name.split("/"))


def _listed(siblings: Iterable[Any], what: str) -> Iterable[tuple[str, Listed]]:
    """Yield (name, file) for the files of the repository, in folders too. Raises BadAnswer for a malformed entry."""
    for file in siblings:
        if not isinstance(file.rfilename, str):
            raise BadAnswer(f"{what}: the listing has a file without a name")
        if not _is_path(file.rfilename):
            raise BadAnswer(
                f"{what}: the listing has a file called {short_name(file.rfilename)}, which is not a file name"
            )
        if type(file.size) is not int or file.size < 0:
            raise BadAnswer(f"{what}: the listing has no size for {file.rfilename}")
        sha256 = file.lfs.sha256 if file.lfs else None
        if not (sha256 is None or (isinstance(sha256, str) and _SHA256.fullmatch(sha256))):
            raise BadAnswer(f"{what}: the listing has {short(sha256)} for the SHA-256 of {file.rfilename}")
        if not isinstance(file.blob_id or "", str):
            raise BadAnswer(f"{what}: the listing has {short(file.blob_id)} for the Git blob of {file.rfilename}")
        yield file.rfilename, Listed(file.size, sha256 or file.blob_id or "", sha256)


def _fetch_headers(repository: Repository, source: RemoteSource, exact: bool) -> RemoteHeaders:
    """Fetch config, index, and the headers of the weight files, as far as they exist."""
    listing = source.listing
    small = read_small(source)
    if INDEX_FILE in small and not set(weight_map_of(small[INDEX_FILE]).values()) <= listing.keys():
        return RemoteHeaders(listing, small, False)  # files are missing, which the reader says: no header helps
    wanted = wanted_headers(source, small)
    local = [name for name in wanted if source.original(name) is not None]
    if not exact and not local and INDEX_FILE in small and repository.revision == _MAIN:
        rebuilt = _ask_headers(repository, {name: listing[name].nbytes for name in wanted})
        if rebuilt is not None:
            return RemoteHeaders(listing, small | rebuilt, True)
    return RemoteHeaders(listing, small | read_headers(source, wanted), False)


def _ask_headers(repository: Repository, nbytes: Mapping[str, int]) -> dict[str, bytes] | None:
    """Return name → header bytes from one answer with all headers; None if there is none, or it is for other files.

    `nbytes` maps the names to the sizes of the files. The answer is for `main` and has parsed headers. They are
    serialized as the format's own writer does it. Each must have the length that its file's size implies.
    """
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = f"{repository.endpoint}/api/models/{repository.repo_id}/safetensors-metadata/{quote(INDEX_FILE)}"

    def attempt() -> bytes | None:
        response = ask(
            repository.endpoint,
            lambda: get_session().get(url, headers=build_hf_headers(), timeout=_HEADERS_SECONDS),
            HUB_HEADERS,
        )
        refuse(response, repository.label, repository.endpoint, repository.repo_id)
        content: bytes = response.content
        return content

    try:
        raw = retry(attempt, _NEVER, 2)
        headers = parse_json(raw, HUB_HEADERS)["headers"] if raw else {}
        rebuilt = {name: _rebuilt(headers[name], total) for name, total in nbytes.items()}
    except (Unreachable, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # range requests are the fallback, and raise the errors that matter
    return {name: header for name, header in rebuilt.items() if header} if all(rebuilt.values()) else None


def _rebuilt(header: dict[str, Any], nbytes: int) -> bytes | None:
    """Serialize a parsed header with its length; None if the result does not fit a file of `nbytes` bytes."""
    tensors = sorted((entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__")
    ordered = {"__metadata__": header["__metadata__"]} if header.get("__metadata__") else {}
    for _, name in tensors:
        entry = header[name]
        ordered[name] = {key: entry[key] for key in ("dtype", "shape", "data_offsets")}
    text = json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    data = tensors[-1][0][1] if tensors else 0
    return len(text).to_bytes(LENGTH_BYTES, "little") + text if LENGTH_BYTES + len(text) + data == nbytes else None
