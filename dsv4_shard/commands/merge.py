"""`merge`: the shards of all ranks as one checkpoint."""

from pathlib import Path
from typing import Any

import dsv4_shard
from dsv4_shard.commands.dry_run import show_nothing_done, show_would_write
from dsv4_shard.errors import NothingToDo
from dsv4_shard.reshard import would_merge
from dsv4_shard.sharding.options import (
    MergeCommand,
    MergeDryRunOptions,
    MergeOptions,
)
from dsv4_shard.terminal import options
from dsv4_shard.terminal.arguments import only
from dsv4_shard.terminal.output import log_console, show
from dsv4_shard.terminal.process import reported


@reported
@options.takes(MergeCommand)
def merge(
    ranks: options.RanksArg,
    out: options.OutFolderArg,
    given: dict[str, Any],
    how: options.ProgressOpt = "auto",
    as_json: options.JsonOpt = False,
) -> None:
    """Merge the shards of all ranks into one checkpoint.

    Restores its names, files and bytes. Tensors that the shards hold in another form (wo_a decoded, experts cast) stay
    in it, and are listed.

    The same command resumes a run that ended early, and does nothing once its result is complete.
    """
    from dsv4_shard.terminal.progress_lines import progress_as
    from dsv4_shard.terminal.screens.merge import show_merge

    if "dry_run" in given:
        try:
            show_would_write(would_merge(ranks, out, MergeDryRunOptions.of(only(given, MergeDryRunOptions))), as_json)
        except NothingToDo as error:
            show_nothing_done(error, Path(out), as_json, True)
        return
    with progress_as(how, log_console(), as_json=as_json) as progress:
        merged = dsv4_shard.merge(ranks, out, progress=progress, **only(given, MergeOptions))
    show(merged, as_json, show_merge, progress.seconds)
