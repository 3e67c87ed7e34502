"""No crash loses work: whichever call fails, or is the last one, the next run goes on and ends as if nothing had been.

Every system call by which a run changes the disk is counted. Run after run, another one of them fails, or is where the
process is killed, or where the power fails and what was not flushed is lost. Of neighbours of one kind, three are.
"""

import contextlib
import errno
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.small import contents, job_for, least_config, open_folder, reshard_folder, with_bf16_o_a
from support.folders import apart_from_statements

from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import ExitCode, NotAResult, OutputNotEmpty, RanksThere, ShardError
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding import journal
from dsv4_shard.sharding.job import Job, prepare
from dsv4_shard.sharding.manifest import load_manifest
from dsv4_shard.sharding.outcome import Outcome
from dsv4_shard.sharding.run import reshard
from dsv4_shard.storage import linux_io as syscalls
from dsv4_shard.storage.output_folder import MANIFEST_NAME
from dsv4_shard.verification.result_folder import verify

pytestmark = pytest.mark.slow

CHANGING = [(os, name) for name in ("open", "pwritev", "pwrite", "ftruncate", "fsync", "fdatasync", "rename", "link",
                                    "mkdir", "rmdir", "unlink")]  # fmt: skip
CHANGING += [(syscalls, "fallocate"), (syscalls, "exchange")]
READING = [(os, "preadv")]
SAVE_BYTES = 60_000
SYNC_BYTES = 120_000
STAGING = ".out.partial"
SHARE_STAGING = ".out.ranks-1.partial"
SPARE = "journal.spare"
SPARE_MANIFEST = "manifest.spare"

JobOf = tuple[Job, Checkpoint]


