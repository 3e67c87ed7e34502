"""Inspection + plan → one self-contained HTML page."""

from dsv4_shard.reporting.report import Report, command_of, make_report, make_unknown_report, plan_options

__all__ = [
    "Report",
    "command_of",
    "make_report",
    "make_unknown_report",
    "plan_options",
]
