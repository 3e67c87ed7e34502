"""What a shell is told when it asks how a command line may go on.

Where nothing is offered the shell completes names of files itself, better than can be done from here: it goes on below
a folder, and quotes. So folders are offered only where they would else be hidden by cached repositories.
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
"""The variable by which a shell's script asks."""

Offer = list[str] | list[tuple[str, str]]
"""Values, or values with a few words on each."""


def answer(app: typer.Typer) -> NoReturn:
    """Answer the shell, and exit. Whatever is wrong, nothing is said of it: it would stand in the user's prompt."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type] # as if it were not installed: it takes 0.1 s
    with suppress(Exception):
        kinds: tuple[Any, ...] = (TyperArgument, TyperOption)
        for kind in kinds:
            kind.process_value = _as_it_stands  # to convert values, Typer imports pydantic: another 0.1 s
        _drop_equals_signs()
        app(prog_name=PROGRAM, complete_var=ASKED)
    sys.exit(1)


def _as_it_stands(_: Any, __: Any, value: Any) -> Any:
    return value


def _drop_equals_signs() -> None:
    """bash takes that of `--engine=vllm` for a word of its own."""
    words, at = os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD", 0))
    signs = [
        place for place in range(1, min(at, len(words))) if words[place] == "=" and words[place - 1].startswith("--")
    ]
    os.environ["COMP_WORDS"] = "\n".join(word for place, word in enumerate(words) if place not in signs)
    os.environ["COMP_CWORD"] = str(at - len(signs))


# --- what options and arguments take -------------------------------------------------------------------------------


def repos(incomplete: str) -> Offer:
    """Cached repositories and folders; nothing, so that the shell completes files, where no repository begins so."""
    return _repos_beside(incomplete, files=False)


def sources(incomplete: str) -> Offer:
    """The same with files, which may be plans."""
    return _repos_beside(incomplete, files=True)


def engines(context: typer.Context, incomplete: str) -> Offer:
    """Engines; where several can be searched, also after a comma. `reshard` writes for all but one."""
    before, comma, _ = incomplete.rpartition(",") if "gpus" in context.params else ("", "", "")
    left_out = {*before.split(","), *(PLANNED_ONLY if "out" in context.params else ())}
    return [(before + comma + name, title) for name, title in ENGINES.items() if name not in left_out]


def gpus() -> Offer:
    """GPUs by name, with their titles."""
    from dsv4_shard.catalog.gpus import GPUS

    return [(gpu.name, gpu.title) for gpu in GPUS.values()]


def of_choices(choices: Mapping[str, str]) -> Callable[[], Offer]:
    """Names that an option takes, with a few words on each."""
    return lambda: list(choices.items())


def of_engine(names: Mapping[str, tuple[str, ...]]) -> Callable[[typer.Context], Offer]:
    """Names of the engines that stand on the command line; those of the only engine that has such names."""

    def offer(context: typer.Context) -> Offer:
        asked = str(context.params.get("engine") or "sglang").lower().split(",") if len(names) > 1 else list(names)
        return list(dict.fromkeys(name for engine in asked for name in names.get(engine.strip(), ())))

    return offer


# --- parts ---------------------------------------------------------------------------------------------------------


def _repos_beside(incomplete: str, *, files: bool) -> Offer:
    from dsv4_shard.sources.known_repos import cached_repos

    found = [name for name in cached_repos() if name.startswith(incomplete)]
    return list(_plain([*found, *_paths(incomplete, files)])) if found else []


def _paths(incomplete: str, files: bool) -> Iterator[str]:
    """Folders that begin so, with a slash, and files; hidden ones where a dot was typed."""
    folder, slash, begun = incomplete.rpartition("/")
    with suppress(OSError), os.scandir(os.path.expanduser(folder + slash) or ".") as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            wanted = entry.name.startswith(begun) if begun else not entry.name.startswith(".")
            if wanted and (files or entry.is_dir()):
                yield f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}"


def _plain(found: Iterable[str]) -> Iterator[str]:
    """Without names that a shell would have to quote: it takes these as they are."""
    return (name for name in found if shlex.quote(name) == name)
