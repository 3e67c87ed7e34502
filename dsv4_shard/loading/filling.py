"""Fill tensors from rank files: threads read blocks, hash them where asked, and copy them to the device meanwhile.

Each byte is read once, and hashed in the memory that it is copied from. Host memory is bounded by threads x two blocks.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from dsv4_shard.errors import LoadRefused
from dsv4_shard.loading.device_copies import DeviceCopier, device_of, flat_bytes
from dsv4_shard.loading.tasks import PieceOfFile, blocks_of, tasks_of
from dsv4_shard.sharding.manifest import ManifestFile
from dsv4_shard.storage import PAGE, DirectFile, tensor_digest
from dsv4_shard.tensors.header import Header
from dsv4_shard.text.sanitize import short_name

SLOT_BYTES = 16 << 20
"""Memory that a thread reads into at a time. It has two: all the memory that loading takes.

From the page cache to an H200, eight threads reached 4.7 GB/s with 1 MiB, 13.6 with 8, 15.8 with 16 and 19.7 with 32.
"""

BLOCK_BYTES = SLOT_BYTES - 2 * PAGE
"""Bytes read at a time, beside the rest of their first and last page."""


@dataclass(frozen=True, slots=True)
class RankFile:
    """A rank file with its manifest entry and its header."""

    path: Path
    entry: ManifestFile
    header: Header


def fill(
    files: Sequence[RankFile],
    targets: Mapping[str, torch.Tensor],
    threads: int,
    *,
    verify: bool,
    on_progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Fill `targets`, contiguous tensors by name, from `files`; with `verify`, compare the digest of each.

    Raises LoadRefused if a digest differs, or ReadFailed. Targets are then partly filled.
    """
    flat = {name: flat_bytes(tensor) for name, tensor in targets.items()}
    opened = [DirectFile(file.path, shared=len(file.entry.ranks) > 1) for file in files]
    try:
        filling = _Filling(files, opened, flat, _Digests(files) if verify else None, on_progress)
        copiers = [DeviceCopier(device_of(targets.values()), SLOT_BYTES) for _ in range(threads)]
        if threads == 1:
            filling.run(copiers[0])
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="load") as pool:
            running = [pool.submit(filling.run, copier) for copier in copiers]
        for one in running:
            one.result()
    finally:
        for file in opened:
            file.close()


class _Filling:
    """The tasks that are left, and what the threads of one `fill` share."""

    def __init__(
        self,
        files: Sequence[RankFile],
        opened: Sequence[DirectFile],
        flat: Mapping[str, torch.Tensor],
        digests: "_Digests | None",
        on_progress: Callable[[int], None],
    ) -> None:
        self._files, self._opened, self._flat = files, opened, flat
        self._digests, self._on_progress = digests, on_progress
        self._lock = threading.Lock()
        self._is_stopped = False
        self._tasks = self._all_tasks()

    def run(self, copier: DeviceCopier) -> None:
        """Do tasks until none is left, or a thread fails."""
        try:
            while (found := self._next()) is not None:
                self._load(*found, copier)
            copier.finish()
        except BaseException:
            self._is_stopped = True
            raise

    def _all_tasks(self) -> Iterator[tuple[int, list[PieceOfFile]]]:
        for number, file in enumerate(self._files):
            wanted = file.header.tensors.keys() & self._flat.keys()
            yield from ((number, task) for task in tasks_of(file.entry, file.header, wanted))

    def _next(self) -> tuple[int, list[PieceOfFile]] | None:
        with self._lock:
            return None if self._is_stopped else next(self._tasks, None)

    def _load(self, number: int, task: list[PieceOfFile], copier: DeviceCopier) -> None:
        """Read the blocks of a task, hash their pieces, and send them to the device."""
        running = xxhash.xxh3_128()
        for parts in blocks_of(task, BLOCK_BYTES):
            first, last = parts[0].start, parts[-1].stop
            slot = copier.slot()
            shift = self._opened[number].read(first, last, slot) - first if first < last else -first
            for part in parts:
                start, stop = part.start + shift, part.stop + shift
                if self._digests is not None:
                    running.update(slot[start:stop])
                    if part.stop == part.piece.stop:
                        self._digests.keep(number, part.piece, running.digest())
                        running.reset()
                piece = part.piece
                copier.copy(start, stop, self._flat[piece.tensor], piece.at + part.start - piece.start)
            copier.sent()
            self._on_progress(last - first)


class _Digests:
    """The digests of pieces so far. Any thread may add to them."""

    def __init__(self, files: Sequence[RankFile]) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._found: dict[tuple[int, str], dict[int, bytes]] = {}

    def keep(self, number: int, piece: PieceOfFile, digest: bytes) -> None:
        """Keep the digest of a piece of file `number`. Raises LoadRefused if it completes a tensor that differs."""
        file = self._files[number]
        count = sum(count for count, _ in file.entry.pieces.get(piece.tensor, ((1, 0),)))
        with self._lock:
            found = self._found.setdefault((number, piece.tensor), {})
            found[piece.slot] = digest
            if len(found) < count:
                return
            del self._found[number, piece.tensor]
        if tensor_digest([found[slot] for slot in range(count)]) != file.entry.tensors[piece.tensor]:
            raise LoadRefused(f"{file.path.name}: {short_name(piece.tensor)}: its bytes differ from what was written")
