"""Changes of structure: JSON documents with something hostile in them, which bytes alone would seldom hit upon."""

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any


class Object(list[Any]):
    """A JSON object as pairs, so that a key can stand twice."""


class Raw(str):
    """A token that stands in the text as it is."""

    __slots__ = ()


HOSTILE = (
    *map(Raw, ("NaN", "-Infinity", "1e999", "-0", "1.0", "1" * 400, "1" * 5000, "true", "null", "01", "", ",")),
    *map(Raw, ('"\\ud800"', '"\\udc00\\ud83d"', '"\\u0061"', '"\\u0000"', '"\x07"', "[" * 100 + "]" * 100, "[" * 2000)),
    *(-1, 0, 1, 2, 127, 128, 2**16, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 2**64 - 1),
    *("", "x", "..", "/etc/passwd", "../model.safetensors", "a\x1b[2J\n", "\u202e", "[red]x[/red]", "y" * 300),
    *("F32", "F4", "BF16", "I8", "U8", "dtype", "__metadata__", "model.safetensors", "MODEL.safetensors", "fp8"),
    *([], [0], [0, 8], [2**32, 2**32, 0], [[]], Object(), Object([("dtype", "F4")])),
)


def load(text: bytes) -> Any:
    """A document as a tree of `Object`, list and scalars. Raises ValueError."""
    return json.loads(text, object_pairs_hook=Object, parse_float=Raw, parse_constant=Raw)


def dump(node: Any) -> str:
    """The tree as text; the inverse of `load`."""
    if isinstance(node, Raw):
        return str(node)
    if isinstance(node, Object):
        return "{" + ",".join(f"{dump(key)}:{dump(value)}" for key, value in node) + "}"
    if isinstance(node, list):
        return "[" + ",".join(map(dump, node)) + "]"
    return json.dumps(node, ensure_ascii=False)


def mutate_json(text: bytes, random: Random) -> bytes:
    """The document with one to three changes; `text` itself where it is no JSON."""
    try:
        tree = load(text)
    except (ValueError, RecursionError):
        return text
    for _ in range(random.randint(1, 3)):
        places = list(_places(tree))
        if places:
            node, at = random.choice(places)
            _change(node, at, random)
    return dump(tree).encode("utf-8", "surrogatepass")


def _places(node: Any) -> Iterator[tuple[list[Any], int]]:
    """Every (container, position) of a tree."""
    for at, child in enumerate(node if isinstance(node, list) else ()):
        yield node, at
        yield from _places(child[1] if isinstance(node, Object) else child)


def _change(node: list[Any], at: int, random: Random) -> None:
    item = node[at]
    key, value = item if isinstance(node, Object) else (None, item)
    match random.randrange(6):
        case 0:
            value = copy.deepcopy(random.choice(HOSTILE))
        case 1 if isinstance(value, int):
            near = (value - 1, value + 1, value + 128, -value)
            value = random.choice((*near, bool(value), str(value), Raw(f"{value}.0")))
        case 1 | 2 if key is not None:
            key = random.choice((key + "x", "", "__metadata__", "\x1b[31m" + key, Raw('"\\ud800"'), key[:-1]))
        case 3:
            node.insert(random.randint(0, len(node)), item)
        case 4:
            del node[at]
            return
        case _:
            other = node[random.randrange(len(node))]
            value = other[1] if isinstance(node, Object) else other
    node[at] = (key, value) if isinstance(node, Object) else value
