"""What the commands print: tables and sentences for people, on a terminal of 80 columns or more."""

import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dsv4_shard.checkpoint import Severity
from dsv4_shard.engines import SERVING
from dsv4_shard.engines.base import ANY_ENGINE, UNKNOWN_GPU, Replicate
from dsv4_shard.escape import clean
from dsv4_shard.rankspan import say_ranks
from dsv4_shard.roles import Module

if TYPE_CHECKING:
    from dsv4_shard.cluster import ClusterOutcome
    from dsv4_shard.explain import Case, Explanation
    from dsv4_shard.generic import Axis, QuantizedRow, UnknownIdentity, UnknownInspection
    from dsv4_shard.inspect import Cell, Dimension, Inspection
    from dsv4_shard.numerics import Numerics
    from dsv4_shard.plan import Plan, PlanBreach, PlanModule
    from dsv4_shard.plandiff import Difference, PlacementDifference, PlanComparison
    from dsv4_shard.problem import Problem
    from dsv4_shard.ranksource import RankSource
    from dsv4_shard.reshard import Job, Outcome
    from dsv4_shard.search import Search
    from dsv4_shard.together import Together
    from dsv4_shard.upload import Uploaded
    from dsv4_shard.verify import Verification

_UNITS = ("B", "kB", "MB", "GB", "TB")
_SHORT = {"sglang": "SGLang", "vllm": "vLLM", "reference": "reference", "trtllm": "TRT-LLM"}
_MARKS = {"works": ("yes", "green"), "with-options": ("yes*", "yellow"), "no": ("no", "red"), "unknown": ("?", "dim")}
_SEVERITY_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}
_PROBLEMS_SHOWN = 20
_LAYOUTS_SHOWN = 12
_GIB = 1 << 30
_WHOLE = str(Replicate())


def size(nbytes: int) -> str:
    """Bytes in decimal units, as disks and checkpoints are sold."""
    number, unit = float(nbytes), 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{nbytes} B" if unit == 0 else f"{number:.2f} {_UNITS[unit]}"


def gib(nbytes: int) -> str:
    """Bytes in GiB, as GPUs' memory is counted."""
    return f"{nbytes / _GIB:.1f} GiB"


