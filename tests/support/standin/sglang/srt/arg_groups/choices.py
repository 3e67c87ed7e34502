"""Choices of `--load-format`, which plugins extend."""

LOAD_FORMAT_CHOICES = ["auto", "sharded_state"]

add_load_format_choices = LOAD_FORMAT_CHOICES.extend
