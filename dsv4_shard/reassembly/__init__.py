"""Rank files → the checkpoint that they hold, as a source that can be read like any other."""
