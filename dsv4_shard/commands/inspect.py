"""`inspect`: what a checkpoint holds, and what runs at each TP."""

from typing import Any

import typer

import dsv4_shard
from dsv4_shard.errors import ExitCode
from dsv4_shard.inspect import InspectOptions
from dsv4_shard.terminal import options
from dsv4_shard.terminal.arguments import numbers
from dsv4_shard.terminal.output import show
from dsv4_shard.terminal.process import reported


@reported
@options.takes(InspectOptions)
def inspect(
    repo: options.RepoArg,
    given: dict[str, Any],
    tp: str = "1,2,4,8,16,32,64",
    details: options.InspectDetailsOpt = False,
    as_json: options.JsonOpt = False,
) -> None:
    """Show what a checkpoint holds, and what runs at each TP.

    Reads headers only. For other model families, shows tensors and which TP sizes split them on block boundaries.
    """
    from dsv4_shard.inspection import Inspection
    from dsv4_shard.terminal import last_inspected
    from dsv4_shard.terminal.screens.known_family import show_inspection
    from dsv4_shard.terminal.screens.unknown_family import show_unknown

    inspection = dsv4_shard.inspect(repo, tp=numbers(tp, "--tp"), **given)
    last_inspected.remember(repo)
    if not isinstance(inspection, Inspection):
        show(inspection, as_json, show_unknown, details=details)
        return
    show(inspection, as_json, show_inspection, details=details)
    if inspection.has_errors:
        raise typer.Exit(ExitCode.CHECKPOINT)
