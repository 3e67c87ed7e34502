"""Prints the result of `reshard --dry-run` and `merge --dry-run`: the files that would be written, and the space."""

import re
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console

from dsv4_shard.catalog.rank_ranges import say_ranks
from dsv4_shard.checkpoint import some
from dsv4_shard.terminal.tables import Table
from dsv4_shard.terminal.text import item, title
from dsv4_shard.text.units import counted, size

_NUMBER = re.compile(r"(?<=rank|node)-?\d+|(?<=model)\d+(?=-mp)")
"""The number of a rank or node in the name of a file."""

if TYPE_CHECKING:
    from dsv4_shard.destinations import DryRun, WouldWrite


def show_dry_run(console: Console, dry: "DryRun", would: "WouldWrite") -> None:
    """Show what reshard would write."""
    job, needed, free = would.job, would.nbytes, would.free
    title(console, f"Would write into {would.out}")
    missing = max(0, needed - free)
    short = f": {size(missing)} missing" if missing else ""
    item(console, f"needed: {size(needed)}, free: {size(free)}{short}", "red" if missing else "")
    if job.nbytes > needed:
        item(console, f"links to the checkpoint's own files: {size(job.nbytes - needed)} more")
    item(console, f"reads {size(dry.bytes_read)} of the checkpoint's {size(dry.source_bytes)}")
    for share in dry.shares:
        unused = share.bytes_read - share.bytes_used
        whole = f" ({size(unused)} for other ranks)" if unused else ""
        alone = f"{say_ranks(share.ranks)} alone: reads {size(share.bytes_read)}{whole}, writes {size(share.bytes)}"
        item(console, alone)
    _show_files(console, would)
    for reason, count in Counter(job.recipe.left_out.values()).items():
        item(console, f"{count:,} source tensors left out: {reason}")
    for note in job.notes:
        item(console, note, "yellow")
    behind: dict[str, list[str]] = {}
    for name, reason in job.left_behind.items():
        behind.setdefault(reason, []).append(name)
    for reason, names in behind.items():
        item(console, f"stays behind ({reason}): {some(names)}")


def _show_files(console: Console, would: "WouldWrite") -> None:
    """A row for each kind of file: those that differ in the number of their rank or node alone are one."""
    job = would.job
    kinds: dict[tuple[str, int, int], int] = {}
    for file in job.recipe.files:
        kind = (_NUMBER.sub("-R", file.name, count=1), len(file.tensors), file.nbytes)
        kinds[kind] = kinds.get(kind, 0) + 1
    table = Table("files", "name", "tensors", "bytes", right=(0, 2, 3))
    for (name, tensors, nbytes), count in kinds.items():
        table.add(str(count), name, f"{tensors:,}", f"{nbytes:,}")
    table.show(console)
    small = size(sum(job.small_files.values()))
    item(console, f"and {small} in {counted(len(job.small_files), 'file')}: {', '.join(sorted(job.small_files))}")
