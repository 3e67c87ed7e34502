"""`--dry-run`, and a result that is already complete: what `reshard` and `merge` say then."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dsv4_shard.errors import ExitCode, NothingToDo
from dsv4_shard.terminal.output import print_json, show
from dsv4_shard.text.sanitize import clean

if TYPE_CHECKING:
    from dsv4_shard.destinations import WouldWrite


def show_nothing_done(error: NothingToDo, out: Path, as_json: bool, is_dry: bool) -> None:
    """Say on stderr that the result is there; with --json, print its document."""
    from dsv4_shard.destinations import nothing_done

    print(clean(str(error)), file=sys.stderr)
    if as_json:
        print_json(nothing_done(out, error, is_dry))


def show_would_write(would: "WouldWrite", as_json: bool) -> None:
    """Show what would be written; exit code 4 if there is no room for it."""
    from dsv4_shard.terminal.screens.dry_run import show_dry_run

    dry = would.document()
    show(dry, as_json, show_dry_run, would)
    if not dry.fits:
        raise typer.Exit(ExitCode.IO)
