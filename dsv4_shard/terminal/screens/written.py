"""Prints what `reshard` and `merge` have in common: files, bytes and rate, and where bytes came from."""

from typing import TYPE_CHECKING

from rich.console import Console

from dsv4_shard.terminal.text import item, paragraph
from dsv4_shard.text.units import counted, size

if TYPE_CHECKING:
    from dsv4_shard.sharding.outcome import Written


def show_written(console: Console, outcome: "Written", seconds: float, file: str) -> None:
    """Show how much was written and how fast, and what did not come byte by byte from a checked file."""
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
