"""Escapes and shortens untrusted text for messages.

Names and values from a checkpoint's files can hold control characters or be megabytes long. Messages show neither.
"""

import reprlib

_MAX_CHARS = 80

_MAX_NAME_CHARS = 200

_SHORT = reprlib.Repr()

_SHORT.maxlevel = 3

_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = _MAX_CHARS

_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 8


def clean(text: str) -> str:
    """Return `text` with control characters, bidirectional overrides and lone surrogates escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def short(value: object) -> str:
    """Return `repr` of a value, shortened if it is long or deeply nested."""
    return _cut(repr(value[: _MAX_CHARS + 1]) if isinstance(value, str) else _SHORT.repr(value), _MAX_CHARS)


def short_name(name: str) -> str:
    """Return a name escaped as by `clean`, without quotes, shortened to 200 characters."""
    return _cut(repr(name[: _MAX_NAME_CHARS + 1])[1:-1], _MAX_NAME_CHARS)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
