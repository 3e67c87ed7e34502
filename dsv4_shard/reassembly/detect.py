"""Does a folder hold rank files? Answered from the file names alone."""

import re
from collections.abc import Iterable

from dsv4_shard.sources.base import Source
from dsv4_shard.sources.checkpoint_files import INDEX_FILE, SINGLE_FILE
from dsv4_shard.storage import MANIFEST_NAME

_CONVERTED = re.compile(r"model(0|[1-9]\d{0,3})-mp([1-9]\d{0,3})\.safetensors", re.ASCII)


def holds_ranks(source: Source) -> bool:
    """Whether a folder holds rank files and no checkpoint."""
    names = source.sizes()
    if INDEX_FILE in names or SINGLE_FILE in names:
        return False
    return MANIFEST_NAME in names or bool(find_converted(names))


def find_converted(names: Iterable[str]) -> dict[int, dict[int, str]]:
    """Files named as DeepSeek's converter names them: number of ranks -> rank -> file name."""
    found: dict[int, dict[int, str]] = {}
    for name in names:
        if match := _CONVERTED.fullmatch(name):
            found.setdefault(int(match[2]), {})[int(match[1])] = name
    return found
