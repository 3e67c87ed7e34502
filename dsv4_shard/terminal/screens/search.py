"""Prints the result of `plan --gpus`: the layouts that run, best first."""

import shlex
from typing import TYPE_CHECKING

from rich.console import Console

from dsv4_shard.catalog.gpus import counted_gpus
from dsv4_shard.engines import find_engine
from dsv4_shard.terminal.shell_commands import to_copy
from dsv4_shard.terminal.tables import Table
from dsv4_shard.terminal.text import heading, item, title
from dsv4_shard.text.units import binary_unit, counted, gib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsv4_shard.planning import Search

_LAYOUTS_SHOWN = 12


def show_search(console: Console, found: "Search") -> None:
    """Show the layouts, best first, the meaning of the numbers, and the command that plans the best one."""
    searched = titles(found.engines) if found.engines else "not verified"
    narrowed = f", with {found.narrowed_by}" if found.narrowed_by else ""
    title(console, f"{counted_gpus(found.gpus, found.gpu)}: {searched}{narrowed}")
    show_not_verified(console, found.unknown)
    if found.unverified:
        _show_unverified(console, found)
    if not found.engines:
        return
    heading(console, _heading(found))
    if found.layouts:
        _show_layouts(console, found)
    for way in found.elsewhere:
        title(console, f"{counted_gpus(way.gpus, way.gpu)} would do")
        to_copy(console, f"dsv4-shard plan {shlex.quote(found.checkpoint)} {way.options}")
    kinds = f"{counted(found.tried, 'layout')} of {searched} on {counted(found.gpus, 'GPU')}"
    item(console, f"searched: {kinds}{f'; {found.reach}' if found.reach else ''}")
    if found.command:
        heading(console, "Plan the first, or another with --pick N")
        to_copy(console, found.command)


def show_not_verified(console: Console, reasons: "Sequence[str]") -> None:
    """Show why engines are not verified; those of one reason have one line."""
    engines: dict[str, list[str]] = {}
    for engine, _, reason in (one.partition(": ") for one in reasons):
        engines.setdefault(reason, []).append(engine)
    for reason, names in engines.items():
        item(console, f"{', '.join(names)}: {reason}", "yellow")


def titles(engines: "Sequence[str]") -> str:
    """The titles of the engines that a search tried."""
    return ", ".join(find_engine(name).title for name in engines)


def _heading(found: "Search") -> str:
    if found.best:
        return "Layouts that run"
    if found.layouts:
        return "Nothing fits"
    return "Nothing runs on an engine that is verified" if found.unverified else "Nothing runs"


def _show_unverified(console: Console, found: "Search") -> None:
    """The lightest layout of each engine that is not verified, and what its bytes rest on."""
    heading(console, "Not verified, but this is what they hold")
    for layout in found.unverified:
        left = layout.left_bytes
        room = "" if left is None else f", {gib(left)} free" if left > 0 else f", {gib(-left)} short"
        item(console, f"{layout.options}: weights {gib(layout.weight_bytes)} per GPU{room}", "yellow")
    for assumption in dict.fromkeys(str(layout.assumption) for layout in found.unverified):
        item(console, assumption, "dim")


def _show_layouts(console: Console, found: "Search") -> None:
    room = ("Mtok", "sessions") if found.context else ("Mtok",)
    first = found.layouts[0]
    name, unit = binary_unit(first.weight_bytes)
    columns = ("", "engine", "TP", "EP", "DP", "shared", name, *room, "same", "kB", "+", "options")
    table = Table(*columns, right=(0, 2, 3, 4, *range(6, 10 + len(room))))
    for number, row in enumerate(found.layouts[:_LAYOUTS_SHOWN], 1):
        deployment, sent = row.deployment, row.sent_bytes_per_token_and_layer
        tokens = "?" if row.tokens is None else f"{row.tokens * row.groups / 1e6:.2f}"
        numbers = (
            f"{row.weight_bytes / unit:.1f}{'' if row.fits else '!'}",
            tokens,
            *(("?" if row.sessions is None else f"{row.sessions * row.groups:,}",) if found.context else ()),
            f"{(row.replicated_bytes + row.padding_bytes) / unit:.2f}",
            "?" if sent is None else f"{sent / 1e3:.0f}",
            str(len(row.also)),
        )
        parallel = map(str, (deployment.tp, deployment.ep, deployment.dp))
        asked = (row.request.runner, row.request.a2a, row.request.shared_experts)
        takes = ", ".join(name for name in asked if name not in (None, "auto"))
        table.add(str(number), deployment.engine, *parallel, deployment.shared, *numbers, takes)
    table.show(console)
    more = len(found.layouts) - _LAYOUTS_SHOWN
    if more > 0:
        item(console, f"and {more} more (--json has all, with their options)")
    memory = f" of {(first.weight_bytes + first.left_bytes) / unit:.1f}" if first.left_bytes is not None else ""
    ranked = {found.rank_by: ", by which rows are ranked"}
    for line in (
        f"{name}: weights on the fullest GPU{memory}{ranked.get('weights', '')}; ! does not fit",
        "Mtok: millions of tokens of KV cache, by the engine's own accounting; ? not known" + ranked.get("tokens", ""),
        *((f"sessions: of {found.context:,} tokens each, at once, in all attention groups",) if found.context else ()),
        f"same: {name} of the weights that are the same on every GPU, or padding",
        "kB: sent by all GPUs together per token and layer, by formula" + ranked.get("sent", ""),
        "+: other runners, all-to-all backends or EP with the same numbers",
        "options: the --runner, --a2a or --shared-experts to ask for. These numbers do not predict speed.",
    ):
        item(console, line, "dim")
