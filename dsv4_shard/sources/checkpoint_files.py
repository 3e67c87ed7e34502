"""Names and size limits of a checkpoint's files."""

import re

CONFIG_FILE = "config.json"

INDEX_FILE = "model.safetensors.index.json"

CARD_FILE = "README.md"
"""The model card, by the Hub's rule."""

SINGLE_FILE = "model.safetensors"

MAX_CONFIG_BYTES = 4 << 20

MAX_INDEX_BYTES = 64 << 20
"""Largest index that is read. The index of V4-Pro has 12 MB."""

_PLAIN_NAME = re.compile(r"\w[\w.+-]*\.safetensors", re.ASCII)


def is_plain_name(name: str) -> bool:
    """Return whether `name` is the plain name of a safetensors file, and not a path to another folder."""
    return _PLAIN_NAME.fullmatch(name) is not None
