"""Open the checkpoint that the user named: a folder, a Hub repository, a store URL, or a folder of rank files."""

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dsv4_shard.checkpoint import Checkpoint, Inventory, Origin, read_checkpoint, refuse_kinds, take_inventory
from dsv4_shard.errors import (
    AccessRefused,
    NoRepository,
    NotACheckpoint,
    ServerFailed,
    ShardError,
    Unreachable,
    UsageError,
)
from dsv4_shard.reassembly.detect import holds_ranks
from dsv4_shard.sources.base import COMMIT, Source
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE
from dsv4_shard.sources.hub_cache import remove_bad_copies
from dsv4_shard.sources.hub_names import HubName, download_of, hub_id
from dsv4_shard.sources.known_repos import near_repos
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.sources.release_files import release_of
from dsv4_shard.sources.remote import RemoteSource
from dsv4_shard.sources.sha256_check import check_downloads
from dsv4_shard.storage import collector_paused
from dsv4_shard.text.shell import shell_word

if TYPE_CHECKING:
    from dsv4_shard.planning import Plan

_log = logging.getLogger(__name__)


def open_checkpoint(
    repo: str, config: Path | None = None, *, refresh: bool = False, exact: bool = True
) -> tuple[Checkpoint, Inventory]:
    """Open the checkpoint at `repo`; rank shards in a folder make up a checkpoint too. Only headers are read.

    Args:
        repo: Folder, repository or URL; see `open_source`.
        config: The config.json for rank shards of DeepSeek's converter.
        refresh: Whether to ask the Hub for a branch's commit even if it was asked for within the last hour.
        exact: Whether the exact bytes of the headers are needed.

    Raises:
        UsageError: `config` is given for a checkpoint that has its own, or `repo` is malformed.
        ShardError: The checkpoint contradicts itself, or cannot be fetched.
    """
    with collector_paused():
        source = open_source(repo, refresh=refresh, exact=exact)
        if holds_ranks(source):
            from dsv4_shard.reassembly.rank_folder import open_ranks

            if not isinstance(source, LocalSource):
                raise UsageError(f"{repo}: shards of ranks, which are read from folders only", hint=_to_download(repo))
            return open_ranks(source, config)
        if config is not None:
            raise UsageError.about("config", ..., f"{repo} is a checkpoint, with a config.json of its own")
        checkpoint = read_checkpoint(source)
        return checkpoint, take_inventory(checkpoint)


def _to_download(repo: str) -> str:
    """Return the command that puts what is at `repo` into a folder here."""
    if (named := hub_id(repo)) is not None:
        return f"Download them: {download_of(named)}."
    scheme, _, rest = repo.partition("://")
    places = f"{shell_word(repo)} {shell_word(rest.rstrip('/').rpartition('/')[2] or 'shards')}"
    tools = {"s3": f"aws s3 sync {places}", "gs": f"gcloud storage rsync -r {places}"}
    return f"Download them: `{tools[scheme]}`." if scheme in tools else "Download them into a folder, and name that."


def pinned(repo: str, plan: "Plan | None") -> str:
    """Return a Hub repository with the plan's commit, if the user named no revision; else `repo` unchanged."""
    named = hub_id(repo) if plan is not None else None
    if plan is None or named is None or named.revision is not None or plan.source.revision is None:
        return repo
    return str(named._replace(revision=plan.source.revision))


def as_made_from(repo: str, origin: Origin) -> str:
    """Return a Hub repository with the commit that a result was made from, if it is the same one without a revision."""
    named, made = hub_id(repo), hub_id(origin.label)
    if named is None or made is None or named.revision is not None or named.repo != made.repo:
        return repo
    return str(named._replace(revision=origin.revision))


def at_commit(repo: str, checkpoint: Checkpoint) -> str:
    """Return a Hub repository with the opened commit, so that later opens get the same; else `repo` unchanged."""
    named, commit = hub_id(repo), checkpoint.source.revision
    return f"{named[0]}@{commit}" if named and commit else repo


def open_source(repo: str, *, refresh: bool = False, exact: bool = False) -> Source:
    """Return the source at `repo`: a folder, the URL of an object store, or the Hub repository `org/name[@revision]`.

    `refresh` and `exact` are as in `sources.hub.open_repository`; stores are opened by
    `sources.object_store.open_store`.

    Raises:
        UsageError: `repo` is none of these, or not UTF-8.
        Unreachable: `repo` cannot be fetched.
    """
    if not _is_utf8(repo):
        raise UsageError(
            f"{repo}: a name that is not UTF-8: plans and manifests, which are JSON, could not hold it",
            hint="Rename the folder, or make a link to it: `ln -s FOLDER model`.",
        )
    if not repo.strip():
        raise UsageError("no checkpoint: the name is empty", hint="A shell variable in its place may not be set.")
    named = hub_id(repo)
    if named is None and is_url(repo):
        from dsv4_shard.sources.object_store import open_store

        return open_store(repo)
    path = Path(os.path.expanduser(repo))
    if named is None and os.path.isdir(path):
        return LocalSource(path, repo, _revision_of(path))
    if named is None and os.path.exists(path):
        raise _no_folder(repo, path)
    if named is None:
        raise UsageError(f"{repo}: no such folder", hint=_did_you_mean(repo) or _inside_a_repository(repo))
    from dsv4_shard.sources.hub import open_repository

    try:
        return open_repository(str(named), *named, refresh=refresh, exact=exact)
    except AccessRefused:
        raise
    except Unreachable as error:
        if os.path.isdir(path):
            raise NotACheckpoint(f"{repo}: the folder here is empty; and {error}") from error
        meant = _did_you_mean(named.repo) if isinstance(error, NoRepository) else None
        here = f"No folder here is called {repo}." if isinstance(error, ServerFailed) else None
        error.hint = " ".join(filter(None, (meant, here, error.hint))) or None
        raise


