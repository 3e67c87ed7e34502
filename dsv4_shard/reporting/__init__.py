"""Inspection + plan → one self-contained HTML page."""
