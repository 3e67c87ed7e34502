"""Bytes that several processes of this machine read from one place on a server: one of them fetches, all take.

Shares of one checkpoint overlap: each needs all rows of whatever is cut into columns. Processes that read the same
listing at the same time meet in a folder in TMPDIR. Each writes down there which pages it still wants. Who is first to
need a page that another one wants too fetches it, and leaves it in a sparse file until the others have taken it. Range
locks of the kernel say who fetches, so a process that is killed holds up nobody. Pages that nobody else wants go past
all this, and so does everything if the folder cannot be used.
"""

import fcntl
import mmap
import os
import shutil
import stat
import struct
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from secrets import token_hex

import numpy as np
import xxhash
from numpy.typing import NDArray

from dsv4_shard.errors import Unreachable
from dsv4_shard.sources.prefetch import BLOCK_BYTES, PAGE_BYTES, Fetch, FetchRange
from dsv4_shard.storage import punch_hole

BUDGET_BYTES = 512 << 20
"""Bytes that wait for others at which a process that is ahead waits too."""

PATIENCE_SECONDS = 10.0
"""How long it waits while nobody takes any. Then it goes on, and who comes later fetches these bytes again."""

GRACE_SECONDS = 10.0
"""How long after its start a process keeps pages for others that have not begun yet, up to half of the budget."""

_LOOK_SECONDS = 0.25
"""Between two looks at who takes part."""

_POLL_SECONDS = 0.01

_BLOCK_PAGES = BLOCK_BYTES // PAGE_BYTES

_AREAS = 16
"""Blocks that are filled at a time, of those that do not begin and end with a page."""

_WHOLE = 0.9
"""A process that wants so much of its files is not one of several shares."""

_PRESENT = 1

Counts = NDArray[np.uint8]
"""One number for each page."""


