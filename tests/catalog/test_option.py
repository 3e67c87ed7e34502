"""A list of options: one more field is one more option of the command, the verb, the check and the printed line."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import typer
import typer.main
from typer.testing import CliRunner

from dsv4_shard.catalog.option import Option, Options, fields_of, words_of
from dsv4_shard.catalog.request import PlanCommandOptions, PlanOptions, Request
from dsv4_shard.catalog.verb import Hint, in_python, verb
from dsv4_shard.errors import UsageError
from dsv4_shard.terminal.help import HelpCommand
from dsv4_shard.terminal.options import takes
from dsv4_shard.terminal.process import reported

WINDOW = Option(help="Tokens of --window.", metavar="N", panel="Layout", shows="all", least=1, most=4096)
COLOURS = {"red": "as a rose", "blue": "as the sea"}


@dataclass(frozen=True, kw_only=True)
class Wider(Request):
    """The request, with one option more."""

    sliding_window: Annotated[int | None, WINDOW] = None


@dataclass(frozen=True, kw_only=True)
class Many(Options):
    """An option of each type."""

    number: Annotated[int | None, Option(help="", least=1, most=10)] = None
    always: Annotated[int, Option(help="")] = 1
    name: Annotated[str | None, Option(help="")] = None
    colour: Annotated[str, Option(help="", choices=COLOURS, unknown="no such colour")] = "red"
    switch: Annotated[bool, Option(help="")] = False
    place: Annotated[str | Path | None, Option(help="")] = None
    sizes: Annotated[int | Iterable[int] | None, Option(help="", least=1, most=10)] = None
    names: Annotated[str | Iterable[str] | None, Option(help="")] = None
    runner: Annotated[str | None, Option(help="", of_engine={"a": ("x", "y"), "b": ("z",)})] = None
    engine: Annotated[str, Option(help="")] = "a"


# --- one edit --------------------------------------------------------------------------------------------------------


@verb(Wider)
def shown(repo: str | Path, options: Wider) -> str:
    """What is asked for."""
    return f"{repo} {' '.join(words_of(options))}"


def app() -> typer.Typer:
    made = typer.Typer(rich_markup_mode=None)

    @made.command(cls=HelpCommand, name="plan")
    @reported
    @takes(Wider)
    def command(given: dict[str, Any], repo: Annotated[str, typer.Argument()] = "model") -> None:
        print(shown(repo, **given))

    return made


def test_a_field_more_is_an_option_of_the_command() -> None:
    (parameter,) = [one for one in typer.main.get_command(app()).params if one.name == "sliding_window"]
    assert (parameter.opts, parameter.help, parameter.metavar) == (["--sliding-window"], WINDOW.help, "N")  # type: ignore[attr-defined]
    result = CliRunner().invoke(app(), ["--tp", "4", "--sliding-window", "128", "other"])
    assert result.stdout == "other --tp 4 --sliding-window 128\n"


def test_a_field_more_is_a_keyword_of_the_verb_and_in_its_docstring() -> None:
    parameter = inspect.signature(shown).parameters["sliding_window"]
    assert (parameter.kind, parameter.default, parameter.annotation) == (parameter.KEYWORD_ONLY, None, int | None)
    assert "sliding_window: Tokens of window (default: all)." in str(shown.__doc__)
    assert shown("model", tp=4, sliding_window=128) == "model --tp 4 --sliding-window 128"


@pytest.mark.parametrize(("value", "said"), [(0, "0: must be from 1 to 4096"), (True, "True: must be a whole number")])
def test_a_field_more_is_checked_for_both_in_the_words_of_each(value: Any, said: str) -> None:
    with pytest.raises(UsageError, match=f"^sliding_window={said}"):
        shown("model", tp=4, sliding_window=value)
    result = CliRunner().invoke(app(), ["--tp", "4", "--sliding-window", "5000"])
    assert (result.exit_code, result.stderr) == (2, "error: --sliding-window 5000: must be from 1 to 4096\n")


def test_what_is_not_given_is_not_printed_and_text_is_quoted_for_a_shell() -> None:
    assert words_of(Request(16, gpu_memory="96 GB", dp=1)) == ["--tp 16", "--gpu-memory '96 GB'"]


def test_the_lists_of_plan_its_command_and_the_request_name_the_same_options() -> None:
    request = {field.name: field.option for field in fields_of(Request)}
    for options in (PlanOptions, PlanCommandOptions):
        found = {field.name: field.option for field in fields_of(options)}
        assert request.items() <= found.items()


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value", "kept"), [
    ("number", 3, 3), ("number", None, None), ("number", np.int64(3), 3), ("number", np.uint8(3), 3),
    ("name", "a" * 100, "a" * 100), ("switch", True, True), ("place", "a", "a"), ("place", Path("a"), Path("a")),
    ("place", "a" * 4000, "a" * 4000), ("sizes", 3, 3), ("sizes", (1, 2), (1, 2)), ("sizes", np.arange(1, 3), (1, 2)),
    ("sizes", range(1, 4), (1, 2, 3)), ("names", ["a"], ("a",)), ("names", "a,b", "a,b"), ("runner", "z", "z"),
])  # fmt: skip
def test_a_value_of_its_type_is_kept_as_python_has_it(name: str, value: Any, kept: Any) -> None:
    found = getattr(Many.of({name: value}), name)
    assert (found, type(found)) == (kept, type(kept))


@pytest.mark.parametrize(("name", "value", "said"), [
    ("number", True, "number=True: must be a whole number, not bool"),
    ("number", np.True_, "must be a whole number"),
    ("number", 3.0, "number=3.0: must be a whole number, not float"),
    ("number", "3", "number='3': must be a whole number, not str"),
    ("number", 0, "number=0: must be from 1 to 10"),
    ("number", 11, "number=11: must be from 1 to 10"),
    ("always", None, "always=None: must be a whole number, not NoneType"),
    ("name", 3, "name=3: must be a name, not int"),
    ("name", b"a", "must be a name, not bytes"),
    ("name", "a" * 101, "must be a name of at most 100 characters"),
    ("colour", "rod", "colour='rod': no such colour"),
    ("colour", None, "colour=None: must be a name, not NoneType"),
    ("switch", 1, "switch=1: must be True or False, not int"),
    ("switch", "yes", "must be True or False, not str"),
    ("place", 3, "place=3: must be a name or a path, not int"),
    ("sizes", [], "sizes: there is nothing in it"),
    ("sizes", [True], "sizes=True: must be a whole number, not bool"),
    ("sizes", ["1"], "sizes='1': must be a whole number, not str"),
    ("sizes", [1, 11], "sizes=11: must be from 1 to 10"),
    ("sizes", "1", "sizes='1': must be a whole number or several whole numbers, not str"),
    ("names", [], "names: there is nothing in it"),
    ("names", [1], "names=1: must be a name, not int"),
    ("runer", "x", "runer: there is no such option"),
])  # fmt: skip
def test_a_value_of_another_type_or_beyond_its_bounds_is_refused(name: str, value: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Many.of({name: value})
    assert said in str(caught.value)
    assert list(caught.value.parameters) == [name]


@pytest.mark.parametrize(("values", "hint"), [
    ({"colour": "rod"}, "Did you mean red? Known: red, blue."),
    ({"runer": "x"}, "Did you mean runner? Known: number, always, "),
])  # fmt: skip
def test_a_name_that_is_not_known_is_told_those_that_are(values: Any, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        Many.of(values)
    assert str(caught.value.hint).startswith(hint)


def test_options_know_which_of_them_were_given() -> None:
    options = Many.of({"engine": "a", "number": None, "switch": True})
    assert options.given_of(Many) == ["switch", "engine"]
    assert Many().given == frozenset()


# --- the verb --------------------------------------------------------------------------------------------------------


@verb(Many)
def refused(a: str | Path, b: str | Path, options: Many) -> None:
    """Fails."""
    raise UsageError("no", hint="Leave out --gpu-memory, or run `dsv4-shard plan REPO --tp N`.")


def test_a_hint_is_a_note_in_words_of_python_and_the_command_line_prints_its_own() -> None:
    with pytest.raises(UsageError) as caught:
        refused("a", b="b")  # type: ignore[call-arg]
    (note,) = caught.value.__notes__
    assert (note, type(note)) == ("Leave out gpu_memory, or run `dsv4-shard plan REPO --tp N`.", Hint)
    assert in_python("--a2a and `--tp`, not a--b") == "a2a and `tp`, not a--b"


@pytest.mark.parametrize(("arguments", "options", "said"), [
    (("a",), {}, "b: must be given"), (("a", "b", "c"), {}, "refused takes a and b; options go by name"),
    (("a", "b"), {"a": "c"}, "a: is given twice"), ((3, "b"), {}, "a=3: must be a name or a path, not int"),
])  # fmt: skip
def test_what_a_verb_works_on_is_checked_too(arguments: Any, options: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        refused(*arguments, **options)
    assert str(caught.value) == said
