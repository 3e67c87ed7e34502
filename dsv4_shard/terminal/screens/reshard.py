"""Prints the result of `reshard`: into a folder, into an object store, or on the nodes of a cluster."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dsv4_shard.catalog.rank_ranges import say_ranks
from dsv4_shard.destinations import say_finished
from dsv4_shard.terminal.screens.verify import show_together
from dsv4_shard.terminal.screens.written import show_written
from dsv4_shard.terminal.text import item, paragraph
from dsv4_shard.text.units import counted, size

if TYPE_CHECKING:
    from dsv4_shard.destinations import ClusterOutcome, Uploaded
    from dsv4_shard.sharding.outcome import Outcome


def show_outcome(console: Console, outcome: "Outcome", seconds: float) -> None:
    """Show what reshard wrote, and where."""
    if outcome.was_complete:
        paragraph(console, say_finished(outcome.out, outcome.ranks, outcome.world))
        return
    show_written(console, outcome, seconds, "rank file")
    is_whole = len(outcome.ranks) == outcome.world
    held = f"all {outcome.world} ranks" if is_whole else f"{say_ranks(outcome.ranks)} of {outcome.world}"
    if len(outcome.wrote) < outcome.world:
        paragraph(console, f"{say_ranks(outcome.wrote)} into {outcome.out}, which holds {held}")
    else:
        paragraph(console, f"into {outcome.out}")
    item(console, f"Next: dsv4-shard verify {shlex.quote(str(outcome.out))}")
    item(console, "Its README.md has the commands that serve it.")


def show_upload(console: Console, uploaded: "Uploaded", seconds: float, kept: Path | None) -> None:
    """Show what was uploaded to a store."""
    if uploaded.was_complete:
        paragraph(console, say_finished(uploaded.out, uploaded.ranks, uploaded.world))
        return
    rate = uploaded.sent / seconds if seconds else 0
    paragraph(
        console, f"put {uploaded.objects} objects, {size(uploaded.sent)} sent in {seconds:.1f} s ({size(int(rate))}/s)"
    )
    if uploaded.copied:
        item(console, f"{size(uploaded.copied)} were copied within the store")
    if uploaded.resumed:
        item(console, f"{size(uploaded.resumed)} were there from an earlier run")
    if kept:
        item(console, f"kept in {kept}")
    paragraph(console, f"into {uploaded.out}")


def show_cluster(console: Console, outcome: "ClusterOutcome", seconds: float) -> None:
    """Show what the shares of a cluster wrote, where they are, and their verification."""
    wrote = f"{counted(outcome.files, 'rank file')}, {size(outcome.bytes)} in {counted(len(outcome.shares), 'share')}"
    paragraph(console, f"wrote {wrote} in {seconds:.1f} s")
    for share in outcome.shares:
        resumed = share.written.bytes_resumed if share.written else 0
        how = ["was there"] if share.written is None else [f"{size(resumed)} from an earlier run"] if resumed else []
        if share.lost_on:
            how.append(f"written again, after it was lost on {', then on '.join(share.lost_on)}")
        item(console, f"{say_ranks(share.ranks)} on {share.node}{': ' if how else ''}{'; '.join(how)}")
    item(console, "in one folder for all nodes" if outcome.one_folder else "in a folder on each node")
    show_together(console, outcome.verification)