@pytest.fixture(scope="module")
def least(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least checkpoint, without anything to decode. Only to be read."""
    return with_bf16_o_a(write_checkpoint(tmp_path_factory.mktemp("least") / "model", least_config(), 21, 0))


@pytest.fixture(scope="module")
def job(least: Path) -> JobOf:
    """What resharding it to two ranks writes."""
    return job_for(least, 2)


@pytest.fixture(scope="module")
def expected(least: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    reshard_folder(least, out, 2)
    return contents(out)


@pytest.fixture(scope="module")
def earlier(least: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An earlier result, of other weights in files of the same names and sizes. Only to be copied."""
    folder = tmp_path_factory.mktemp("earlier")
    other = with_bf16_o_a(write_checkpoint(folder / "model", least_config(), 22, 0))
    reshard_folder(other, folder / "out", 2)
    return folder / "out"


@pytest.fixture(autouse=True)
def saved_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal is appended to several times in a run."""
    monkeypatch.setattr(journal, "SAVE_BYTES", SAVE_BYTES)
    monkeypatch.setattr(journal, "SYNC_BYTES", SYNC_BYTES)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: these runs flush thousands of times, and what that means is simulated."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="dsv4-shard-", dir="/dev/shm") as folder:
        yield Path(folder)


def run(job: JobOf, out: Path, **options: Any) -> Outcome:
    return reshard(*job, out, **({"workers": 1} | options))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- calls, counted ------------------------------------------------------------------------------------------------

Call = tuple[str, tuple[Any, ...]]


@contextmanager
def intercepted(before: Callable[[int, Call], None], calls: list[tuple[Any, str]] = CHANGING) -> Iterator[list[str]]:
    """`before` sees each of `calls` (its number from 1, name and arguments) before it is made; yields those made."""
    made: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def fake(*args: Any, **kwargs: Any) -> Any:
            before(len(made) + 1, (name, args))
            made.append(name)
            return real(*args, **kwargs)

        return fake

    with pytest.MonkeyPatch.context() as patch:
        for module, name in calls:
            patch.setattr(module, name, wrap(name, getattr(module, name)))
        yield made


def calls_of(work: Callable[[], object], calls: list[tuple[Any, str]] = CHANGING) -> list[str]:
    """The calls that `work` makes when nothing disturbs it."""
    with intercepted(lambda *_: None, calls) as made:
        work()
    return made


def telling(calls: list[str], seed: str) -> Iterator[tuple[int, str]]:
    """The calls to break off at, with their numbers: of neighbours of one kind the first, the last and one between.

    What the others leave differs in bytes alone that no journal counts on. Each `seed` tries another one between.
    """
    chance, number = random.Random(seed), 1
    for name, run_of_calls in groupby(calls):
        count = len(list(run_of_calls))
        between = [chance.randrange(1, count - 1)] if count > 2 else []
        yield from ((number + index, name) for index in sorted({0, *between, count - 1}))
        number += count


def fail_at(number: int, code: int) -> Callable[[int, Call], None]:
    """Call `number` fails, and no other."""
    done = False

    def before(now: int, _: Call) -> None:
        nonlocal done
        if now == number and not done:
            done = True
            raise OSError(code, os.strerror(code))

    return before


class Killed(BaseException):
    """Stands for SIGKILL: from here on no call changes anything."""


def kill_at(number: int) -> Callable[[int, Call], None]:
    """Call `number` is not made, nor any later one."""

    def before(now: int, _: Call) -> None:
        if now >= number:
            raise Killed

    return before


class Disk:
    """What a power failure takes: bytes that were not flushed, and of the names in folders that were not, a `share`.

    Knows how to undo each; flushing forgets what need not be undone any more.
    """

    def __init__(self, cut_at: int, share: float) -> None:
        self._cut_at, self._share = cut_at, share
        self._bytes: list[tuple[int, int, int, bytes]] = []
        self._names: list[tuple[tuple[Path, ...], Callable[[], None]]] = []

    def before(self, number: int, call: Call) -> None:
        """Take note of what call `number` would leave to be flushed; fail from `cut_at` on."""
        name, args = call
        if number >= self._cut_at:
            raise Killed
        match name:
            case "pwritev" | "pwrite":
                data = args[1][0] if name == "pwritev" else args[1]
                fd = _open(f"/proc/self/fd/{args[0]}", os.O_RDWR)
                self._bytes.append((_inode(fd), fd, args[2], os.pread(fd, len(data), args[2])))
            case "fsync" | "fdatasync":
                self._flushed(args[0])
            case "rename":
                source, target = map(Path, args)
                self._renamed(source, target)
            case "exchange":
                one, other = args
                self._names.append(((one.parent, other.parent), lambda: syscalls.exchange(one, other)))
            case "unlink" if os.path.basename(args[0]) == "journal" and os.path.exists(args[0]):
                self._unlinked(Path(args[0]))
            case "open" if args[1] & os.O_CREAT and not os.path.exists(args[0]):
                path = Path(args[0])
                self._names.append(((path.parent,), path.unlink))
            case "mkdir":
                path = Path(args[0])
                self._names.append(((path.parent,), path.rmdir))
            case "link":
                path = Path(args[1])
                self._names.append(((path.parent,), path.unlink))

    def _renamed(self, source: Path, target: Path) -> None:
        undo = [lambda: os.rename(target, source)]
        if target.is_file():
            spare = target.parent.parent / SPARE_MANIFEST
            spare.unlink(missing_ok=True)
            _link(target, spare)
            undo.append(lambda: os.rename(spare, target))
        self._names.append(((source.parent, target.parent), lambda: [one() for one in undo] and None))  # type: ignore[arg-type, no-untyped-call]

    def _unlinked(self, path: Path) -> None:
        spare = path.parent.parent / SPARE
        spare.unlink(missing_ok=True)
        _link(path, spare)
        self._names.append(((path.parent,), lambda: os.rename(spare, path)))

    def _flushed(self, fd: int) -> None:
        inode = _inode(fd)
        for _, spare, _, _ in (entry for entry in self._bytes if entry[0] == inode):
            os.close(spare)
        self._bytes = [entry for entry in self._bytes if entry[0] != inode]
        folder = Path(os.readlink(f"/proc/self/fd/{fd}"))
        self._names = [(left, undo) for folders, undo in self._names
                       if (left := tuple(f for f in folders if f != folder))]  # fmt: skip

    def lose(self) -> None:
        """Undo what was not flushed, the last first."""
        for _, fd, offset, before in reversed(self._bytes):
            os.pwrite(fd, before, offset)
            os.close(fd)
        chance = random.Random(self._cut_at)
        for _, undo in reversed(self._names):
            if chance.random() < self._share:
                with contextlib.suppress(OSError):
                    undo()


_open, _link = os.open, os.link


def _inode(fd: int) -> int:
    return os.fstat(fd).st_ino


def close_files_in(folder: Path) -> None:
    """What the system does when a process is killed: its files are closed, and with them its locks."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if link.readlink().is_relative_to(folder):
                os.close(int(link.name))


# --- the sweep -----------------------------------------------------------------------------------------------------

SCENARIOS = ("fresh", "overwrite", "overwrite without exchange", "resume", "restart")


@pytest.fixture(params=SCENARIOS)
def scenario(
    request: pytest.FixtureRequest, job: JobOf, earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], None]:
    """Prepares a folder for a run: nothing there, an earlier result, or what a killed run left."""
    if request.param == "overwrite without exchange":
        monkeypatch.setattr(syscalls, "exchange", lambda *_: fail_at(0, errno.EINVAL)(0, ("", ())))

    def prepare(folder: Path) -> None:
        folder.mkdir()
        match request.param:
            case "overwrite" | "overwrite without exchange":
                shutil.copytree(earlier, folder / "out")
            case "resume" | "restart":
                kill_midway(job, folder / "out")

    return prepare


