"""What was read of a repository's commit, kept: its listing, small files and headers. A commit never changes.

One archive a commit, below the user's cache folder. Whatever is wrong with one, it is as if it were not there.
"""

import contextlib
import json
import os
import tempfile
import time
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from dsv4_shard.cached import heads_folder
from dsv4_shard.remote import Listed
from dsv4_shard.sources import COMMIT

_LISTING = "listing.json"
_SECONDS_REMEMBERED = 3600
"""How long a branch is taken to be where it was."""


@dataclass(frozen=True, slots=True)
class Heads:
    """A commit's listing, and whole small files and headers of others; `rebuilt` where headers came parsed."""

    listing: Mapping[str, Listed]
    heads: Mapping[str, bytes]
    rebuilt: bool


class HeadCache:
    """The cache of one repository at one server."""

    def __init__(self, endpoint: str, repo_id: str) -> None:
        self._folder = heads_folder(endpoint) / quote(repo_id, safe="")

    def commit_of(self, revision: str, *, within: float = _SECONDS_REMEMBERED) -> str | None:
        """Where a branch or tag was when it was last asked for, if that was `within` so many seconds."""
        path = self._ref(revision)
        try:
            age = time.time() - path.stat().st_mtime
            commit = path.read_text()
        except (OSError, ValueError):
            return None
        return commit if 0 <= age < within and COMMIT.fullmatch(commit) else None

    def remember(self, revision: str, commit: str) -> None:
        """Where a branch is now."""
        self._write(self._ref(revision), commit.encode())

    def holds(self, commit: str) -> bool:
        """Whether something was kept of a commit, sound or not."""
        return self._archive(commit).is_file()

    def load(self, commit: str) -> Heads | None:
        """What was kept of a commit."""
        try:
            with zipfile.ZipFile(self._archive(commit)) as archive:
                document = json.loads(archive.read(_LISTING))
                listing = {name: Listed(*entry) for name, entry in document["files"].items()}
                heads = {name: archive.read(name) for name in archive.namelist() if name != _LISTING}
                return Heads(listing, heads, document["rebuilt"])
        except (OSError, zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError, EOFError, RuntimeError):
            return None

    def save(self, commit: str, kept: Heads) -> None:
        """Keep what was read. Not being able to is no reason to fail."""
        document = {"rebuilt": kept.rebuilt, "files": kept.listing}
        with contextlib.suppress(OSError), tempfile.SpooledTemporaryFile() as packed:
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                archive.writestr(_LISTING, json.dumps(document))
                for name, content in kept.heads.items():
                    archive.writestr(name, content)
            packed.seek(0)
            self._write(self._archive(commit), packed.read())

    def _archive(self, commit: str) -> Path:
        return self._folder / f"{commit}.zip"

    def _ref(self, revision: str) -> Path:
        return self._folder / "refs" / quote(revision, safe="")

    def _write(self, path: Path, content: bytes) -> None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(content)
            os.replace(file.name, path)
