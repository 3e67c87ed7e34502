"""Outcome → the ways to serve: the checkpoint, as it is or by a plan, and the shards that `reshard` writes."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from dsv4_shard.catalog.options import LOAD_FORMAT
from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.engines import Launch, Options
from dsv4_shard.models import NATIVE
from dsv4_shard.planning.host_memory import direct_node_bytes, node_bytes
from dsv4_shard.planning.launch_documents import BY_PLAN, PlanLaunch, PlanWay
from dsv4_shard.planning.outcome import LayoutOutcome
from dsv4_shard.planning.request import options_of
from dsv4_shard.text.shell import shell_word


class Shards(NamedTuple):
    """The folder for shards, and the command that writes them."""

    folder: str
    command: str


def ways_of(checkpoint: Checkpoint, outcome: LayoutOutcome, label: str, shards: Shards | None) -> Iterator[PlanWay]:
    """Yield each way to serve a deployment that runs, the shards last.

    `label` is the name of the checkpoint; `shards` is None if none can be written. A checkpoint with names of another
    dialect is served if there are no shards: then an assumption of the plan says so.
    """
    engine, context = outcome.engine, outcome.context
    has_draft = context.inventory.draft.blocks > 0 and context.inventory.draft_difference is None

    def launch_on(path: str, is_sharded: bool) -> PlanLaunch:
        launch = engine.launch(context, shell_word(path), is_sharded)
        return PlanLaunch.of(launch.with_changes(outcome.cache_changes), has_draft=has_draft)

    reads_names = checkpoint.dialect == NATIVE or shards is None
    if reads_names and engine.misloads(context) is None:
        launch = launch_on(label, False)
        if launch.program is not None or shards is None:
            yield PlanWay(
                serves="checkpoint",
                node_bytes=node_bytes(checkpoint, context, outcome.stages, False),
                prepare=None,
                launch=launch,
            )
    if shards is not None and engine.loads_plans:
        yield PlanWay(
            serves=BY_PLAN,
            node_bytes=direct_node_bytes(context, outcome.stages),
            prepare=f"dsv4-shard plan {shell_word(label)} {options_of(outcome.request)} -o plan.json",
            launch=PlanLaunch.of(
                _by_plan(engine.launch(context, shell_word(label), False)).with_changes(outcome.cache_changes),
                has_draft=has_draft,
            ),
        )
    if shards is not None:
        yield PlanWay(
            serves="node folders" if engine.by_node else "shards",
            node_bytes=node_bytes(checkpoint, context, outcome.stages, True),
            prepare=shards.command,
            launch=launch_on(shards.folder, True),
        )


def _by_plan(launch: Launch) -> Launch:
    """The launch of a checkpoint with the plugin's loader, which follows the plan in plan.json."""
    assert launch.program is not None, "an engine with a plugin has a command"
    more: Options = {"--load-format": LOAD_FORMAT, "--model-loader-extra-config": shlex.quote('{"plan": "plan.json"}')}
    program = replace(launch.program, options=launch.program.options | more)
    return replace(launch, program=program, needs_plugin=True)
