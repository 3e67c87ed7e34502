"""A checkpoint by the name that a user gives it, opened: a folder, a repository, a store, or the shards of ranks."""

from pathlib import Path
from typing import TYPE_CHECKING

from dsv4_shard.checkpoint import Checkpoint, read_checkpoint
from dsv4_shard.errors import UsageError
from dsv4_shard.inventory import Inventory, take_inventory
from dsv4_shard.rankfolder import holds_ranks
from dsv4_shard.sources import LocalSource, hub_id, open_source
from dsv4_shard.storage.runtime import collector_paused

if TYPE_CHECKING:
    from dsv4_shard.plan import Plan


def open_checkpoint(
    repo: str, config: Path | None = None, *, refresh: bool = False, exact: bool = True
) -> tuple[Checkpoint, Inventory]:
    """The checkpoint that `repo` names, or the one that the rank shards in that folder make up; see `open_source`.

    Reads headers only. Raises what the checkpoint's own checks raise, and UsageError for a `config` that is not wanted.
    """
    with collector_paused():
        source = open_source(repo, refresh=refresh, exact=exact)
        if holds_ranks(source):
            from dsv4_shard.ranks import open_ranks

            if not isinstance(source, LocalSource):
                raise UsageError(f"{repo}: shards of ranks, which are read from folders only", hint="Download them.")
            return open_ranks(source, config)
        if config is not None:
            raise UsageError(f"--config: {repo} is a checkpoint, with a config.json of its own")
        checkpoint = read_checkpoint(source)
        return checkpoint, take_inventory(checkpoint)


def pinned(repo: str, plan: "Plan | None") -> str:
    """A repository on the Hub at the commit that a plan was made for, where the user named no other."""
    revision = plan.source.revision if plan is not None and hub_id(repo) == (repo, None) else None
    return f"{repo}@{revision}" if revision else repo


def at_commit(repo: str, checkpoint: Checkpoint) -> str:
    """A repository on the Hub with the commit that was opened: who opens it again later gets the same."""
    named, commit = hub_id(repo), checkpoint.source.revision
    return f"{named[0]}@{commit}" if named and commit else repo
