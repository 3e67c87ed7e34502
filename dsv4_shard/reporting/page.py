"""Report → one self-contained HTML file: which layouts run and why, what each rank holds, and the launch.

Charts are boxes that the style sheet places, so the page needs no script but for its copy buttons, and its own policy
forbids network requests.
"""

import base64
import hashlib
import os
import shlex
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from dsv4_shard.catalog.gpus import GPUS, counted_gpus, gpu_title
from dsv4_shard.catalog.options import RANKINGS
from dsv4_shard.engines import FIRST_NODE, Request, Verdict, find_engine, title_of
from dsv4_shard.inspection import UnknownInspection, whole_sizes
from dsv4_shard.planning import Plan, PlanWay
from dsv4_shard.reporting.charts import (
    GridChart,
    capitalized,
    grid_chart,
    layer_chart,
    legend,
    module_bars,
    rank_bars,
)
from dsv4_shard.reporting.colours import KINDS, variables
from dsv4_shard.reporting.content import ReportContent, gpu_in_words
from dsv4_shard.reporting.facts import facts_of
from dsv4_shard.reporting.matrix import grid_of
from dsv4_shard.reporting.tables import divisions, held_by
from dsv4_shard.reporting.verdicts import Shown, of_plan, shown
from dsv4_shard.text.sanitize import clean
from dsv4_shard.text.units import counted, gib, size

_ASSETS = files(__package__) / "assets"

_GIB = 1 << 30

_EPOCH_DIGITS = 11
"""Digits of seconds up to the year 5138: datetime has no times far beyond."""


# --- the page --------------------------------------------------------------------------------------------------------


def to_html(report: ReportContent, made: datetime | None = None) -> str:
    """Return the page. `made` is the date on it: by default now, or that of SOURCE_DATE_EPOCH."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dsv4_shard.reporting", "assets"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=lambda value: _printable(value) if type(value) is str else value,
    )  # fmt: skip
    environment.filters |= {
        "gib": gib, "in_gib": lambda nbytes: f"{nbytes / _GIB:.1f}", "capitalize_first": capitalized,
        "engine": lambda name: find_engine(name).title, "gpu": gpu_title,
    }  # fmt: skip
    script = _asset("report.js")
    return environment.get_template("report.html.jinja").render(
        _head(report, made or _now()),
        **_charts(report),
        held=held_by(report.inspection),
        divides=[] if report.plan else list(divisions(report.inspection)),
        not_known=getattr(report.inspection, "not_known", ""),
        report=report,
        inspection=report.inspection,
        plan=report.plan,
        search=report.search,
        rankings=RANKINGS,
        searched_gpus=counted_gpus(report.search.gpus, report.search.gpu) if report.search else "",
        answer=whole_sizes(report.inspection) if isinstance(report.inspection, UnknownInspection) else None,
        facts=list(facts_of(report.plan)) if report.plan else [],
        ways=list(_ways(report.plan)) if report.plan else [],
        first_node=FIRST_NODE,
        plan_command=f"dsv4-shard plan {shlex.quote(_label(report))}",
        context_option=f" --context {report.search.context}" if report.search and report.search.context else "",
        search_command=report.command.replace("report", "plan", 1),
        next_command=_next_command(report),
        css=Markup(_styles()),
        report_js=Markup(script),
        script_hash=Markup(_hash(script)),
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _styles() -> str:
    """The style sheet, with the colours of both schemes and a class for each colour."""
    light = "--paper: #ffffff; --ink: #1c2024; --faint: #60676f; --line: #d8dde3; --tint: #f4f6f8;"
    dark = "--paper: #14171a; --ink: #e4e7ea; --faint: #9aa3ad; --line: #343a41; --tint: #1d2125;"
    classes = " ".join(f".k-{colour.name} {{ --colour: var(--{colour.name}); }}" for colour in KINDS)
    return (
        f":root {{ color-scheme: light dark; {light} {variables('light')} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} {variables('dark')} }} }}\n"
        f"{classes}\n{_asset('report.css')}"
    )


def _hash(script: str) -> str:
    """Hash of a script for the page's policy, so that no other script runs."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _printable(text: str) -> str:
    return "\n".join(map(clean, text.split("\n")))


