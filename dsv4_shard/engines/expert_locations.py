"""`Locations`: SGLang's initial place of each expert, from the file of `--init-expert-location`.

Slot s of EP rank b holds expert `map[layer][b * slots per rank + s]` (`eplb/expert_location.py`). Without a file, slot
s of a layer holds expert s modulo the number of experts. SGLang does not check a map: slots that it does not name stay
uninitialised, so it must have a row for each layer and name every slot.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from dsv4_shard.errors import UsageError
from dsv4_shard.limits import LOCATIONS
from dsv4_shard.text.strict_json import BadJson, parse_json

TRIVIAL = "trivial"
"""SGLang's word for no map."""

IDENTITY = "identity"
"""Name of the order without a map."""

_MAP = "physical_to_logical_map"


@dataclass(frozen=True, slots=True)
class Locations:
    """The expert in each slot of each layer, as the file at `path` has them."""

    rows: tuple[tuple[int, ...], ...]
    path: str

    def fault(self, layers: int, experts: int, redundant: int) -> str | None:
        """What is wrong with the map for a model; None if nothing is."""
        if len(self.rows) != layers:
            return f"it has {len(self.rows)} layers, the model {layers}"
        for layer, row in enumerate(self.rows):
            if len(row) != experts + redundant:
                return f"layer {layer} has {len(row)} slots, and there are {experts} experts and {redundant} redundant"
            if missing := sorted(set(range(experts)).difference(row)):
                return f"expert {missing[0]} is in no slot of layer {layer}"
            if unknown := sorted(set(row).difference(range(experts))):
                return f"layer {layer} has expert {unknown[0]}, and the model {experts} from 0"
        return None


def name_of(rows: Sequence[Sequence[int]]) -> str:
    """The name of an order: `identity`, else the first expert in a slot of another, and the SHA-256 of all slots."""
    for layer, row in enumerate(rows):
        experts = max(row) + 1
        for slot, expert in enumerate(row):
            if expert != slot % experts:
                digest = sha256("\n".join(" ".join(map(str, one)) for one in rows).encode()).hexdigest()
                return f"expert {expert} in slot {slot} of layer {layer}, SHA-256 {digest[:32]}"
    return IDENTITY


def read_locations(path: str) -> Locations | None:
    """Read the map in a JSON file; None for `trivial`.

    Raises:
        UsageError: The file cannot be read, or has no map.
    """
    if path == TRIVIAL:
        return None
    try:
        found = os.stat(path)
    except OSError as error:
        raise _refusal(path, f"cannot be read: {error.strerror}") from None
    return _read(path, found.st_mtime_ns, found.st_size)


@cache
def _read(path: str, changed: int, nbytes: int) -> Locations:
    """The map in a file that was last changed at `changed` and has `nbytes`."""
    try:
        with Path(path).open("rb") as file:
            return parse_locations(file.read(LOCATIONS.nbytes + 1), path)
    except OSError as error:
        raise _refusal(path, f"cannot be read: {error.strerror}") from None


def parse_locations(raw: bytes, path: str) -> Locations:
    """The map in the JSON document `raw`, which stands in the file at `path`.

    Raises:
        UsageError: It is no such document.
    """
    if path.endswith(".pt"):
        raise _refusal(path, "a file of torch: write its map as JSON")
    try:
        document = parse_json(raw, LOCATIONS)
    except BadJson as error:
        raise _refusal(path, str(error)) from None
    rows = document.get(_MAP) if isinstance(document, dict) else None
    if not isinstance(rows, list) or not rows or not all(map(_is_row, rows)):
        raise _refusal(path, f"no {_MAP}, which has a list of experts for each layer")
    return Locations(tuple(map(tuple, rows)), path)


def _is_row(row: object) -> bool:
    return isinstance(row, list) and bool(row) and all(type(expert) is int and expert >= 0 for expert in row)


def _refusal(path: str, why: str) -> UsageError:
    hint = f'Name a JSON file {{"{_MAP}": [[0, 1, ...], ...]}}, as SGLang\'s --init-expert-location reads it.'
    return UsageError.about("expert_locations", path, why, hint=hint)
