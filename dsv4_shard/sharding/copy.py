"""Run a recipe: read each source byte once, scatter it to the files of all ranks, and hash it on the way.

Workers take steps in the order of the source's bytes if it is remote, else in the order of the output's bytes, in which
they are hashed. Each worker holds one chunk of rows at a time, so memory is bounded by workers x chunk, whatever the
size of a tensor; recipes have no rows that are longer than a chunk. The sink decides where the bytes go: the sink of
`reshard` writes them, the sink of `verify` compares them with the files on disk.

Workers are threads or processes. Threads wait for each other's Python code: four of them do as much as 32.
"""

import multiprocessing
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby
from typing import Any, Protocol

import xxhash

from dsv4_shard.errors import SourceChanged, UnequalScales
from dsv4_shard.sharding.journal import Finished
from dsv4_shard.sharding.mover import Moved, Mover, Sink
from dsv4_shard.sharding.recipe import Piece, Recipe, Step, output_order, pieces_of, spans
from dsv4_shard.sharding.worker_processes import in_processes
from dsv4_shard.sources.base import Source, Witness
from dsv4_shard.storage import DIGEST_BYTES, StagedFile

_BATCH_BYTES = 16 << 20
"""Source bytes that a process takes at a time: what it says of them takes less time than moving them."""

_BATCH_STEPS = 64

_LARGE_BYTES = 128 << 20
"""Payload from which on processes are used: to start them takes a few hundredths of a second."""

_DIFFERING_KEPT = 100
"""Per file. A file with more differing places than this differs almost everywhere."""


class CopyLog(Protocol):
    """Records each finished step. Called from many threads."""

    def note(self, finished: Finished) -> None: ...


@dataclass(frozen=True, slots=True)
class CopyResult:
    """The digests of the output tensors, the values that lost precision, and the bytes read.

    The digest of a tensor of one piece is the xxh3-128 of its bytes. The digest of a tensor of several pieces is the
    xxh3-128 of the pieces' digests (16 bytes each, big-endian) in order.

    Attributes:
        digests: (file number, tensor name) -> digest in hex.
        inexact: Source tensor name -> number of elements that a cast rounded.
        bytes_read: Bytes read from the source.
        differing: File number -> offsets of bytes that the sink found to differ, in order, at most 100 of a file.
    """

    digests: dict[tuple[int, str], str]
    inexact: dict[str, int]
    bytes_read: int
    differing: dict[int, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listeners:
    """Callbacks of a run. Any thread may call them.

    Attributes:
        on_progress: Receives the bytes put since its last call.
        on_data: Receives (file number, offset, bytes) of what a thread put. The buffer is reused after the call.
        on_piece: Receives (file number, start, stop) of each piece that the file has, also by an earlier run.
        log: Records each step that this run finishes.
    """

    on_progress: Callable[[int], None] = lambda _: None
    on_data: Callable[[int, int, memoryview], None] = lambda *_: None
    on_piece: Callable[[int, int, int], None] = lambda *_: None
    log: CopyLog | None = None


def copy(
    recipe: Recipe,
    source: Source,
    sink: Sink,
    workers: int,
    listeners: Listeners = Listeners(),
    *,
    allow_inexact: bool = False,
    finished: Iterable[Finished] = (),
    in_order: Collection[str] = (),
    processes: bool = False,
    keeps_cached: bool = False,
) -> CopyResult:
    """Run every step of `recipe` except the `finished` ones.

    Args:
        recipe: The output files and the steps that fill them.
        source: The checkpoint to read.
        sink: Receives the bytes of each output file.
        workers: Number of workers; 1 thread is the calling one.
        listeners: Callbacks for progress and results.
        allow_inexact: Let a cast round.
        finished: Steps that an earlier run finished. Their digests are reused.
        in_order: Source files that one worker each reads from beginning to end.
        processes: Use processes in place of threads. Each has its own copy of `sink`.
        keeps_cached: Leave the bytes that are read in the page cache.

    Raises:
        InexactCast: A cast rounds and `allow_inexact` is off.
        SourceChanged: A source file changed during the run.
        WorkerLost: A process was killed.
        ShardError: Any other error of a worker; the first one is raised.
    """
    results = _Results(recipe, listeners)
    results.skip(finished)
    order = range(len(recipe.steps)) if source.root is None else output_order(recipe)
    whole = [numbers for file, numbers in _by_file(recipe, results.is_finished) if file in in_order]
    single = [n for n in order if not results.is_finished[n] and recipe.steps[n].source.file not in in_order]
    with source.reading(files_of(recipe), spans(results.unfinished())) as files:
        mover = partial(Mover, recipe, files, sink, allow_inexact, keeps_cached=keeps_cached)
        setter = mover(listeners.on_progress, listeners.on_data, lambda: False)
        for fixed in recipe.fixed:
            results.keep_fixed(fixed.file, fixed.tensor, setter.put_fixed(fixed))
        del setter
        if not processes or not single:
            _in_threads(_Threads(mover, chain(whole, ([number] for number in single)), results, listeners), workers)
        else:
            beside = _Threads(mover, iter(whole), results, listeners)
            with _beside(beside, workers if whole else 0):
                _in_processes(mover, _batches(recipe, single), workers, source.witness, results, listeners, beside)
        changed = [line for file in files.values() if (line := file.changed())]
        if changed:
            raise SourceChanged(changed[0])
        return results.result()


def _by_file(recipe: Recipe, is_finished: bytearray) -> Iterator[tuple[str, list[int]]]:
    """Each source file that is not finished, with the numbers of the steps that are left, in the order of its bytes."""
    left = (number for number, done in enumerate(is_finished) if not done)
    for file, numbers in groupby(left, key=lambda number: recipe.steps[number].source.file):
        yield file, list(numbers)


def _batches(recipe: Recipe, numbers: Iterable[int]) -> Iterator[list[int]]:
    """`numbers` in batches for processes."""
    batch: list[int] = []
    held = 0
    for number in numbers:
        batch.append(number)
        held += recipe.steps[number].source.nbytes
        if held >= _BATCH_BYTES or len(batch) == _BATCH_STEPS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _in_processes(
    mover: Callable[..., Mover],
    batches: Iterator[Sequence[int]],
    workers: int,
    witness: Witness | None,
    results: "_Results",
    listeners: Listeners,
    beside: "_Threads",
) -> None:
    """Run the batches in processes, and keep what they send. Raises an error of the threads `beside` as its own."""

    def prepare() -> Callable[[Sequence[int]], Iterator[tuple[Moved, list[Any]]]]:
        own = mover(lambda _: None, lambda *_: None, lambda: False)
        if witness is not None:
            witness.defer()

        def work(batch: Sequence[int]) -> Iterator[tuple[Moved, list[Any]]]:
            for number in batch:
                if (moved := own.move(number)) is not None:
                    yield moved, [] if witness is None else witness.seen()

        return work

    def keep(result: tuple[Moved, list[Any]]) -> None:
        if beside.error is not None:
            raise beside.error
        moved, seen = result
        if witness is not None:
            witness.settle(seen)
        results.keep(moved)
        listeners.on_progress(moved.finished.nbytes)

    in_processes(workers, batches, prepare, keep)


@contextmanager
def _beside(run: "_Threads", workers: int) -> Iterator[None]:
    """Run `workers` threads beside the block, and wait for them after it; stop them if it raises."""
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="copy") as pool:
        futures = [pool.submit(run.work) for _ in range(workers)]
        try:
            yield
        except BaseException:
            run.stop()
            raise
    for future in futures:
        future.result()