def _table(*columns: str, right: Iterable[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number in set(right) else "left", overflow="fold")
    return table


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _item(console: Console, text: str, style: str = "") -> None:
    """A paragraph, indented, wrapped at the terminal's width."""
    _indented(console, clean(text), 2, style)


def _indented(console: Console, text: str, indent: int, style: str = "") -> None:
    """Wrapped by us: rich would fill each line with blanks to the full width."""
    for line in textwrap.wrap(text, max(20, console.width - indent), break_long_words=False, break_on_hyphens=False):
        console.print(Text(" " * indent + line, style=style), soft_wrap=True)


# --- inspect -------------------------------------------------------------------------------------------------------


def show_inspection(console: Console, inspection: "Inspection") -> None:
    """Identity, roles, findings, what divides, and the TP matrix."""
    _show_identity(console, inspection)
    _heading(console, "Tensors by role")
    roles = _table("module", "part", "tensors", "bytes", "dtype", "block", right=(2, 3))
    for row in inspection.roles:
        roles.add_row(row.module, row.part, f"{row.tensors:,}", size(row.bytes), row.dtype, row.block or "")
    console.print(roles)
    _heading(console, "Findings")
    for finding in inspection.findings:
        _item(console, f"{finding.severity}: {finding.message}", _SEVERITY_STYLES[finding.severity])
    if not inspection.findings:
        _item(console, "none: every layer, expert, scale and block is there and fits")
    if inspection.dimensions:
        _show_dimensions(console, inspection.dimensions)
        _show_matrix(console, inspection.matrix)


def _show_identity(console: Console, inspection: "Inspection") -> None:
    it = inspection.identity
    revision = f" @ {it.revision[:12]}" if it.revision else ""
    console.print(Text(clean(it.label) + revision, style="bold"))
    _item(console, f"{it.family} ({it.model_type}): {it.tensors:,} tensors in {it.files} files, {size(it.bytes)}")
    kinds = _known((it.hash_layers, "{} hash-routed"), (it.dense_layers, "{} dense"))
    layers = f"{it.layers} layers" + (f" ({', '.join(kinds)})" if kinds else "")
    draft = f"{it.mtp_blocks} {'DSpark' if it.dspark else 'MTP'}"
    _item(console, f"{layers}, {draft}, hidden {it.hidden_size}, vocabulary {it.vocab_size}")
    _item(
        console,
        f"{it.routed_experts} routed experts ({it.experts_per_token} per token) and {it.shared_experts} shared, "
        f"intermediate size {it.moe_intermediate_size}",
    )
    heads = f"{it.attention_heads} heads" + (f" of {it.head_dim}" if it.head_dim is not None else "")
    _item(console, ", ".join([heads, *_known((it.o_groups, "{} output groups"), (it.index_heads, "{} index heads"))]))


def _known(*facts: tuple[int | None, str]) -> list[str]:
    """What a family has, in words."""
    return [words.format(number) for number, words in facts if number is not None]


def _show_dimensions(console: Console, dimensions: "tuple[Dimension, ...]") -> None:
    tps = [share.tp for share in dimensions[0].shares]
    _heading(console, "Whole units per rank, by TP (blocks where the weight is quantized)")
    table = _table("dimension", "units", *(str(tp) for tp in tps), right=range(1, len(tps) + 2))
    for dimension in dimensions:
        unit = f" /{dimension.unit}" if dimension.unit > 1 else ""
        cells = [
            Text(f"{share.units_per_rank:.0f}" if share.whole else f"{share.units_per_rank:.4g}!",
                 style="" if share.whole else "red")
            for share in dimension.shares
        ]  # fmt: skip
        table.add_row(f"{dimension.name}{unit}", str(dimension.units), *cells)
    console.print(table)
    _item(console, "! does not divide, in the weight or in its scale", "dim")


def _show_matrix(console: Console, matrix: "tuple[Cell, ...]") -> None:
    tps = list(dict.fromkeys(cell.tp for cell in matrix))
    cells = {(cell.engine, cell.tp): cell for cell in matrix}
    _heading(console, "What runs, by TP")
    table = _table("engine", *(str(tp) for tp in tps), right=range(1, len(tps) + 1))
    for engine in SERVING:
        marks = [_MARKS[cells[engine, tp].verdict] for tp in tps]
        table.add_row(_SHORT[engine], *(Text(mark, style=style) for mark, style in marks))
    console.print(table)
    for engine in SERVING:
        for line, numbers in _merge(cells[engine, tp] for tp in tps).items():
            _item(console, f"{_SHORT[engine]} TP {', '.join(map(str, numbers))}: {line}")


def _merge(cells: "Iterable[Cell]") -> dict[str, list[int]]:
    """One line for neighbouring TPs of which the same is to be said."""
    lines: dict[str, list[int]] = {}
    for cell in cells:
        if cell.verdict == "with-options" and cell.reason is None:
            for note in cell.notes:
                lines.setdefault(f"* {note}", []).append(cell.tp)
        elif cell.verdict == "unknown":
            lines.setdefault(str(cell.reason), []).append(cell.tp)
        elif cell.reason is not None:
            way = f"; * works as {cell.how}" if cell.how else ""
            lines.setdefault(f"{cell.module}: {cell.reason}{way}", []).append(cell.tp)
    return lines


# --- inspect, of a family that is not known --------------------------------------------------------------------------


def show_unknown(console: Console, inspection: "UnknownInspection") -> None:
    """Identity, tensors by template, findings, where whole units divide, and what is not known."""
    _show_unknown_identity(console, inspection.identity)
    _heading(console, "Tensors by name ({N} for a layer, {E} for an expert)")
    table = _table("name", "tensors", "bytes", "dtype", "scale for", right=(1, 2))
    for row in inspection.templates:
        table.add_row(Text(row.template), f"{row.tensors:,}", size(row.bytes), row.dtype, row.scales or "")
    console.print(table)
    _heading(console, "Findings")
    for finding in inspection.findings:
        _item(console, f"{finding.severity}: {finding.message}", _SEVERITY_STYLES[finding.severity])
    if not inspection.findings:
        _item(console, "none: every quantized weight has its scale, and every scale fits")
    _show_axes(console, inspection.quantized)
    console.print()
    _item(console, inspection.not_known)


def _show_unknown_identity(console: Console, it: "UnknownIdentity") -> None:
    revision = f" @ {it.revision[:12]}" if it.revision else ""
    console.print(Text(clean(it.label) + revision, style="bold"))
    model_type = f" ({it.model_type})" if it.model_type not in (None, it.family) else ""
    _item(
        console,
        f"{it.family}{model_type}, a family that is not known: {it.tensors:,} tensors in {it.files} files, "
        f"{size(it.bytes)}",
    )
    sizes = (
        (it.layers, "{} layers"),
        (it.hidden_size, "hidden {}"),
        (it.attention_heads, "{} heads"),
        (it.key_value_heads, "{} key-value heads"),
        (it.routed_experts, "{} routed experts"),
        (it.intermediate_size, "intermediate size {}"),
        (it.declared_block and "×".join(map(str, it.declared_block)), "blocks of {} declared"),
    )
    said = [form.format(value) for value, form in sizes if value is not None]
    if said:
        _item(console, ", ".join(said))


def _show_axes(console: Console, rows: "tuple[QuantizedRow, ...]") -> None:
    """Both axes of every quantized weight, in red where the one that engines cut does not divide."""
    axes = [(row, axis) for row in rows for axis in row.axes]
    if not axes:
        return
    tps = [share.tp for share in axes[0][1].shares]
    _heading(console, "Whole units per rank, by TP (blocks where scales are of blocks)")
    table = _table("weight", "axis", *(str(tp) for tp in tps), right=range(2, len(tps) + 2))
    labels = _labels(rows)
    for row, axis in axes:
        first = axis.axis == "rows"
        table.add_row(Text(labels[row.template] if first else ""), _axis_title(axis), *_axis_cells(axis))
    console.print(table)
    _item(console, "* cut, as far as the name tells; ! does not divide into whole units", "dim")


def _axis_title(axis: "Axis") -> str:
    parts = f"{axis.parts}×" if axis.parts > 1 else ""
    unit = f" /{axis.unit}" if axis.unit > 1 else ""
    return f"{parts}{axis.size} {axis.axis}{unit}{'*' if axis.cut else ''}"


def _axis_cells(axis: "Axis") -> Iterable[Text]:
    for share in axis.shares:
        units = share.units_per_rank
        number = f"{units:.0f}" if units.is_integer() else f"{units:.4g}"
        yield Text(number if share.whole else f"{number}!", style="red" if axis.cut and not share.whole else "")


def _labels(rows: "tuple[QuantizedRow, ...]") -> dict[str, str]:
    """Names without what all layers' weights have in common, where that leaves them different."""
    short = {
        row.template: row.template.partition("layers.{N}.")[2].removesuffix("_packed").removesuffix(".weight")
        for row in rows
    }
    counts = Counter(short.values())
    return {name: label if label and counts[label] == 1 else name for name, label in short.items()}


# --- plan ----------------------------------------------------------------------------------------------------------


def show_plan(console: Console, plan: "Plan", engine: str, plan_file: str | None = None) -> None:
    """Verdict, placements, bytes, launch. `engine` is what it is called."""
    at = plan.deployment
    console.print(Text(f"{clean(plan.source.label)} on {engine} {plan.engine_version}", style="bold"))
    named = f" {at['gpu']}" if at["gpu"] else ""
    nodes = f" on {at['nodes']} nodes" if at["nodes"] > 1 else ""
    a2a = f", all-to-all {at['a2a']}" if at["a2a"] else ""
    _item(
        console,
        f"TP {at['tp']}, EP {at['ep']}, DP {at['dp']}: {at['world']}{named} GPUs{nodes}; attention TP "
        f"{at['attention_tp']}, MoE TP {at['moe_tp']}, runner {at['runner']}{a2a}",
    )
    for assumption in plan.assumptions:
        _item(console, assumption, "dim")
    if plan.feasible:
        _show_feasible(console, plan, plan_file)
    else:
        _show_refusal(console, plan, engine)


def _show_refusal(console: Console, plan: "Plan", engine: str) -> None:
    unknown = any(breach.rule == UNKNOWN_GPU for breach in plan.breaches)
    _heading(console, "Not known to run" if unknown else "Does not run")
    for breach in plan.breaches:
        _item(console, f"{breach.module}: {breach.reason}", "red")
        for line in _consequences(breach, engine):
            _indented(console, line, 4)
    if unknown:
        _show_totals(console, plan)
        return
    _heading(console, "Nearest layouts that run" if plan.alternatives else "No layout near it runs")
    for alternative in plan.alternatives:
        _item(console, f"{alternative.options}   {alternative.gpus} GPUs, {gib(alternative.bytes_per_rank)} a rank")
        for note in alternative.notes:
            _indented(console, note, 4, "dim")


def _consequences(breach: "PlanBreach", engine: str) -> Iterable[str]:
    if breach.engine_says:
        yield f"{engine} says: {breach.engine_says}"
    else:
        yield f"{engine} does not say so: {breach.consequence}"
    for remedy in breach.remedies:
        yield f"try {remedy}"


def _show_feasible(console: Console, plan: "Plan", plan_file: str | None) -> None:
    runs = "Can be written" if plan.engine_version == ANY_ENGINE else "Runs"
    _heading(console, f"{runs}, with" if plan.choices else runs)
    for choice in plan.choices:
        _item(console, choice)
    _heading(console, "Placement")
    table = _table("module", "placement", "held as", "bytes a rank", right=(3,))
    for module, placement, dtype, nbytes in _placements(plan.modules):
        table.add_row(module, placement, dtype, size(nbytes))
    console.print(table)
    _show_totals(console, plan)
    _heading(console, "Addition order")
    _item(console, plan.shared_expert_addition)
    _show_launch(console, plan, plan_file)


def _placements(modules: "tuple[PlanModule, ...]") -> list[tuple[str, str, str, int]]:
    """Rows of a module's roles that are placed alike, together; the draft model, placed like a layer, as one row."""
    rows: dict[tuple[Module, str], list[PlanModule]] = {}
    for row in modules:
        if row.part_of == "target":
            rows.setdefault((row.module, row.placement), []).append(row)
    split_modules = {module for module, placement in rows if sum(m is module for m, _ in rows) > 1}
    table = []
    for (module, placement), members in rows.items():
        roles = ", ".join(member.role.rpartition(".")[2] for member in members)
        rest = placement == _WHOLE
        name = f"{module}: {'the rest' if rest else roles}" if module in split_modules else str(module)
        dtypes = ", ".join(dict.fromkeys(member.rank_dtype for member in members))
        table.append((name, placement, dtypes, sum(member.bytes_per_rank for member in members)))
    draft = sum(row.bytes_per_rank for row in modules if row.part_of == "draft")
    return [*table, ("MTP block (draft model)", "as the layers", "", draft)] if draft else table


def _show_totals(console: Console, plan: "Plan") -> None:
    totals = plan.totals
    if totals is None:
        return
    _heading(console, "Bytes a rank")
    heaviest = totals.target_bytes_per_rank_max
    _item(console, f"weights: {size(heaviest)} ({gib(heaviest)}), the same on each of {totals.ranks} ranks"
          if totals.target_bytes_per_rank_min == heaviest else
          f"weights: {size(totals.target_bytes_per_rank_min)} to {size(heaviest)}")  # fmt: skip
    if totals.draft_bytes_per_rank:
        _item(console, f"MTP draft model: {size(totals.draft_bytes_per_rank)} more")
    shared = f"shared experts: {size(totals.shared_experts_bytes_per_rank)}"
    if plan.deployment["shared"] == "whole" and totals.ranks > 1:
        shared += f", whole on every rank: {size(totals.shared_experts_weight_bytes_per_layer)} of weights a layer"
    _item(console, shared)
    if totals.ranks > 1:
        _item(console, f"whole on every rank, all modules together: {size(totals.replicated_bytes_per_rank)}")
    if totals.padding_bytes_per_rank:
        _item(console, f"zeros for padding: {size(totals.padding_bytes_per_rank)} on average")
    if plan.memory:
        memory = plan.memory
        _item(
            console,
            f"{memory.gpu}: {gib(memory.capacity)} as CUDA counts it, {gib(memory.left)} left for KV cache, "
            "activations and graphs",
        )
        if memory.kv_tokens_at_most:
            each = " in each attention group" if plan.deployment["world"] > plan.deployment["attention_tp"] else ""
            _item(
                console,
                f"at most {memory.kv_tokens_at_most:,} tokens of KV cache{each}, of "
                f"{memory.kv_bytes_per_token:,.0f} bytes each: an upper bound, since the rest has to fit as well",
            )


def _show_launch(console: Console, plan: "Plan", plan_file: str | None) -> None:
    if plan.reshard:
        command = plan.reshard if plan_file is None else f"{plan.reshard.split(' --')[0]} --plan {plan_file}"
        _heading(console, "Write the shards")
        _print_command(console, command)
    if plan.launch.commands or plan.unwritten:
        _heading(console, "Launch")
    if plan.unwritten:
        _item(console, f"from the checkpoint; no shards are written for it: {plan.unwritten}")
    for name, content in plan.launch.files.items():
        _item(console, f"{name}: {content.strip()}")
    environment = "".join(f"{key}={value} " for key, value in plan.launch.environment.items())
    for node, command in enumerate(plan.launch.commands):
        if len(plan.launch.commands) > 1:
            _item(console, f"node {node}:", "dim")
        _print_command(console, environment + command)
    if plan.launch.draft_options:
        _item(console, "with the MTP draft model, add:", "dim")
        _print_command(console, plan.launch.draft_options)


def _print_command(console: Console, command: str) -> None:
    """A command on one line, however long: it must survive being copied."""
    console.print(Text("  " + clean(command)), soft_wrap=True)


# --- plan --compare --------------------------------------------------------------------------------------------------


def show_comparison(console: Console, comparison: "PlanComparison") -> None:
    """What differs between two plans, the checkpoints first."""
    if comparison.same:
        console.print(Text(f"{clean(comparison.a)} and {clean(comparison.b)}: the same plan", style="bold"))
        return
    console.print(Text(f"A: {clean(comparison.a)}", style="bold"))
    console.print(Text(f"B: {clean(comparison.b)}", style="bold"))
    if comparison.checkpoint:
        _heading(console, "Not the same checkpoint")
        for line in comparison.checkpoint:
            _item(console, line, "yellow")
    _show_differences(console, "Asked for", comparison.request)
    _show_differences(console, "Comes to", comparison.deployment)
    for name, verdict in zip("AB", comparison.verdicts, strict=False):
        _heading(console, f"{name} {'runs' if verdict.feasible else 'does not run'}")
        for line in (*verdict.breaches, *verdict.choices):
            _item(console, line, "" if verdict.feasible else "red")
    placements, nbytes = comparison.placements, comparison.bytes_per_rank
    if placements and (all(row.a is None for row in placements) or all(row.b is None for row in placements)):
        only = "A" if placements[0].b is None else "B"
        _heading(console, f"Placement and bytes are only in {only}")
        placements = nbytes = ()
    if placements:
        _heading(console, "Placement")
        table = _table("module", "A", "B")
        for cells in _placement_rows(placements):
            table.add_row(*(Text(clean(cell)) for cell in cells))
        console.print(table)
    if nbytes:
        _heading(console, "Bytes a rank (the heaviest)")
        table = _table("", "A", "B", "B - A", right=(1, 2, 3))
        for row in nbytes:
            sign = "-" if row.difference < 0 else "+"
            table.add_row(row.name, size(row.a), size(row.b), sign + size(abs(row.difference)))
        console.print(table)
    _show_differences(console, "Environment", comparison.environment)
    _show_differences(console, "Launch", comparison.options)
    for name, commands in zip("AB", comparison.commands, strict=False):
        _heading(console, f"Commands of {name}")
        for command in commands:
            _print_command(console, command)
    if comparison.rest:
        console.print()
        _item(console, f"{len(comparison.rest)} more, in what follows from these: --json lists them", "dim")


def _show_differences(console: Console, title: str, differences: "tuple[Difference, ...]") -> None:
    if not differences:
        return
    _heading(console, title)
    table = _table("", "A", "B")
    for row in differences:
        values = ("-" if value is None else clean(str(value)) for value in (row.a, row.b))
        table.add_row(Text(clean(row.name)), *map(Text, values))
    console.print(table)


def _placement_rows(rows: "tuple[PlacementDifference, ...]") -> list[tuple[str, str, str]]:
    """Roles of a module that differ alike, together."""
    merged: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        module = f"{row.module}{' (draft)' if row.part_of == 'draft' else ''}"
        merged.setdefault((module, row.a or "-", row.b or "-"), []).append(row.role.rpartition(".")[2])
    return [(f"{module}: {', '.join(dict.fromkeys(roles))}", a, b) for (module, a, b), roles in merged.items()]


# --- explain -------------------------------------------------------------------------------------------------------


def show_explanation(console: Console, explanation: "Explanation") -> None:
    """What an engine said, what broke, and the way out."""
    message = explanation.message
    if message is None:
        console.print(Text("not recognised", style="bold"))
        _item(console, str(explanation.hint))
        return
    often = f", {message.times:,} times" if message.times > 1 else ""
    where = f" (line {message.line:,}{often})" if explanation.lines > 1 else ""
    said = ", ".join(explanation.engines)
    console.print(Text(f"{said}{where}", style="bold"))
    _item(console, message.text, "red")
    _heading(console, "What broke")
    for line in explanation.meaning:
        _item(console, line)
    if explanation.cases:
        _item(console, f"in {_case(explanation.cases[0])}", "dim")
    for case in explanation.cases[1:]:
        _item(console, f"or {case.module}: {case.arithmetic}, in {_case(case)}", "dim")
    if explanation.remedies:
        _heading(console, "Ways out")
    for remedy in explanation.remedies:
        _item(console, remedy)
    way = explanation.way
    if way is not None:
        _heading(console, f"By the rules, {way.options} {'runs, with' if way.runs else 'does not run'}")
        for note in way.notes:
            _item(console, note)
        if way.command is not None:
            _print_command(console, "".join(f"{key}={value} " for key, value in way.environment.items()) + way.command)
        for near in way.nearest:
            _item(console, f"nearest that runs: {near}")
        _heading(console, "Next")
        _print_command(console, way.next)
    if explanation.also:
        _heading(console, "Also found, and said later or less grave")
        for other in explanation.also:
            _item(console, f"line {other.line:,}: {other.text}", "dim")


def _case(case: "Case") -> str:
    guess = f" ({' and '.join(case.guessed)}: a guess)" if case.guessed else ""
    return f"{case.model} with {case.options}{guess}"


# --- search --------------------------------------------------------------------------------------------------------


def show_search(console: Console, found: "Search") -> None:
    """The layouts, best first, what the numbers are, and the command that plans the best."""
    kind = f" {found.gpu}" if found.gpu else ""
    searched = ", ".join(found.engines) or "no engine is known well enough to search"
    console.print(Text(clean(f"{found.gpus}{kind} GPUs: {searched}"), style="bold"))
    for reason in found.unknown:
        _item(console, f"not known: {reason}", "yellow")
    if not found.engines:
        return
    _heading(console, "Layouts that run" if found.best else "Nothing runs" if not found.layouts else "Nothing fits")
    if found.layouts:
        _show_layouts(console, found)
    for way in found.elsewhere:
        _item(console, f"{way.gpus} {way.gpu or ''} GPUs would do: {way.options}")
    if not found.best and not found.elsewhere:
        _item(console, "nor was anything found on more, fewer or other GPUs")
    if found.command:
        _heading(console, "Plan the first")
        _print_command(console, found.command)


def _show_layouts(console: Console, found: "Search") -> None:
    columns = ("engine", "TP", "EP", "DP", "shared", "weights", "tokens", "whole", "zeros", "sent", "+")
    table = _table(*columns, right=(1, 2, 3, 5, 6, 7, 8, 9, 10))
    for row in found.layouts[:_LAYOUTS_SHOWN]:
        at, sent = row.deployment, row.sent_bytes_per_token_and_layer
        tokens = "?" if row.tokens_at_most is None else f"{row.tokens_at_most * row.groups / 1e6:.2f}"
        numbers = (
            f"{row.weight_bytes / _GIB:.1f}{'' if row.fits else '!'}",
            tokens,
            f"{row.replicated_bytes / _GIB:.2f}",
            f"{row.padding_bytes / _GIB:.2f}",
            "?" if sent is None else f"{sent / 1e3:.0f}",
            str(len(row.also)),
        )
        parallel = (str(at[key]) for key in ("tp", "ep", "dp"))
        table.add_row(at["engine"], *parallel, at["shared"], *numbers)
    console.print(table)
    more = len(found.layouts) - _LAYOUTS_SHOWN
    if more > 0:
        _item(console, f"and {more} more (--json has all, with their options)")
    first = found.layouts[0]
    room = f" of {(first.weight_bytes + first.left_bytes) / _GIB:.1f}" if first.left_bytes is not None else ""
    for line in (
        f"weights: GiB on the fullest GPU{room}, by which rows are ranked; ! does not fit",
        "tokens: millions of KV cache that would fill the rest, in all attention groups: at most; ? not known",
        "whole: GiB that every GPU has whole, zeros: GiB of padding; both are within weights",
        "sent: kB by all GPUs together for one token in one layer, by formula",
        "+: other runners, all-to-all backends or EP that weigh the same. None of these is a speed.",
    ):
        _item(console, line, "dim")


# --- reshard and verify --------------------------------------------------------------------------------------------


def show_dry_run(console: Console, job: "Job", out: str, needed: int, free: int) -> None:
    """What reshard would write."""
    console.print(Text(f"Would write into {clean(out)}", style="bold"))
    table = _table("file", "tensors", "bytes", right=(1, 2))
    for file in job.recipe.files:
        table.add_row(file.name, f"{len(file.tensors):,}", f"{file.nbytes:,}")
    for name, content in job.companions.items():
        table.add_row(name, "", f"{len(content):,}")
    console.print(table)
    missing = max(0, needed - free)
    short = f": {size(missing)} missing" if missing else ""
    _item(console, f"needed: {size(needed)}, free: {size(free)}{short}", "red" if missing else "")
    if job.nbytes > needed:
        _item(console, f"links to the checkpoint's own files: {size(job.nbytes - needed)} more")
    _item(console, f"source tensors left out: {len(job.recipe.left_out):,}")


def show_merge(console: Console, outcome: "Outcome", seconds: float, source: "RankSource") -> None:
    """What merge wrote, and in what it is not the checkpoint that the ranks were made from."""
    show_outcome(console, outcome, seconds, "files")
    for note in source.notes:
        _item(console, note, "yellow" if source.changes else "")


def show_outcome(console: Console, outcome: "Outcome", seconds: float, files: str = "rank files") -> None:
    """What reshard wrote, and what to do next."""
    rate = (outcome.nbytes - outcome.resumed) / seconds if seconds else 0
    console.print(f"wrote {outcome.files} {files}, {size(outcome.nbytes)} in {seconds:.1f} s ({size(int(rate))}/s)")
    if outcome.resumed:
        _item(console, f"{size(outcome.resumed)} of it was there from an earlier run")
    if outcome.linked:
        _item(console, f"{outcome.linked} more are links to the checkpoint's own files")
    if outcome.intact:
        _item(console, f"{outcome.intact} files came whole, with the SHA-256 that the Hub has of them")
    if outcome.inexact:
        count = sum(outcome.inexact.values())
        _item(console, f"{count:,} values in {len(outcome.inexact):,} tensors were rounded by the cast", "yellow")
    held = f", which holds {say_ranks(outcome.ranks)} of {outcome.world}" if len(outcome.ranks) < outcome.world else ""
    console.print(Text(f"into {clean(str(outcome.out))}{held}"))


def show_cluster(console: Console, outcome: "ClusterOutcome", seconds: float) -> None:
    """What the shares of a cluster wrote, and where they are."""
    files = sum(one.outcome.files for one in outcome.written if one.outcome)
    nbytes = sum(one.outcome.nbytes for one in outcome.written if one.outcome)
    console.print(f"wrote {files} rank files, {size(nbytes)} in {len(outcome.written)} shares in {seconds:.1f} s")
    for one in outcome.written:
        resumed = one.outcome.resumed if one.outcome else 0
        how = "was there" if one.outcome is None else f"{size(resumed)} from an earlier run" if resumed else ""
        _item(console, f"{say_ranks(one.ranks)} on {clean(one.node)}{how and ': '}{how}")
    _item(console, "in one folder for all nodes" if outcome.is_one_folder else "in a folder on each node")


def show_upload(console: Console, uploaded: "Uploaded", seconds: float, kept: Path | None) -> None:
    """What was put into a store."""
    rate = uploaded.sent / seconds if seconds else 0
    console.print(
        f"put {uploaded.objects} objects, {size(uploaded.sent)} sent in {seconds:.1f} s ({size(int(rate))}/s)"
    )
    if uploaded.copied:
        _item(console, f"{size(uploaded.copied)} were copied within the store")
    if uploaded.resumed:
        _item(console, f"{size(uploaded.resumed)} were there from an earlier run")
    if kept:
        _item(console, f"kept in {kept}")
    console.print(Text(f"into {clean(uploaded.out)}"))


def show_verification(console: Console, verification: "Verification", numerics: "Numerics | None") -> None:
    """Verdict, accounts, problems."""
    _show_verified(console, verification)
    _show_verdict(console, verification.ok, numerics)


def show_together(console: Console, together: "Together", numerics: "Numerics | None") -> None:
    """Each folder's accounts and problems, those of all together, and one verdict."""
    for verification in together.folders:
        _show_verified(console, verification)
    held = f"{say_ranks(together.ranks)} of {together.world}"
    console.print(Text(f"together: {held}, layout {clean(together.layout)}", style="bold"))
    if together.missing:
        _item(console, f"{say_ranks(together.missing)} of {together.world}: in none of these folders", "yellow")
    _show_problems(console, together.problems)
    _show_verdict(console, together.ok, numerics)


def _show_verified(console: Console, verification: "Verification") -> None:
    held = f"{verification.files} files, {verification.tensors:,} tensors, {size(verification.bytes)}"
    against = f", against {clean(verification.against)}" if verification.against else ", against its manifest"
    console.print(Text(f"{clean(verification.folder)}: {held}{against}", style="bold"))
    if len(verification.ranks) < verification.world:
        _item(console, f"{say_ranks(verification.ranks)} of {verification.world}")
    for fate, count in verification.accounts.items():
        _item(console, f"{count:,} source tensors {fate}")
    for reason, count in verification.left_out.items():
        _item(console, f"{count:,} not stored: {reason}", "dim")
    for note in verification.notes:
        _item(console, f"note: {note}", "dim")
    _show_problems(console, verification.problems)


def _show_problems(console: Console, problems: "tuple[Problem, ...]") -> None:
    for problem in problems[:_PROBLEMS_SHOWN]:
        place = ": ".join(part for part in (problem.file, problem.tensor) if part)
        _item(console, f"{place}: {problem.message}", "red")
    hidden = len(problems) - _PROBLEMS_SHOWN
    if hidden > 0:
        _item(console, f"and {hidden:,} more problems (--json lists them)", "red")


def _show_verdict(console: Console, ok: bool, numerics: "Numerics | None") -> None:
    if numerics is not None:
        _show_numerics(console, numerics)
    bad = not ok or (numerics is not None and not numerics.ok)
    console.print(Text("NOT what was written" if bad else "all as it should be", style="red" if bad else "green"))


def _show_numerics(console: Console, numerics: "Numerics") -> None:
    _item(
        console,
        f"layer {numerics.layer}: {len(numerics.experts)} routed experts and the shared one ({numerics.shared_experts} "
        f"on each of {numerics.ranks} ranks) add up to the unsharded layer, relative error {numerics.error_once:.1e}",
        "" if numerics.ok else "red",
    )
    if numerics.ranks > 1:
        _item(
            console, f"(counted {numerics.ranks} times, the error would be {numerics.error_on_every_rank:.1e})", "dim"
        )
