"""`Option`: the type, check, help and command-line form of one option.

A dataclass whose fields are `Annotated[T, Option(...)]` is a list of options. The fields define the signature of a verb
(`catalog.verb`), the options of a command (`terminal.options`), the check of values, and the printed command line.
Completion and `--version` import this module, so it imports nothing slow.
"""

import dataclasses
import operator
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, ForwardRef, Self, TypeVar, Union, get_args, get_origin

from dsv4_shard.errors import UsageError
from dsv4_shard.text.suggest import as_option, did_you_mean

MAX_NAME_CHARS = 100

O = TypeVar("O", bound="Options")  # noqa: E741 - an options class, as R is a result


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """Properties of an option, besides the name, the type and the default of its field.

    Attributes:
        help: Help text.
        metavar: Name of the value in the help.
        short: One-letter form on the command line.
        panel: Heading of the help under which the option stands.
        shows: Text for the default in the help, if the value itself is no good text.
        least, most: Bounds of a number.
        longest: Most characters of text.
        choices: Accepted names, each with a short description.
        of_engine: Accepted names for each engine.
        unknown: Error text for a name that is not accepted.
        expects: Error text for a value of another type: what it should be.
        completion: Name of a function in `terminal.completion`, if the choices are not enough to complete the option.
        typed: Type on the command line, if the field's type does not determine it.
    """

    help: str
    metavar: str | None = None
    short: str | None = None
    panel: str | None = None
    shows: str | None = None
    least: int | None = None
    most: int | None = None
    longest: int = MAX_NAME_CHARS
    choices: Mapping[str, str] | None = None
    of_engine: Mapping[str, tuple[str, ...]] | None = None
    unknown: str = "unknown name"
    expects: str | None = None
    completion: str | None = None
    typed: type | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """An option together with the name, the type and the default of its field; a `MISSING` default must be given."""

    name: str
    type: Any
    option: Option
    default: Any
    kinds: tuple[Any, ...]
    """The accepted types. Empty if the type is a forward reference; then the verb checks the value itself."""

    @property
    def is_required(self) -> bool:
        return self.default is dataclasses.MISSING

    def checked(self, value: Any) -> Any:
        """Return the value after a check of its type and bounds.

        Raises:
            UsageError: The value has another type or is out of bounds.
        """
        option = self.option
        value = checked(self.name, value, self.kinds, option)
        if option.choices is not None and isinstance(value, str) and value.lower() in option.choices:
            value = value.lower()
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, int) and not isinstance(one, bool):
                _check_bounds(self.name, one, option)
            if option.choices is not None and isinstance(one, str) and one not in option.choices:
                hint = did_you_mean(one, option.choices)
                raise UsageError.about(self.name, one, option.unknown, hint=hint)
        return value


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the single type; empty for a forward reference."""
    if get_origin(annotation) in (UnionType, Union):
        return get_args(annotation)
    return (annotation,) if isinstance(annotation, type) or get_args(annotation) else ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Base class of the dataclasses that list options."""

    given: ClassVar[frozenset[str]] = frozenset()
    """Names of the options that the caller gave, also if the value equals the default."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the options with `values`, each checked.

        Raises:
            UsageError: A name is unknown, a value is wrong, or a required option is missing.
        """
        make: Callable[..., Self] = cls
        made = make(**_checked_all(cls, values))
        object.__setattr__(made, "given", frozenset(name for name, value in values.items() if value is not None))
        return made

    def part(self, other: type[O], **changes: Any) -> O:
        """Return those of these options that `other` lists, with `changes` applied."""
        names = [field.name for field in fields_of(other) if hasattr(self, field.name)]
        return other(**({name: getattr(self, name) for name in names} | changes))

    def given_of(self, listed: type["Options"], *, beside: type["Options"] | None = None) -> list[str]:
        """Names of the given options that `listed` has and `beside` lacks, in the order of its fields."""
        others = names_of(beside) if beside else []
        return [name for name in names_of(listed) if name in self.given.difference(others)]