_KINDS_OF_NAMES = "Name a folder, org/name on the Hub, or s3://bucket/prefix (gs://, az://)."


def _no_folder(repo: str, path: Path) -> UsageError:
    """Return the error for a file in place of a checkpoint: what it is, and the folder to name.

    Raises OtherExport for a file of another tool.
    """
    refuse_kinds(repo, [path.name])
    beside = path.parent
    if path.suffix == ".json" and path.name not in (CONFIG_FILE, INDEX_FILE) and _is_plan(path):
        return UsageError(f"{repo}: a plan, not a checkpoint",
                          hint=f"`dsv4-shard reshard REPO OUT --plan {shell_word(repo)}` follows it.")  # fmt: skip
    if (beside / CONFIG_FILE).is_file():
        what = "a file of a checkpoint, which is its folder"
        return UsageError(f"{repo}: {what}", hint=f"Name {beside}.")
    return UsageError(f"{repo}: not a folder", hint="Name the folder that holds config.json.")


def _is_plan(path: Path) -> bool:
    from dsv4_shard.planning import load_plan

    try:
        load_plan(path)
    except ShardError:
        return False
    return True


def _inside_a_repository(repo: str) -> str:
    """Return what to do about a name that may be a folder inside a repository, or that is nothing."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)/([\w./-]+)", repo, re.ASCII)
    if match is None or repo.startswith(".") or os.path.lexists(repo.partition("/")[0]):
        return _KINDS_OF_NAMES
    download = download_of(HubName(match[1], None), match[2])
    return f"A folder inside a repository on the Hub is downloaded first: {download}."


def _did_you_mean(repo: str) -> str | None:
    meant = near_repos(repo)
    return f"Did you mean {' or '.join(meant)}?" if meant else None


def is_url(text: str) -> bool:
    """Whether the text is meant as a URL, supported or not."""
    return "://" in text


def _is_utf8(text: str) -> bool:
    """Whether a path is UTF-8; bytes that are not appear as lone surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _revision_of(path: Path) -> str | None:
    """Return the commit of a Hub cache's snapshot, which is the name of the folder; None for other folders."""
    resolved = path.resolve()
    return resolved.name if resolved.parent.name == "snapshots" and COMMIT.fullmatch(resolved.name) else None


def with_download(checkpoint: Checkpoint, names: Iterable[str]) -> Checkpoint:
    """Return the checkpoint with `names` and its small files in this machine's Hub cache, to be read from there.

    Raises:
        UsageError: The checkpoint is not from the Hub.
        ShardError: The download fails; see `HubFiles.download`.
    """
    from dsv4_shard.sources.hub_files import HubFiles

    source = checkpoint.source
    if isinstance(source, LocalSource) and source.revision is not None:
        return checkpoint
    if not isinstance(source, RemoteSource) or not isinstance(source.remote, HubFiles):
        raise UsageError.about("download", ..., f"{source.label} is not on the Hub", hint="Leave it out.")
    small = {CONFIG_FILE, INDEX_FILE} & source.listing.keys()
    wanted = sorted({*names, *small, *release_of(source).sizes})
    digests = {name: source.listing[name].sha256 for name in wanted if source.original(name) is None}
    if source.local is not None:
        due_again = {name: source.listing[name].nbytes for name in digests}
        for name in remove_bad_copies(source.local.root, due_again):
            _log.warning("%s: the copy in the Hub cache had another size, and is fetched again", name)
    folder = source.remote.download(wanted)
    due = {name: sha256 for name, sha256 in digests.items() if sha256 is not None}
    check_downloads(folder, due)
    source.sha256_verified.extend(due)
    return replace(checkpoint, source=replace(source, local=LocalSource(folder, source.label, source.revision)))


def refuse_url(out: Path, hint: str) -> None:
    """Raise UsageError for a URL given as a folder. A Path keeps only one of a URL's slashes."""
    scheme, colon, rest = str(out).partition(":/")
    if colon and scheme.isalnum() and not out.exists():
        url = f"{scheme}://{rest}"
        named = hub_id(url)
        raise UsageError(f"{url}: a folder is wanted here, not a URL",
                         hint=f"Download it: {download_of(named)}." if named else hint)  # fmt: skip
