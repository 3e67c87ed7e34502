"""`log_of`: what an engine prints for a message of the table: a traceback, or a line of its log."""

import re
from typing import Any

_VALUES = (
    (r"(?:keys|names?|weights|parameters?|checkpoint:|files?|missing:) ?$", "('model.layers.0.x', 'model.layers.1.x')"),
    (r"(?:load weight \(|shape[= ]|into parameter \(|of size |shape: )$", "torch.Size([512, 128])"),
    (r"(?:directory|path|from|folder|file|in|at):? ['`]?$", "/models/V4"),
    (r"['`]$", "some_name"),
    (r"dtype[= ]?(?:of )?$", "torch.bfloat16"),
)
"""What a value is like, by the text before it. All others are numbers."""


def log_of(engine: str, file: str, entry: list[Any]) -> str:
    """The log of a message `[line, function, error, text, ...]` of a file, with plausible values."""
    line, function, error, text = entry[:4]
    said = with_values(text).replace("{{", "{").replace("}}", "}")
    if error == "log":
        return f"{engine} ERROR 11-30 09:00:00 [{file.rpartition('/')[2]}:{line}] {said}"
    frame = f'  File "/usr/lib/python3/dist-packages/{file}", line {line}, in {function.rpartition(".")[2]}'
    bare = text.startswith("assert ")
    shown = [f"    {said}", error] if bare else ["    raise", f"{error}: {said}" if said else error]
    return "\n".join(["Traceback (most recent call last):", frame, *shown])


def with_values(text: str) -> str:
    """A text with values in place of {}."""
    said, *rest = text.split("{}")
    for number, piece in enumerate(rest):
        value = next((value for before, value in _VALUES if re.search(before, said)), str(3 + number))
        said += value + piece
    return said
