"""YAML from outside → plain values, within a limit: no tags that make objects, no aliases that grow without end."""

from collections.abc import Iterable
from typing import Any

from dsv4_shard.errors import UsageError
from dsv4_shard.limits import CONFIGURATION, MAX_DEPTH

_ONE = "Name the file of one deployment, as its launcher reads it."


def yaml_documents(text: str, where: str) -> list[Any]:
    """Return the documents of a text: dicts, lists, strings, numbers, booleans and None.

    Raises:
        UsageError: The text is not YAML, or has more values than are read, aliases counted as often as they are used.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_events(yaml.parse(text, loader), where)
        nodes = list(yaml.compose_all(text, loader))
        values = sum(_size(node, {}) for node in nodes if node is not None)
        if values > CONFIGURATION.count:
            raise UsageError(f"{where}: {values:,} values, at most {CONFIGURATION.count:,} are read", hint=_ONE)
        return [document for document in yaml.load_all(text, loader) if document is not None]
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise UsageError(f"{where}: not YAML: {said}", hint=_ONE) from None
    except (RecursionError, ValueError):
        raise UsageError(f"{where}: not YAML that can be read", hint=_ONE) from None


_WHOLE_NUMBER = "tag:yaml.org,2002:int"

_MOST_DIGITS = 100


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


def _size(node: Any, known: dict[int, int], depth: int = 0) -> int:
    """Return the number of values under a node of PyYAML, with those of each alias.

    Raises:
        ValueError: Nested too deeply, or a number of too many digits.
    """
    if depth > MAX_DEPTH or (node.tag == _WHOLE_NUMBER and len(node.value) > _MOST_DIGITS):
        raise ValueError
    if id(node) in known:
        return known[id(node)]
    children = node.value if isinstance(node.value, list) else []
    parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
    known[id(node)] = 1 + sum(_size(part, known, depth + 1) for part in parts)
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
