"""Serving engines as tables: rules, placements, file layouts, launch commands."""
