"""The blocks of an axis drawn as a row of text, with the ranks' parts below and a mark at each cut inside a block."""

import math

from rich.console import Console
from rich.text import Text

from dsv4_shard.planning import BlockCut, BlockGrid
from dsv4_shard.tensors.geometry import ceil_div
from dsv4_shard.terminal.text import MIN_WIDTH, heading, item

_FINEST = 8
"""Most columns per block: a position between two columns is drawn at the left one."""

_MORE = " ..."


def show_placed(console: Console, grid: BlockGrid) -> None:
    """Show how a plan that runs places the blocks; for a whole module, the cut blocks that it avoids."""
    inside = sum(cut.splits for cut in grid.even_cuts)
    if grid.ranks == 1 or (grid.way == "whole" and not inside):
        return
    heading(console, f"{_blocks(grid)}{_placed(grid)}")
    if grid.way == "whole":
        _draw(console, grid, grid.even_cuts, "if cut")
        item(console, f"^ inside a {_one(grid)}, and so inside its scale: {inside} of {grid.ranks - 1} cuts")
    else:
        _draw(console, grid, grid.cuts, "ranks" if grid.parts == grid.ranks else "parts")


def show_broken(console: Console, grid: BlockGrid) -> None:
    """Show why the ranks do not get whole blocks, and which whole blocks they could get."""
    if grid.size % grid.parts:
        return  # not even elements divide
    heading(console, f"{_blocks(grid)} do not fall into {grid.parts}")
    _draw(console, grid, grid.cuts, "ranks")
    scale = ", and so inside its scale" if grid.unit == "blocks" else ""
    inside = sum(cut.splits for cut in grid.cuts)
    item(console, f"^ inside a {_one(grid)}{scale}: {inside} of {grid.parts - 1} cuts")


def _blocks(grid: BlockGrid) -> str:
    module = str(grid.module)
    return f"{module[0].upper()}{module[1:]}: {grid.blocks} {grid.unit} of {grid.block}"


def _one(grid: BlockGrid) -> str:
    return grid.unit.removesuffix("s")


def _placed(grid: BlockGrid) -> str:
    held = grid.step // grid.block
    if grid.way == "whole":
        return f", all on each of {grid.ranks} ranks"
    if grid.way == "pad":
        return f" and {held * grid.parts - grid.blocks} of zeros, {held} on each of {grid.ranks} ranks"
    if grid.parts < grid.ranks:
        return f" in {grid.parts} parts of {held}, each on {grid.ranks // grid.parts} of {grid.ranks} ranks"
    return f", {held} on each of {grid.ranks} ranks"


def _draw(console: Console, grid: BlockGrid, cuts: tuple[BlockCut, ...], label: str) -> None:
    """Draw the rows of blocks and parts, as far as they fit; nothing if no cut would be visible."""
    fine = min(_FINEST, max(2, grid.ranks * grid.block // math.gcd(grid.size, grid.ranks * grid.block)))
    places = [_column(cut, grid.block, fine) for cut in cuts]
    end = max(ceil_div((grid.size + grid.padding) * fine, grid.block), places[-1] + 1)
    zeros = ceil_div(grid.size * fine, grid.block) if grid.padding else end
    margin = max(len(grid.unit), len(label)) + 3
    room = max(MIN_WIDTH, console.width) - margin
    shown = end + 1 if end < room else room - len(_MORE)
    if places[0] >= shown:
        return
    more = "" if end < shown else _MORE
    marks = "".join("^" if column in {at for at, cut in zip(places, cuts, strict=True) if cut.splits} else " "
                    for column in range(shown))  # fmt: skip
    for name, row in (
        (grid.unit, _row(range(0, end, fine), end, zeros)[:shown] + more),
        (label, _row(places, end, end)[:shown] + more),
        ("", marks.rstrip()),
    ):
        if row:
            console.print(Text(f"  {name:{margin - 2}}{row}"), soft_wrap=True)


def _column(cut: BlockCut, block: int, fine: int) -> int:
    column = cut.at * fine // block
    return column + 1 if cut.splits and column % fine == 0 else column


def _row(edges: "range | list[int]", end: int, zeros: int) -> str:
    """Return a row from column 0 to `end`, with a sign at each edge; padding starts at `zeros`."""
    inner = set(edges)
    signs = ("┼" if column in inner else "─" if column < zeros else "0" for column in range(1, end))
    return f"├{''.join(signs)}┤"
