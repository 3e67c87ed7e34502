"""Prints the results of `reshard`, `merge` and `report`: what was written, or would be, and where."""

import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dsv4_shard.catalog.rank_ranges import say_ranks
from dsv4_shard.checkpoint import some
from dsv4_shard.destinations import say_finished
from dsv4_shard.engines import title_of
from dsv4_shard.terminal.tables import Table
from dsv4_shard.terminal.text import item, paragraph, title
from dsv4_shard.text.units import counted, size

if TYPE_CHECKING:
    from dsv4_shard.destinations import ClusterOutcome, DryRun, Uploaded, WouldWrite
    from dsv4_shard.reassembly.merge_job import Merged
    from dsv4_shard.reporting import Report
    from dsv4_shard.sharding.outcome import Outcome, Written
    from dsv4_shard.signing import Signed


def show_dry_run(console: Console, would: "WouldWrite", dry: "DryRun") -> None:
    """Show what reshard would write."""
    job, needed, free = would.job, would.nbytes, would.free
    title(console, f"Would write into {would.out}")
    table = Table("file", "tensors", "bytes", right=(1, 2))
    for file in sorted(job.recipe.files, key=lambda file: file.name):
        table.add(file.name, f"{len(file.tensors):,}", f"{file.nbytes:,}")
    for name, nbytes in sorted(job.small_files.items()):
        table.add(name, "", f"{nbytes:,}")
    table.show(console)
    missing = max(0, needed - free)
    short = f": {size(missing)} missing" if missing else ""
    item(console, f"needed: {size(needed)}, free: {size(free)}{short}", "red" if missing else "")
    if job.nbytes > needed:
        item(console, f"links to the checkpoint's own files: {size(job.nbytes - needed)} more")
    item(console, f"reads {size(dry.bytes_read)} of the checkpoint's {size(dry.source_bytes)}")
    for share in dry.shares:
        unused = share.bytes_read - share.bytes_used
        whole = f", {size(unused)} of it columns of other ranks in rows that are read whole" if unused else ""
        item(
            console,
            f"{say_ranks(share.ranks)} alone: reads {size(share.bytes_read)}{whole}, writes {size(share.bytes)}",
        )
    for reason, count in Counter(job.recipe.left_out.values()).items():
        item(console, f"{count:,} source tensors left out: {reason}")
    for note in job.notes:
        item(console, note, "yellow")
    behind: dict[str, list[str]] = {}
    for name, reason in job.left_behind.items():
        behind.setdefault(reason, []).append(name)
    for reason, names in behind.items():
        item(console, f"stays behind ({reason}): {some(names)}")


def show_merge(console: Console, merged: "Merged", seconds: float) -> None:
    """Show what merge wrote, and how it differs from the original checkpoint."""
    if merged.was_complete:
        paragraph(console, say_finished(merged.out, (0,), 1))
        return
    _show_written(console, merged, seconds, "file")
    paragraph(console, f"into {merged.out}")
    for note in merged.notes:
        item(console, note, "yellow" if merged.changes else "")


def show_outcome(console: Console, outcome: "Outcome", seconds: float) -> None:
    """Show what reshard wrote, and where."""
    if outcome.was_complete:
        paragraph(console, say_finished(outcome.out, outcome.ranks, outcome.world))
        return
    _show_written(console, outcome, seconds, "rank file")
    is_whole = len(outcome.ranks) == outcome.world
    held = f"all {outcome.world} ranks" if is_whole else f"{say_ranks(outcome.ranks)} of {outcome.world}"
    if len(outcome.wrote) < outcome.world:
        paragraph(console, f"{say_ranks(outcome.wrote)} into {outcome.out}, which holds {held}")
    else:
        paragraph(console, f"into {outcome.out}")
    item(console, f"Next: dsv4-shard verify {shlex.quote(str(outcome.out))}")
    item(console, "Its README.md has the commands that serve it.")


def _show_written(console: Console, outcome: "Written", seconds: float, file: str) -> None:
    rate = (outcome.bytes - outcome.bytes_resumed) / seconds if seconds else 0
    paragraph(
        console,
        f"wrote {counted(outcome.files, file)}, {size(outcome.bytes)} in {seconds:.1f} s ({size(int(rate))}/s)",
    )
    if outcome.bytes_resumed:
        item(console, f"{size(outcome.bytes_resumed)} of it was there from an earlier run")
    if outcome.linked:
        item(console, f"{outcome.linked} more are links to the checkpoint's own files")
    if outcome.intact:
        item(console, f"{counted(outcome.intact, 'file')} came whole, with the SHA-256 that the Hub has of them")
    if outcome.unchecked:
        item(
            console, f"{counted(outcome.unchecked, 'file')} came from the Hub cache, unchecked: `hf cache verify REPO`"
        )
    if outcome.inexact:
        count = sum(outcome.inexact.values())
        item(console, f"{count:,} values in {len(outcome.inexact):,} tensors were rounded by the cast", "yellow")


def show_cluster(console: Console, outcome: "ClusterOutcome", seconds: float) -> None:
    """Show what the shares of a cluster wrote, and where they are."""
    wrote = f"{counted(outcome.files, 'rank file')}, {size(outcome.bytes)} in {counted(len(outcome.shares), 'share')}"
    paragraph(console, f"wrote {wrote} in {seconds:.1f} s")
    for share in outcome.shares:
        resumed = share.written.bytes_resumed if share.written else 0
        how = ["was there"] if share.written is None else [f"{size(resumed)} from an earlier run"] if resumed else []
        if share.lost_on:
            how.append(f"written again, after it was lost on {', then on '.join(share.lost_on)}")
        item(console, f"{say_ranks(share.ranks)} on {share.node}{': ' if how else ''}{'; '.join(how)}")
    item(console, "in one folder for all nodes" if outcome.one_folder else "in a folder on each node")


def show_upload(console: Console, uploaded: "Uploaded", seconds: float, kept: Path | None) -> None:
    """Show what was uploaded to a store."""
    if uploaded.resumed == uploaded.bytes and uploaded.written is None:
        paragraph(console, f"already complete: {uploaded.out} holds all {uploaded.objects} objects; nothing was sent")
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


def show_signed(console: Console, signed: "Signed") -> None:
    """Show what was signed, by whom, and where the signature is."""
    paragraph(console, f"signed {counted(signed.files, 'file')}, {size(signed.bytes)}, as {signed.by}")
    if signed.hashed < signed.bytes:
        item(
            console, f"{size(signed.bytes - signed.hashed)} by the SHA-256 of the manifest, {size(signed.hashed)} read"
        )
    for name in signed.others:
        item(console, f"also {name}, which is not part of the result", "yellow")
    paragraph(console, f"into {signed.out}")


def show_report(console: Console, report: "Report", output: Path) -> None:
    """Show what the report contains, and how to use it."""
    plan = report.plan
    about = "the checkpoint alone: name a layout with --tp or --gpus for placements and commands"
    if not report.family_known:
        about = f"{report.inspection.identity.family}, a family that is not known: what it holds, and what divides"
    elif plan is not None:
        engine = title_of(plan.request.engine, plan.engine_version)
        about = f"TP {plan.deployment.tp} on {engine} {plan.deployment.version}: {plan.verdict}"
    elif report.search is not None:
        about = f"{report.search.gpus} GPUs, on which nothing was found"
    paragraph(console, f"Wrote {output}. Open it in a browser.")
    item(console, about)
