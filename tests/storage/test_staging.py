"""A result appears whole or not at all: under failing calls, kills, interrupts, and two runs at once."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.small import contents, job_for, least_config, reshard_folder, with_bf16_o_a

from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.errors import ExitCode, NotAResult, OutputBusy, OutputError, WriteFailed
from dsv4_shard.sharding.job import Job
from dsv4_shard.sharding.manifest import load_manifest
from dsv4_shard.sharding.run import reshard
from dsv4_shard.storage import linux_io as syscalls
from dsv4_shard.storage.staging import Staging
from dsv4_shard.verification.result_folder import verify

STAGING = ".out.partial"


@pytest.fixture(scope="module")
def least(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least checkpoint, without anything to decode. Only to be read."""
    return with_bf16_o_a(write_checkpoint(tmp_path_factory.mktemp("least") / "model", least_config(), 21, 0))


@pytest.fixture(scope="module")
def job(least: Path) -> tuple[Job, Checkpoint]:
    """What resharding it to two ranks writes."""
    return job_for(least, 2)


@pytest.fixture(scope="module")
def expected(least: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    reshard_folder(least, out, 2)
    return contents(out)


@pytest.fixture
def earlier(least: Path, tmp_path: Path) -> dict[str, bytes]:
    """An earlier result, of one rank, already stands at `out`."""
    reshard_folder(least, tmp_path / "out", 1)
    return contents(tmp_path / "out")


def run(job: tuple[Job, Checkpoint], out: Path, **options: Any) -> None:
    reshard(*job, out, **({"workers": 1} | options))


@contextmanager
def counted(module: Any, name: str, at: int, action: Callable[[], None]) -> Iterator[list[int]]:
    """`module.name` does `action` in place of its call number `at`; counts calls."""
    calls = [0]
    real = getattr(module, name)

    def fake(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            action()
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, fake)
        yield calls


def fail_with(number: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


def calls_of(job: tuple[Job, Checkpoint], name: str, out: Path, **options: Any) -> int:
    """How often a run that nothing disturbs calls `os.name`."""
    with counted(os, name, 0, lambda: None) as calls:
        run(job, out, **options)
    return calls[0]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- calls that fail -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_several_workers_fail_as_one_does(
    job: tuple[Job, Checkpoint], expected: dict[str, bytes], tmp_path: Path
) -> None:
    for at in range(1, 60, 4):
        with counted(os, "pwritev", at, fail_with(errno.ENOSPC)), pytest.raises(WriteFailed, match="No space left"):
            run(job, tmp_path / "out", workers=3)
        assert names(tmp_path) <= {STAGING}
        run(job, tmp_path / "out", workers=3)
        assert contents(tmp_path / "out") == expected
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("call", ["fallocate", "ftruncate"])
def test_a_disk_that_is_full_at_the_start_is_left_as_it_was(
    call: str, job: tuple[Job, Checkpoint], tmp_path: Path
) -> None:
    module = syscalls if call == "fallocate" else os
    for at in (1, 2):
        with (
            counted(module, call, at, fail_with(errno.ENOSPC)),
            pytest.raises(WriteFailed, match=r"cannot make a file of [\d,]+ bytes: No space left"),
        ):
            run(job, tmp_path / "out")
        assert names(tmp_path) == set()


def test_a_failed_write_names_file_and_offset(job: tuple[Job, Checkpoint], tmp_path: Path) -> None:
    with (
        counted(os, "pwritev", 3, fail_with(errno.ENOSPC)),
        pytest.raises(WriteFailed, match=r"model\d-mp2\.safetensors: write at byte \d+ failed: No space left"),
    ):
        run(job, tmp_path / "out")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_reserves_nothing_is_no_reason_to_stop(
    number: int,
    job: tuple[Job, Checkpoint],
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(syscalls, "fallocate", lambda *_: fail_with(number)())
    run(job, tmp_path / "out")
    assert contents(tmp_path / "out") == expected


def test_writes_that_take_little_are_continued(
    job: tuple[Job, Checkpoint], expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, *rest: real(fd, [buffers[0][:1000]], *rest))
    run(job, tmp_path / "out")
    assert contents(tmp_path / "out") == expected


def test_reads_that_give_little_are_continued(
    job: tuple[Job, Checkpoint], expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, *rest: real(fd, [buffers[0][:777]], *rest))
    run(job, tmp_path / "out")
    assert contents(tmp_path / "out") == expected


# --- interrupts ----------------------------------------------------------------------------------------------------


class Boom(Exception):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, Boom, MemoryError])
def test_an_exception_leaves_no_output_and_says_where_the_work_is(
    error: type[BaseException], job: tuple[Job, Checkpoint], expected: dict[str, bytes], tmp_path: Path
) -> None:
    put = 0

    def stop(nbytes: int) -> None:
        nonlocal put
        put += nbytes
        if put > 100_000:
            raise error

    for workers in (1, 3):
        put = 0
        with pytest.raises(error) as caught:
            run(job, tmp_path / "out", workers=workers, on_progress=stop)
        assert names(tmp_path) == {STAGING}
        assert caught.value.__notes__ == [f"Finished work is kept in {tmp_path / STAGING}: the same command resumes."]
        run(job, tmp_path / "out")
        assert contents(tmp_path / "out") == expected
        assert names(tmp_path) == {"out"}
        shutil.rmtree(tmp_path / "out")


def test_an_exception_before_anything_is_done_leaves_nothing(job: tuple[Job, Checkpoint], tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise Boom

    with pytest.raises(Boom) as caught:
        run(job, tmp_path / "out", on_progress=stop)
    assert names(tmp_path) == set()
    assert not hasattr(caught.value, "__notes__")


# --- kills ---------------------------------------------------------------------------------------------------------


def killed_at(job: tuple[Job, Checkpoint], out: Path, call: str, at: int, **options: Any) -> None:
    """Run in a process that is killed instead of its call number `at` of `os.call`."""
    pid = os.fork()
    if pid == 0:
        try:
            with counted(os, call, at, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                run(job, out, **options)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_run_that_crashed_before_its_manifest_is_no_result(job: tuple[Job, Checkpoint], tmp_path: Path) -> None:
    killed_at(job, tmp_path / "out", "fsync", 1)
    assert names(tmp_path) == {STAGING}
    with pytest.raises(NotAResult, match=r"no manifest\.json"):
        load_manifest(tmp_path / STAGING)
    assert list(tmp_path.rglob("manifest.json")) == []
    (tmp_path / STAGING).rename(tmp_path / "out")
    with pytest.raises(NotAResult):
        verify(tmp_path / "out")


def test_leftovers_of_a_killed_run_of_another_layout_are_removed(
    job: tuple[Job, Checkpoint], expected: dict[str, bytes], least: Path, tmp_path: Path
) -> None:
    killed_at(job_for(least, 1, "fp8"), tmp_path / "out", "fsync", 2)
    assert list(tmp_path.rglob("model0-mp1.safetensors")) != []
    run(job, tmp_path / "out")
    assert contents(tmp_path / "out") == expected
    assert names(tmp_path) == {"out"}


# --- two at once, and strangers ------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from dsv4_shard.storage.staging import Staging
with Staging(Path(sys.argv[1])) as staging:
    staging.begin()
    staging.write_file("half", b"written")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_two_processes_on_one_output_are_one_too_many(
    job: tuple[Job, Checkpoint], expected: dict[str, bytes], tmp_path: Path
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for overwrite in (False, True):
            with pytest.raises(
                OutputBusy, match=rf"another dsv4-shard is writing it \(process {holder.pid} on"
            ) as caught:
                run(job, tmp_path / "out", overwrite=overwrite)
            assert caught.value.exit_code is ExitCode.IO
        assert [path.read_bytes() for path in (tmp_path / STAGING).rglob("half")] == [b"written"]
        run(job, tmp_path / "beside")
        holder.kill()
    run(job, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "beside") == expected
    assert names(tmp_path) == {"out", "beside"}


def test_two_runs_in_one_process_are_one_too_many(tmp_path: Path) -> None:
    with Staging(tmp_path / "out") as first:
        first.begin()
        first.write_file("half", b"written")
        with pytest.raises(OutputBusy), Staging(tmp_path / "out"):
            pass
        assert len(list((tmp_path / STAGING).rglob("half"))) == 1
    assert names(tmp_path) == set()


def test_a_foreign_folder_under_the_stagings_name_is_refused_and_left_alone(
    job: tuple[Job, Checkpoint], tmp_path: Path
) -> None:
    (tmp_path / STAGING / "deep").mkdir(parents=True)
    (tmp_path / STAGING / "thesis.txt").write_text("years of work")
    (tmp_path / STAGING / "deep/data").write_text("more")
    for _ in range(2):
        with pytest.raises(OutputError, match="holds files that dsv4-shard did not make") as caught:
            run(job, tmp_path / "out")
        assert caught.value.exit_code is ExitCode.IO
        assert (tmp_path / STAGING / "thesis.txt").read_text() == "years of work"
        assert (tmp_path / STAGING / "deep/data").read_text() == "more"
        assert names(tmp_path) == {STAGING}


def test_a_foreign_file_under_the_stagings_name_is_refused_and_left_alone(
    job: tuple[Job, Checkpoint], tmp_path: Path
) -> None:
    (tmp_path / STAGING).write_text("years of work")
    with pytest.raises((OutputError, WriteFailed)):
        run(job, tmp_path / "out")
    assert (tmp_path / STAGING).read_text() == "years of work"
    assert names(tmp_path) == {STAGING}


def test_a_link_under_the_stagings_name_is_refused_and_not_followed(
    job: tuple[Job, Checkpoint], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / STAGING).symlink_to(tmp_path / "elsewhere")
    with pytest.raises((OutputError, WriteFailed)):
        run(job, tmp_path / "out")
    assert names(tmp_path / "elsewhere") == set()
    assert names(tmp_path) == {STAGING, "elsewhere"}


def test_no_foreign_folder_beside_the_output_is_removed(
    job: tuple[Job, Checkpoint], earlier: dict[str, bytes], expected: dict[str, bytes], tmp_path: Path
) -> None:
    for name in (".out.replaced", ".out.old", "out.partial", "out.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    try:
        run(job, tmp_path / "out", overwrite=True)
    except OutputError:
        assert contents(tmp_path / "out") == earlier
    else:
        assert contents(tmp_path / "out") == expected
    for name in (".out.replaced", ".out.old", "out.partial", "out.replaced"):
        assert (tmp_path / name / "thesis.txt").read_text() == "years of work"


def test_an_output_that_someone_fills_meanwhile_is_not_overwritten(job: tuple[Job, Checkpoint], tmp_path: Path) -> None:
    def fill(_: int) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out/thesis.txt").write_text("years of work")

    with pytest.raises(WriteFailed):
        run(job, tmp_path / "out", on_progress=fill)
    assert contents(tmp_path / "out") == {"thesis.txt": b"years of work"}
    assert names(tmp_path) == {"out", STAGING}


def test_a_lock_that_the_file_system_refuses_leaves_nothing_behind(job: tuple[Job, Checkpoint], tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with counted(fcntl, "flock", 1, fail_with(errno.ENOLCK)), pytest.raises(WriteFailed, match="No locks available"):
        run(job, tmp_path / "out")
    assert names(tmp_path) == set()
    assert len(os.listdir("/proc/self/fd")) == before


# --- the order in which things become durable ----------------------------------------------------------------------


def test_the_manifest_is_written_last_and_every_step_is_durable_before_the_next(
    job: tuple[Job, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []

    def name_of(fd: int) -> str:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path == tmp_path:
            return "parent"
        return "staging" if path.is_dir() else path.name

    def log(call: str, subject: Callable[..., str]) -> None:
        real = getattr(os, call)

        def logged(*args: Any, **kwargs: Any) -> Any:
            events.append((call, subject(*args)))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, call, logged)

    log("pwritev", lambda fd, *_: name_of(fd))
    log("fsync", name_of)
    log("rename", lambda source, target: f"{Path(source).name} {Path(target).name}")
    run(job, tmp_path / "out")
    files = {"model0-mp2.safetensors", "model1-mp2.safetensors", "plan.json", "inference_config.json",
             "tokenizer.json", "tokenizer_config.json"}  # fmt: skip
    manifest = events.index(("pwritev", "manifest.json"))
    for name in files:
        synced = events.index(("fsync", name))
        assert synced < manifest
        assert all(event != ("pwritev", name) for event in events[synced:])
    sealed = events.index(("fsync", "manifest.json"))
    assert all(call != "pwritev" for call, _ in events[sealed:])
    renamed = next(i for i, (call, name) in enumerate(events) if call == "rename" and name.endswith(" out"))
    folders = [at for at, event in enumerate(events) if event == ("fsync", "staging") and at > sealed]
    parents = [at for at, event in enumerate(events) if event == ("fsync", "parent")]
    assert sealed < folders[0] < renamed < parents[-1]
