"""Names of repositories on the Hub as users write them: `org/name[@revision]`, a page's address, `hf://`."""

import os
import re
import shlex
from typing import NamedTuple
from urllib.parse import unquote

from dsv4_shard.errors import UsageError
from dsv4_shard.text.shell import shell_word

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.+/-]+))?")

_SITES = r"(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)"

_PAGE = re.compile(
    rf"(?:(?:https?://)?{_SITES}/|hf://)(?P<kind>(?:models|datasets|spaces|buckets|collections|papers)/)?"
    r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<at>[\w.+%-]+))?(?:/(?P<rest>[^?#]*))?(?:[?#].*)?",
    re.ASCII,
)

_VIEWS = ("tree", "blob", "resolve", "raw", "commits", "commit", "blame")
"""Parts of a page's address before a revision."""

_MAIN = "main"


class HubName(NamedTuple):
    """A repository, and the revision that the user named; None without one."""

    repo: str
    revision: str | None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def hub_id(repo: str) -> HubName | None:
    """Return the repository and the revision in `repo`; None for a folder or text that cannot name a repository.

    Raises UsageError for the address of a page of the Hub that is no repository of a model, or a part of one.
    """
    named = _of_page(repo)
    if named is not None:
        return named
    match = _HUB_ID.fullmatch(repo)
    if match is None or repo.startswith((".", "/", "~")) or holds_something(repo):
        return None
    return HubName(match["id"], match["revision"])


def holds_something(name: str) -> bool:
    """Whether `name` is a file, or a folder that is not empty: an empty one must not hide a repository."""
    try:
        with os.scandir(name) as entries:
            return any(True for _ in entries)
    except NotADirectoryError:
        return True
    except OSError:
        return os.path.lexists(name)


def _of_page(repo: str) -> HubName | None:
    """Return what the address of a page on the Hub names; None for other text."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    on_site = repo.startswith(f"{endpoint}/") if endpoint else False
    match = _PAGE.fullmatch(repo.replace(endpoint, "https://huggingface.co", 1) if on_site else repo)
    if match is None:
        return None
    if match["kind"] not in (None, "models/"):
        raise UsageError(f"{repo}: {match['kind'].rstrip('/')} on the Hub, no model", hint="Write org/name of a model.")
    revision, folder = unquote(match["at"] or "") or None, match["rest"] or ""
    if not repo.startswith("hf://"):
        view, _, rest = folder.partition("/")
        if view in _VIEWS:
            named, _, folder = rest.partition("/")
            revision = revision or unquote(named) or None
            folder = "" if view in ("blob", "resolve", "raw", "blame") and "/" not in folder else folder
        else:
            folder = ""
    name = HubName(match["id"], None if revision == _MAIN else revision)
    if folder.strip("/"):
        raise UsageError(
            f"{repo}: a folder inside the repository {name}, and checkpoints are read from the top of a repository",
            hint=f"Download it: {download_of(name, folder.strip('/'))}; then name {name.repo.rpartition('/')[2]}/"
            f"{folder.strip('/')}.",
        )
    return name


def download_of(name: HubName, folder: str | None = None) -> str:
    """Return the command that downloads a repository, or a folder of it, into a folder here."""
    revision = f" --revision {shlex.quote(name.revision)}" if name.revision else ""
    part = f" --include {shlex.quote(f'{folder}/*')}" if folder else ""
    here = shell_word(name.repo.rpartition("/")[2])
    return f"`hf download {shlex.quote(name.repo)}{revision}{part} --local-dir {here}`"
