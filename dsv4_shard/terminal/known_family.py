"""Prints the result of `inspect` for a known family: identity, roles, findings, divisibility, the TP matrix."""

import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from dsv4_shard.catalog.options import DEFAULT_ENGINE
from dsv4_shard.checkpoint import Severity
from dsv4_shard.engines import Verdict, find_engine
from dsv4_shard.planning import MEMORY_RULE
from dsv4_shard.terminal.commands import to_copy
from dsv4_shard.terminal.plan import SIGNS
from dsv4_shard.terminal.tables import Table
from dsv4_shard.terminal.text import heading, item, title
from dsv4_shard.text.units import counted, quotient, size

if TYPE_CHECKING:
    from dsv4_shard.inspection import DimensionRow, Inspection, InspectionFinding, MatrixCell

_SEVERITY_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}


def show_inspection(console: Console, inspection: "Inspection") -> None:
    """Show identity, roles, findings, divisibility, and the TP matrix."""
    _show_identity(console, inspection)
    heading(console, "Tensors by role")
    roles = Table("module", "part", "tensors", "bytes", "dtype", "block", right=(2, 3))
    for row in inspection.roles:
        roles.add(row.module, row.part, f"{row.tensors:,}", size(row.bytes), row.dtype, row.block or "")
    roles.show(console)
    show_findings(console, inspection.findings, "every layer, expert, scale and block is there and fits")
    if inspection.dimensions:
        _show_dimensions(console, inspection.dimensions)
        _show_matrix(console, inspection.matrix, inspection.gpu)
    if not inspection.has_errors:
        _show_next(console, inspection)


def _show_next(console: Console, inspection: "Inspection") -> None:
    """The commands that follow: the fewest GPUs, and the largest layout of the matrix that runs."""
    heading(console, "Next: the fewest GPUs of each kind that hold it, or a layout")
    command = f"dsv4-shard plan {shlex.quote(inspection.identity.label)}"
    to_copy(console, command)
    running = [cell for cell in inspection.matrix if cell.verdict.is_good]
    if running:
        first = max(running, key=lambda cell: (cell.engine == running[0].engine, cell.tp))
        engine = "" if first.engine == DEFAULT_ENGINE else f" --engine {first.engine}"
        to_copy(console, f"{command} --tp {first.tp}{engine}")


def show_findings(console: Console, findings: "tuple[InspectionFinding, ...]", none: str) -> None:
    """Show findings by severity; `none` is the text if there are none."""
    heading(console, "Findings")
    for finding in findings:
        item(console, f"{finding.severity}: {finding.message}", _SEVERITY_STYLES[finding.severity])
    if not findings:
        item(console, f"none: {none}")


def _show_identity(console: Console, inspection: "Inspection") -> None:
    it = inspection.identity
    revision = f" @ {it.revision[:12]}" if it.revision else ""
    title(console, it.label + revision)
    held = f"{counted(it.tensors, 'tensor')} in {counted(it.files, 'file')}"
    item(console, f"{it.family} ({it.model_type}): {held}, {size(it.bytes)}")
    kinds = _known((it.hash_layers, "{} hash-routed"), (it.dense_layers, "{} dense"))
    layers = f"{it.layers} layers" + (f" ({', '.join(kinds)})" if kinds else "")
    draft = f"{it.mtp_blocks} {'DSpark' if it.dspark else 'MTP'}"
    item(console, f"{layers}, {draft}, hidden {it.hidden_size}, vocabulary {it.vocab_size}")
    item(
        console,
        f"{it.routed_experts} routed experts ({it.experts_per_token} per token) and {it.shared_experts} shared, "
        f"intermediate size {it.moe_intermediate_size}",
    )
    heads = f"{it.attention_heads} heads" + (f" of {it.head_dim}" if it.head_dim is not None else "")
    item(console, ", ".join([heads, *_known((it.o_groups, "{} output groups"), (it.index_heads, "{} index heads"))]))


def _known(*facts: tuple[int | None, str]) -> list[str]:
    """The numbers of a family's features, in words."""
    return [words.format(number) for number, words in facts if number is not None]


def _show_dimensions(console: Console, dimensions: "tuple[DimensionRow, ...]") -> None:
    tps = [share.tp for share in dimensions[0].shares]
    heading(console, "Whole units per rank, by TP (blocks where the weight is quantized)")
    table = Table("dimension", "units", *(str(tp) for tp in tps), right=range(1, len(tps) + 2))
    for dimension in dimensions:
        unit = f" /{dimension.unit}" if dimension.unit > 1 else ""
        cells = [
            Text(quotient(share.units_per_rank) + ("" if share.whole else "!"),
                 style="" if share.whole else "red")
            for share in dimension.shares
        ]  # fmt: skip
        table.add(f"{dimension.name}{unit}", str(dimension.units), *cells)
    table.show(console)
    item(console, "! does not divide, in the weight or in its scale", "dim")


def _show_matrix(console: Console, matrix: "tuple[MatrixCell, ...]", gpu: str | None) -> None:
    tps = list(dict.fromkeys(cell.tp for cell in matrix))
    cells = {(cell.engine, cell.tp): cell for cell in matrix}
    heading(console, f"What runs, and GiB of weights per GPU, by TP{f', on {gpu}' if gpu else ''}")
    table = Table("engine", *(str(tp) for tp in tps), right=range(1, len(tps) + 1))
    for engine in dict.fromkeys(cell.engine for cell in matrix):
        table.add(_short(engine), *(_mark(cells[engine, tp]) for tp in tps))
    table.show(console)
    used = {_sign(cell): cell for cell in matrix}
    item(console, "; ".join(f"{sign} {words}" for sign, words in _LEGEND.items() if sign in used), "dim")
    if gpu is None:
        item(console, "memory is not compared: name the GPU with --gpu", "dim")
    for engine in dict.fromkeys(cell.engine for cell in matrix):
        for line, numbers in _merge(cells[engine, tp] for tp in tps).items():
            item(console, f"{_short(engine)} TP {', '.join(map(str, numbers))}: {line}")


_LEGEND = {
    "✓": "runs",
    "✓*": "runs with the changes named below",
    "✗": "does not run",
    "✗*": "does not run, but as many GPUs do with the options named below, whose GiB it has",
    "?": "not verified",
}
"""Sign of a cell → its meaning."""


def _sign(cell: "MatrixCell") -> str:
    star = "*" if cell.verdict is Verdict.CHANGED or cell.otherwise else ""
    return SIGNS[cell.verdict][0] + star


def _mark(cell: "MatrixCell") -> Text:
    """The verdict as a sign, with the weights."""
    weights = "" if cell.bytes_per_rank is None else f" {cell.bytes_per_rank / (1 << 30):.1f}"
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
