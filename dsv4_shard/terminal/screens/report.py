"""Prints the result of `report`: where the page is, and what it shows."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dsv4_shard.catalog.gpus import counted_gpus
from dsv4_shard.engines import title_of
from dsv4_shard.terminal.text import item, paragraph

if TYPE_CHECKING:
    from dsv4_shard.reporting import Report


def show_report(console: Console, report: "Report", output: Path) -> None:
    """Show what the report contains, and how to use it."""
    plan = report.plan
    about = "the checkpoint alone: name a layout with --tp or --gpus for placements and commands"
    if not report.family_known:
        about = f"{report.inspection.identity.family}, a family that is not known: what it holds, and what divides"
    elif plan is not None:
        engine = title_of(plan.request.engine, plan.engine_version)
        about = f"TP {plan.deployment.tp} on {engine} {plan.deployment.version}: {plan.verdict}"
    elif report.search is not None:
        verdict = "not verified" if report.search.unverified else "no layout runs"
        about = f"{counted_gpus(report.search.gpus, report.search.gpu)}: {verdict}"
    paragraph(console, f"Wrote {output}. Open it in a browser.")
    item(console, about)
