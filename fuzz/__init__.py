"""Hostile files, by coverage-guided fuzzing: `python -m fuzz TARGET --seconds N`, or `make fuzz`."""
