"""Tables without lines: columns, and what stands in them."""

from collections.abc import Iterable

from rich.table import Table


def table_of(*columns: str, right: Iterable[int] = ()) -> Table:
    """An empty table; the columns of `right` are set flush right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number in set(right) else "left", overflow="fold")
    return table
