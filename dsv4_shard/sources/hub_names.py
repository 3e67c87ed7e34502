"""Names of repositories on the Hub as users write them: `org/name[@revision]`, a page's address, `hf://`."""

import os
import re
import shlex
from typing import NamedTuple
from urllib.parse import unquote

from dsv4_shard.errors import UsageError
from dsv4_shard.text.shell import shell_word

_ID = r"[\w.-]+/[\w.-]+"

_HUB_ID = re.compile(rf"(?P<id>{_ID})(?:@(?P<revision>[\w.+%/-]*))?/*")

_SITES = r"(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)"

_ON_HUB = re.compile(rf"(?:https?://{_SITES}|hf:/)/.*", re.IGNORECASE | re.DOTALL)

_PAGE = re.compile(
    rf"(?i:(?:https?://)?{_SITES}/|(?P<hf>hf://))(?P<kind>(?:models|datasets|spaces|buckets|collections|papers)/)?"
    r"(?P<id>[\w.-]+/[\w.-]+?)(?:\.git)?(?:@(?P<at>[^?#]+)|/(?P<rest>[^?#]*))?(?:[?#].*)?",
    re.ASCII,
)

_FILE_VIEWS = ("blob", "resolve", "raw", "blame")
"""Parts of the address of a file's page before a revision."""

_VIEWS = ("tree", "commits", "commit", *_FILE_VIEWS)
"""Parts of a page's address before a revision."""

_VIEWED = re.compile(rf"{_ID}/(?:{'|'.join(_VIEWS)})(?:/.*)?", re.ASCII)
"""The address of a page without its site."""

_REF = re.compile(r"refs/(?:pr|convert|heads|tags)/[^/]+")
"""The beginning of a Git reference, whose slashes do not divide it from a folder."""

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
    viewed, match = _VIEWED.fullmatch(repo), _HUB_ID.fullmatch(repo)
    if (viewed is None and match is None) or repo.startswith((".", "/", "~")) or holds_something(repo):
        return None
    if match is None:
        return _of_page(f"https://huggingface.co/{repo}")
    revision = match["revision"] and unquote(match["revision"]).rstrip("/")
    if revision == "":
        raise UsageError(f"{repo}: no revision after the @", hint="A shell variable in its place may not be set.")
    return HubName(match["id"], revision)


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
    address = repo.replace(endpoint, "https://huggingface.co", 1) if on_site else repo
    match = _PAGE.fullmatch(address)
    if match is None:
        if _ON_HUB.fullmatch(address):
            raise UsageError(f"{repo}: no repository of a model", hint="Write org/name, or org/name@revision.")
        return None
    if match["kind"] not in (None, "models/"):
        raise UsageError(f"{repo}: {match['kind'].rstrip('/')} on the Hub, no model", hint="Write org/name of a model.")
    revision, folder = _revision_and_folder(match)
    name = HubName(match["id"], None if revision == _MAIN else revision)
    if folder:
        here = f"{name.repo.rpartition('/')[2]}/{folder}"
        hint = f"Download it: {download_of(name, folder)}; then name {here}."
        if name.revision and "/" not in name.revision:
            hint += f" If {revision}/{folder} is a branch, write {name.repo}@{revision}/{folder}."
        raise UsageError(
            f"{repo}: a folder inside the repository {name}, and checkpoints are read from the top of a repository",
            hint=hint,
        )
    return name


def _revision_and_folder(page: "re.Match[str]") -> tuple[str | None, str]:
    """Return the revision and the folder that the rest of an address names."""
    rest, is_file = page["at"] or "", False
    if page["hf"] and not page["at"]:
        return None, (page["rest"] or "").strip("/")
    if not page["at"]:
        view, _, after = (page["rest"] or "").partition("/")
        rest, is_file = after if view in _VIEWS else "", view in _FILE_VIEWS
    ref = _REF.match(rest)
    named = ref[0] if ref else rest.partition("/")[0]
    folder = rest[len(named) :].strip("/")
    return unquote(named) or None, folder.rpartition("/")[0] if is_file else folder


def download_of(name: HubName, folder: str | None = None) -> str:
    """Return the command that downloads a repository, or a folder of it, into a folder here."""
    revision = f" --revision {shlex.quote(name.revision)}" if name.revision else ""
    part = f" --include {shlex.quote(f'{folder}/*')}" if folder else ""
    here = shell_word(name.repo.rpartition("/")[2])
    return f"`hf download {shlex.quote(name.repo)}{revision}{part} --local-dir {here}`"
