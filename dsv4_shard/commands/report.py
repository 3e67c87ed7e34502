"""`report`: a plan, a search or a checkpoint as an HTML page."""

from pathlib import Path
from typing import Any

import dsv4_shard
from dsv4_shard.report import ReportOptions
from dsv4_shard.terminal import options
from dsv4_shard.terminal.output import output_console
from dsv4_shard.terminal.process import reported


@reported
@options.takes(ReportOptions)
def report(source: options.SourceArg, given: dict[str, Any], output: Path = Path("report.html")) -> None:
    """Write one HTML file: what runs and why, and what each rank holds.

    Takes a plan, or a checkpoint with a layout as in `plan`. Without a layout, the page shows the checkpoint alone. The
    page loads nothing from the network.

    The exit code is 0 also if the layout does not run: the page says so.
    """
    from dsv4_shard.terminal.screens.report import show_report

    made = dsv4_shard.report(source, output=output, **given)
    show_report(output_console(), made, output)
