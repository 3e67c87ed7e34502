"""Checks and defaults of command-line arguments."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import typer

from dsv4_shard.catalog.option import Options, names_of
from dsv4_shard.catalog.request import ConfigurationOptions
from dsv4_shard.errors import UsageError
from dsv4_shard.terminal.options import is_given
from dsv4_shard.text.sanitize import clean
from dsv4_shard.text.suggest import as_option

_MAX_PATH = 4096

_LOG_SUFFIXES = (".log", ".txt", ".out", ".err")


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Return the numbers in text separated by commas, each once; the verb checks their bounds.

    Raises:
        UsageError: The text is not a list of numbers.
    """
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise UsageError(f"{option} {text!r}: not numbers separated by commas") from None


def default_repo() -> str:
    """Return the current folder if it is a checkpoint, else the one last inspected; prints which."""
    from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE, SINGLE_FILE
    from dsv4_shard.terminal import last_inspected as recent

    here = Path.cwd()
    if (here / CONFIG_FILE).is_file() and ((here / INDEX_FILE).is_file() or (here / SINGLE_FILE).is_file()):
        print("planning for the checkpoint in the current folder", file=sys.stderr)
        return str(here)
    last = recent.recall()
    if last is None:
        raise UsageError(
            "no checkpoint named, none in the current folder, and none inspected yet",
            hint="Name one: `dsv4-shard plan REPO --tp 16`.",
        )
    print(f"planning for {clean(last)}, the checkpoint last inspected", file=sys.stderr)
    return last


def refuse_beside_compare(context: typer.Context) -> None:
    """Refuse other options next to `plan --compare`: the plan files contain everything.

    Raises:
        UsageError: Another option is given.
    """
    for name in context.params:
        if name not in ("compare", "as_json") and is_given(context, name):
            option = "REPO" if name == "repo" else as_option(name)
            raise UsageError(f"--compare and {option}: plan files are taken as they are", hint=f"Leave out {option}.")


def refuse_beside_from(given: Iterable[str], what: str = "--from") -> None:
    """Refuse options of a search next to `plan --from` or a pair, which plan one layout for each role.

    Raises:
        UsageError: One is given.
    """
    for name in given:
        if name not in names_of(ConfigurationOptions):
            raise UsageError(f"{what} and {as_option(name)}: each role has its layout",
                             hint=f"Leave out {as_option(name)}.")  # fmt: skip


def only(given: dict[str, Any], options: type[Options]) -> dict[str, Any]:
    """The given options that a verb has."""
    return {name: given[name] for name in names_of(options) if name in given}


def text_or_log(words: list[str] | None) -> str | Path | BinaryIO:
    """Return a message as typed, with or without quotes; the path of a log; or stdin.

    Raises:
        UsageError: The text is a folder, or is named like a log and there is no such file.
    """
    text = " ".join(words) if words else None
    if text == "-" or (text is None and not sys.stdin.isatty()):
        return sys.stdin.buffer
    if text and text.strip() and "\0" not in text and len(text) < _MAX_PATH:
        if os.path.isfile(text):
            return Path(text)
        if os.path.isdir(text) or text.endswith(_LOG_SUFFIXES):
            raise UsageError(f"{text}: {'a folder' if os.path.isdir(text) else 'no such file'}",
                             hint="Name the log of a server that ended, or give its message.")  # fmt: skip
    return text or ""
