"""YAML from outside → plain values, within a limit: no tags that make objects, no aliases that grow without end."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

from dsv4_shard.errors import UsageError
from dsv4_shard.limits import CONFIGURATION, MAX_DEPTH
from dsv4_shard.text.sanitize import short_name

_ONE = "Name the file of one deployment, as its launcher reads it."


def yaml_documents(text: str, where: str) -> list[Any]:
    """Return the documents of a text: dicts, lists, strings, numbers, booleans and None; dates as they are written.

    Raises:
        UsageError: The text is not YAML, or has more values or characters than are read, aliases counted as often as
            they are used.
    """
    import yaml

    loader = _loader()
    try:
        _check_events(yaml.parse(text, loader), where)
        sizes = [_size(node, {}) for node in yaml.compose_all(text, loader) if node is not None]
        for number, limit, what in (
            (sum(size.values for size in sizes), CONFIGURATION.count, "values"),
            (sum(size.characters for size in sizes), CONFIGURATION.nbytes, "characters with those of aliases"),
        ):
            if number > limit:
                raise UsageError(f"{where}: {number:,} {what}, at most {limit:,} are read", hint=_ONE)
        return [document for document in yaml.load_all(text, loader) if document is not None]
    except yaml.MarkedYAMLError as error:
        at = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UsageError(f"{where}: not YAML: {at}{short_name(error.problem or '')}", hint=_ONE) from None
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not YAML: {short_name(str(error).partition(chr(10))[0])}", hint=_ONE) from None
    except (RecursionError, ValueError):
        raise UsageError(f"{where}: not YAML that can be read", hint=_ONE) from None


_TAG = "tag:yaml.org,2002:"

_NUMBERS = (f"{_TAG}int", f"{_TAG}float")

_MOST_DIGITS = 100


@cache
def _loader() -> Any:
    """PyYAML's safe loader without objects of its own, which JSON does not have, and with one kind of error."""
    import yaml

    loader: Any = type("Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})
    for name in ("timestamp", "binary"):
        loader.add_constructor(_TAG + name, loader.construct_yaml_str)
    for name in ("bool", "int", "float"):
        loader.add_constructor(_TAG + name, _strictly(loader.yaml_constructors[_TAG + name]))
    return loader


def _strictly(construct: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a constructor of PyYAML that refuses a text which is not of its tag; the original fails in many ways."""
    import yaml

    def checked(loader: Any, node: Any) -> Any:
        try:
            return construct(loader, node)
        except (ArithmeticError, LookupError, ValueError):
            problem = f"{node.value!r} is no {node.tag.removeprefix(_TAG)}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    return checked


def _check_events(events: Iterable[Any], where: str) -> None:
    """Refuse YAML with too many values, or nested too deeply, before nodes are made of it: PyYAML's C code recurses.

    Raises:
        UsageError: There are more values than are read.
        ValueError: Nested too deeply.
    """
    depth = 0
    for number, event in enumerate(events):
        depth += {"SequenceStartEvent": 1, "MappingStartEvent": 1, "SequenceEndEvent": -1, "MappingEndEvent": -1}.get(
            type(event).__name__, 0
        )
        if depth > MAX_DEPTH:
            raise ValueError
        if number > 3 * CONFIGURATION.count:
            raise UsageError(f"{where}: more values than the {CONFIGURATION.count:,} that are read", hint=_ONE)


class _Extent(NamedTuple):
    """What is under a node: values and characters, with those of each alias, and levels."""

    values: int
    characters: int
    levels: int


def _size(node: Any, known: dict[int, _Extent], depth: int = 0) -> _Extent:
    """Return the size of a node of PyYAML.

    Raises:
        ValueError: Nested too deeply, or a number of too many digits.
    """
    if id(node) not in known:
        is_text = isinstance(node.value, str)
        if depth > MAX_DEPTH or (is_text and node.tag in _NUMBERS and len(node.value) > _MOST_DIGITS):
            raise ValueError
        children = () if is_text else node.value
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        sizes = [_size(part, known, depth + 1) for part in parts]
        known[id(node)] = _Extent(
            1 + sum(size.values for size in sizes),
            (len(node.value) if is_text else 0) + sum(size.characters for size in sizes),
            1 + max((size.levels for size in sizes), default=-1),
        )
    if depth + known[id(node)].levels > MAX_DEPTH:
        raise ValueError
    return known[id(node)]


def child(document: Any, *keys: str) -> Any:
    """Return the value at a path of keys; None if there is none."""
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def mapping(document: Any, *keys: str) -> dict[str, Any]:
    """Return the mapping at a path of keys; an empty one if there is none."""
    found = child(document, *keys)
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def items(document: Any, *keys: str) -> list[Any]:
    """Return the list at a path of keys; an empty one if there is none."""
    found = child(document, *keys)
    return found if isinstance(found, list) else []


def text_at(document: Any, *keys: str) -> str:
    """Return the text or number at a path of keys as text; empty if there is none."""
    found = child(document, *keys)
    return str(found) if isinstance(found, str | int | float) and not isinstance(found, bool) else ""


def number_at(document: Any, *keys: str) -> int | None:
    """Return the whole number at a path of keys; None if there is none."""
    text = text_at(document, *keys)
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else None
