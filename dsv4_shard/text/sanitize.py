"""Text and values from untrusted files, as messages show them: nothing that controls a terminal, nothing endless."""

import reprlib

_MAX_CHARS = 80

_MAX_NAME_CHARS = 200

_SHORT = reprlib.Repr()

_SHORT.maxlevel = 3

_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = _MAX_CHARS

_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 8


def clean(text: str) -> str:
    """`text` with control characters, bidirectional overrides and lone surrogates escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def short(value: object) -> str:
    """`repr` of a value, cut where a hostile file made it long or deep."""
    return _cut(repr(value[: _MAX_CHARS + 1]) if isinstance(value, str) else _SHORT.repr(value), _MAX_CHARS)


def short_name(name: str) -> str:
    """A name as `clean` shows it, without quotes, cut where it is absurdly long."""
    return _cut(repr(name[: _MAX_NAME_CHARS + 1])[1:-1], _MAX_NAME_CHARS)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