def _in_threads(run: "_Threads", workers: int) -> None:
    """Run the workers in threads; stop all after the first error, and raise it."""
    if workers == 1:
        run.work()
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="copy") as pool:
        futures = [pool.submit(run.work) for _ in range(workers)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            run.stop()
    for future in futures:
        future.result()


def pays_processes(recipe: Recipe, source: Source, workers: int) -> bool:
    """Whether processes are faster than threads.

    They are not for remote sources, whose bytes arrive in this process, nor for little work. Daemonic processes may not
    have any.
    """
    is_large = sum(file.payload for file in recipe.files) >= _LARGE_BYTES
    return workers > 1 and source.root is not None and is_large and not multiprocessing.current_process().daemon


def files_of(recipe: Recipe) -> list[str]:
    """Names of the source files that the steps read, sorted."""
    return sorted({one.file for step in recipe.steps for one in (step.source, step.scale) if one})


class _Threads:
    """State that the threads of a run share: the batches that are left."""

    def __init__(
        self,
        mover: Callable[..., Mover],
        batches: Iterator[Sequence[int]],
        results: "_Results",
        listeners: Listeners,
    ) -> None:
        self._mover, self._batches, self._results, self._listeners = mover, batches, results, listeners
        self._lock = threading.Lock()
        self._stopped = False
        self.error: BaseException | None = None
        """The first error of a worker."""

    def stop(self) -> None:
        """Make each worker end after its current chunk."""
        self._stopped = True

    def work(self) -> None:
        """Take steps until none is left. Each worker has a buffer of its own."""
        mover = self._mover(self._listeners.on_progress, self._listeners.on_data, lambda: self._stopped)
        try:
            while batch := self._next_batch():
                for number in batch:
                    if not self._stopped and (moved := mover.move(number)) is not None:
                        self._results.keep(moved)
        except BaseException as error:
            self.error = self.error or error
            self.stop()
            raise

    def _next_batch(self) -> Sequence[int]:
        """The numbers of the next steps for one worker; empty if none are left."""
        with self._lock:
            return () if self._stopped else next(self._batches, ())


class _Results:
    """What the finished steps of a run have given so far. Any thread may add to it."""

    def __init__(self, recipe: Recipe, listeners: Listeners) -> None:
        self._recipe = recipe
        self._listeners = listeners
        self._lock = threading.Lock()
        self.is_finished = bytearray(len(recipe.steps))
        """For each step, whether an earlier run finished it."""
        self._slots_left: dict[tuple[int, str], int] = {}
        self._pieces: dict[tuple[int, str], bytearray] = {}
        self._digests: dict[tuple[int, str], str] = {}
        self._inexact: dict[str, int] = {}
        self._bytes_read = 0
        self._differing: dict[int, list[int]] = {}

    def skip(self, finished: Iterable[Finished]) -> None:
        """Keep the digests of steps that an earlier run finished."""
        for step in finished:
            self.is_finished[step.number] = True
            self._keep(step)

    def unfinished(self) -> Iterator[Step]:
        """The steps that are left, in order."""
        return (step for number, step in enumerate(self._recipe.steps) if not self.is_finished[number])

    def keep(self, moved: Moved) -> None:
        """Keep what a step gave, and record it as finished."""
        with self._lock:
            self._count(moved)
            self._keep(moved.finished)
        if self._listeners.log is not None:
            self._listeners.log.note(moved.finished)

    def keep_fixed(self, file: int, tensor: str, moved: Moved) -> None:
        """Keep what a tensor that comes from no checkpoint gave."""
        self._count(moved)
        self._gather([Piece(None, tensor, 0, 0, (file,))], moved.finished.digests)

    def result(self) -> CopyResult:
        """The result of the run. Call it after all workers have ended."""
        return CopyResult(
            {key: self._digests[key] for key in sorted(self._digests)},
            dict(sorted(self._inexact.items())),
            self._bytes_read,
            {file: sorted(offsets) for file, offsets in sorted(self._differing.items())},
        )

    def _count(self, moved: Moved) -> None:
        self._bytes_read += moved.bytes_read
        for file, offset in moved.differing:
            kept = self._differing.setdefault(file, [])
            if len(kept) < _DIFFERING_KEPT:
                kept.append(offset)

    def _keep(self, step: Finished) -> None:
        """Keep the digests and the inexact values of a finished step."""
        self._gather(pieces_of(self._recipe.steps[step.number]), step.digests)
        if step.inexact:
            self._inexact[self._recipe.steps[step.number].source.name] = step.inexact

    def _gather(self, pieces: Sequence[Piece], digests: bytes) -> None:
        """Store the digests of pieces (`DIGEST_BYTES` each, concatenated) in the slots of their tensors."""
        for index, piece in enumerate(pieces):
            digest = digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
            for file in piece.files:
                self._fill(file, piece, digest)
                start = self._recipe.offset(file, piece.tensor) + piece.at
                stop = start + self._recipe.files[file].piece_nbytes(piece.tensor, piece.slot)
                self._listeners.on_piece(file, start, stop)

    def _fill(self, file: int, piece: Piece, digest: bytes) -> None:
        """Store the digest of a piece, and that of its tensor once no other piece is missing."""
        key = (file, piece.tensor)
        runs = self._recipe.files[file].pieces.get(piece.tensor, ())
        if not runs:
            self._digests[key] = digest.hex()
            return
        slots = sum(count for count, _ in runs)
        kept = self._pieces.setdefault(key, bytearray(slots * DIGEST_BYTES))
        kept[piece.slot * DIGEST_BYTES : (piece.slot + 1) * DIGEST_BYTES] = digest
        left = self._slots_left.pop(key, slots) - 1
        if left:
            self._slots_left[key] = left
            return
        if piece.tensor in self._recipe.files[file].paired:
            _check_pairs(piece.tensor, kept)
        self._digests[key] = xxhash.xxh3_128_hexdigest(self._pieces.pop(key))


def _check_pairs(tensor: str, digests: bytes | bytearray) -> None:
    """Raise UnequalScales unless the pieces of each pair have equal digests."""
    width = 2 * DIGEST_BYTES
    pairs = (digests[start : start + width] for start in range(0, len(digests), width))
    unequal = [number for number, pair in enumerate(pairs) if pair[:DIGEST_BYTES] != pair[DIGEST_BYTES:]]
    if unequal:
        raise UnequalScales(
            f"{tensor}: the scales of gate and up differ for {len(unequal)} experts, first for expert {unequal[0]}; "
            "SGLang keeps the one that it reads last, so no files equal its load"
        )


class FileSink:
    """Writes pieces to staged files. See `Sink`. An entry of None is a file that is complete."""

    def __init__(self, files: Sequence[StagedFile | None]) -> None:
        self._files = files

    def put(self, file: int, offset: int, data: memoryview) -> None:
        """Write `data` at byte `offset` of file number `file`; skip a file that is complete. Raises WriteFailed."""
        staged = self._files[file]
        if staged is not None:
            staged.write(offset, data)
