"""Prints the result of `plan` without a layout: the fewest GPUs of each kind that hold the weights."""

from typing import TYPE_CHECKING

from rich.console import Console

from dsv4_shard.terminal.screens.search import show_not_verified, titles
from dsv4_shard.terminal.shell_commands import to_copy
from dsv4_shard.terminal.tables import Table
from dsv4_shard.terminal.text import heading, item, title
from dsv4_shard.text.units import counted

if TYPE_CHECKING:
    from dsv4_shard.planning import Fewest, FewestGpus, FoundLayout

    Row = tuple[int, FewestGpus, FoundLayout]

_GIB = 1 << 30


def show_fewest(console: Console, found: "Fewest", *, details: bool = False) -> None:
    """Show a numbered row for each kind of GPU, what was searched, and the command that plans the first row.

    Kinds that no engine's rules are verified on have one line together, and rows with `details`.
    """
    narrowed = f", with {found.narrowed_by}" if found.narrowed_by else ""
    title(console, f"The fewest GPUs that hold {found.checkpoint}, by kind{narrowed}")
    show_not_verified(console, found.unknown)
    rows = [(number, kind, kind.layout) for number, kind in enumerate(_held(found), 1) if kind.layout is not None]
    shown = [row for row in rows if details or row[1].verified] or rows
    if shown:
        _show_rows(console, shown)
    _show_hidden(console, rows[len(shown) :])
    _show_unverified(console, found)
    searched = f"{counted(found.tried, 'layout')} of {titles(found.engines)} on {found.counts} GPUs"
    item(console, f"Searched {searched}", "dim", indent=0)
    for kind in found.kinds:
        if kind.layout is None:
            item(console, f"{kind.gpu}: {kind.reach}")
    first = next((kind for _, kind, _ in rows if kind.command), None)
    if first is not None and first.command is not None:
        heading(console, "Plan the first, or another with --pick N")
        to_copy(console, first.command)


def _held(found: "Fewest") -> "list[FewestGpus]":
    """The kinds that hold the weights, in the order of `--pick`: those with verified rules come first."""
    return [kind for kind in found.kinds if kind.layout is not None]


def _show_hidden(console: Console, rows: "list[Row]") -> None:
    """Name the GPUs on which no engine is verified, with how few hold the weights."""
    if rows:
        counts = ", ".join(f"{kind.gpus} {kind.gpu}" for _, kind, _ in rows)
        item(console, f"Not verified, by bytes alone (--details): {counts}", indent=0)


def _show_unverified(console: Console, found: "Fewest") -> None:
    """Show, for each kind, the fewest GPUs that hold the weights with engines that are not verified."""
    rows = [(kind, kind.unverified) for kind in found.kinds if kind.unverified is not None]
    if not rows:
        return
    heading(console, "Not verified")
    table = Table("GPU", "GPUs", "weights", "of", "layout", right=(1, 2, 3))
    for kind, layout in rows:
        sizes = (f"{nbytes / _GIB:.1f}" for nbytes in (layout.weight_bytes, kind.memory_bytes))
        table.add(kind.gpu, str(layout.deployment.world), *sizes, layout.options.partition(" --gpu")[0])
    table.show(console)
    for assumption in dict.fromkeys(str(layout.assumption) for _, layout in rows):
        item(console, assumption, "dim")


def _show_rows(console: Console, rows: "list[Row]") -> None:
    table = Table("", "GPU", "GPUs", "GiB", "of", "free", "Mtok", "engine", "layout", right=(0, 2, 3, 4, 5, 6))
    for number, kind, layout in rows:
        weights, memory = layout.weight_bytes, kind.memory_bytes
        sizes = (f"{nbytes / _GIB:.1f}" for nbytes in (weights, memory, memory - weights))
        mark = "" if kind.verified else "?"
        tokens = "?" if layout.tokens is None else f"{layout.tokens * layout.groups / 1e6:.2f}"
        parallel = layout.options.partition(" --gpu")[0].partition(" --engine")[0].partition(" --runner")[0]
        table.add(str(number), kind.gpu, f"{kind.gpus}{mark}", *sizes, tokens, layout.deployment.engine, parallel)
    table.show(console)
    is_verified = all(kind.verified for _, kind, _ in rows)
    for line in (
        "GiB: weights on the fullest GPU; free: for KV cache, activations and graphs",
        "Mtok: millions of tokens of KV cache, by the engine's own accounting; ? not known",
        *(() if is_verified else ("? after a number of GPUs: not verified on this kind",)),
    ):
        item(console, line, "dim")
