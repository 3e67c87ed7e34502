"""JSON from files that nobody vouches for: read within limits, and only what every JSON reader reads alike.

The limits hold before anything is made of the text: a hundred megabytes of `[[[[` or of empty keys must cost no
gigabytes. Callers limit the bytes; this limits what they can become.
"""

import json
import math
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from dsv4_shard.text.sanitize import short, short_name

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_VALUES = 2_000_000
"""Values in one document, at some 200 bytes each. All 145,116 tensors of V4-Pro in one header are 1.2 million."""

_MAX_DEPTH = 64

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class BadJson(ValueError):
    """What is wrong with a document, in words that can follow the name of its file."""


class DuplicateJsonKey(BadJson):
    """A key stands twice in an object: readers differ on which of its values holds."""


def check_size(raw: bytes, max_values: int) -> None:
    """Raise BadJson where `raw` may hold more than `max_values` values: each but the first follows `,`, `[` or `{`."""
    if len(raw) > max_values:
        values = 1 + raw.count(b",") + raw.count(b"[") + raw.count(b"{")
        if values > max_values:
            raise BadJson(f"up to {values:,} values, more than the {max_values:,} that are read")


def parse_json(raw: bytes, max_values: int = MAX_VALUES) -> Any:
    """The document in `raw`, without keys that stand twice, NaN, infinities or lone surrogates.

    Raises BadJson, before parsing where there are more than `max_values` values.
    """
    check_size(raw, max_values)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadJson(f"not JSON: not UTF-8 (byte {error.start})") from None
    # Python reads "-0" as the integer 0, other readers as a float; only then is the slow hook on.
    parse_int = _refuse_negative_zero if b"-0" in raw else None
    try:
        document = json.loads(
            text,
            object_pairs_hook=_refuse_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_refuse_infinity,
            parse_int=parse_int,
        )
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
    """Whether numbers fit a double and nesting stays shallow, as it must in what is passed on unread."""
    match value:
        case int() | float():
            return abs(value) <= sys.float_info.max
        case list():
            return depth < _MAX_DEPTH and all(is_plain(item, depth + 1) for item in value)
        case dict():
            return depth < _MAX_DEPTH and all(is_plain(item, depth + 1) for item in value.values())
    return True


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
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
    """JSON can escape half of a pair, which no encoding takes."""
    for text in _strings(document):
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise BadJson(f"{short(text)} holds a lone surrogate, which is no text")


def _strings(document: object) -> Iterator[str]:
    """Every key and string; not by recursion, since nothing has limited the depth yet."""
    left = [document]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            yield from value
            left += value.values()


def first_error(error: "ValidationError") -> str:
    """Where a document is not what its model says, and why."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = short_name(".".join(map(str, first["loc"])))
    return ": ".join(filter(None, (place, first["msg"].removeprefix("Value error, "))))
