"""The checkpoint last inspected, so that `plan --tp 16` needs no name."""

import os
from pathlib import Path

from dsv4_shard.errors import ReadFailed
from dsv4_shard.limits import NAME


def _state_file() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "dsv4-shard" / "last-inspected"


def remember(repo: str) -> None:
    """Save the name for later. Failure to save is ignored."""
    name = str(Path(repo).absolute()) if Path(repo).is_dir() else repo
    try:
        _state_file().parent.mkdir(parents=True, exist_ok=True)
        _state_file().write_bytes(os.fsencode(name))
    except OSError:
        return


def recall() -> str | None:
    """Return the checkpoint last inspected, or None."""
    from dsv4_shard.storage import read_regular

    try:
        return os.fsdecode(read_regular(_state_file(), NAME)).strip() or None
    except ReadFailed:
        return None