def _now() -> datetime:
    """The time to print: that of SOURCE_DATE_EPOCH, as in reproducible builds, if it holds one; else now."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    is_time = fixed.isdecimal() and len(fixed) <= _EPOCH_DIGITS
    return datetime.fromtimestamp(int(fixed), UTC) if is_time else datetime.now(UTC)


# --- the head --------------------------------------------------------------------------------------------------------


def _label(report: ReportContent) -> str:
    return report.plan.source.label if report.plan else report.inspection.identity.label


def _head(report: ReportContent, made: datetime) -> dict[str, Any]:
    """Title, origin and verdict."""
    it, plan, label = report.inspection.identity, report.plan, _label(report)
    name = label.rstrip("/").rpartition("/")[2] or label
    held = f"{counted(it.tensors, 'tensor')} in {counted(it.files, 'file')}, {size(it.bytes)}"
    commit = it.revision or f"none is known; config.json has SHA-256 {report.config_digest}"
    verdict = _verdict(report)
    return {
        "title": f"{name} on {_title(plan)}" if plan else name,
        "layout": _layout(plan) if plan else "",
        "trace": (
            ("Checkpoint", f"{label}: {it.family}, {held}{_sizes(it)}"),
            ("Commit", commit),
            ("Made", f"{made:%Y-%m-%d %H:%M} UTC by dsv4-shard {report.inspection.tool_version}, with:"),
        ),
        "verdict": verdict,
    }


def _sizes(it: Any) -> str:
    """Layers and experts, as far as config.json names them."""
    shared = getattr(it, "shared_experts", None)
    known = (
        it.layers and counted(it.layers, "layer"),
        it.routed_experts and counted(it.routed_experts, "routed expert"),
        shared and f"{shared} shared",
    )
    words = ", ".join(filter(None, known))
    return f"; {words}" if words else ""


def _title(plan: Plan) -> str:
    engine = title_of(plan.request.engine, plan.engine_version)
    return f"{engine} {plan.deployment.version}, TP {plan.deployment.tp}"


def _layout(plan: Plan) -> str:
    deployment = plan.deployment
    gpus = counted_gpus(deployment.world, deployment.gpu)
    nodes = f" on {deployment.nodes} nodes" if deployment.nodes > 1 else ""
    a2a = f", all-to-all {deployment.a2a}" if deployment.a2a else ""
    stages = f", PP {deployment.pp}" if deployment.pp > 1 else ""
    return (
        f"{gpus}{nodes}: TP {deployment.tp}, EP {deployment.ep}, DP {deployment.dp}{stages}; attention TP "
        f"{deployment.attention_tp}, MoE TP {deployment.moe_tp}, runner {deployment.runner}{a2a}"
    )


def _verdict(report: ReportContent) -> tuple[Shown, str] | None:
    """The verdict on the plan, or on a search that found none, and its words; None for a checkpoint alone."""
    plan, search = report.plan, report.search
    if plan is not None:
        return of_plan(plan), plan.headline + (_unweighed(plan) if plan.verdict.is_good else "")
    if search is not None:
        gpus = counted_gpus(search.gpus, search.gpu)
        verdict = Verdict.FAILS if search.engines else Verdict.UNVERIFIED
        failed = "No layout fits" if search.layouts else "No layout runs"
        return shown(verdict, is_weighed=True), f"{failed if search.engines else 'Not verified'} on {gpus}"
    return None


def _unweighed(plan: Plan) -> str:
    """What the verdict leaves open if no GPU is named."""
    if plan.memory is not None or plan.totals is None:
        return ""
    weights, largest = plan.totals.target_bytes_per_rank_max, max(gpu.memory for gpu in GPUS.values())
    over = f", more than the largest listed GPU has ({gib(largest)})" if weights >= largest else ""
    return f", by its rules. Memory was not checked, because no GPU is named: {gib(weights)} per GPU{over}"


def _ways(plan: Plan) -> Iterator[tuple[str, PlanWay, str, str]]:
    """Yield the ways to serve: title, way, the command of every node, and what to add on all but the first."""
    for number, way in enumerate(plan.ways):
        command, more = way.launch.on_every_node
        yield way.title(is_first=number == 0), way, command, " ".join(more)


def _next_command(report: ReportContent) -> str:
    """The command for a page with a layout; empty where there is one, or can be none."""
    it = report.inspection
    if report.plan or report.search or isinstance(it, UnknownInspection) or it.has_errors:
        return ""
    return f"dsv4-shard report {shlex.quote(it.identity.label)} --gpus 8 --gpu h200"


# --- charts -----------------------------------------------------------------------------------------------------------


def _charts(report: ReportContent) -> dict[str, Any]:
    plan, memory = report.plan, report.plan.memory if report.plan else None
    capacity = memory.capacity if memory else None
    grids = [grid_chart(grid, is_placed=plan is not None and grid.fits) for grid in report.grids]
    return {
        "grids": grids,
        "grid_legend": list(_grid_legend(grids)),
        "capacity": capacity,
        "rank_bars": rank_bars(report.ranks, capacity),
        "rank_legend": legend(report.ranks),
        "module_bars": module_bars(plan) if plan else (),
        "layers": layer_chart(report.layers) if report.layers else None,
        **_matrix(report),
    }


def _grid_legend(grids: list[GridChart]) -> Iterator[tuple[str, str]]:
    """Yield the colours of the drawn axes and their meanings."""
    drawn = {box.kind for grid in grids for box in (*grid.blocks, *grid.placed)}
    meanings = {colour.name: colour.meaning for colour in KINDS}
    meanings |= {"cut": "a unit that a cut divides", "padding": "zeros for padding"}
    return ((kind, words) for kind, words in meanings.items() if kind in drawn)


def _matrix(report: ReportContent) -> dict[str, Any]:
    if isinstance(report.inspection, UnknownInspection) or not report.inspection.matrix:
        return {"matrix": None, "matrix_note": ""}
    plan = report.plan
    gpu = next(filter(None, gpu_in_words(plan, report.search).values()), None)
    note = f"Each engine with its default options, on {gpu_title(gpu)}; {{}}" if gpu else (
        "Each engine with its default options, on Hopper. Memory was not checked, because no GPU is named; {}"
    )  # fmt: skip
    return {
        "matrix": grid_of(report.inspection.matrix, gpu, _asked(plan.request) if plan else None),
        "matrix_note": note.format("options below a number: the layout that runs on that many GPUs."),
    }


def _asked(request: Request) -> tuple[str, int] | None:
    """Engine and TP of the cell that is the plan's; None if the plan has options of its own."""
    usual = Request(request.tp, engine=request.engine, gpu=request.gpu, gpu_memory=request.gpu_memory)
    return (request.engine, request.tp) if replace(request, nodes=None) == usual else None
