"""Checkpoint and deployment → the ways to serve: the checkpoint as it is, and the shards that `reshard` writes."""

import shlex
from collections.abc import Iterator
from dataclasses import replace

from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.engines import Change, Context, Engine, Launch
from dsv4_shard.models import NATIVE
from dsv4_shard.planning.document import PlanLaunch, PlanTotals, PlanWay
from dsv4_shard.planning.host_memory import node_bytes


def ways_of(
    checkpoint: Checkpoint,
    engine: Engine,
    context: Context,
    totals: PlanTotals | None,
    label: str,
    shards: tuple[str, str] | None,
    changes: tuple[Change, ...],
) -> Iterator[PlanWay]:
    """Yield each way to serve a deployment that runs, the shards last.

    `label` is the name of the checkpoint, `shards` the folder for them and the command that writes them; None if the
    engine has no files. A checkpoint with names of another dialect is served if there are no shards: then an assumption
    of the plan says so. `changes` are further options for the engine's command.
    """
    has_draft = context.inventory.draft.blocks > 0 and context.inventory.draft_difference is None
    reads_names = checkpoint.dialect == NATIVE or shards is None
    if reads_names and engine.misloads(context) is None:
        launch = engine.launch(context, shlex.quote(label), False)
        if launch.program is not None or shards is None:
            yield PlanWay(
                serves="checkpoint",
                node_bytes=node_bytes(checkpoint, context, totals, False),
                prepare=None,
                launch=PlanLaunch.of(_with(launch, changes), has_draft=has_draft),
            )
    if shards is not None:
        out, command = shards
        launch = engine.launch(context, shlex.quote(out), True)
        yield PlanWay(
            serves="node folders" if engine.by_node else "shards",
            node_bytes=node_bytes(checkpoint, context, totals, True),
            prepare=command,
            launch=PlanLaunch.of(_with(launch, changes), has_draft=has_draft),
        )


def _with(launch: Launch, changes: tuple[Change, ...]) -> Launch:
    """The launch with the options of `changes`."""
    if launch.program is None:
        return launch
    more = dict(setting.split(" ", 1) for change in changes for setting in change.settings)
    return replace(launch, program=replace(launch.program, options={**launch.program.options, **more}))
