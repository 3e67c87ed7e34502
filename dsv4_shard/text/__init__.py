"""Reads values from untrusted text and shows them as text: strict JSON, escaping, units, suggestions."""
