"""Divide rank files into tasks, each for one thread: the bytes of consecutive pieces, block by block.

A piece is what has a digest of its own (an expert of a stacked tensor, or a whole tensor), so a thread can hash what it
reads. Blocks are what is read at once.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from dsv4_shard.sharding.manifest import ManifestFile
from dsv4_shard.tensors.header import Header

_TASK_BYTES = 64 << 20


class PieceOfFile(NamedTuple):
    """Piece number `slot` of a tensor: its bytes begin at `at` in the tensor, and at `start` in the file."""

    tensor: str
    slot: int
    at: int
    start: int
    stop: int


class BlockPart(NamedTuple):
    """Bytes `[start, stop)` of the file, which are of one piece."""

    piece: PieceOfFile
    start: int
    stop: int


def tasks_of(entry: ManifestFile, header: Header, wanted: Iterable[str]) -> Iterator[list[PieceOfFile]]:
    """Yield the pieces of the `wanted` tensors of a file in the order of its bytes, in tasks without gaps."""
    task: list[PieceOfFile] = []
    infos = header.tensors
    for name in sorted(wanted, key=lambda name: (infos[name].start, infos[name].stop)):
        for piece in _pieces(name, header.data_start + infos[name].start, infos[name].nbytes, entry.pieces):
            if task and (task[-1].stop != piece.start or piece.stop - task[0].start > _TASK_BYTES):
                yield task
                task = []
            task.append(piece)
    if task:
        yield task


def blocks_of(task: list[PieceOfFile], limit: int) -> Iterator[list[BlockPart]]:
    """Yield the parts of a task's pieces, in order, in blocks of at most `limit` bytes. A piece may have no bytes."""
    block: list[BlockPart] = []
    room = limit
    for piece in task:
        position = piece.start
        while True:
            stop = min(piece.stop, position + room)
            block.append(BlockPart(piece, position, stop))
            room -= stop - position
            position = stop
            if not room:
                yield block
                block, room = [], limit
            if position == piece.stop:
                break
    if block:
        yield block


def _pieces(
    tensor: str, start: int, nbytes: int, runs: Mapping[str, tuple[tuple[int, int], ...]]
) -> Iterator[PieceOfFile]:
    at = slot = 0
    for count, each in runs.get(tensor, ((1, nbytes),)):
        for _ in range(count):
            yield PieceOfFile(tensor, slot, at, start + at, start + at + each)
            at, slot = at + each, slot + 1