def fields_of(options: type[Options]) -> tuple[Field, ...]:
    """The options of a dataclass, in the order of its fields."""
    found = _FIELDS.get(options)
    if found is None:
        found = _FIELDS[options] = tuple(map(_field, dataclasses.fields(options)))
    return found


def _field(field: dataclasses.Field[Any]) -> Field:
    kind, option = get_args(field.type)
    kind = kind.__forward_arg__ if isinstance(kind, ForwardRef) else kind
    return Field(field.name, kind, option, field.default, kinds_of(kind))


_FIELDS: dict[type[Options], tuple[Field, ...]] = {}


def names_of(options: type[Options]) -> list[str]:
    """The names of a dataclass's options."""
    return [field.name for field in fields_of(options)]


def _checked_all(options: type[Options], values: Mapping[str, Any]) -> dict[str, Any]:
    fields = {field.name: field for field in fields_of(options)}
    for name in values:
        if name not in fields:
            raise UsageError.about(name, ..., "there is no such option", hint=did_you_mean(name, fields))
    for field in fields.values():
        if field.is_required and field.name not in values:
            raise UsageError.about(field.name, ..., "must be given")
    return {name: fields[name].checked(value) for name, value in values.items()}


def _check_bounds(name: str, value: int, option: Option) -> None:
    least, most = option.least, option.most
    if (least is not None and value < least) or (most is not None and value > most):
        raise UsageError.about(name, value, f"must be {bounds_of(option)}")


def bounds_of(option: Option) -> str:
    """Return the bounds of a number in words: `from 1 to 4096`; empty if there are none."""
    if option.most is not None:
        return f"from {option.least} to {option.most}"
    return f"at least {option.least}" if option.least is not None else ""


def checked(name: str, value: Any, kinds: tuple[Any, ...], option: Option) -> Any:
    """Return a value of one of `kinds`: a number as an int, several values as a tuple.

    Integers of any kind are numbers, such as NumPy's; booleans and floats are not. Text has at most 100 characters,
    unless `option` sets another limit or the value may be a path.

    Raises:
        UsageError: The value is of no type in `kinds`, or out of bounds.
    """
    if not kinds or (value is None and NoneType in kinds) or (type(value) is int and int in kinds):
        return value
    if isinstance(value, str) and str in kinds:
        return value if Path in kinds else _checked_text(name, value, option.longest)
    if isinstance(value, os.PathLike) and Path in kinds:
        return Path(value)
    if isinstance(value, bool) and bool in kinds:
        return value
    if int in kinds and (number := _integer(value)) is not None:
        return number
    several = next((kind for kind in kinds if get_origin(kind) is Iterable), None)
    if several is not None and isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        values = tuple(checked(name, one, get_args(several), option) for one in value)
        if not values:
            hint = f"Name at least one, or leave {as_option(name)} out."
            raise UsageError.about(name, ..., "there is nothing in it", hint=hint)
        return values
    expected = option.expects or " or ".join(dict.fromkeys(word for kind in kinds if (word := _WORDS.get(kind))))
    raise UsageError.about(name, value, f"must be {expected}, not {type(value).__name__}")


_WORDS = {
    bool: "True or False", int: "a whole number", str: "a name", Path: "a path", Iterable[int]: "several whole numbers",
    Iterable[str]: "several names",
}  # fmt: skip


def _checked_text(name: str, text: str, longest: int) -> str:
    if len(text) > longest:
        raise UsageError.about(name, text, f"must be a name of at most {longest} characters")
    return text


def _integer(value: object) -> int | None:
    """Return an integer of any kind as an int; None for anything else, and for booleans."""
    if isinstance(value, bool) or type(value).__name__ == "bool_":  # numpy's, which below 2.0 counts as an integer
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def words_of(options: Options) -> list[str]:
    """The options that differ from their defaults, written for the command line and quoted for a shell."""
    words = []
    for field in fields_of(type(options)):
        value = getattr(options, field.name)
        if value != field.default and value is not None:
            name = as_option(field.name)
            words.append(name if value is True else f"{name} {shlex.quote(str(value))}")
    return words
