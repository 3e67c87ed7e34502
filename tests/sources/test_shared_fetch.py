"""What several readers want is fetched once, whatever their order, and no reader depends on another one's health."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv4_shard.errors import Unreachable
from dsv4_shard.sources import shared_fetch as sharing
from dsv4_shard.sources.prefetch import BLOCK_BYTES, PAGE_BYTES, Fetch, FetchRange
from dsv4_shard.sources.shared_fetch import is_share, shared_fetch

FILES = {"a": 40 * PAGE_BYTES + 17, "b": 25 * PAGE_BYTES}
NEVER = threading.Event()


def content(name: str, start: int, stop: int) -> bytes:
    """Bytes of a file, in which no two pages are alike."""
    numbers = range(start // 8, -(-stop // 8))
    whole = b"".join((number * 2 + (name == "b")).to_bytes(8, "little") for number in numbers)
    return whole[start % 8 : start % 8 + stop - start]


class Server:
    """Gives the bytes of the files, and notes which."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.given: list[tuple[str, int, int]] = []
        self._before = before

    def fetch(self, name: str, start: int, buffer: memoryview, stopped: threading.Event) -> None:
        self._before()
        buffer[:] = content(name, start, start + len(buffer))
        self.given.append((name, start, start + len(buffer)))

    @property
    def nbytes(self) -> int:
        return sum(stop - start for _, start, stop in self.given)


def block(name: str, start: int, stop: int) -> FetchRange:
    return FetchRange(name, start, stop, stop - start)


def pages(name: str, first: int, last: int) -> FetchRange:
    return block(name, first * PAGE_BYTES, min(last * PAGE_BYTES, FILES[name]))


@pytest.fixture(autouse=True)
def above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which this user's processes meet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sharing, "_LOOK_SECONDS", 0.0)
    return tmp_path / f"dsv4-shard-{os.getuid()}"


@contextmanager
def readers(server: Server, *wanted: list[FetchRange]) -> Iterator[list[Fetch]]:
    """The fetching functions of readers that are all there from the beginning."""
    with ExitStack() as stack:
        yield [stack.enter_context(shared_fetch(server.fetch, "place", FILES, own)) for own in wanted]


def take(fetch: Fetch, blocks: list[FetchRange]) -> None:
    """Fetch blocks as a read-ahead does, and check them."""
    for one in blocks:
        buffer = bytearray(one.nbytes)
        fetch(one.file, one.start, memoryview(buffer), NEVER)
        assert bytes(buffer) == content(one.file, one.start, one.stop)


def test_readers_of_the_same_blocks_fetch_each_byte_once(above: Path) -> None:
    server = Server(lambda: time.sleep(0.002))
    wanted = [pages("a", first, first + 4) for first in range(0, 40, 4)] + [pages("a", 40, 41)]
    with readers(server, wanted, wanted, wanted) as fetches, ThreadPoolExecutor(6) as pool:
        halves = [(fetch, wanted[half::2]) for half in (0, 1) for fetch in fetches]
        list(pool.map(lambda pair: take(*pair), halves))
    assert server.nbytes == FILES["a"]
    assert [path.name for path in above.iterdir()] == ["lock"], "nothing is left behind"


def test_what_nobody_else_wants_is_fetched_as_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "GRACE_SECONDS", 0.0)
    server = Server()
    first, second = [block("a", 10, 100_000)], [pages("b", 3, 9)]
    with readers(server, first, second) as (one, two):
        take(one, first)
        take(two, second)
    assert server.given == [("a", 10, 100_000), ("b", 3 * PAGE_BYTES, 9 * PAGE_BYTES)]


def test_pages_that_are_wanted_in_part_come_whole_and_once() -> None:
    server = Server()
    first, second = [block("a", 100, 2 * PAGE_BYTES + 100)], [block("a", 2 * PAGE_BYTES + 100, 4 * PAGE_BYTES)]
    with readers(server, first, second) as (one, two):
        take(one, first)
        take(two, second)
    assert server.nbytes == 4 * PAGE_BYTES


