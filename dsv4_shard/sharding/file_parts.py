"""The parts of each output file: tensors in their order of use, in files of a limited size.

Files below 50 GB come down from the Hub with any client, and a loader reads several files at a time.
"""

from collections.abc import Hashable
from typing import NamedTuple

from dsv4_shard.models import Role, Stage, TensorName

_LAST = {Role.FINAL_NORM, Role.HC_HEAD_FN, Role.HC_HEAD_BASE, Role.HC_HEAD_SCALE, Role.HEAD}
"""Roles outside of the layers that a forward pass needs after them."""

ROLE_ORDER = {role: number for number, role in enumerate(Role)}
"""Role → position within a layer, in the order of a forward pass."""


def place_of(name: TensorName) -> tuple[int, int]:
    """Return the position of a tensor's layer in a forward pass: embedding, layers, head, then all draft blocks.

    An engine may join tensors of several draft blocks.
    """
    match name.stage:
        case Stage.LAYER:
            return 1, name.layer
        case Stage.MTP:
            return 3, 0
        case _:
            return (2 if name.role in _LAST else 0), 0


class FileKey(NamedTuple):
    """Identifies an output file before it has a number.

    Attributes:
        folder: Its folder in the output; empty for the top.
        rank: The rank that reads it, or ALL_RANKS, or a pipeline stage's.
        file: The checkpoint's file name, if the layout keeps it; else empty.
        part: Number of the part.
    """

    folder: str
    rank: int
    file: str = ""
    part: int = 0


class FileParts:
    """The part of its file that each output tensor goes to, and the number of each file.

    Sizes are added first, in the order of use; `number` then fixes the parts. A tensor larger than a part has one of
    its own. The parts of a rank's files do not depend on the other ranks that are written.
    """

    def __init__(self, part_nbytes: int | None) -> None:
        """Begin without a file; None as the size keeps each file in one part."""
        self._most = part_nbytes
        self._sizes: dict[FileKey, dict[Hashable, int]] = {}
        self._parts: dict[tuple[FileKey, Hashable], int] = {}
        self.numbers: dict[FileKey, int] = {}

    def add(self, file: FileKey, target: Hashable, nbytes: int) -> None:
        """Add bytes of an output tensor, or of several that stay together, to a file without a part."""
        targets = self._sizes.setdefault(file, {})
        targets[target] = targets.get(target, 0) + nbytes

    def number(self) -> None:
        """Assign the parts, and number the files in sorted order."""
        files: set[FileKey] = set()
        for file, targets in self._sizes.items():
            part = filled = 0
            for target, nbytes in targets.items():
                if self._most is not None and filled and filled + nbytes > self._most:
                    part, filled = part + 1, 0
                filled += nbytes
                if part:
                    self._parts[file, target] = part
                files.add(file._replace(part=part))
        self._sizes.clear()
        self.numbers = {file: number for number, file in enumerate(sorted(files))}

    def file_of(self, file: FileKey, target: Hashable) -> FileKey:
        """Return the part of a file that holds `target`."""
        part = self._parts.get((file, target), 0)
        return file._replace(part=part) if part else file

    def count(self, file: FileKey) -> int:
        """Return the number of parts of a file; 0 if it does not exist."""
        count = 0
        while file._replace(part=count) in self.numbers:
            count += 1
        return count
