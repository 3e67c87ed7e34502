"""Names, limits and index format of a checkpoint's files."""

import re

CONFIG_FILE = "config.json"

INDEX_FILE = "model.safetensors.index.json"

SINGLE_FILE = "model.safetensors"

MAX_INDEX_BYTES = 64 << 20
"""That of V4-Pro has 12 MB."""

_PLAIN_NAME = re.compile(r"\w[\w.+-]*\.safetensors", re.ASCII)


def is_plain_name(name: str) -> bool:
    """Whether `name` is that of a safetensors file in the checkpoint's folder, and no path elsewhere."""
    return _PLAIN_NAME.fullmatch(name) is not None


MAX_CONFIG_BYTES = 4 << 20
