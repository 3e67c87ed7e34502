"""What is wrong in a JSON document, in the tool's own words: pydantic's texts are written for programmers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dsv4_shard.text.sanitize import short, short_name

if TYPE_CHECKING:
    from pydantic import ValidationError

_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is no key of this document",
    "int": "must be a whole number",
    "float": "must be a number",
    "finite_number": "must be a finite number",
    "bool": "must be true or false",
    "string_pattern_mismatch": "has another form than {pattern}",
    "string": "must be text",
    "list": "must be a list",
    "tuple": "must be a list",
    "dict": "must be an object",
    "model": "must be an object",
    "dataclass": "must be an object",
    "none": "must be null",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "too_long": "has more than {max_length} entries",
    "too_short": "has fewer than {min_length} entries",
    "string_too_long": "has more than {max_length} characters",
    "string_too_short": "has fewer than {min_length} characters",
    "json_invalid": "is not JSON",
}
"""pydantic's type of an error, or the beginning of it → what it means."""


def first_error(error: "ValidationError") -> str:
    """Return the first place at which a document contradicts its model, and the reason."""
    return described(error.errors(include_url=False, include_input=False)[0])


def described(problem: Any) -> str:
    """Return the place and the reason of one of pydantic's errors."""
    place = short_name(".".join(map(str, problem["loc"])))
    return ": ".join(filter(None, (place, _reason(problem["type"], problem.get("ctx", {}), problem["msg"]))))


def missing_keys(problems: Sequence[Any]) -> list[str]:
    """Return the keys that a document lacks."""
    return [short_name(".".join(map(str, problem["loc"]))) for problem in problems if problem["type"] == "missing"]


def _reason(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind in ("value_error", "assertion_error"):
        return message.partition(", ")[2]  # the text of our own checks
    for name in (kind, kind.partition("_")[0]):
        if name in _WORDS:
            return _WORDS[name].format_map({key: value if isinstance(value, int | float) else str(value)
                                            for key, value in context.items()})  # fmt: skip
    return f"is malformed ({short(kind.replace('_', ' '))})"
