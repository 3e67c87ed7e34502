"""Prints the result of `reshard --dry-run` and `merge --dry-run`: the files that would be written, and the space."""

from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console

from dsv4_shard.catalog.rank_ranges import say_ranks
from dsv4_shard.checkpoint import some
from dsv4_shard.terminal.tables import Table
from dsv4_shard.terminal.text import item, title
from dsv4_shard.text.units import size

if TYPE_CHECKING:
    from dsv4_shard.destinations import DryRun, WouldWrite


def show_dry_run(console: Console, dry: "DryRun", would: "WouldWrite") -> None:
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
