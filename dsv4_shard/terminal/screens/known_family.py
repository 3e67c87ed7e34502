"""Prints the result of `inspect` for a known family: identity, roles, findings, divisibility, the TP matrix."""

import shlex
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from dsv4_shard.catalog.gpus import GPUS
from dsv4_shard.catalog.options import DEFAULT_ENGINE
from dsv4_shard.checkpoint import Severity
from dsv4_shard.engines import Verdict, find_engine
from dsv4_shard.models import Module, Part
from dsv4_shard.planning import MEMORY_RULE
from dsv4_shard.terminal.screens.plan import SIGNS
from dsv4_shard.terminal.shell_commands import to_copy
from dsv4_shard.terminal.tables import Table
from dsv4_shard.terminal.text import heading, item, title
from dsv4_shard.text.units import binary_unit, counted, gib, quotient, size

if TYPE_CHECKING:
    from dsv4_shard.inspection import DimensionRow, Inspection, InspectionFinding, MatrixCell

_SEVERITY_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}


def show_inspection(console: Console, inspection: "Inspection", *, details: bool = False) -> None:
    """Show what runs at each TP and what does not divide; with `details`, every role, dimension and reason too."""
    _show_identity(console, inspection)
    show_findings(console, inspection.findings, "every layer, expert, scale and block is there and fits")
    if details:
        _show_roles(console, inspection)
    if inspection.dimensions:
        _show_matrix(console, inspection.matrix, inspection.gpu, details=details)
        _show_dimensions(console, inspection.dimensions, details=details)
    if not inspection.has_errors:
        _show_next(console, inspection)
    if not details:
        item(console, "More: --details (tensors by role, every dimension, every reason)", "dim", indent=0)


def _show_roles(console: Console, inspection: "Inspection") -> None:
    heading(console, "Tensors by role")
    roles = Table("module", "part", "tensors", "bytes", "dtype", "block", right=(2, 3))
    for row in inspection.roles:
        roles.add(row.module, row.part, f"{row.tensors:,}", size(row.bytes), row.dtype, row.block or "")
    roles.show(console)


def _show_next(console: Console, inspection: "Inspection") -> None:
    """The commands that follow: the fewest GPUs, and the largest layout of the matrix that runs."""
    heading(console, "Next")
    command = f"dsv4-shard plan {shlex.quote(inspection.identity.label)}"
    to_copy(console, command, "the fewest GPUs of each kind that hold it")
    running = [cell for cell in inspection.matrix if cell.verdict.is_good]
    gpu = next((f" --gpu {gpu.name}" for gpu in GPUS.values() if gpu.title == inspection.gpu), "")
    if running:
        first = max(running, key=lambda cell: (cell.engine == running[0].engine, cell.tp))
        engine = "" if first.engine == DEFAULT_ENGINE else f" --engine {first.engine}"
        to_copy(console, f"{command} --tp {first.tp}{engine}{gpu}")


def show_findings(console: Console, findings: "tuple[InspectionFinding, ...]", none: str) -> None:
    """Show findings by severity; `none` is the text if there are none."""
    for finding in findings:
        item(console, f"{finding.severity}: {finding.message}", _SEVERITY_STYLES[finding.severity])
    if not findings:
        item(console, f"findings: none; {none}")


def _show_identity(console: Console, inspection: "Inspection") -> None:
    it = inspection.identity
    revision = f" @ {it.revision[:12]}" if it.revision else ""
    title(console, it.label + revision)
    held = f"{counted(it.tensors, 'tensor')} in {counted(it.files, 'file')}"
    item(console, f"{it.family} ({it.model_type}): {held}, {size(it.bytes)}")
    kinds = _known((it.hash_layers, "{} hash-routed"), (it.dense_layers, "{} dense"))
    layers = f"{it.layers} layers" + (f" ({', '.join(kinds)})" if kinds else "")
    heads = f"{it.attention_heads} heads" + (f" of {it.head_dim}" if it.head_dim is not None else "")
    parts = [heads, *_known((it.o_groups, "{} output groups"), (it.index_heads, "{} index heads"))]
    draft = f"{it.mtp_blocks} {'DSpark' if it.dspark else 'MTP'}"
    item(console, f"{layers}, {draft}, hidden {it.hidden_size}, vocabulary {it.vocab_size}; {', '.join(parts)}")
    item(
        console,
        f"{it.routed_experts} routed experts ({it.experts_per_token} per token){_format(inspection, Module.ROUTED)}; "
        f"{it.shared_experts} shared{_format(inspection, Module.SHARED)}; intermediate size {it.moe_intermediate_size}",
    )


def _format(inspection: "Inspection", module: Module) -> str:
    """` in FP4 (I8), blocks 1×32`: the formats of a module's weights."""
    rows = [row for row in inspection.roles if row.module is module and row.part is Part.WEIGHT]
    formats = (f"{row.dtype}, blocks {row.block}" if row.block else row.dtype for row in rows)
    return f" in {' and '.join(dict.fromkeys(formats))}" if rows else ""


def _known(*facts: tuple[int | None, str]) -> list[str]:
    """The numbers of a family's features, in words."""
    return [words.format(number) for number, words in facts if number is not None]