@pytest.fixture
def options(scenario: Callable[[Path], None], request: pytest.FixtureRequest) -> dict[str, bool]:
    """Those of the runs that are broken off; the ones that follow go on."""
    return {"overwrite": True, "restart": "restart" in request.node.callspec.id}


def kill_midway(job: JobOf, out: Path) -> None:
    """Leave what a run leaves that is killed in its second save."""
    saves = 0

    def before(_: int, call: Call) -> None:
        nonlocal saves
        saves += call[0] == "pwrite"
        if saves >= 3:
            raise Killed

    interrupted(job, out, before)
    assert journal.read_journal(out.parent / STAGING / "journal") is not None


def assert_sound(folder: Path, before: dict[str, bytes], expected: dict[str, bytes], at: str) -> None:
    """What stands under the output's name is the old state or the new one; nothing else looks whole."""
    out = folder / "out"
    if out.exists():
        assert contents(out) in (before, expected), at
    else:
        aside = folder / STAGING / "replaced"
        assert not before or contents(aside) == before, at
    for manifest in folder.rglob("manifest.json"):
        if manifest.parent != out:
            assert contents(manifest.parent) in (before, expected) or not load_or_none(manifest.parent), at


def load_or_none(folder: Path) -> object:
    try:
        return load_manifest(folder) if verify(folder).ok else None
    except NotAResult:
        return None


SHARES = {"power": 0.0, "power and names": 1.0, "power and some names": 0.5}


@pytest.mark.parametrize("how", ["fails", "kill", *SHARES])
def test_whichever_call_is_the_last_the_next_run_ends_as_if_nothing_had_been(
    how: str,
    scenario: Callable[[Path], None],
    options: dict[str, bool],
    job: JobOf,
    expected: dict[str, bytes],
    scratch: Path,
    request: pytest.FixtureRequest,
) -> None:
    scenario(scratch / "counted")
    calls = calls_of(lambda: run(job, scratch / "counted/out", **options))
    assert contents(scratch / "counted/out") == expected
    for number, name in telling(calls, request.node.name):
        at = f"{how} at call {number} of {len(calls)}, {name}"
        folder = scratch / str(number)
        scenario(folder)
        before = contents(folder / "out") if (folder / "out").exists() else {}
        match how:
            case "fails":
                code = errno.ENOSPC if number % 2 else errno.EIO
                break_off(job, folder / "out", fail_at(number, code), at, options)
            case "kill":
                interrupted(job, folder / "out", kill_at(number), **options)  # type: ignore[arg-type]
            case _:
                disk = Disk(number, SHARES[how])
                interrupted(job, folder / "out", disk.before, disk.lose, **options)
        assert_sound(folder, before, expected, at)
        least, most = nbytes_saved(folder, expected)
        outcome = run(job, folder / "out", overwrite=True)
        if how in ("fails", "kill"):
            least = most  # what was written is there, flushed or not
        assert least <= outcome.bytes_resumed <= most or how == "power and some names", at
        assert contents(folder / "out") == expected, at
        assert names(folder) <= {"out", SPARE}, at
        shutil.rmtree(folder)


def nbytes_saved(folder: Path, expected: dict[str, bytes]) -> tuple[int, int]:
    """Bytes that the next run need not write again, by the journal: those on disk, and all; none where all was done."""
    is_done = (folder / "out").exists() and contents(folder / "out") == expected
    return (0, 0) if is_done else in_journal(folder / STAGING)


def in_journal(staging: Path) -> tuple[int, int]:
    """Bytes of the steps in a journal: of those that are on disk, and of all."""
    found = journal.read_journal(staging / "journal")
    if found is None:
        return 0, 0
    on_disk = sum(step.nbytes for step in found.finished)
    return on_disk, on_disk + sum(step.nbytes for step in found.unconfirmed)


