"""Processes give what one worker gives; whatever becomes of one of them, none is left and the caller learns why."""

import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints.small import small_config
from support.random_work import Maker, MemorySink, Work, add_cast, random_work

import dsv4_shard
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.errors import DamagedRanks, ExitCode, InexactCast, ReadFailed, ShardError, WorkerLost
from dsv4_shard.sharding import copy as copying
from dsv4_shard.sharding.copy import Listeners, copy
from dsv4_shard.sharding.manifest import load_manifest
from dsv4_shard.sharding.mover import Mover
from dsv4_shard.sharding.worker_processes import in_processes

Work_ = Callable[[], Callable[[int], Iterator[int]]]


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run is too small for processes, nor is a batch of few bytes."""
    monkeypatch.setattr(copying, "_LARGE_BYTES", 0)
    monkeypatch.setattr(copying, "_BATCH_BYTES", 2_000)


class SharedSink(MemorySink):
    """Output files in memory that processes share."""

    def __init__(self, work: Work) -> None:
        super().__init__([len(content) for content in work.expected])
        self.files = [mmap.mmap(-1, max(1, len(content))) for content in work.expected]  # type: ignore[misc]


def run(tasks: list[int], work: Work_, count: int = 2) -> list[int]:
    found: list[int] = []
    in_processes(count, tasks, work, found.append)
    return found


def children() -> list[BaseProcess]:
    """Worker processes that have not ended."""
    return multiprocessing.active_children()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), tensors=st.integers(0, 8), workers=st.sampled_from([2, 3]))
def test_files_digests_and_counts_are_those_of_numpy_slicing(
    seed: int, tensors: int, workers: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    work = random_work(tmp_path_factory.mktemp("copy") / "source", seed, tensors)
    sink = SharedSink(work)
    put: list[int] = []
    result = copy(work.recipe, work.source, sink, workers, Listeners(put.append), processes=True)
    headers = [len(file.header) for file in work.recipe.files]
    for held, header, expected in zip(sink.files, headers, work.expected, strict=True):
        assert held[header : len(expected)] == expected[header:]
    assert (result.digests, result.bytes_read, result.inexact) == (work.digests, work.nbytes, work.inexact)
    assert sum(put) == sum(file.payload for file in work.recipe.files)


LAYOUTS: dict[str, dict[str, Any]] = {
    "sglang": {"tp": 2},
    "reference": {"engine": "reference", "tp": 4},
    "node": {"engine": "node", "tp": 2, "nodes": 2},
    "cast": {"engine": "reference", "tp": 2, "expert_dtype": "fp8"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("small") / "model", small_config(), 31)


def files(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_commands_write_verify_and_merge_the_same_as_one_worker(layout: str, model: Path, tmp_path: Path) -> None:
    for jobs in (1, 3):
        dsv4_shard.reshard(model, tmp_path / f"ranks-{jobs}", jobs=jobs, **LAYOUTS[layout])
        dsv4_shard.merge(tmp_path / "ranks-1", tmp_path / f"merged-{jobs}", jobs=jobs)
    assert files(tmp_path / "ranks-3") == files(tmp_path / "ranks-1")
    assert files(tmp_path / "merged-3") == files(tmp_path / "merged-1")
    alone, together = (dsv4_shard.verify(tmp_path / "ranks-1", against=model, jobs=jobs) for jobs in (1, 3))
    assert together == alone
    assert together.ok


def test_differing_bytes_that_processes_find_are_reported_as_those_that_one_worker_finds(
    model: Path, tmp_path: Path
) -> None:
    dsv4_shard.reshard(model, tmp_path / "ranks", tp=2)
    for entry in load_manifest(tmp_path / "ranks").files:
        flip(tmp_path / "ranks" / entry.name, *range(20_000, entry.nbytes, 50_000))
    alone, together = (dsv4_shard.verify(tmp_path / "ranks", against=model, jobs=jobs) for jobs in (1, 3))
    assert len(alone.problems) > 10
    assert together == alone


def flip(path: Path, *offsets: int) -> None:
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("at", [0.3, 0.6, 0.95])
def test_a_merge_of_a_damaged_rank_is_refused_though_no_process_reads_all_pieces_of_a_tensor(
    at: float, model: Path, tmp_path: Path
) -> None:
    dsv4_shard.reshard(model, tmp_path / "ranks", tp=2)
    entry = load_manifest(tmp_path / "ranks").files[0]
    flip(tmp_path / "ranks" / entry.name, int(entry.nbytes * at))
    with pytest.raises(ShardError):
        dsv4_shard.merge(tmp_path / "ranks", tmp_path / "merged", jobs=3)
    assert not (tmp_path / "merged").exists()


def test_a_digest_over_pieces_of_several_processes_is_held_against_the_manifest(model: Path, tmp_path: Path) -> None:
    dsv4_shard.reshard(model, tmp_path / "ranks", tp=2)
    manifest = load_manifest(tmp_path / "ranks")
    (first, *others) = manifest.files
    stacked = max(first.pieces, key=lambda name: sum(count for count, _ in first.pieces[name]))
    wrong = first.model_copy(update={"tensors": first.tensors | {stacked: "0" * 32}})
    forged = manifest.model_copy(update={"files": (wrong, *others)}).sealed()
    (tmp_path / "ranks/manifest.json").write_bytes(forged.to_bytes())
    with pytest.raises(DamagedRanks, match=stacked.replace(".", r"\.")):
        dsv4_shard.merge(tmp_path / "ranks", tmp_path / "merged", jobs=3)


# --- errors --------------------------------------------------------------------------------------------------------


def double() -> Callable[[int], Iterator[int]]:
    return lambda task: iter([2 * task])


def test_each_result_of_each_task_arrives() -> None:
    assert sorted(run(list(range(50)), double, 3)) == [2 * task for task in range(50)]
    assert run([], double) == []
    assert run([4], double, 8) == [8]
    assert not children()


def raising(error: BaseException) -> Work_:
    def work(task: int) -> Iterator[int]:
        if task == 3:
            raise error
        yield task

    return lambda: work


def test_an_error_of_users_arrives_as_it_was_raised_with_its_hint() -> None:
    with pytest.raises(ReadFailed, match="a/b: gone") as caught:
        run(list(range(9)), raising(ReadFailed("a/b: gone", hint="Look.")))
    assert caught.value.hint == "Look."
    assert not children()


def test_a_bug_arrives_with_the_traceback_of_its_process() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run(list(range(9)), raising(ZeroDivisionError("by zero")))
    assert "in work" in "".join(caught.value.__notes__)


def test_an_error_that_cannot_be_sent_is_said() -> None:
    class Local(Exception):
        pass

    with pytest.raises(RuntimeError, match="Local: odd"):
        run(list(range(9)), raising(Local("odd")))


@pytest.mark.parametrize(("number", "name"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGTERM, "SIGTERM")])
def test_a_process_that_is_killed_is_reported_with_what_to_do(number: signal.Signals, name: str) -> None:
    def work(task: int) -> Iterator[int]:
        os.kill(os.getpid(), number)
        yield task

    with pytest.raises(WorkerLost, match=f"worker process [0-9]+ was killed by {name}") as caught:
        run([1, 2, 3], lambda: work)
    assert "--jobs" in str(caught.value.hint)
    assert caught.value.exit_code is ExitCode.IO
    assert not children()


def test_a_process_that_ends_by_itself_is_reported() -> None:
    def work(task: int) -> Iterator[int]:
        os._exit(7)
        yield task

    with pytest.raises(WorkerLost, match="ended with status 7"):
        run([1], lambda: work)


def test_an_interrupt_ends_all_processes_at_once() -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    def work(task: int) -> Iterator[int]:
        yield task
        time.sleep(600)

    with pytest.raises(KeyboardInterrupt):
        in_processes(2, [1, 2, 3, 4], lambda: work, stop)
    assert not children()


def test_processes_do_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = """
import os, sys, time
from dsv4_shard.sharding.worker_processes import in_processes
def work(task):
    yield os.getpid()
    time.sleep(600)
