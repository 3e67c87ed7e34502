"""Report → one self-contained HTML file: which layouts run and why, what each rank holds, and the launch.

Except for its three charts the page needs no scripts, and its own policy forbids network requests. Observable Plot
(`assets/plot.js`, made by `make charts`) draws the charts from numbers in the page.
"""

import base64
import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from importlib.resources import files
from itertools import groupby
from typing import Any

from markupsafe import Markup

from dsv4_shard.catalog.options import RANKINGS
from dsv4_shard.engines import Verdict, find_engine, title_of
from dsv4_shard.inspection import MatrixCell
from dsv4_shard.planning import Plan, PlanCache, PlanHost
from dsv4_shard.reporting.charts import MAP_KINDS, capitalized, charts_of, kinds_of, map_rows
from dsv4_shard.reporting.content import ReportContent, gpu_in_words
from dsv4_shard.text.sanitize import clean
from dsv4_shard.text.units import counted, gib, size

_ASSETS = files(__package__) / "assets"

_OTHERWISE = "does not run; other options do"

_VERDICT_CLASSES = {
    Verdict.RUNS: "yes",
    Verdict.CHANGED: "with-options",
    Verdict.FAILS: "no",
    Verdict.UNVERIFIED: "unknown",
}

# --- the page --------------------------------------------------------------------------------------------------------


def to_html(report: ReportContent) -> str:
    """Return the page. The same report gives the same page: it has no dates and no addresses."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dsv4_shard.reporting", "assets"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=lambda value: _printable(value) if type(value) is str else value,
    )  # fmt: skip
    environment.filters |= {
        "gib": gib, "size": size, "why": _why, "capitalize_first": capitalized,
        "engine": lambda name: find_engine(name).title, "verdict": _says,
    }  # fmt: skip
    plot, script = _asset("plot.js"), _asset("report.js")
    return environment.get_template("report.html.jinja").render(
        _words(report),
        inspection=report.inspection,
        plan=report.plan,
        search=report.search,
        charts=charts_of(report),
        rankings=RANKINGS,
        verdict_classes=_VERDICT_CLASSES,
        ranks=[asdict(rank) for rank in report.ranks],
        rank_kinds=kinds_of(report.ranks),
        map_kinds=[(k, w) for k, w in MAP_KINDS if report.layers and any(c.kind is k for c in report.layers.columns)],
        map_rows=list(map_rows(report.layers)) if report.layers else [],
        css=Markup(_asset("report.css")),
        plot_js=Markup(plot),
        report_js=Markup(script),
        script_hashes=Markup(" ".join(_hash(text) for text in (plot, script))),
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """Hash of a script for the page's policy, so that no other script runs."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _printable(text: str) -> str:
    return "\n".join(map(clean, text.split("\n")))


# --- words -----------------------------------------------------------------------------------------------------------


def _words(report: ReportContent) -> dict[str, Any]:
    """Titles and sentences of the page."""
    it, plan = report.inspection.identity, report.plan
    label = plan.source.label if plan else it.label
    name = label.rstrip("/").rpartition("/")[2] or label
    revision = f" @ {it.revision[:12]}" if it.revision else ""
    gpu = next(filter(None, gpu_in_words(plan, report.search).values()), None)
    held = f"{counted(it.tensors, 'tensor')} in {counted(it.files, 'file')}, {size(it.bytes)}"
    words = {
        "title": f"{name} on {_title(plan)}" if plan else name,
        "identity": f"{label}{revision}: {it.family}, {held}; "
        f"{it.layers} layers, {it.routed_experts} routed experts and {it.shared_experts} shared",
        "engines": list(dict.fromkeys(cell.engine for cell in report.inspection.matrix)),
        "matrix": {tp: list(cells) for tp, cells in groupby(report.inspection.matrix, lambda cell: cell.tp)},
        "matrix_note": f"With each engine's own choices on GPUs of {gpu}."
        if gpu
        else "With each engine's own choices on Hopper; memory is not looked at.",
        "asked": (plan.deployment.engine, plan.deployment.tp) if plan else None,
        "plan_command": f"dsv4-shard plan {shlex.quote(label)}",
        "report_command": f"dsv4-shard report {shlex.quote(label)} --tp 16 -o report.html",
    }
    return words | (_plan_words(plan) if plan else {"facts": ()})


