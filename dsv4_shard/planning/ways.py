"""Outcome → the ways to serve: the checkpoint, as it is or by a plan, and the shards that `reshard` writes."""

from collections.abc import Iterator
from typing import NamedTuple

from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.engines import PLAN_FILE, Launch
from dsv4_shard.models import NATIVE
from dsv4_shard.planning.host_memory import direct_node_bytes, loader_bytes, node_bytes
from dsv4_shard.planning.launch_documents import BY_PLAN, PlanLaunch, PlanLoader, PlanWay
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

    def changed(launch: Launch) -> PlanLaunch:
        return PlanLaunch.of(launch.with_changes(outcome.cache_changes), has_draft=has_draft)

    def loaders(nbytes: int, *, is_sharded: bool) -> tuple[PlanLoader, ...]:
        found = engine.stock_loaders(context, is_sharded)
        return tuple(PlanLoader.of(one, loader_bytes(one.reads, nbytes, context, outcome.stages)) for one in found)

    reads_names = checkpoint.dialect == NATIVE or shards is None
    if reads_names and engine.misloads(context) is None:
        launch = changed(engine.launch(context, shell_word(label), False))
        if launch.program is not None or shards is None:
            nbytes = node_bytes(checkpoint, context, outcome.stages, False)
            yield PlanWay(
                serves="checkpoint",
                node_bytes=nbytes,
                prepare=None,
                launch=launch,
                loaders=loaders(nbytes, is_sharded=False),
            )
    if shards is not None and (by_plan := engine.launch_by_plan(context, shell_word(label))) is not None:
        yield PlanWay(
            serves=BY_PLAN,
            node_bytes=direct_node_bytes(context, outcome.stages),
            prepare=f"dsv4-shard plan {shell_word(label)} {options_of(outcome.request)} -o {PLAN_FILE}",
            launch=changed(by_plan),
            loaders=(),
        )
    if shards is not None:
        nbytes = node_bytes(checkpoint, context, outcome.stages, True)
        yield PlanWay(
            serves="node folders" if engine.by_node else "shards",
            node_bytes=nbytes,
            prepare=shards.command,
            launch=changed(engine.launch(context, shell_word(shards.folder), True)),
            loaders=loaders(nbytes, is_sharded=True),
        )
