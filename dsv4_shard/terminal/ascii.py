"""Signs that a stream's encoding lacks: ours have others that stand for them, all else is escaped.

Apart from the consoles, since every command needs it before it can even be interrupted in order.
"""

import codecs
import io
import os

_ASCII = {"×": "x", "├": "+", "─": "-", "┼": "+", "┤": "+", "…": "..."}
"""What stands for our own signs where there is nothing but ASCII."""

_SIGNS = "dsv4_shard.signs"


def show_signs(stream: io.TextIOWrapper) -> None:
    """Have `stream` write what its encoding lacks in ASCII: our own signs by others, all else escaped.

    LC_ALL=C asks for ASCII, though Python's streams are then UTF-8, unless Python itself is told an encoding.
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
