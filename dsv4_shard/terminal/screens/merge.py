"""Prints the result of `merge`."""

from typing import TYPE_CHECKING

from rich.console import Console

from dsv4_shard.destinations import say_finished
from dsv4_shard.terminal.screens.written import show_written
from dsv4_shard.terminal.text import item, paragraph

if TYPE_CHECKING:
    from dsv4_shard.reassembly.merge_job import Merged


def show_merge(console: Console, merged: "Merged", seconds: float) -> None:
    """Show what merge wrote, and how it differs from the original checkpoint."""
    if merged.was_complete:
        paragraph(console, say_finished(merged.out, (0,), 1))
        return
    show_written(console, merged, seconds, "file")
    paragraph(console, f"into {merged.out}")
    for note in merged.notes:
        item(console, note, "yellow" if merged.changes else "")
