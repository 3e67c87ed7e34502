"""Ranks are claimed at the start: of runs that overlap, the second is refused before it works."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from support.checkpoints.small import small_config
from support.paths import TESTS
from typer.testing import CliRunner

from dsv4_shard.catalog.rank_ranges import parse_ranks
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.cli import app
from dsv4_shard.errors import ExitCode, OutputBusy
from dsv4_shard.sharding import claims
from dsv4_shard.sharding.claims import claimed
from dsv4_shard.storage import Staging

HOLD = """
import sys
from pathlib import Path
from dsv4_shard.catalog.rank_ranges import parse_ranks
from dsv4_shard.sharding.claims import claimed
with claimed(Path(sys.argv[1]), parse_ranks(sys.argv[2]), is_share=True):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(out: Path, ranks: str) -> subprocess.Popen[str]:
    """A process that has claimed ranks."""
    command = [sys.executable, "-c", HOLD, str(out), ranks]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("small") / "model", small_config(), 41)


@pytest.mark.parametrize(
    ("ranks", "said"),
    [("2-5", "ranks 2-3"), ("3", "rank 3"), ("0-7", "ranks 2-3"), ("1,3,5", "rank 3"), ("0-8,12-15", "ranks 2-3,12")],
)
def test_ranks_that_another_process_has_are_refused_by_name(ranks: str, said: str, tmp_path: Path) -> None:
    with holder(tmp_path / "out", "2-3,12") as process:
        with pytest.raises(OutputBusy) as refused, claimed(tmp_path / "out", parse_ranks(ranks), is_share=True):
            pass
        host = os.uname().nodename
        assert str(refused.value) == (
            f"{tmp_path / 'out'}: another dsv4-shard is writing {said} (process {process.pid} on {host})"
        )
        with claimed(tmp_path / "out", (0, 1, 4, 11, 13), is_share=True):
            pass
        with claimed(tmp_path / "other", (2, 3), is_share=True):
            pass
        process.send_signal(signal.SIGKILL)
    with claimed(tmp_path / "out", parse_ranks(ranks), is_share=True):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_whole_result_is_claimed_from_every_share_and_a_share_from_it(tmp_path: Path) -> None:
    busy, whole = pytest.raises(OutputBusy, match="writing rank 4095"), claimed(tmp_path / "out", (0,), is_share=False)
    with claimed(tmp_path / "out", (4095,), is_share=True), busy, whole:
        pass
    with claimed(tmp_path / "out", (0,), is_share=False):
        for is_share in (True, False):
            with pytest.raises(OutputBusy), claimed(tmp_path / "out", (7,), is_share=is_share):
                pass
    assert list(tmp_path.iterdir()) == []


def test_whoever_comes_and_goes_no_rank_is_claimed_twice_and_the_file_is_removed(tmp_path: Path) -> None:
    taken, lock = [0] * 8, threading.Lock()
    clashes: list[int] = []

    def come_and_go(seed: int) -> None:
        random = Random(seed)
        for _ in range(30):
            ranks = random.sample(range(8), random.randint(1, 2))
            try:
                with claimed(tmp_path / "out", ranks, is_share=True):
                    with lock:
                        for rank in ranks:
                            taken[rank] += 1
                        clashes.extend(rank for rank in ranks if taken[rank] > 1)
                    with lock:
                        for rank in ranks:
                            taken[rank] -= 1
            except OutputBusy:
                continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
    assert clashes == []
    assert list(tmp_path.iterdir()) == []


def test_where_there_are_no_such_locks_a_run_goes_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(claims, "fcntl", type("fcntl", (), vars(fcntl) | {"fcntl": staticmethod(refuse)}))
    with claimed(tmp_path / "out", (0,), is_share=True):
        pass
    with claimed(tmp_path / "nowhere" / "out", (0,), is_share=True):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_claim_needs_no_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    first, second = (claimed(tmp_path / "out", ranks, is_share=True) for ranks in ((0, 1), (1,)))
    with first, pytest.raises(OutputBusy, match=r"writing rank 1 \(unknown\)"), second:
        pass
    assert list(tmp_path.iterdir()) == []


def reshard(model: Path, out: Path, ranks: str) -> tuple[int, str]:
    command = ["reshard", str(model), str(out), "--engine", "reference", "--tp", "8", "--ranks", ranks]
    done = CliRunner().invoke(app, command)
    return done.exit_code, done.stderr


def test_the_command_refuses_at_the_start_what_overlaps_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with holder(out, "4-7") as process:
        code, said = reshard(model, out, "2-5")
        assert (code, f"another dsv4-shard is writing ranks 4-5 (process {process.pid} on " in said) == (
            ExitCode.IO,
            True,
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == [".out.claims"]
        assert reshard(model, out, "0-3")[0] == 0
        process.kill()
    assert reshard(model, out, "4-7")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_unfinished_work_that_can_no_longer_join_is_named(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert reshard(model, out, "0-3")[0] == 0
    staging = Staging(out, "2-5").path
    (staging / "result").mkdir(parents=True)
    for name in (".dsv4-shard-staging", "journal"):
        (staging / name).touch()
    code, said = reshard(model, out, "2-5")
    assert code == ExitCode.IO
    assert "ranks 2-3 are there already" in said
    assert f"{staging} holds an unfinished run of ranks 2-5: remove it" in said
