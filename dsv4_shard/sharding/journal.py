"""The journal of a run: the finished steps, kept beside the output files so that a later run can resume.

The file is a sequence of entries: length (u64, little-endian), payload, xxh3-128 of the payload. The first payload
identifies the run. Each further one lists steps that were finished, or is a mark: the steps in the entries before a
certain byte are on disk. Steps without a mark after them are lost if the power fails, but not if the run is killed;
a resumed run reads their pieces again and compares the digests. A torn or damaged entry and everything after it are
ignored.

Any version of the tool can resume a run if it reads the journal's schema and makes the same recipe.
"""

import contextlib
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple

import xxhash
from pydantic import ConfigDict, ValidationError

from dsv4_shard.catalog.request import Request
from dsv4_shard.checkpoint import Origin, differences
from dsv4_shard.errors import OtherRun, ReadFailed, WriteFailed
from dsv4_shard.limits import JOURNAL, JOURNAL_ENTRY
from dsv4_shard.planning import in_one_part, request_from_1
from dsv4_shard.storage import DIGEST_BYTES, fsync_folder, open_regular
from dsv4_shard.text.document import Untrusted
from dsv4_shard.text.sanitize import short_name
from dsv4_shard.text.schema_versions import JsonObject, Steps, check_schema, upgraded
from dsv4_shard.text.strict_json import BadJson, is_plain, parse_json

SCHEMA_VERSION: Literal[4] = 4

SAVE_BYTES = 256 << 20
"""Bytes written between two saves. A kill costs no more, besides the steps that were being moved."""

SAVE_SECONDS = 5.0
"""Longest time between two saves, if steps are finished."""

SYNC_BYTES = 4 << 30
"""Bytes written between two marks: about what a power failure can cost. Each mark waits for the disk."""

SYNC_SECONDS = 10.0
"""Longest time between two marks, if steps are finished: what a lost machine can cost where bytes arrive slowly."""

_LENGTH = struct.Struct("<Q")

_STEP = struct.Struct("<IIQQ")
"""Step number, length of its digests, number of inexact values, bytes put."""

_MARK = struct.Struct("<Q")
"""Byte of the journal before which all steps are on disk. No list of steps is so short."""


class RunIdentity(Untrusted):
    """Identifies a run: its source, its options and its output. Only a run with the same identity can resume it.

    Attributes:
        schema_version: Schema of the journal.
        tool_version: The version that began the run. It may differ when a run resumes.
        origin: The checkpoint.
        request: The plan's request; None for a merge.
        ranks: The ranks that the run writes.
        times: Source file -> modification time in ns.
        files: Output file -> bytes.
        recipe_digest: xxh3-128 of the output headers, the order of the steps, and where each step puts
            which rectangle of its tensor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[4]
    tool_version: str
    origin: Origin
    request: Request | None
    ranks: tuple[int, ...]
    times: dict[str, int]
    files: dict[str, int]
    recipe_digest: str


class Finished(NamedTuple):
    """A finished step: its number, the digests of its pieces in order, its inexact values, and the bytes put."""

    number: int
    digests: bytes
    inexact: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A journal that was read.

    Attributes:
        run: The run's identity.
        finished: The finished steps that are on disk.
        stop: Byte where its sound entries end.
        schema: Its schema.
        unconfirmed: Finished steps that may have been lost with the system's memory.
    """

    run: RunIdentity
    finished: list[Finished]
    stop: int
    schema: int = SCHEMA_VERSION
    unconfirmed: list[Finished] = field(default_factory=list)