def _title(plan: Plan) -> str:
    engine = title_of(plan.request.engine, plan.engine_version)
    return f"{engine} {plan.deployment.version}, TP {plan.deployment.tp}"


def _plan_words(plan: Plan) -> dict[str, Any]:
    deployment = plan.deployment
    gpus = counted(deployment.world, f"{deployment.gpu} GPU" if deployment.gpu else "GPU")
    nodes = f" on {deployment.nodes} nodes" if deployment.nodes > 1 else ""
    a2a = f", all-to-all {deployment.a2a}" if deployment.a2a else ""
    environment = "".join(f"{name}={shlex.quote(value)} " for name, value in plan.launch.environment.items())
    return {
        "layout": f"{gpus}{nodes}: TP {deployment.tp}, EP {deployment.ep}, DP {deployment.dp}; "
        f"attention TP {deployment.attention_tp}, "
        f"MoE TP {deployment.moe_tp}, runner {deployment.runner}{a2a}",
        "verdict": plan.headline,
        "facts": list(_facts(plan)),
        "launch": [environment + command for command in plan.launch.commands],
    }  # fmt: skip


def _facts(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Yield the deciding numbers: name, value, and a note."""
    totals, memory = plan.totals, plan.memory
    if totals is None:
        yield from _host_facts(plan.host)
        return
    least, most = totals.target_bytes_per_rank_min, totals.target_bytes_per_rank_max
    weights = memory.weights if memory else most
    yield "Weights a rank", gib(weights), f"{gib(least)} on the lightest" if least < most else f"{totals.ranks} alike"
    if memory is not None:
        left = ("Free of its memory", gib(memory.left)) if memory.fits else ("Memory missing", gib(-memory.left))
        yield *left, f"of {gib(memory.capacity)}" if memory.fits else f"beyond {gib(memory.capacity)}"
        yield from _cache_facts(memory.kv_cache)
    yield "Whole on every rank", gib(totals.replicated_bytes_per_rank), ""
    if totals.padding_bytes_per_rank:
        yield "Padding a rank", gib(totals.padding_bytes_per_rank), ""
    if totals.draft_bytes_per_rank and not find_engine(plan.deployment.engine).draft_in_model:
        yield "MTP draft, if loaded", gib(totals.draft_bytes_per_rank), "more a rank"
    yield from _host_facts(plan.host)


def _host_facts(host: PlanHost | None) -> Iterator[tuple[str, str, str]]:
    """Yield what a node holds on its disk and in its memory."""
    if host is None:
        return
    each = "a node" if host.nodes > 1 else "the node"
    yield f"Disk of {each}", size(host.disk_bytes), host.reads
    yield f"Memory of {each} while it loads", gib(host.window_bytes), "at once, beside the page cache"
    if host.pinned:
        yield f"Memory of {each}, pinned", gib(host.pinned_bytes), "for as long as the engine runs"


def _cache_facts(cache: PlanCache | None) -> Iterator[tuple[str, str, str]]:
    """Yield the tokens of KV cache and the sessions, where they are known."""
    if cache is None:
        return
    if cache.tokens is not None and cache.all_sessions is not None:
        yield "Tokens of KV cache", f"{cache.tokens:,}", f"in each of {counted(cache.groups, 'attention group')}"
        yield f"Sessions of {cache.session:,} tokens", f"{cache.all_sessions:,}", "at once, all GPUs together"
        return
    fits = {True: "fits", False: "does not fit", None: "may not fit"}[cache.fits]
    yield f"Context of {cache.session:,} tokens", fits, f"takes {gib(cache.session_bytes)} a rank"


def _says(cell: MatrixCell) -> str:
    return _OTHERWISE if cell.otherwise else str(cell.verdict)


def _why(cell: MatrixCell) -> Iterator[str]:
    """Yield the details of a verdict: required options, bytes, and the arithmetic of broken rules."""
    if cell.otherwise:
        yield f"as {cell.how}"
    if cell.bytes_per_rank is not None:
        yield f"{gib(cell.bytes_per_rank)} a rank"
    if cell.reason:
        yield (
            cell.reason
            if cell.verdict is Verdict.UNVERIFIED or cell.module is None
            else f"{cell.module}: {cell.reason}"
        )
    yield from map(str, cell.changes)