BLOCKS = st.builds(
    lambda name, start, nbytes: block(name, start % FILES[name], min(start % FILES[name] + nbytes, FILES[name])),
    st.sampled_from(sorted(FILES)),
    st.integers(0, max(FILES.values())),
    st.integers(1, 9 * PAGE_BYTES),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), BLOCKS), min_size=1, max_size=25))
def test_any_blocks_in_any_order_are_right_and_no_page_comes_twice(order: list[tuple[int, FetchRange]]) -> None:
    server = Server()
    wanted = [[one for reader, one in order if reader == number] for number in range(3)]
    with readers(server, *wanted) as fetches:
        for reader, one in order:
            take(fetches[reader], [one])
    came = [
        (name, page)
        for name, start, stop in server.given
        for page in range(start // PAGE_BYTES, -(-stop // PAGE_BYTES))
    ]
    shared = {
        (one.file, page)
        for number, own in enumerate(wanted)
        for one in own
        for page in range(one.start // PAGE_BYTES, -(-one.stop // PAGE_BYTES))
        for other in wanted[:number] + wanted[number + 1 :]
        if any(two.file == one.file and two.start < (page + 1) * PAGE_BYTES and two.stop > page * PAGE_BYTES
               for two in other)
    }  # fmt: skip
    assert all(came.count(page) == 1 for page in shared)


def test_who_begins_a_little_later_finds_what_was_fetched() -> None:
    server = Server()
    wanted = [pages("a", 0, 8)]
    with readers(server, wanted) as (one,):
        take(one, wanted)
        with readers(server, wanted) as (two,):
            take(two, wanted)
    assert server.nbytes == 8 * PAGE_BYTES


def test_who_is_alone_fetches_no_more_than_is_asked_for() -> None:
    server = Server()
    wanted = [block("a", 100, 5 * PAGE_BYTES - 100)]
    with readers(server, wanted) as (one,):
        take(one, wanted)
    assert server.given == [("a", 100, 5 * PAGE_BYTES - 100)]


def test_an_error_of_one_reader_leaves_the_pages_to_the_others() -> None:
    failing = [True]

    def fail() -> None:
        if failing.pop():
            raise Unreachable("broken")

    server = Server(fail)
    wanted = [pages("a", 0, 8)]
    with readers(server, wanted, wanted) as (one, two):
        with pytest.raises(Unreachable, match="broken"):
            take(one, wanted)
        failing.append(False)
        take(two, wanted)


def test_a_reader_that_takes_nothing_holds_others_up_but_once(above: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "BUDGET_BYTES", 8 * PAGE_BYTES)
    monkeypatch.setattr(sharing, "PATIENCE_SECONDS", 0.5)
    server = Server()
    wanted = [pages("a", first, first + 2) for first in range(0, 40, 2)]
    began = time.monotonic()
    with readers(server, wanted, wanted) as (one, two):
        take(one, wanted)
        assert 0.5 <= time.monotonic() - began < 3
        (data,) = above.glob("*/data")
        assert data.stat().st_blocks * 512 <= 10 * PAGE_BYTES
        take(two, wanted)


def test_the_faster_reader_waits_for_the_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "BUDGET_BYTES", 4 * PAGE_BYTES)
    server = Server()
    wanted = [pages("a", first, first + 2) for first in range(0, 40, 2)]

    def slowly(fetch: Fetch) -> None:
        for one in wanted:
            time.sleep(0.02)
            take(fetch, [one])

    with readers(server, wanted, wanted) as (one, two), ThreadPoolExecutor(2) as pool:
        slow, fast = pool.submit(slowly, one), pool.submit(take, two, wanted)
        slow.result()
        fast.result()
    assert server.nbytes == 40 * PAGE_BYTES


def test_readers_of_the_same_order_fetch_different_blocks_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With four threads each, more than four blocks are on their way."""
    monkeypatch.setattr(sharing, "_BLOCK_PAGES", 2)
    at_once, most, lock = 0, 0, threading.Lock()

    def slow() -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.1)
        with lock:
            at_once -= 1

    server = Server(slow)
    wanted = [pages("a", first, first + 2) for first in range(0, 40, 2)]
    with readers(server, wanted, wanted) as fetches, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda job: take(fetches[job[0]], [job[1]]), [(n, one) for one in wanted for n in (0, 1)]))
    assert most > 4
    assert server.nbytes == 40 * PAGE_BYTES


CHILD = """
import sys, threading, time
from dsv4_shard.sources.prefetch import FetchRange
from dsv4_shard.sources.shared_fetch import shared_fetch
import tempfile
tempfile.tempdir = sys.argv[1]
def fetch(name, start, buffer, stopped):
    print("fetching", flush=True)
    time.sleep(60)
files = {files!r}
with shared_fetch(fetch, "place", files, [FetchRange("a", 0, files["a"], files["a"])]) as shared:
    shared("a", 0, memoryview(bytearray({nbytes})), threading.Event())
"""


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is fetching the first pages of `a`, for ever."""
    code = CHILD.format(files=FILES, nbytes=8 * PAGE_BYTES)
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_reader_that_is_killed_is_replaced(stuck: "subprocess.Popen[bytes]", above: Path) -> None:
    server = Server()
    wanted = [pages("a", 0, 8)]
    with readers(server, wanted) as (one,), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(take, one, wanted)
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        stuck.send_signal(signal.SIGKILL)
        waiting.result(5)
    assert server.nbytes == 8 * PAGE_BYTES
    assert [path.name for path in above.iterdir()] == ["lock"]


def test_who_waits_for_another_ends_with_its_run(stuck: "subprocess.Popen[bytes]") -> None:
    server, stopped = Server(), threading.Event()
    with readers(server, [pages("a", 0, 8)]) as (one,), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(one, "a", 0, memoryview(bytearray(PAGE_BYTES)), stopped)
        stopped.set()
        with pytest.raises(Unreachable, match="the run ended"):
            waiting.result(5)


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o500])
def test_a_folder_that_others_may_use_or_that_is_not_writable_is_not_used(mode: int, above: Path) -> None:
    above.mkdir()
    above.chmod(mode)
    if mode == 0o500 and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    server = Server()
    wanted = [pages("a", 0, 8)]
    with readers(server, wanted, wanted) as (one, two):
        take(one, wanted)
        take(two, wanted)
    assert server.nbytes == 2 * 8 * PAGE_BYTES
    assert list(above.iterdir()) == []