# --- the sweep of a share that joins others ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> tuple[JobOf, JobOf, JobOf]:
    """Two ranks for SGLang, whose shared tensors are one file: the first one, the second one, and both."""
    folder = tmp_path_factory.mktemp("shares") / "model"
    write_checkpoint(folder, least_config(vocab_size=128), 23, 0)
    checkpoint, inventory = open_folder(with_bf16_o_a(folder))
    plan = make_plan(checkpoint, inventory, Request(tp=2, engine="sglang"))
    one, other, both = (prepare(checkpoint, inventory, plan, ranks) for ranks in ((0,), (1,), None))
    return (one, checkpoint), (other, checkpoint), (both, checkpoint)


@pytest.fixture(scope="module")
def first_share(shares: tuple[JobOf, JobOf, JobOf], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of the first share. Only to be copied."""
    out = tmp_path_factory.mktemp("share") / "out"
    run(shares[0], out)
    return out


@pytest.fixture(scope="module")
def joined(shares: tuple[JobOf, JobOf, JobOf], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of both shares, joined: those of one run of both ranks, but for the statements."""
    out = tmp_path_factory.mktemp("both") / "out"
    run(shares[2], out)
    whole = contents(out)
    run(shares[0], out.with_name("joined"))
    run(shares[1], out.with_name("joined"))
    found = contents(out.with_name("joined"))
    assert apart_from_statements(found) == apart_from_statements(whole)
    return found


@pytest.mark.parametrize("links", ["links", "no links"])
@pytest.mark.parametrize("how", ["fails", "kill", *SHARES])
def test_whichever_call_of_a_join_is_the_last_the_earlier_ranks_stand_and_the_share_goes_on(
    how: str,
    links: str,
    shares: tuple[JobOf, JobOf, JobOf],
    first_share: Path,
    joined: dict[str, bytes],
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if links == "no links":
        monkeypatch.setattr(os, "link", lambda *_: fail_at(0, errno.EPERM)(0, ("", ())))
    share, before = shares[1], contents(first_share)

    def prepare(folder: Path) -> Path:
        folder.mkdir()
        return shutil.copytree(first_share, folder / "out")

    calls = calls_of(lambda: run(share, prepare(scratch / "counted")))
    assert contents(scratch / "counted/out") == joined
    for number, name in telling(calls, request.node.name):
        at = f"{how} at call {number} of {len(calls)}, {name}"
        folder = scratch / str(number)
        out = prepare(folder)
        match how:
            case "fails":
                break_off(share, out, fail_at(number, errno.ENOSPC if number % 2 else errno.EIO), at, {})
            case "kill":
                interrupted(share, out, kill_at(number))
            case _:
                disk = Disk(number, SHARES[how])
                interrupted(share, out, disk.before, disk.lose)
        now = contents(out)
        is_done = now[MANIFEST_NAME] == joined[MANIFEST_NAME]
        assert (now == joined) if is_done else ({name: now[name] for name in before} == before), at
        assert verify(out).ok, at
        least, most = in_journal(folder / SHARE_STAGING)
        if how in ("fails", "kill"):
            least = most
        try:
            outcome = run(share, out)
        except RanksThere:
            assert is_done, at
        else:
            assert least <= outcome.bytes_resumed <= most or how == "power and some names", at
        assert contents(out) == joined, at
        assert names(folder) <= {"out", SPARE, SPARE_MANIFEST}, at
        shutil.rmtree(folder)


# --- what becomes of a result that was moved aside ------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["overwrite without exchange"], indirect=True)
def test_a_result_that_was_moved_aside_when_the_run_was_killed_is_put_back(
    scenario: Callable[[Path], None], job: JobOf, scratch: Path
) -> None:
    scenario(scratch / "work")
    out = scratch / "work/out"
    before = contents(out)

    def at_the_second_rename(_: int, call: Call) -> None:
        if not out.exists():
            raise Killed

    interrupted(job, out, at_the_second_rename, overwrite=True)
    assert not out.exists()
    with pytest.raises(OutputNotEmpty):
        run(job, out)
    assert contents(out) == before


def interrupted(
    job: JobOf,
    out: Path,
    before: Callable[[int, Call], None],
    then: Callable[[], None] = lambda: None,
    **options: bool,
) -> None:
    """A run that ends where `before` raises Killed."""
    with intercepted(before), contextlib.suppress(Killed):
        run(job, out, **options)
    then()
    close_files_in(out.parent)


def break_off(job: JobOf, out: Path, before: Callable[[int, Call], None], at: str, options: dict[str, bool]) -> None:
    """A run of which one call fails: an error that says so, or none where the call does not matter."""
    error = None
    with intercepted(before):
        try:
            run(job, out, **options)
        except ShardError as caught:
            error = caught
    if error is not None:
        assert error.exit_code is ExitCode.IO, at
        assert "No space left" in str(error) or "Input/output error" in str(error), at