def _show_dimensions(console: Console, dimensions: "tuple[DimensionRow, ...]", *, details: bool) -> None:
    """Show the units per rank of each dimension; without `details`, of those that a TP does not divide."""
    broken = [row for row in dimensions if not all(share.whole for share in row.shares)]
    shown = dimensions if details else broken
    if not shown:
        heading(console, "Every dimension divides at each of these TP sizes")
        return
    tps = [share.tp for share in dimensions[0].shares]
    heading(console, f"{'Whole units per rank' if details else 'What does not divide (!)'}, by TP")
    table = Table("dimension", "units", *(str(tp) for tp in tps), right=range(1, len(tps) + 2))
    for dimension in shown:
        unit = f" /{dimension.unit}" if dimension.unit > 1 else ""
        cells = [
            Text(quotient(share.units_per_rank) + ("" if share.whole else "!"),
                 style="" if share.whole else "red")
            for share in dimension.shares
        ]  # fmt: skip
        table.add(f"{dimension.name}{unit}", str(dimension.units), *cells)
    table.show(console)
    item(console, "/N: in units of N elements; ! not whole, in the weight or in its scale", "dim")


def _show_matrix(console: Console, matrix: "tuple[MatrixCell, ...]", gpu: str | None, *, details: bool) -> None:
    tps = list(dict.fromkeys(cell.tp for cell in matrix))
    cells = {(cell.engine, cell.tp): cell for cell in matrix}
    engines = list(dict.fromkeys(cell.engine for cell in matrix))
    at = f", on {_with_memory(gpu)}" if gpu else "; --gpu compares memory"
    name, unit = binary_unit(max((cell.bytes_per_rank or 0 for cell in matrix), default=0))
    heading(console, f"What runs, and {name} of weights per GPU, by TP{at}")
    table = Table("engine", *(str(tp) for tp in tps), right=range(1, len(tps) + 1))
    for engine in engines:
        table.add(_short(engine), *(_mark(cells[engine, tp], unit) for tp in tps))
    table.show(console)
    used = {_sign(cell): cell for cell in matrix}
    item(console, "; ".join(f"{sign} {words}" for sign, words in _LEGEND.items() if sign in used), "dim")
    for engine in engines:
        row = [cells[engine, tp] for tp in tps]
        for line in _reasons(row) if details else _in_short(row):
            item(console, line)


_LEGEND = {
    "✓": "runs",
    "✓*": "runs with changes",
    "✗": "does not run",
    "✗*": "runs with the options below",
    "?": "not verified",
}
"""Sign of a cell → its meaning."""


def _with_memory(title: str) -> str:
    """The GPU with its memory, unless its title has that already."""
    gpu = next((gpu for gpu in GPUS.values() if gpu.title == title), None)
    return f"{title} ({gib(gpu.memory)})" if gpu else title


def _in_short(row: "list[MatrixCell]") -> Iterator[str]:
    """Yield the changes of an engine's layouts, the options for as many GPUs, and what is not verified."""
    texts: dict[str, list[int]] = {}
    alike = {(cell.verdict, cell.reason) for cell in row}
    for cell in row:
        if cell.verdict is Verdict.UNVERIFIED or (len(alike) == 1 and not cell.otherwise and cell.reason):
            texts.setdefault(str(cell.reason), []).append(cell.tp)
        for change in cell.changes if cell.verdict is Verdict.CHANGED else ():
            texts.setdefault(str(change), []).append(cell.tp)
    yield from (_at(row, numbers, text) for text, numbers in texts.items())
    others = [f"TP {cell.tp}: {cell.how}" for cell in row if cell.otherwise]
    if others:
        yield f"{_short(row[0].engine)} {'; '.join(others)}"


def _reasons(row: "list[MatrixCell]") -> Iterator[str]:
    """Yield the reason of each cell of an engine, with its sizes."""
    yield from (_at(row, numbers, text) for text, numbers in _merge(row).items())


def _at(row: "list[MatrixCell]", numbers: list[int], text: str) -> str:
    """A text with its engine and sizes; alone if it is of all sizes and names the engine itself."""
    engine = _short(row[0].engine)
    if len(numbers) == len(row) and not row[0].verdict.is_good:
        return text
    return f"{engine} TP {', '.join(map(str, numbers))}: {text}"


def _sign(cell: "MatrixCell") -> str:
    star = "*" if cell.verdict is Verdict.CHANGED or cell.otherwise else ""
    return SIGNS[cell.verdict][0] + star


def _mark(cell: "MatrixCell", unit: int) -> Text:
    """The verdict as a sign, with the weights in units of so many bytes."""
    weights = "" if cell.bytes_per_rank is None else f" {cell.bytes_per_rank / unit:.1f}"
    style = "yellow" if cell.otherwise else SIGNS[cell.verdict][1]
    return Text(_sign(cell) + weights, style=style)


def _short(engine: str) -> str:
    """Name of an engine in a narrow column."""
    found = find_engine(engine)
    return found.short_title or found.title


def _merge(cells: "Iterable[MatrixCell]") -> dict[str, list[int]]:
    """One line for adjacent TPs with the same text."""
    lines: dict[str, list[int]] = {}
    cells = list(cells)
    too_large = [cell for cell in cells if cell.rule == MEMORY_RULE and not cell.how]
    for cell in cells:
        if cell in too_large:
            of = f"TP {too_large[-1].tp}: " if len(too_large) > 1 else ""
            lines.setdefault(f"{of}{too_large[-1].reason}", []).append(cell.tp)
        elif cell.verdict is Verdict.CHANGED:
            for change in cell.changes:
                lines.setdefault(f"* {change}", []).append(cell.tp)
        elif cell.verdict is Verdict.UNVERIFIED:
            lines.setdefault(str(cell.reason), []).append(cell.tp)
        elif cell.reason is not None:
            way = f"; * runs as {cell.how}" if cell.how else ""
            of = f"{cell.module}: " if cell.module else ""
            lines.setdefault(f"{of}{cell.reason}{way}", []).append(cell.tp)
    return lines
