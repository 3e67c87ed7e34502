"""Reads JSON from untrusted files within limits, and rejects documents that JSON readers interpret differently.

The limits apply before parsing, because 100 MB of `[[[[` or of empty keys would become gigabytes of objects.
"""

import json
import math
import re
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from dsv4_shard.limits import HEADER, MAX_DEPTH, Limit
from dsv4_shard.text.sanitize import short

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class BadJson(ValueError):
    """A document is not JSON or exceeds a limit. The message can follow the name of the file."""


class DuplicateJsonKey(BadJson):
    """An object has a key twice. Readers differ on which of the two values counts."""


def check_size(raw: bytes, limit: Limit) -> None:
    """Raise BadJson if `raw` has more bytes than `limit` gives, or may hold more values.

    Each value except the first follows a `,`, `[` or `{`, so counting these bytes gives an upper bound.
    """
    if len(raw) > limit.nbytes:
        raise BadJson(f"{len(raw):,} bytes, too large: at most {limit.nbytes:,} are read")
    if len(raw) > limit.count:
        values = 1 + raw.count(b",") + raw.count(b"[") + raw.count(b"{")
        if values > limit.count:
            raise BadJson(f"up to {values:,} values, more than the {limit.count:,} that are read")


def parse_json(raw: bytes, limit: Limit = HEADER) -> Any:
    """Parse the UTF-8 document in `raw`.

    Raises BadJson if the document is not JSON, is beyond `limit` (checked before parsing), or contains NaN,
    an infinity, -0 as an integer or a lone surrogate. Raises DuplicateJsonKey if an object has a key twice.
    """
    check_size(raw, limit)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadJson(f"not JSON: not UTF-8 (byte {error.start})") from None
    # Python reads "-0" as the integer 0, other readers as a float. The hook is slow, so it is set only if needed.
    parse_int = _refuse_negative_zero if b"-0" in raw else None
    try:
        document = json.loads(text, parse_constant=_refuse_constant, parse_float=_refuse_infinity, parse_int=parse_int)
        _refuse_duplicates(raw, document)
    except BadJson:
        raise
    except RecursionError:
        raise BadJson("not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise BadJson(f"not JSON: {error}") from None
    if b"\\" in raw and _ESCAPED_SURROGATE.search(raw):
        _refuse_surrogates(document)
    return document


def is_plain(value: object, depth: int = 0) -> bool:
    """Return whether all numbers fit a double and nesting stays below 64 levels.

    Values that are passed on without being checked must fulfil this.
    """
    match value:
        case int() | float():
            return abs(value) <= sys.float_info.max
        case list():
            return depth < MAX_DEPTH and all(is_plain(item, depth + 1) for item in value)
        case dict():
            return depth < MAX_DEPTH and all(is_plain(item, depth + 1) for item in value.values())
    return True


def _refuse_duplicates(raw: bytes, document: object) -> None:
    """Raise DuplicateJsonKey if an object in the text of a document has a key twice.

    Then it has more keys than the document has members. A hook for each object would take twice the memory.
    """
    members = _members(document)
    if sum(1 for _ in _MAYBE_KEY.finditer(raw)) == members:
        return
    if sum(found[1] is not None for found in _STRING.finditer(raw)) != members:
        json.loads(raw, object_pairs_hook=_refuse_pairs)


_MAYBE_KEY = re.compile(rb'"[ \t\r\n]*:')
"""Pattern of the end of a key. Strings that hold a colon may match too, but no key is missed."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"(?:[ \t\r\n]*(:))?', re.DOTALL)
"""Pattern of a string, with the colon that follows a key."""


def _members(document: object) -> int:
    """Return the number of members of all objects. Level by level, because nothing has limited the depth yet."""
    level: list[Any] = [document]
    members = 0
    while level:
        objects = [value for value in level if type(value) is dict]
        lists = [value for value in level if type(value) is list]
        members += sum(map(len, objects))
        level = [item for value in objects for item in value.values() if type(item) in _CONTAINERS]
        level += [item for value in lists for item in value if type(item) in _CONTAINERS]
    return members


_CONTAINERS = frozenset({dict, list})


def _refuse_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DuplicateJsonKey(f"key {short(twice)} stands twice")
    return result


def _refuse_constant(constant: str) -> NoReturn:
    raise BadJson(f"not JSON: holds {constant}")


def _refuse_infinity(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise BadJson(f"not JSON that readers agree on: {short(digits)} is beyond every double")
    return number


def _refuse_negative_zero(digits: str) -> int:
    if digits == "-0":
        raise BadJson("not JSON that readers agree on: -0 where a natural number is due")
    return int(digits)


def _refuse_surrogates(document: object) -> None:
    """Raise BadJson if a string has half of a surrogate pair: JSON can escape it, but no encoding can write it."""
    for text in _strings(document):
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise BadJson(f"{short(text)} holds a lone surrogate, which is no text")


def _strings(document: object) -> Iterator[str]:
    """Yield every key and string. Iterative, because nothing has limited the nesting depth yet."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            yield from value
            pending += value.values()