def read_journal(path: Path) -> Unfinished | None:
    """The sound entries of a journal, or None if there are none.

    Raises NewerSchema if a newer version wrote it, and OtherRun if its first entry is sound but identifies no run, or
    if it is larger than a journal that is read.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            if (nbytes := os.fstat(file.fileno()).st_size) > JOURNAL.nbytes:
                raise _too_large(path, f"{nbytes:,} bytes", f"{JOURNAL.nbytes:,}")
            entries = _entries(file)
            first = next(entries, None)
            if first is None:
                return None
            run, schema = _read_identity(first, path.parent)
            stop, on_disk = file.tell(), 0
            ends: list[tuple[int, list[Finished]]] = []
            for entry in entries:
                if len(entry) == _MARK.size:
                    on_disk = min(_MARK.unpack(entry)[0], stop)
                else:
                    known = sum(len(steps) for _, steps in ends)
                    ends.append((file.tell(), list(_steps(entry, JOURNAL.count - known, path))))
                stop = file.tell()
    except (ValidationError, BadJson):
        raise OtherRun(f"{path.parent}: holds the unfinished work of another version of dsv4-shard") from None
    except (ReadFailed, OSError, struct.error):
        return None
    if schema < _FIRST_WITH_MARKS:
        on_disk = stop
    finished = [step for end, steps in ends if end <= on_disk for step in steps]
    unconfirmed = [step for end, steps in ends if end > on_disk for step in steps]
    return Unfinished(run, finished, stop, schema, unconfirmed)


def _read_identity(entry: bytes, where: Path) -> tuple[RunIdentity, int]:
    """The identity in a journal's first entry, and its schema. Raises BadJson, ValidationError and NewerSchema."""
    document = parse_json(entry, JOURNAL_ENTRY)
    if not is_plain(document) or not isinstance(document, dict):
        raise BadJson("not the first entry of a journal")
    version = check_schema(document.get("schema_version", 1), "unfinished run", where, SCHEMA_VERSION)
    return RunIdentity.model_validate_json(json.dumps(upgraded(document, version, _STEPS)), strict=True), version


def _from_1(run: JsonObject) -> JsonObject:
    """Schema 2 added `schema_version`, stores null for a missing request, and renames options as plans do.

    Its `recipe_digest` covers more, so a comparison computes that of schema 1 again.
    """
    return run | {"schema_version": 2, "request": request_from_1(run.get("request")) or None}


def _from_2(run: JsonObject) -> JsonObject:
    """Schema 3 has marks. Before, every step was on disk before it was listed."""
    return run | {"schema_version": 3}


def _from_3(run: JsonObject) -> JsonObject:
    """Schema 4 has the size of parts in requests. Before, each file had one."""
    return run | {"schema_version": 4, "request": in_one_part(run.get("request"))}


_STEPS: Steps = {1: _from_1, 2: _from_2, 3: _from_3}

_FIRST_WITH_MARKS = 3


def refuse_other(then: RunIdentity, now: RunIdentity, where: Path) -> None:
    """Raise OtherRun, naming the first difference, if the run `now` cannot resume the run `then`."""
    for difference in _run_differences(then, now):
        raise OtherRun(f"{where}: holds the unfinished work of another run: {difference}", hint=_hint(then, now))


def _hint(then: RunIdentity, now: RunIdentity) -> str | None:
    """How to name the commit of the earlier run, if the commits differ."""
    was = then.origin.revision
    if was is None or was == now.origin.revision:
        return None
    name = short_name(then.origin.label.partition("@")[0])
    return f"To finish that run, name its commit: {name}@{short_name(was)}. Or add --restart to discard it."


def _said(value: object) -> object:
    return "not given" if value is None else value


def _run_differences(then: RunIdentity, now: RunIdentity) -> Iterator[str]:
    """Each difference that keeps the run `now` from resuming the run `then`, as a line of text."""
    before, after = (asdict(run.request) if run.request else dict[str, Any]() for run in (then, now))
    for option in after:
        if before.get(option) != after[option]:
            was, asked = (_said(request.get(option)) for request in (before, after))
            yield f"{option} was {was}, it is {asked} now"
    yield from differences(then.origin, now.origin)
    for name, written_at in now.times.items():
        if then.times.get(name) != written_at:
            yield f"{name} of the checkpoint was modified since"
    if then != now.model_copy(update={"origin": then.origin, "tool_version": then.tool_version}):
        yield "its files have another layout"


