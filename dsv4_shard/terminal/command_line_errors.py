"""Errors of the command line's form, which Typer finds, as the tool's own: no text of a library is shown."""

import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import typer

from dsv4_shard.errors import UsageError
from dsv4_shard.text.sanitize import short, short_name
from dsv4_shard.text.suggest import near


def asks_for_json(words: Sequence[str]) -> bool:
    """Whether `--json` is among the words of a command line."""
    return "--json" in words[: words.index("--") if "--" in words else None]


def options_of(context: Any) -> list[str]:
    """The options of a command, with their dashes."""
    return [name for param in context.command.get_params(context) for name in param.opts if name.startswith("-")]


def parsed(parse: Callable[[Any, list[str]], list[str]], context: Any, words: list[str]) -> list[str]:
    """Return the result of `parse`. Raises UsageError in place of Typer's errors."""
    try:
        return parse(context, words)
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(context.get_help(), file=sys.stderr)
            raise typer.Exit(UsageError.exit_code) from None
        raise _as_ours(error, context) from None


def no_command(name: str, commands: Collection[str]) -> UsageError:
    """Return the error for a command that does not exist."""
    return UsageError(f"no command called {short(name)}", hint=_meant(name, commands) or f"Known: {_listed(commands)}.")


_OF_PLAN = ("--gpus", "--pick")
"""Options that search for layouts, which only `plan` and `report` have."""

_OF_PLAN_HINT = "Find one: `dsv4-shard plan REPO --gpus 16 --pick 1 -o plan.json`, then --plan plan.json."


def _as_ours(error: Any, context: Any) -> UsageError:
    """Return the error of Typer as the tool's own."""
    how = f"`{context.command_path} --help` lists all options."
    match type(error).__name__:
        case "NoSuchOption" if error.option_name in _OF_PLAN:
            return UsageError(f"no option called {error.option_name}: one layout is written", hint=_OF_PLAN_HINT)
        case "NoSuchOption":
            options = [name for name in options_of(context) if name.startswith("--")]
            return UsageError(f"no option called {short_name(error.option_name)}",
                              hint=_meant(error.option_name, options) or how)  # fmt: skip
        case "MissingParameter":
            return UsageError(f"{_name(error.param)} is missing", hint=_usage(context))
        case "BadParameter" if error.param is not None:
            return UsageError(f"{_name(error.param)}: not a value of this {error.param.param_type_name}", hint=how)
        case "BadOptionUsage":
            return UsageError(f"{short_name(error.option_name)} {_wanted(error.option_name, context)}", hint=how)
    return UsageError("a command is missing", hint=how)


def _wanted(option: str, context: Any) -> str:
    """Return how many values an option takes, which is not how many it was given."""
    param = next((one for one in context.command.get_params(context) if option in one.opts), None)
    if param is None or getattr(param, "is_flag", False):
        return "takes no value"
    return "needs a value" if param.nargs == 1 else f"needs {param.nargs} values"


def too_many(words: Sequence[str], context: Any) -> UsageError:
    """Return the error for arguments that a command does not take."""
    what = "one argument" if len(words) == 1 else f"{len(words)} arguments"
    return UsageError(f"{short(' '.join(words))}: {what} too many", hint=_usage(context))


def _usage(context: Any) -> str:
    pieces = [piece for piece in context.command.collect_usage_pieces(context) if piece != "[OPTIONS]"]
    return f"Write it as `{' '.join([context.command_path, *pieces])}`, then options; a name with blanks in quotes."


def _name(param: Any) -> str:
    """Return a parameter as in the help."""
    if param.param_type_name == "argument":
        return str(param.metavar or param.name).upper()
    return str(next((name for name in param.opts if name.startswith("--")), param.name))


def _meant(name: str, known: Collection[str]) -> str | None:
    meant = near(name, known)
    return f"Did you mean {' or '.join(meant)}?" if meant else None


def _listed(commands: Collection[str]) -> str:
    return ", ".join(commands)
