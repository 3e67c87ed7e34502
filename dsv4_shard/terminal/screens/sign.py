"""Prints the result of `sign`."""

from typing import TYPE_CHECKING

from rich.console import Console

from dsv4_shard.terminal.text import item, paragraph
from dsv4_shard.text.units import counted, size

if TYPE_CHECKING:
    from dsv4_shard.signing import Signed


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
