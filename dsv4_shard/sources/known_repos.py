"""Repositories and folders on this machine that can be named as a checkpoint, for completion and suggestions.

The repositories are those in the Hub cache and those whose headers are cached. This module uses no network, and imports
nothing slow.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from urllib.parse import quote, unquote

from dsv4_shard.text.suggest import near

_MAX_ENTRIES = 10_000
"""Most entries of a folder that are read."""


def headers_folder(endpoint: str) -> Path:
    """Return the cache folder for headers of an endpoint's repositories."""
    return Path(_cache_home()) / "dsv4-shard" / quote(endpoint, safe="")


def cached_repos() -> list[str]:
    """Return the sorted names of repositories that this machine has in a cache, at least in part."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    with_headers = (unquote(name) for name in _folders(headers_folder(endpoint)))
    models = (name.removeprefix("models--") for name in _folders(_hub_cache()) if name.startswith("models--"))
    return sorted(name for name in {*with_headers, *(name.replace("--", "/", 1) for name in models)} if "/" in name)


def near_repos(repo: str) -> list[str]:
    """Return cached repositories and folders in the same parent whose names are close to `repo`, closest first."""
    path = Path(os.path.expanduser(repo))
    siblings = near(path.name, _folders(path.parent))
    folders = [str(Path(repo).parent / name) for name in siblings]
    return [name for name in near(repo, [*folders, *cached_repos()]) if name != repo]


def _hub_cache() -> Path:
    """Return the Hub cache's folder, from the same environment variables as huggingface_hub."""
    home = os.environ.get("HF_HOME") or os.path.join(_cache_home(), "huggingface")
    folder = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(folder)))


def _cache_home() -> str:
    return os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")


def _folders(folder: Path) -> Iterator[str]:
    """Yield the names of the folders in `folder`, none if it cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        yield from (entry.name for entry in islice(entries, _MAX_ENTRIES) if entry.is_dir())