def test_a_link_in_place_of_the_folder_is_not_followed(above: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    above.symlink_to(tmp_path / "elsewhere")
    with readers(Server(), [pages("a", 0, 8)]) as (one,):
        take(one, [pages("a", 0, 8)])
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_full_disk_costs_nothing_but_the_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharing, "_write", full)
    server = Server()
    wanted = [pages("a", 0, 8), pages("a", 8, 12)]
    with readers(server, wanted, wanted) as (one, two):
        take(one, wanted)
        take(two, wanted)


def test_other_content_is_another_place(above: Path) -> None:
    server = Server()
    wanted = [pages("a", 0, 8)]
    with (
        shared_fetch(server.fetch, "place", FILES, wanted) as one,
        shared_fetch(server.fetch, "another commit", FILES, wanted) as two,
    ):
        take(one, wanted)
        take(two, wanted)
    assert server.nbytes == 2 * 8 * PAGE_BYTES


def test_what_a_dead_machine_left_is_removed(above: Path) -> None:
    above.mkdir(mode=0o700)
    (above / "0123").mkdir()
    (above / "0123" / "data").write_bytes(b"x")
    (above / "0123" / "reads-1-2").write_bytes(b"x")
    with readers(Server(), [pages("a", 0, 8)]):
        assert not (above / "0123").exists()


def test_a_run_on_whole_files_is_no_share() -> None:
    nbytes = {"a": 10 * BLOCK_BYTES, "b": BLOCK_BYTES}
    assert not is_share([block("a", 0, 10 * BLOCK_BYTES)], nbytes), "b is not read at all"
    assert not is_share([], nbytes)
    assert is_share([block("a", 0, 6 * BLOCK_BYTES)], nbytes)