in_processes(2, [1, 2], lambda: work, lambda pid: print(pid, flush=True))
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    while any(is_running(pid) for pid in pids):
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_ctrl_c_reaches_the_processes_and_they_leave_it_to_their_parent() -> None:
    def work(task: int) -> Iterator[int]:
        os.kill(os.getpid(), signal.SIGINT)
        yield task

    assert sorted(run([1, 2, 3], lambda: work)) == [1, 2, 3]


def test_a_cast_that_rounds_is_raised_from_a_process(tmp_path: Path) -> None:
    maker = Maker(tmp_path, np.random.default_rng(5))
    name = add_cast(maker, 90)
    work = maker.work()
    with pytest.raises(InexactCast, match=rf"^{name}: "):
        copy(work.recipe, work.source, SharedSink(work), 2, processes=True)


def test_a_run_whose_processes_are_killed_is_resumed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsv4_shard.reshard(model, tmp_path / "whole", tp=2)
    put = 0
    move = Mover.move

    def dies(mover: Any, number: int) -> Any:
        nonlocal put
        put += 1
        if put == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return move(mover, number)

    with monkeypatch.context() as patch:
        patch.setattr(Mover, "move", dies)
        patch.setattr("dsv4_shard.sharding.journal.SAVE_BYTES", 20_000)
        with pytest.raises(WorkerLost) as caught:
            dsv4_shard.reshard(model, tmp_path / "out", tp=2, jobs=2)
    assert "the same command" in "".join(caught.value.__notes__)
    outcome = dsv4_shard.reshard(model, tmp_path / "out", tp=2, jobs=2)
    assert outcome.bytes_resumed > 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_an_error_of_a_thread_that_hashes_links_ends_the_processes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, move = os.getpid(), Mover.move

    def fails_here(mover: Any, number: int) -> Any:
        if os.getpid() == parent:
            raise ReadFailed("a link: gone")
        time.sleep(0.01)
        return move(mover, number)

    monkeypatch.setattr(Mover, "move", fails_here)
    with pytest.raises(ReadFailed, match="a link: gone"):
        dsv4_shard.reshard(model, tmp_path / "out", jobs=2, **LAYOUTS["node"])
    assert not children()
    assert not (tmp_path / "out").exists()
