"""Shell completion: the values that can follow on a command line.

If nothing is offered, the shell completes file names itself. It does this better: it descends into folders and quotes.
So folders are offered only if cached repositories would otherwise hide them.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NoReturn

import typer
from typer.core import TyperArgument, TyperOption

from dsv4_shard.catalog.options import ENGINES, PLANNED_ONLY

PROGRAM = "dsv4-shard"

ASKED = "_DSV4_SHARD_COMPLETE"
"""Variable by which a shell's script requests completions."""

Offer = list[str] | list[tuple[str, str]]
"""Values, or values each with a short description."""


def answer(app: typer.Typer) -> NoReturn:
    """Answer the shell, and exit. Errors are swallowed: output would land in the user's prompt."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type] # treat it as not installed: importing it takes 0.1 s
    with suppress(Exception):
        kinds: tuple[Any, ...] = (TyperArgument, TyperOption)
        for kind in kinds:
            kind.process_value = _as_it_stands  # converting values makes Typer import pydantic, another 0.1 s
        _drop_equals_signs()
        app(prog_name=PROGRAM, complete_var=ASKED)
    sys.exit(1)


def _as_it_stands(_: Any, __: Any, value: Any) -> Any:
    return value


def _drop_equals_signs() -> None:
    """Drop the "=" of `--engine=vllm`, which bash passes as a word of its own."""
    words, at = os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD", 0))
    signs = [
        place for place in range(1, min(at, len(words))) if words[place] == "=" and words[place - 1].startswith("--")
    ]
    os.environ["COMP_WORDS"] = "\n".join(word for place, word in enumerate(words) if place not in signs)
    os.environ["COMP_CWORD"] = str(at - len(signs))


# --- values of options and arguments -------------------------------------------------------------------------------


def repos(incomplete: str) -> Offer:
    """Cached repositories and folders; empty if no repository matches, so that the shell completes files."""
    return _repos_beside(incomplete, files=False)


def sources(incomplete: str) -> Offer:
    """Cached repositories, folders and files, which may be plans."""
    return _repos_beside(incomplete, files=True)


def engines(context: typer.Context, incomplete: str) -> Offer:
    """Names of engines, for `reshard` those that it writes for; after a comma too if several can be searched."""
    before, comma, _ = incomplete.rpartition(",") if "gpus" in context.params else ("", "", "")
    left_out = {*before.split(","), *(PLANNED_ONLY if "out" in context.params else ())}
    return [(before + comma + name, title) for name, title in ENGINES.items() if name not in left_out]


def gpus() -> Offer:
    """Names of GPUs, with their titles."""
    from dsv4_shard.catalog.gpus import GPUS

    return [(gpu.name, gpu.title) for gpu in GPUS.values()]


def of_choices(choices: Mapping[str, str]) -> Callable[[], Offer]:
    """Names that an option accepts, each with a short description."""
    return lambda: list(choices.items())


def of_engine(names: Mapping[str, tuple[str, ...]]) -> Callable[[typer.Context], Offer]:
    """Names of the engines on the command line, or of the only engine that has such names."""

    def offer(context: typer.Context) -> Offer:
        asked = str(context.params.get("engine") or "sglang").lower().split(",") if len(names) > 1 else list(names)
        return list(dict.fromkeys(name for engine in asked for name in names.get(engine.strip(), ())))

    return offer


def _repos_beside(incomplete: str, *, files: bool) -> Offer:
    from dsv4_shard.sources.known_repos import cached_repos

    found = [name for name in cached_repos() if name.startswith(incomplete)]
    return list(_plain([*found, *_paths(incomplete, files)])) if found else []


def _paths(incomplete: str, files: bool) -> Iterator[str]:
    """Yield matching folders, with a slash, and files; hidden ones only after a typed dot."""
    folder, slash, begun = incomplete.rpartition("/")
    with suppress(OSError), os.scandir(os.path.expanduser(folder + slash) or ".") as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            wanted = entry.name.startswith(begun) if begun else not entry.name.startswith(".")
            if wanted and (files or entry.is_dir()):
                yield f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}"


def _plain(found: Iterable[str]) -> Iterator[str]:
    """Yield the names without those that a shell would have to quote: a shell inserts completions unquoted."""
    return (name for name in found if shlex.quote(name) == name)