class Journal:
    """Records finished steps, saves them, and marks now and then that they are on disk.

    Use it as a context manager: an error saves what was noted.

    Args:
        path: The journal file.
        run: Identity of this run.
        stop: Byte where the sound entries of an earlier journal end. Later bytes are overwritten; 0 starts a new one.
        settle: Makes the output files durable. Called before the first mark.
        flush: Makes the bytes in them durable. Called before each mark.
        in_background: Make marks in a thread of their own, so that `note` never waits for the disk.
    """

    def __init__(
        self,
        path: Path,
        run: RunIdentity,
        stop: int,
        settle: Callable[[], None],
        flush: Callable[[], None],
        in_background: bool = False,
    ) -> None:
        self._path, self._run, self._stop = path, run, stop
        self._settle, self._flush = settle, flush
        self._noted = bytearray()
        self._noted_nbytes = self._unmarked_nbytes = 0
        self._saved_at = self._marked_at = time.monotonic()
        self._is_settled = False
        self._lock = threading.Lock()
        self._marking = threading.Lock()
        self._marker = ThreadPoolExecutor(1, thread_name_prefix="journal") if in_background else None
        self._mark_made: Future[None] | None = None

    @property
    def stop(self) -> int:
        """Byte where the entries end."""
        return self._stop

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._marker is not None:
            self._marker.shutdown()
        if error is not None:
            with contextlib.suppress(WriteFailed):
                self.save()

    def wait(self) -> None:
        """Wait for a mark that is being made: until then, no file may be added or moved. Raises WriteFailed."""
        if self._mark_made is not None:
            self._mark_made.result()

    def note(self, finished: Finished) -> None:
        """Record a finished step; save, and make a mark, when that is due. Raises WriteFailed."""
        with self._lock:
            self._noted += _STEP.pack(finished.number, len(finished.digests), finished.inexact, finished.nbytes)
            self._noted += finished.digests
            self._noted_nbytes += finished.nbytes
            self._unmarked_nbytes += finished.nbytes
            now = time.monotonic()
            if self._noted_nbytes >= SAVE_BYTES or now - self._saved_at >= SAVE_SECONDS:
                self._save()
            is_due = self._unmarked_nbytes >= SYNC_BYTES or now - self._marked_at >= SYNC_SECONDS
        if is_due and self._marking.acquire(blocking=False):
            if self._marker is None:
                self._mark()
            else:
                self.wait()
                self._mark_made = self._marker.submit(self._mark)

    def save(self) -> None:
        """Save the recorded steps. Raises WriteFailed; then the steps are not in the journal."""
        with self._lock:
            self._save()

    def mark(self) -> None:
        """Wait until all recorded steps are on disk, and save that. Raises WriteFailed."""
        self._marking.acquire()
        self._mark()

    def _mark(self) -> None:
        """Make a mark, and release `_marking`."""
        try:
            with self._lock:
                self._save()
                stop, self._unmarked_nbytes, self._marked_at = self._stop, 0, time.monotonic()
            self._flush()
            if not self._is_settled:
                self._settle()
                self._is_settled = True
            with self._lock:
                self._append(_MARK.pack(stop), is_durable=True)
            fsync_folder(self._path.parent)
        except OSError as error:
            raise WriteFailed(f"{error.filename or self._path}: {error.strerror}") from error
        finally:
            self._marking.release()

    def _save(self) -> None:
        """Append the recorded steps. The caller holds the lock."""
        noted, self._noted, self._noted_nbytes = self._noted, bytearray(), 0
        self._saved_at = time.monotonic()
        if not noted:
            return
        try:
            if self._stop == 0:
                self._append(self._run.model_dump_json().encode())
            self._append(bytes(noted))
        except OSError as error:
            raise WriteFailed(f"{error.filename or self._path}: {error.strerror}") from error

    def _append(self, payload: bytes, *, is_durable: bool = False) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            entry = memoryview(_LENGTH.pack(len(payload)) + payload + xxhash.xxh3_128_digest(payload))
            os.ftruncate(fd, self._stop)
            done = 0
            while done < len(entry):
                done += os.pwrite(fd, entry[done:], self._stop + done)
            if is_durable:
                os.fsync(fd)
            self._stop += done
        finally:
            os.close(fd)


def _too_large(path: Path, what: str, most: str) -> OtherRun:
    return OtherRun(f"{path}: {what}, too large for a journal: at most {most} are read",
                    hint="Add --restart to discard the unfinished work.")  # fmt: skip


def _entries(file: BinaryIO) -> Iterator[bytes]:
    """The payloads of the sound entries. After each one, the file position is at its end."""
    size = os.fstat(file.fileno()).st_size
    while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
        (length,) = _LENGTH.unpack(head)
        if length > size - file.tell() - DIGEST_BYTES:
            return
        payload = file.read(length)
        if xxhash.xxh3_128_digest(payload) != file.read(DIGEST_BYTES):
            return
        yield payload


def _steps(entry: bytes, most: int, path: Path) -> Iterator[Finished]:
    """The finished steps in an entry's payload.

    Raises struct.error if it ends within one, and OtherRun if there are more than `most`.
    """
    at = 0
    while at < len(entry):
        if (most := most - 1) < 0:
            raise _too_large(path, f"over {JOURNAL.count:,} steps", f"{JOURNAL.count:,}")
        number, length, inexact, nbytes = _STEP.unpack_from(entry, at)
        at += _STEP.size
        if length > len(entry) - at:
            raise struct.error(f"a step of {length} bytes of digests with only {len(entry) - at} bytes")
        yield Finished(number, entry[at : at + length], inexact, nbytes)
        at += length
