"""Inspection + plan → one self-contained HTML page."""

from dsv4_shard.reporting.report import Report, make_report

__all__ = [
    "Report",
    "make_report",
]
