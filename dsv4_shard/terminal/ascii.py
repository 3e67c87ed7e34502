"""ASCII fallback for characters that a stream's encoding lacks: the tool's own signs are replaced, others escaped.

This is apart from the consoles, since every command needs it before it can handle an interrupt properly.
"""

import codecs
import io
import os

_ASCII = {"×": "x", "├": "+", "─": "-", "┼": "+", "┤": "+", "…": "...", "·": "-", "✓": "+", "✗": "x"}
"""ASCII replacements for the tool's own signs."""

_SIGNS = "dsv4_shard.signs"


def show_signs(stream: io.TextIOWrapper) -> None:
    """Make `stream` write characters that its encoding lacks in ASCII: its own signs replaced, others escaped.

    LC_ALL=C requests ASCII, although Python's streams are then UTF-8, unless Python itself has an encoding set.
    """
    told = any(os.environ.get(name) for name in ("PYTHONIOENCODING", "PYTHONUTF8"))
    plain = os.environ.get("LC_ALL") in ("C", "POSIX") and not told
    stream.reconfigure(encoding="ascii" if plain else None, errors=_SIGNS)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking), error.end


codecs.register_error(_SIGNS, _in_ascii)
