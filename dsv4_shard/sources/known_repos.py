"""What this machine holds that can be named as a checkpoint: repositories in the Hub cache, those whose headers were
kept (`headcache`), and folders. Nothing is asked of the network, and nothing imported that takes long.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from urllib.parse import quote, unquote

from dsv4_shard.text.suggest import near

_MOST_ENTRIES = 10_000
"""Of a folder, as many entries are looked at."""


def heads_folder(endpoint: str) -> Path:
    """Where headers of an endpoint's repositories are kept."""
    return Path(_cache_home()) / "dsv4-shard" / quote(endpoint, safe="")


def cached_repos() -> list[str]:
    """Repositories of which something is on this machine, by name."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    kept = (unquote(name) for name in _folders(heads_folder(endpoint)))
    models = (name.removeprefix("models--") for name in _folders(_hub_cache()) if name.startswith("models--"))
    return sorted(name for name in {*kept, *(name.replace("--", "/", 1) for name in models)} if "/" in name)


def near_repos(repo: str) -> list[str]:
    """Folders beside the one that `repo` would be, and cached repositories, of nearly its name; nearest first."""
    path = Path(os.path.expanduser(repo))
    beside = near(path.name, _folders(path.parent))
    folders = [str(Path(repo).parent / name) for name in beside]
    return [name for name in near(repo, [*folders, *cached_repos()]) if name != repo]


def _hub_cache() -> Path:
    """As huggingface_hub has it by its variables."""
    home = os.environ.get("HF_HOME") or os.path.join(_cache_home(), "huggingface")
    folder = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(folder)))


def _cache_home() -> str:
    return os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")


def _folders(folder: Path) -> Iterator[str]:
    """Names of the folders in `folder`; none where it cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        yield from (entry.name for entry in islice(entries, _MOST_ENTRIES) if entry.is_dir())
