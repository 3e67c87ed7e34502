"""Open the checkpoint that the user named: a folder, a Hub repository, a store URL, or a folder of rank files."""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dsv4_shard.checkpoint import Checkpoint, Inventory, read_checkpoint, take_inventory
from dsv4_shard.errors import NotFound, ServerFailed, UsageError
from dsv4_shard.reassembly.detect import holds_ranks
from dsv4_shard.sources.base import COMMIT, Source
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE
from dsv4_shard.sources.known_repos import near_repos
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.sources.release_files import release_of
from dsv4_shard.sources.remote import RemoteSource
from dsv4_shard.sources.sha256_check import check_downloads
from dsv4_shard.storage import collector_paused

if TYPE_CHECKING:
    from dsv4_shard.planning import Plan


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
                raise UsageError(f"{repo}: shards of ranks, which are read from folders only", hint="Download them.")
            return open_ranks(source, config)
        if config is not None:
            raise UsageError.about("config", ..., f"{repo} is a checkpoint, with a config.json of its own")
        checkpoint = read_checkpoint(source)
        return checkpoint, take_inventory(checkpoint)


def pinned(repo: str, plan: "Plan | None") -> str:
    """Return a Hub repository with the plan's commit, if the user named no revision; else `repo` unchanged."""
    revision = plan.source.revision if plan is not None and hub_id(repo) == (repo, None) else None
    return f"{repo}@{revision}" if revision else repo


def at_commit(repo: str, checkpoint: Checkpoint) -> str:
    """Return a Hub repository with the opened commit, so that later opens get the same; else `repo` unchanged."""
    named, commit = hub_id(repo), checkpoint.source.revision
    return f"{named[0]}@{commit}" if named and commit else repo


_HUB_ID = re.compile(r"^(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.+/-]+))?$")

_HUB_PAGE = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/(?P<id>[\w.-]+/[\w.-]+)", re.ASCII
)


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
    if (page := _HUB_PAGE.match(repo)) is not None:
        raise UsageError(f"{repo}: a page of the Hub", hint=f"Write {page['id']}.")
    if is_url(repo):
        from dsv4_shard.sources.object_store import open_store

        return open_store(repo)
    path = Path(os.path.expanduser(repo))
    if repo and os.path.isdir(path):
        return LocalSource(path, repo, _revision_of(path))
    if repo and os.path.exists(path):
        beside = path.parent if (path.parent / CONFIG_FILE).is_file() else "the folder that holds config.json"
        raise UsageError(f"{repo}: not a folder", hint=f"Name {beside}.")
    named = hub_id(repo)
    if named is None:
        raise UsageError(f"{repo}: no such folder", hint=_did_you_mean(repo))
    from dsv4_shard.sources.hub import open_repository

    try:
        return open_repository(repo, *named, refresh=refresh, exact=exact)
    except (NotFound, ServerFailed) as error:
        meant = _did_you_mean(named[0]) if isinstance(error, NotFound) else f"No folder here is called {repo}."
        error.hint = " ".join(filter(None, (meant, error.hint))) or None
        raise


def _did_you_mean(repo: str) -> str | None:
    meant = near_repos(repo)
    return f"Did you mean {' or '.join(meant)}?" if meant else None


def hub_id(repo: str) -> tuple[str, str | None] | None:
    """Return the repository and the revision in `repo`; None for a folder or text that cannot name a repository."""
    match = _HUB_ID.fullmatch(repo)
    if match is None or repo.startswith((".", "/", "~")) or os.path.exists(repo):
        return None
    return match["id"], match["revision"]


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
    from dsv4_shard.sources.hub_http import HubFiles

    source = checkpoint.source
    if isinstance(source, LocalSource) and source.revision is not None:
        return checkpoint
    if not isinstance(source, RemoteSource) or not isinstance(source.remote, HubFiles):
        raise UsageError.about("download", ..., f"{source.label} is not on the Hub", hint="Leave it out.")
    small = {CONFIG_FILE, INDEX_FILE} & source.listing.keys()
    wanted = sorted({*names, *small, *release_of(source).sizes})
    digests = {name: source.listing[name].sha256 for name in wanted if source.original(name) is None}
    folder = source.remote.download(wanted)
    due = {name: sha256 for name, sha256 in digests.items() if sha256 is not None}
    check_downloads(folder, due)
    source.sha256_verified.extend(due)
    return replace(checkpoint, source=replace(source, local=LocalSource(folder, source.label, source.revision)))


def refuse_url(out: Path, hint: str) -> None:
    """Raise UsageError for a URL given as a folder. A Path keeps only one of a URL's slashes."""
    scheme, colon, rest = str(out).partition(":/")
    if colon and scheme.isalnum() and not out.exists():
        raise UsageError(f"{scheme}://{rest}: a folder is wanted here, not a URL", hint=hint)
