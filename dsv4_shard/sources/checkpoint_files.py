"""Names of a checkpoint's files."""

import re

from dsv4_shard.limits import CONFIG, INDEX

CONFIG_FILE = "config.json"

INDEX_FILE = "model.safetensors.index.json"

CARD_FILE = "README.md"
"""The model card, by the Hub's rule."""

SINGLE_FILE = "model.safetensors"

LIMITS = {CONFIG_FILE: CONFIG, INDEX_FILE: INDEX}
"""The small files that are read, with their limits."""

_PLAIN_NAME = re.compile(r"\w[\w.+-]*\.safetensors", re.ASCII)


def is_plain_name(name: str) -> bool:
    """Return whether `name` is the plain name of a safetensors file, and not a path to another folder."""
    return _PLAIN_NAME.fullmatch(name) is not None
