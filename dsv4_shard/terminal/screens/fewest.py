"""Prints the result of `plan` without a layout: the fewest GPUs of each kind that hold the weights."""

from typing import TYPE_CHECKING

from rich.console import Console

from dsv4_shard.terminal.screens.search import titles
from dsv4_shard.terminal.shell_commands import to_copy
from dsv4_shard.terminal.tables import Table
from dsv4_shard.terminal.text import heading, item, title
from dsv4_shard.text.units import counted

if TYPE_CHECKING:
    from dsv4_shard.planning import Fewest

_GIB = 1 << 30


def show_fewest(console: Console, found: "Fewest") -> None:
    """Show a numbered row for each kind of GPU, what was searched, and the command that plans the first row."""
    searched = titles(found.engines)
    narrowed = f", with {found.narrowed_by}" if found.narrowed_by else ""
    title(console, f"The fewest GPUs that hold {found.checkpoint}: {searched}{narrowed}")
    for reason in found.unknown:
        item(console, f"not verified: {reason}", "yellow")
    held = [kind for kind in found.kinds if kind.layout is not None]
    if held:
        _show_rows(console, found)
    _show_unverified(console, found)
    heading(console, "Searched")
    item(console, f"{counted(found.tried, 'request')} of {searched}; numbers of GPUs: {found.counts}")
    for kind in found.kinds:
        if kind.layout is None:
            item(console, f"{kind.gpu}: {kind.reach}")
    first = next((kind for kind in held if kind.command), None)
    if first is not None and first.command is not None:
        heading(console, "Plan the first, or another with --pick N")
        to_copy(console, first.command)


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


def _show_rows(console: Console, found: "Fewest") -> None:
    table = Table("", "GPU", "GPUs", "GiB", "of", "free", "Mtok", "engine", "layout", right=(0, 2, 3, 4, 5, 6))
    for number, kind in enumerate((kind for kind in found.kinds if kind.layout is not None), 1):
        assert kind.layout is not None
        weights, memory = kind.layout.weight_bytes, kind.memory_bytes
        sizes = (f"{nbytes / _GIB:.1f}" for nbytes in (weights, memory, memory - weights))
        engine = kind.layout.deployment.engine
        options = kind.layout.options.partition(" --gpu")[0].replace(f" --engine {engine}", "")
        mark = "" if kind.verified else "?"
        tokens = "?" if kind.layout.tokens is None else f"{kind.layout.tokens * kind.layout.groups / 1e6:.2f}"
        table.add(str(number), kind.gpu, f"{kind.gpus}{mark}", *sizes, tokens, engine, options)
    table.show(console)
    unverified = any(not kind.verified for kind in found.kinds if kind.layout is not None)
    for line in (
        "GPUs: the fewest that hold the weights; no layout fits on fewer",
        "GiB, of, free: weights on the fullest GPU, its memory, and what is free for KV cache, activations and graphs",
        "Mtok: millions of tokens of KV cache, by the engine's own accounting; ? not known",
        *(("5?: not verified on this kind of GPU: bytes are those on another architecture",) if unverified else ()),
    ):
        item(console, line, "dim")
