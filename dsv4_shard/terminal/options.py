"""Options and arguments of the commands in Typer's form: name, limits, help, and completion."""

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from dsv4_shard.catalog.option import Field, Option, Options, bounds_of, fields_of
from dsv4_shard.errors import UsageError
from dsv4_shard.terminal import completion
from dsv4_shard.text.suggest import as_option

R = TypeVar("R")

COMMAND_CONTEXT = "command_context"
"""Parameter for Typer's own context, under a name that no option has."""

GIVEN = "given"
"""Name of a command's parameter for its options: those on the command line, by their names in Python."""

# --- options from a dataclass ----------------------------------------------------------------------------------------


def takes(options: type[Options]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a command the options that a dataclass lists, in place of its parameter `given`.

    If the command has a parameter for an option, the option keeps the type and default of that parameter.
    """
    fields = {field.name: field for field in fields_of(options)}

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        own = inspect.signature(command, eval_str=True).parameters
        others = [name for name in fields if name not in own]

        @functools.wraps(command)
        def run(command_context: typer.Context, **values: Any) -> R:
            given = {name: values.pop(name) for name in others}
            values[GIVEN] = {name: value for name, value in given.items() if is_given(command_context, name)}
            return command(**values | ({COMMAND_CONTEXT: command_context} if COMMAND_CONTEXT in own else {}))

        shown = [_parameter(COMMAND_CONTEXT, typer.Context)]
        for name, parameter in own.items():
            if name == GIVEN:
                shown += (_of_field(field, own.get(field.name)) for field in fields.values())
            elif name not in fields and name != COMMAND_CONTEXT:
                shown.append(_parameter(name, parameter.annotation, parameter.default))
        run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
        return run

    return decorate


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option or argument is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _of_field(field: Field, own: inspect.Parameter | None) -> inspect.Parameter:
    """Return the option as a parameter, with the type and default of the command's `own` parameter, if it has one.

    The verb itself refuses a missing option.
    """
    if own is not None:
        return _parameter(field.name, _annotated(own.annotation, field), own.default)
    default = None if field.is_required else field.default
    kind = field.option.typed or next(kind for kind in (bool, int, Path, str) if kind in field.kinds)
    return _parameter(field.name, _annotated(kind | None if default is None else kind, field), default)


def _annotated(kind: Any, field: Field) -> Any:
    option = field.option
    parser = functools.partial(_whole_number, field) if kind in (int, int | None) else None
    names = [as_option(field.name), *([option.short] if option.short else [])]
    info = typer.Option(
        *names, metavar=option.metavar, parser=parser, rich_help_panel=option.panel, help=option.help,
        show_default=option.shows or True, autocompletion=_completion(option),
    )  # fmt: skip
    return Annotated[kind, info]


def _whole_number(field: Field, text: Any) -> Any:
    """Return the number that an option was given. Raises UsageError for other text."""
    if not isinstance(text, str):
        return text
    if _WHOLE_NUMBER.fullmatch(text) is None:
        bounds = bounds_of(field.option).replace("at least", "of at least")
        raise UsageError.about(field.name, text, f"must be a whole number {bounds}".rstrip())
    return int(text)


_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,100}", re.ASCII)


def _completion(option: Option) -> Callable[..., Any] | None:
    if option.completion is not None:
        found: Callable[..., Any] = getattr(completion, option.completion)
        return found
    if option.choices is not None:
        return completion.of_choices(option.choices)
    return completion.of_engine(option.of_engine) if option.of_engine is not None else None


# --- input and output ----------------------------------------------------------------------------------------------

RepoArg = Annotated[
    str,
    typer.Argument(
        metavar="REPO",
        autocompletion=completion.repos,
        help="The checkpoint: a folder, org/name[@revision] on the Hub, or s3://, gs://, az://.",
    ),
]

DefaultRepoArg = Annotated[
    str | None,
    typer.Argument(
        metavar="REPO",
        autocompletion=completion.repos,
        show_default="the current folder, else the one last inspected",
        help="The checkpoint: a folder, org/name[@revision] on the Hub, or s3://, gs://, az://.",
    ),
]

SourceArg = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        autocompletion=completion.sources,
        help="A plan file (*.json), or a checkpoint as for `inspect`.",
    ),
]

RanksArg = Annotated[
    str, typer.Argument(metavar="RANKS", help="Folder of rank shards: reshard's, or DeepSeek's converter's.")
]

ResultsArg = Annotated[
    list[str],
    typer.Argument(metavar="OUT", help="A folder that reshard or merge wrote, or the folders of shares as one result."),
]

ResultArg = Annotated[str, typer.Argument(metavar="OUT", help="A folder that reshard or merge wrote.")]

TextArg = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TEXT",
        show_default="what is piped in",
        help="The engine's message, or its log: a file, or - for stdin.",
    ),
]

DemoArg = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to put the demo's files.")]

JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


DetailsOpt = Annotated[
    bool, typer.Option("--details", help="Also show placement, blocks, bytes per module, and options of the draft.")
]

InspectDetailsOpt = Annotated[
    bool, typer.Option("--details", help="Also show all tensors, every dimension, and the reason for each verdict.")
]

PROGRESS = {
    "auto": "bars on a terminal, a line per half minute elsewhere, nothing with --json",
    "json": "a JSON line per second on stderr",
    "none": "nothing",
}
"""Value of `--progress` → what is shown."""

ProgressOpt = Annotated[
    str,
    typer.Option(
        "--progress", metavar="HOW", autocompletion=lambda: list(PROGRESS),
        help=f"{'; '.join(f'{how}: {shown}' for how, shown in PROGRESS.items())}.",
    ),
]  # fmt: skip

FromOpt = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="FILE|COMMAND",
        help="Plan what a command line of SGLang or vLLM starts, a script, an option file, a manifest or a recipe.",
    ),
]  # fmt: skip

RoleOpt = Annotated[
    str | None, typer.Option("--role", metavar="NAME", help="With --from, plan only this role: prefill, decode, ...")
]

PrefillOpt = Annotated[
    str | None,
    typer.Option("--prefill", metavar="OPTIONS", help="With --decode, options of the prefill role: '--tp 8 --ep 8'."),
]

DecodeOpt = Annotated[
    str | None, typer.Option("--decode", metavar="OPTIONS", help="With --prefill, options of the decode role.")
]

CompareOpt = Annotated[
    tuple[Path, Path] | None,
    typer.Option("--compare", metavar="FILE FILE", help="Show what differs between two plan files."),
]


OutArg = Annotated[
    str,
    typer.Argument(metavar="OUT", help="Folder to create, or s3://, gs://, az://; appears only when it is complete."),
]

OutFolderArg = Annotated[
    str, typer.Argument(metavar="OUT", help="Folder to create. It appears only when it is complete.")
]