class PageLayout:
    """Where the pages of each file of a listing are in arrays over all pages."""

    def __init__(self, nbytes: Mapping[str, int]) -> None:
        """`nbytes` maps the files to their sizes."""
        self._nbytes = dict(sorted(nbytes.items()))
        self._first: dict[str, int] = {}
        self.count = 0
        for name, size in self._nbytes.items():
            self._first[name] = self.count
            self.count += -(-size // PAGE_BYTES)
        self._names = [name for name, size in self._nbytes.items() if size]
        self._starts = [self._first[name] for name in self._names]

    def pages(self, name: str, start: int, stop: int) -> slice:
        """Return the pages that bytes `[start, stop)` of a file touch."""
        first = self._first[name]
        return slice(first + start // PAGE_BYTES, first + -(-stop // PAGE_BYTES))

    def file_of(self, first: int, last: int) -> tuple[str, slice]:
        """Return the file of page number `first`, and the pages from there on that are before `last` and its own."""
        index = bisect_right(self._starts, first) - 1
        end = self._starts[index + 1] if index + 1 < len(self._starts) else self.count
        return self._names[index], slice(first, min(last, end))

    def span(self, name: str, pages: slice) -> tuple[int, int]:
        """Return the bytes of the file that pages of it cover."""
        first = self._first[name]
        return (pages.start - first) * PAGE_BYTES, min((pages.stop - first) * PAGE_BYTES, self._nbytes[name])


@dataclass(slots=True, eq=False)
class _Participant:
    """A process that takes part. `wanted` counts for each page the blocks that it still has to take."""

    path: Path
    fd: int
    wanted: Counts

    def has_ended(self) -> bool:
        """Return whether the process is gone: each holds a lock on its own file."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return True


def is_share(blocks: Iterable[FetchRange], nbytes: Mapping[str, int]) -> bool:
    """Return whether blocks leave out so much of their files, of these sizes, that others may read the rest."""
    wanted: dict[str, int] = {}
    for block in blocks:
        wanted[block.file] = wanted.get(block.file, 0) + block.nbytes
    return sum(wanted.values()) < _WHOLE * sum(nbytes[file] for file in wanted)


@contextmanager
def shared_fetch(fetch: Fetch, place: str, nbytes: Mapping[str, int], blocks: Iterable[FetchRange]) -> Iterator[Fetch]:
    """Give a function like `fetch` that shares what it fetches, until the block ends.

    Args:
        fetch: Fetches bytes from the server.
        place: Text that is the same for all processes that read the same content, and for no others.
        nbytes: Sizes of all files of the place.
        blocks: What will be fetched.
    """
    layout = PageLayout(nbytes)
    try:
        folder = _folder(place, nbytes)
        with _gathering(folder.parent):
            own = _join(folder, layout, blocks)
    except OSError:
        yield fetch
        return
    sharing = _Sharing(fetch, layout, folder, own)
    try:
        yield sharing.fetch
    finally:
        with suppress(OSError), _gathering(folder.parent):
            own.path.unlink()
        os.close(own.fd)


class _Sharing:
    """One process's part."""

    def __init__(self, fetch: Fetch, layout: PageLayout, folder: Path, own: _Participant) -> None:
        self._fetch, self._layout, self._folder, self._own = fetch, layout, folder, own
        self._data = (folder / "data").open("r+b", buffering=0)  # closed with the last thread that uses it
        with (folder / "state").open("r+b") as file:
            self._state = _mapped(file.fileno())
        self._others: list[_Participant] = []
        self._may_use_area = threading.Semaphore(_AREAS)
        self._areas: list[bytearray] = []
        self._lock = threading.Lock()
        self._began = self._taken_at = time.monotonic()
        self._next_look = self._held = 0.0
        self._is_over = False

    def fetch(self, name: str, start: int, buffer: memoryview, stopped: threading.Event) -> None:
        """Fill `buffer` as `Remote.fetch` does, from what others fetched as far as that goes."""
        pages = self._layout.pages(name, start, start + len(buffer))
        try:
            # In this order: who took the pages meanwhile has marked them as present before.
            is_shared = not self._is_over and (self._is_wanted(pages).any() or self._state[pages].any())
            if is_shared and self._has_room(pages, stopped):
                with self._locked(pages, stopped):
                    self._fill(name, start, buffer, pages, stopped)
                return
            if not self._is_over and not is_shared and self._expects_others():
                with self._locked(pages, stopped):
                    self._fetch(name, start, buffer, stopped)
                    self._leave(name, start, buffer, pages)
                return
        except OSError:  # a full disk, say
            self._is_over = True
            with suppress(OSError):
                self._own.path.unlink()  # so that nobody keeps pages for this process
        self._fetch(name, start, buffer, stopped)
        self._take(pages)

    def _is_wanted(self, pages: slice) -> NDArray[np.bool_]:
        """Return for each page whether others want it."""
        with self._lock:
            now = time.monotonic()
            if now >= self._next_look:
                self._look()
                self._next_look = now + _LOOK_SECONDS
            others = list(self._others)
        wanted = np.zeros(pages.stop - pages.start, np.bool_)
        for other in others:
            wanted |= other.wanted[pages] > 0
        return wanted

    def _expects_others(self) -> bool:
        """Return whether to keep pages although nobody wants them yet."""
        is_early = time.monotonic() - self._began < GRACE_SECONDS
        return is_early and not self._others and self._held_bytes() < BUDGET_BYTES // 2

    def _leave(self, name: str, start: int, buffer: memoryview, pages: slice) -> None:
        """Keep what came of these pages, as far as it is whole ones."""
        low, high = self._layout.span(name, pages)
        whole = slice(pages.start + (start > low), pages.stop - (start + len(buffer) < high))
        if whole.start < whole.stop:
            low, high = self._layout.span(name, whole)
            _write(self._data.fileno(), whole.start * PAGE_BYTES, buffer[low - start : high - start])
            self._state[whole] = _PRESENT
        self._take(pages)

    def _look(self) -> None:
        """Learn who has come, and who has gone."""
        known = {other.path for other in self._others}
        for path in self._folder.glob(f"{_PARTICIPANT}*"):
            if path != self._own.path and path not in known:
                with suppress(FileNotFoundError):
                    self._others.append(_participant(path))
        for other in list(self._others):
            if other.has_ended() or not other.path.exists():
                self._others.remove(other)
                os.close(other.fd)

    def _held_bytes(self) -> int:
        return os.fstat(self._data.fileno()).st_blocks * 512

    def _has_room(self, pages: slice, stopped: threading.Event) -> bool:
        """Wait until pages that are not there may be kept; return False if others take none for too long."""
        while not self._state[pages].all():
            held = self._held_bytes()
            if held < BUDGET_BYTES:
                break
            now = time.monotonic()
            with self._lock:
                if held != self._held:
                    self._held, self._taken_at = held, now
                elif now - self._taken_at >= PATIENCE_SECONDS:
                    return False
            if stopped.wait(_POLL_SECONDS):
                return False
        return True

    @contextmanager
    def _locked(self, pages: slice, stopped: threading.Event) -> Iterator[None]:
        """Hold these pages inside the block: no other thread or process fetches, takes or drops them."""
        fd = os.open(self._folder / "state", os.O_RDWR | os.O_CLOEXEC)
        try:
            while not _try_lock(fd, pages):
                if not self._work_ahead(pages, stopped) and stopped.wait(_POLL_SECONDS):
                    raise Unreachable("cancelled, because the run ended")
            yield
        finally:
            os.close(fd)

    def _work_ahead(self, pages: slice, stopped: threading.Event) -> bool:
        """Fetch later pages that others want too, while another one holds `pages`; return whether there were some.

        Otherwise, processes that read in the same order would all wait for the same blocks.
        """
        ahead = slice(pages.stop, min(pages.stop + BUDGET_BYTES // PAGE_BYTES, len(self._state)))
        if stopped.is_set() or self._held_bytes() >= BUDGET_BYTES or ahead.start >= ahead.stop:
            return False
        is_due = self._is_wanted(ahead) & (self._own.wanted[ahead] > 0) & (self._state[ahead] != _PRESENT)
        for first, last, due in _runs(is_due):
            for start in range(first, last, _BLOCK_PAGES) if due else ():
                end = ahead.start + min(last, start + _BLOCK_PAGES)
                if self._keep(*self._layout.file_of(ahead.start + start, end), stopped):
                    return True
        return False

    def _keep(self, name: str, pages: slice, stopped: threading.Event) -> bool:
        """Fetch these pages of a file for later; return False if another one holds or has fetched some of them."""
        fd = os.open(self._folder / "state", os.O_RDWR | os.O_CLOEXEC)
        try:
            if not _try_lock(fd, pages) or (self._state[pages] == _PRESENT).any() or not self._own.wanted[pages].all():
                return False
            low, high = self._layout.span(name, pages)
            with self._area(high - low) as whole:
                self._fill_pages(name, low, whole, pages, stopped)
            return True
        finally:
            os.close(fd)

    def _fill(self, name: str, start: int, buffer: memoryview, pages: slice, stopped: threading.Event) -> None:
        """Fill `buffer` with bytes of pages that this thread holds: fetch what is not there, and keep it for others."""
        low, high = self._layout.span(name, pages)
        if (low, high) == (start, start + len(buffer)):
            self._fill_pages(name, low, buffer, pages, stopped)
        else:
            with self._area(high - low) as whole:
                self._fill_pages(name, low, whole, pages, stopped)
                buffer[:] = whole[start - low : start - low + len(buffer)]
        self._take(pages)
        wanted = self._is_wanted(pages) | (self._own.wanted[pages] > 0) | self._expects_others()
        for first, last, is_kept in _runs(wanted):
            if not is_kept:
                self._state[pages.start + first : pages.start + last] = 0
                offset = (pages.start + first) * PAGE_BYTES
                punch_hole(self._data.fileno(), offset, (last - first) * PAGE_BYTES)

    @contextmanager
    def _area(self, nbytes: int) -> Iterator[memoryview]:
        """Give memory for pages of which a block wants a part. It is used again, and there is little of it."""
        with self._may_use_area:
            area = self._areas.pop() if self._areas else bytearray(BLOCK_BYTES + 2 * PAGE_BYTES)
            try:
                yield memoryview(area)[:nbytes] if nbytes <= len(area) else memoryview(bytearray(nbytes))
            finally:
                self._areas.append(area)

    def _fill_pages(self, name: str, low: int, whole: memoryview, pages: slice, stopped: threading.Event) -> None:
        """Fill `whole` with these pages, which begin at byte `low`."""
        base = pages.start * PAGE_BYTES
        for first, last, is_there in _runs(self._state[pages] == _PRESENT):
            part = whole[first * PAGE_BYTES : last * PAGE_BYTES]
            if is_there:
                _read(self._data.fileno(), base + first * PAGE_BYTES, part)
            else:
                self._fetch(name, low + first * PAGE_BYTES, part, stopped)
                _write(self._data.fileno(), base + first * PAGE_BYTES, part)
                self._state[pages.start + first : pages.start + last] = _PRESENT

    def _take(self, pages: slice) -> None:
        """Note that one block of these pages has come."""
        with self._lock:
            wanted = self._own.wanted[pages]
            wanted -= wanted > 0


_PARTICIPANT = "reads-"


def _folder(place: str, nbytes: Mapping[str, int]) -> Path:
    """Return the folder where the readers of a place meet; the one above it is there, and only this user's.

    Its name has the boot of this machine, since other machines may share TMPDIR. Raises OSError if it is not safe.
    """
    above = Path(tempfile.gettempdir(), f"dsv4-shard-{os.getuid()}")
    with suppress(FileExistsError):
        above.mkdir(mode=0o700)
    found = above.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{above}: not a folder of this user alone")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    digest = xxhash.xxh3_128(f"{boot}\0{place}\0".encode())
    for name, size in sorted(nbytes.items()):
        digest.update(f"{name}\0{size}\0".encode())
    return above / digest.hexdigest()


@contextmanager
def _gathering(above: Path) -> Iterator[None]:
    """Be the only one who comes or goes inside the block. Afterwards, folders without a reader are removed."""
    fd = os.open(above / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        _sweep(above)
        yield
        _sweep(above)
    finally:
        os.close(fd)


def _sweep(above: Path) -> None:
    for folder in above.iterdir():
        if folder.is_dir() and not folder.is_symlink() and not any(map(_is_alive, folder.glob(f"{_PARTICIPANT}*"))):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(path: Path) -> bool:
    participant = _participant(path)
    try:
        return not participant.has_ended()
    finally:
        os.close(participant.fd)


def _join(folder: Path, layout: PageLayout, blocks: Iterable[FetchRange]) -> _Participant:
    """Make the folder if it is not there, and write down what this process wants."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, nbytes in (("state", layout.count), ("data", layout.count * PAGE_BYTES)):
        with (folder / name).open("ab") as file:
            file.truncate(nbytes)
    path = folder / f"{_PARTICIPANT}{os.getpid()}-{token_hex(8)}"
    fd = os.open(folder / f"new-{path.name}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.ftruncate(fd, layout.count)
    own = _Participant(path, fd, _mapped(fd))
    for block in blocks:
        counts = own.wanted[layout.pages(block.file, block.start, block.stop)]
        counts += counts < np.iinfo(np.uint8).max
    os.rename(folder / f"new-{path.name}", path)
    return own


def _participant(path: Path) -> _Participant:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    return _Participant(path, fd, _mapped(fd))


def _mapped(fd: int) -> Counts:
    """Return the bytes of a file, shared with all processes that map it."""
    return np.frombuffer(mmap.mmap(fd, 0), np.uint8)


def _try_lock(fd: int, pages: slice) -> bool:
    """Lock pages until `fd` is closed; return False if someone else has some of them."""
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, pages.start, pages.stop - pages.start, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int, bool]]:
    """Yield (first, end, flag) for each run of equal flags."""
    edges = [0, *(np.flatnonzero(flags[1:] != flags[:-1]) + 1).tolist(), len(flags)]
    for first, last in pairwise(edges):
        yield first, last, bool(flags[first])


def _read(fd: int, offset: int, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if not count:
            raise OSError("the shared file became shorter")
        done += count


def _write(fd: int, offset: int, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        done += os.pwrite(fd, buffer[done:], offset + done)
