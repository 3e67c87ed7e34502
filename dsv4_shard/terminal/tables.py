"""Tables without lines that fit the terminal: in columns while these are readable, else one row after the other."""

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.text import Text

from dsv4_shard.terminal.text import MIN_WIDTH, wrap
from dsv4_shard.text.sanitize import clean

_GAPS = (2, 1)
"""Blanks between columns: the second only if the table does not fit with the first."""

_MOST_LINES = 3
"""Most lines per row; with more, the columns are too narrow to read."""


class Table:
    """Rows under `columns`; the columns whose numbers are in `right` are aligned right and never wrapped."""

    def __init__(self, *columns: str, right: Iterable[int] = ()) -> None:
        self._columns = tuple(Text(name, style="bold") for name in columns)
        self._right = frozenset(right)
        self._rows: list[tuple[Text, ...]] = []

    def add(self, *cells: str | Text) -> None:
        """Add a row, with a cell for each column; the style of a Text is kept."""
        self._rows.append(
            tuple(Text(clean(cell)) if isinstance(cell, str) else Text(clean(cell.plain), cell.style) for cell in cells)
        )

    def show(self, console: Console) -> None:
        """Print the table within the console's width, without blanks at the ends of lines."""
        room = max(MIN_WIDTH, console.width)
        fits = ((gap, widths) for gap in _GAPS if (widths := self._widths(room, gap)))
        gap, widths = next(fits, (0, None))
        lines = self._in_columns(widths, gap) if widths else self._one_by_one(room)
        for line in lines:
            console.print(line, soft_wrap=True)

    def _widths(self, room: int, gap: int) -> list[int] | None:
        """Width of each column, with text wrapped between words in the widest; None if that is unreadable."""
        rows = (self._columns, *self._rows)
        widths = [max(len(row[column]) for row in rows) for column in range(len(self._columns))]
        least = [
            width if column in self._right else max(_longest_word(row[column].plain) for row in rows)
            for column, width in enumerate(widths)
        ]
        while sum(widths) + gap * (len(widths) - 1) > room:
            column = max(range(len(widths)), key=lambda one: (widths[one] > least[one], widths[one]))
            if widths[column] == least[column]:
                return None
            widths[column] -= 1
        tallest = max(len(wrap(cell.plain, width)) for row in rows for cell, width in zip(row, widths, strict=True))
        return widths if tallest <= _MOST_LINES else None

    def _in_columns(self, widths: list[int], gap: int) -> Iterator[Text]:
        for row in (self._columns, *self._rows):
            cells = [wrap(cell.plain, width) for cell, width in zip(row, widths, strict=True)]
            for number in range(max(map(len, cells))):
                line, start = Text(), 0
                for column, (parts, width) in enumerate(zip(cells, widths, strict=True)):
                    part = parts[number] if number < len(parts) else ""
                    indent = width - len(part) if column in self._right else 0
                    if part:
                        line.append(" " * (start + indent - len(line)))
                        line.append(part, style=row[column].style)
                    start += width + gap
                yield line

    def _one_by_one(self, room: int) -> Iterator[Text]:
        """Yield each row as its first cell, with the other cells and their column names below."""
        for first, *others in self._rows:
            yield from (Text(part, style=first.style) for part in wrap(first.plain, room))
            line = Text()
            facts = [
                Text.assemble(f"{name.plain}: ", (cell.plain, cell.style))
                for name, cell in zip(self._columns[1:], others, strict=True)
                if cell.plain
            ]
            for fact in facts:
                if line and len(line) + 2 + len(fact) <= room:
                    line.append("; ").append_text(fact)
                    continue
                if line:
                    yield line
                *full, last = map(Text, wrap(fact.plain, room - 2)) if len(fact) > room - 2 else [fact]
                yield from (Text.assemble("  ", part) for part in full)
                line = Text.assemble("  ", last)
            if line:
                yield line


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)
