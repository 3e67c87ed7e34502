"""Plans → a folder with their launch files. A file that this tool did not write is not replaced."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, count
from pathlib import Path

from dsv4_shard.errors import OutputNotEmpty, ReadFailed, WriteFailed
from dsv4_shard.launch_files.manifests import manifests_of
from dsv4_shard.launch_files.scripts import MARK, script_of, scripts_of
from dsv4_shard.limits import PLAN
from dsv4_shard.planning import Plan, save_plan
from dsv4_shard.storage import read_regular, write_text

_OTHER = re.compile(r"[^a-z0-9]+")

_LONGEST = 40
"""Letters of a role that names keep: Kubernetes takes 63, with what it appends."""


def is_folder(output: str | Path) -> bool:
    """Whether an output is meant as a folder: it ends with a slash, or is a folder."""
    return str(output).endswith("/") or os.path.isdir(output)


def write_launch_files(
    folder: Path, plans: Mapping[str, Plan], commands: Mapping[str, str] | None = None, notes: Iterable[str] = ()
) -> tuple[str, ...]:
    """Write the plan and the launch files of each role into a folder; returns their names.

    `plans` has them by role. Names begin with the role's, in the letters of a DNS label, unless it is empty. Scripts
    can be executed. `commands` are further ones, by the name of their script, with `notes` as its comments.

    Raises:
        OutputNotEmpty: A file of that name is there, and this tool did not write it. Then nothing is written.
        WriteFailed: The system refuses.
    """
    plans = dict(zip(_labels(plans), plans.values(), strict=True))
    files = {name: text for role, plan in plans.items() for name, text in _files(role, plan)}
    files |= {f"{name}.sh": script_of(command, notes) for name, command in (commands or {}).items()}
    for name in files:
        if _is_strange(folder / name):
            raise OutputNotEmpty(f"{folder / name}: exists already, and dsv4-shard did not write it",
                                 hint="Choose another folder, or move the file.")  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for role, plan in plans.items():
            save_plan(plan, folder / _plan_name(role))
        for name, text in files.items():
            (folder / name).unlink(missing_ok=True)
            write_text(folder / name, text)
            if name.endswith(".sh"):
                (folder / name).chmod(0o755)
    except OSError as error:
        raise WriteFailed(f"{folder}: {error.strerror}") from error
    return (*map(_plan_name, plans), *files)


def _labels(roles: Iterable[str]) -> list[str]:
    """Return each role's name in the letters that file names and Kubernetes share, each name once.

    Names of services begin with a letter.
    """
    labels: list[str] = []
    for role in roles:
        label = _OTHER.sub("-", role.lower()).strip("-")[:_LONGEST].strip("-")
        if role and not label[:1].isalpha():
            label = f"role-{label}".strip("-")
        numbered = chain([label], (f"{label}-{number}" for number in count(2)))
        labels.append(next(name for name in numbered if name not in labels))
    return labels


def _plan_name(role: str) -> str:
    return f"{role}-plan.json" if role else "plan.json"


def _files(role: str, plan: Plan) -> Iterator[tuple[str, str]]:
    before = f"{role}-" if role else ""
    for name, text in scripts_of(plan, _plan_name(role)):
        yield before + name, text
    for name, text in manifests_of(plan, role or plan.request.engine):
        yield before + name, text


def _is_strange(path: Path) -> bool:
    """Whether a file is there that has not our mark in its second line."""
    if not os.path.lexists(path):
        return False
    try:
        head = read_regular(path, PLAN).decode(errors="replace").split("\n", 2)
    except ReadFailed:
        return True
    return len(head) < 2 or not head[1].startswith(MARK)
