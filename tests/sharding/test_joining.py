"""Shares of ranks that are written into one folder are, in whatever order they come, what a single run writes."""

import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.small import open_folder, reshard_folder, small_config, with_bf16_o_a
from support.folders import apart_from_statements, contents
from typer.testing import CliRunner

from dsv4_shard.catalog.rank_ranges import parse_ranks, say_ranks, span_of
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, write_checkpoint
from dsv4_shard.cli import app
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import (
    ExitCode,
    OtherDeployment,
    OutputNotEmpty,
    RanksThere,
    SharesDiffer,
    UsageError,
    WriteFailed,
)
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.joining import share_name
from dsv4_shard.sharding.manifest import load_manifest
from dsv4_shard.sharding.run import reshard
from dsv4_shard.sharding.statement import is_statement
from dsv4_shard.storage import locks
from dsv4_shard.storage import staging as commit
from dsv4_shard.verification.result_folder import verify
from dsv4_shard.version import __version__

pytestmark = pytest.mark.slow

LAYOUTS = {
    "sglang": Request(tp=8, engine="sglang"),
    "vllm": Request(tp=8, engine="vllm"),
    "reference": Request(tp=8, engine="reference"),
    "node": Request(tp=16, engine="node", nodes=4),
}
SHARES = {
    "sglang": ((0, 1), (2, 3, 4), (5, 6, 7)),
    "vllm": ((0, 2), (1, 3, 4, 5), (6, 7)),
    "reference": ((0,), (1, 2, 3, 4, 5, 6), (7,)),
    "node": ((1,), (0, 3), (2,)),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that cuts for every layout. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model", DEMO_CONFIG, 5)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller one. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("small") / "model", small_config(), 31)


@pytest.fixture(scope="module")
def wholes(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of one run of all ranks, by layout. Only to be read."""
    made: dict[str, Path] = {}

    def whole(layout: str) -> Path:
        if layout not in made:
            made[layout] = tmp_path_factory.mktemp(layout) / "whole"
            write(model, made[layout], layout)
        return made[layout]

    return whole


def write(model: Path, out: Path, layout: str, ranks: tuple[int, ...] | None = None, **options: Any) -> Any:
    checkpoint, inventory = open_folder(model)
    job = prepare(checkpoint, inventory, make_plan(checkpoint, inventory, LAYOUTS[layout]), ranks)
    return reshard(job, checkpoint, out, workers=1, **options)


def start(model: Path, out: Path, layout: str, ranks: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """The same, as a process of its own."""
    request = LAYOUTS[layout]
    options = ["--engine", layout, "--tp", str(request.tp), "--ranks", span_of(ranks)]
    options += ["--nodes", str(request.nodes)] if request.nodes else []
    return subprocess.Popen([sys.executable, "-m", "dsv4_shard", "reshard", str(model), str(out), *options])


def twins(folder: Path) -> set[frozenset[str]]:
    """Which names of a folder are one file. Statements of provenance do not count."""
    names: dict[int, set[str]] = {}
    for path in folder.rglob("*"):
        if path.is_file() and not is_statement(path.name):
            names.setdefault(path.stat().st_ino, set()).add(path.relative_to(folder).as_posix())
    return {frozenset(some) for some in names.values()}


def beside(out: Path) -> set[str]:
    return {path.name for path in out.parent.iterdir()}


# --- the promise ---------------------------------------------------------------------------------------------------


ROTATIONS = ((0, 1, 2), (1, 2, 0), (2, 0, 1))
"""Each share comes first, second and last. Where ranks share a file, all six orders are tried."""


@pytest.mark.parametrize(
    ("layout", "order"),
    [
        *(("sglang", order) for order in itertools.permutations(range(3))),
        *((layout, order) for layout in LAYOUTS if layout != "sglang" for order in ROTATIONS),
    ],
)
def test_shares_in_any_order_are_byte_by_byte_one_run_of_all_ranks(
    layout: str, order: tuple[int, ...], model: Path, wholes: Callable[[str], Path], tmp_path: Path
) -> None:
    there: set[int] = set()
    for share in (SHARES[layout][place] for place in order):
        outcome = write(model, tmp_path / "out", layout, share)
        there |= set(share)
        assert outcome.ranks == tuple(sorted(there)) == load_manifest(tmp_path / "out").ranks
        found = verify(tmp_path / "out")
        assert (found.ok, found.notes) == (True, ())
        assert beside(tmp_path / "out") == {"out"}
    assert apart_from_statements(contents(tmp_path / "out")) == apart_from_statements(contents(wholes(layout)))
    assert twins(tmp_path / "out") == twins(wholes(layout))
    assert verify(tmp_path / "out", open_folder(model)).ok


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shares_at_the_same_time_are_byte_by_byte_one_run_of_all_ranks(
    layout: str, model: Path, wholes: Callable[[str], Path], tmp_path: Path
) -> None:
    processes = [start(model, tmp_path / "out", layout, share) for share in SHARES[layout]]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert apart_from_statements(contents(tmp_path / "out")) == apart_from_statements(contents(wholes(layout)))
    assert twins(tmp_path / "out") == twins(wholes(layout))
    assert beside(tmp_path / "out") == {"out"}


@pytest.mark.parametrize("layout", ["sglang", "node"])
def test_where_there_are_no_links_shares_join_as_copies(
    layout: str, model: Path, wholes: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for share in SHARES[layout]:
        write(model, tmp_path / "out", layout, share)
    assert apart_from_statements(contents(tmp_path / "out")) == apart_from_statements(contents(wholes(layout)))
    assert all(len(names) == 1 for names in twins(tmp_path / "out"))


def test_shares_of_converted_experts_join(small: Path, tmp_path: Path) -> None:
    reshard_folder(small, tmp_path / "whole", 4, "fp8")
    for ranks in ((1, 3), (0,), (2,)):
        reshard_folder(small, tmp_path / "out", 4, "fp8", ranks=ranks)
    found, whole = contents(tmp_path / "out"), contents(tmp_path / "whole")
    assert apart_from_statements(found) == apart_from_statements(whole)


def test_a_joined_result_is_a_source_of_its_checkpoint(small: Path, tmp_path: Path) -> None:
    model = with_bf16_o_a(shutil.copytree(small, tmp_path / "model"))
    for ranks in ((2, 3), (0, 1)):
        reshard_folder(model, tmp_path / "out", 4, ranks=ranks)
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "out"), str(tmp_path / "back")])
    assert result.exit_code == 0
    assert (tmp_path / "back/model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


# --- what cannot join ----------------------------------------------------------------------------------------------


def test_ranks_that_are_there_are_refused_and_nothing_changes(small: Path, tmp_path: Path) -> None:
    reshard_folder(small, tmp_path / "out", 4, ranks=(0, 1))
    before = contents(tmp_path / "out")
    with pytest.raises(RanksThere, match=r"out: ranks 0-1 are there already") as caught:
        reshard_folder(small, tmp_path / "out", 4, ranks=(0, 1))
    assert caught.value.exit_code is ExitCode.IO
    assert "--overwrite replaces the whole folder" in str(caught.value.hint)
    with pytest.raises(RanksThere, match="rank 1 is there already"):
        reshard_folder(small, tmp_path / "out", 4, ranks=(1,))
    assert contents(tmp_path / "out") == before
    assert beside(tmp_path / "out") == {"out"}


def test_ranks_of_which_some_are_there_are_refused_with_those_that_are_missing(small: Path, tmp_path: Path) -> None:
    reshard_folder(small, tmp_path / "out", 8, ranks=(2, 3))
    with pytest.raises(OutputNotEmpty, match=r"ranks 2-3 are there already") as caught:
        reshard_folder(small, tmp_path / "out", 8, ranks=(0, 1, 2, 3, 6))
    assert not isinstance(caught.value, RanksThere)
    assert "--ranks 0-1,6" in str(caught.value.hint)


def test_all_ranks_do_not_join_some(small: Path, tmp_path: Path) -> None:
    reshard_folder(small, tmp_path / "out", 2, ranks=(0,))
    with pytest.raises(OutputNotEmpty, match="not empty"):
        reshard_folder(small, tmp_path / "out", 2)


def test_a_share_with_overwrite_replaces_the_whole_folder(small: Path, tmp_path: Path) -> None:
    reshard_folder(small, tmp_path / "out", 2, ranks=(0,))
    reshard_folder(small, tmp_path / "out", 2, ranks=(1,), overwrite=True)
    assert load_manifest(tmp_path / "out").ranks == (1,)
    assert not (tmp_path / "out/model0-mp2.safetensors").exists()


@pytest.mark.parametrize(
    ("first", "match"),
    [
        ({"tp": 4}, "it has 4 ranks, this run has 8"),
        ({"tp": 8, "expert_dtype": "fp8"}, "it follows another plan"),
        ({"tp": 8, "engine": "sglang"}, "its layout is sglang, this run's is reference"),
    ],
)
def test_a_share_of_another_deployment_is_refused_with_what_differs(
    first: dict[str, Any], match: str, small: Path, tmp_path: Path
) -> None:
    checkpoint, inventory = open_folder(small)
    plan = make_plan(checkpoint, inventory, Request(**({"engine": "reference"} | first)))
    reshard(prepare(checkpoint, inventory, plan, (0,)), checkpoint, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(OtherDeployment, match=match) as caught:
        reshard_folder(small, tmp_path / "out", 8, ranks=(1,))
    assert caught.value.exit_code is ExitCode.IO
    assert contents(tmp_path / "out") == before


def test_a_share_of_another_checkpoint_is_refused(small: Path, tmp_path: Path) -> None:
    reshard_folder(small, tmp_path / "out", 2, ranks=(0,))
    other = write_checkpoint(tmp_path / "other" / "model", small_config(rope_theta=1), 31)
    with pytest.raises(OtherDeployment, match=r"config\.json differs"):
        reshard_folder(other, tmp_path / "out", 2, ranks=(1,))


def test_a_checkpoint_under_another_name_is_refused_unless_the_shares_follow_one_plan(
    small: Path, tmp_path: Path
) -> None:
    (tmp_path / "alias").symlink_to(small)
    run = CliRunner().invoke
    options = ["--tp", "2", "--engine", "reference"]
    assert run(app, ["plan", str(small), *options, "-o", str(tmp_path / "plan.json")]).exit_code == 0
    assert run(app, ["reshard", str(small), str(tmp_path / "out"), *options, "--ranks", "0"]).exit_code == 0
    refused = run(app, ["reshard", str(tmp_path / "alias"), str(tmp_path / "out"), *options, "--ranks", "1"])
    assert refused.exit_code == ExitCode.IO
    assert "its checkpoint is called" in refused.stderr
    assert "--plan" in refused.stderr
    follow = ["--plan", str(tmp_path / "plan.json"), "--ranks", "1"]
    joined = run(app, ["reshard", str(tmp_path / "alias"), str(tmp_path / "out"), *follow])
    assert joined.exit_code == 0, joined.stderr
    reshard_folder(small, tmp_path / "whole", 2)
    found, whole = contents(tmp_path / "out"), contents(tmp_path / "whole")
    assert apart_from_statements(found) == apart_from_statements(whole)


def test_a_result_of_another_version_is_joined(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[reshard.__module__], "__version__", "0.0.9")
        reshard_folder(small, tmp_path / "out", 2, ranks=(0,))
    reshard_folder(small, tmp_path / "out", 2, ranks=(1,))
    assert load_manifest(tmp_path / "out").written_by == {"0.0.9": (0,), __version__: (1,)}
    assert verify(tmp_path / "out", open_folder(small)).ok


def test_a_folder_without_a_manifest_is_not_joined(small: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    with pytest.raises(OutputNotEmpty, match=r"dsv4-shard did not make it; not joined"):
        reshard_folder(small, tmp_path / "out", 2, ranks=(1,))


def test_a_small_file_that_changed_since_is_refused(small: Path, tmp_path: Path) -> None:
    model = shutil.copytree(small, tmp_path / "model")
    reshard_folder(model, tmp_path / "out", 2, ranks=(0,))
    before = contents(tmp_path / "out")
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(OtherDeployment, match=r"tokenizer\.json differs from what the checkpoint gives now"):
        reshard_folder(model, tmp_path / "out", 2, ranks=(1,))
    assert contents(tmp_path / "out") == before


def test_what_all_ranks_share_must_be_equal_in_all_shares(model: Path, tmp_path: Path) -> None:
    """The weights are others in the same places, which neither headers nor sizes tell."""
    other = shutil.copytree(model, tmp_path / "a" / "model")
    write(other, tmp_path / "out", "sglang", (0, 1))
    before = contents(tmp_path / "out")
    shutil.rmtree(other)
    write_checkpoint(other, DEMO_CONFIG, 6)
    with pytest.raises(SharesDiffer, match=r"differs from model-rank-0-part-1\.safetensors"):
        write(other, tmp_path / "out", "sglang", (2, 3))
    assert contents(tmp_path / "out") == before
    assert verify(tmp_path / "out").ok


def test_a_dry_run_says_what_a_run_would(small: Path, tmp_path: Path) -> None:
    reshard_folder(small, tmp_path / "out", 2, ranks=(0,))
    run = CliRunner().invoke
    common = ["reshard", str(small), str(tmp_path / "out"), "--tp", "2", "--engine", "reference", "--dry-run"]
    assert run(app, [*common, "--ranks", "1"]).exit_code == 0
    done = run(app, [*common, "--ranks", "0"])
    assert (done.exit_code, "already complete" in done.stderr) == (ExitCode.DONE, True)


def test_the_command_says_which_ranks_are_there(small: Path, tmp_path: Path) -> None:
    common = ["reshard", str(small), str(tmp_path / "out"), "--tp", "4", "--engine", "reference"]
    shown = CliRunner().invoke(app, [*common, "--ranks", "1-2"])
    assert f"ranks 1-2 into {tmp_path / 'out'}, which holds ranks 1-2 of 4" in " ".join(shown.stdout.split())
    document = json.loads(CliRunner().invoke(app, [*common, "--ranks", "0", "--json"]).stdout)
    assert (document["ranks"], document["world"]) == ([0, 1, 2], 4)
    shown = CliRunner().invoke(app, [*common, "--ranks", "3"])
    assert f"rank 3 into {tmp_path / 'out'}, which holds all 4 ranks" in " ".join(shown.stdout.split())


# --- places and locks ----------------------------------------------------------------------------------------------


def test_each_share_has_a_place_of_its_own(tmp_path: Path) -> None:
    places = []
    for ranks in (None, (0, 1), (2, 3), (0, 2)):
        with commit.Staging(tmp_path / "out", "" if ranks is None else share_name(ranks)) as staging:
            places.append(staging.path.name)
    assert places == [".out.partial", ".out.ranks-0-1.partial", ".out.ranks-2-3.partial", ".out.ranks-0,2.partial"]


def test_a_share_waits_while_another_joins(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reshard_folder(small, tmp_path / "out", 2, ranks=(0,))
    before = contents(tmp_path / "out")
    waits, real = threading.Event(), fcntl.flock

    def flock(fd: int, operation: int) -> None:
        if not operation & fcntl.LOCK_NB:
            waits.set()
        real(fd, operation)

    share = threading.Thread(target=reshard_folder, args=(small, tmp_path / "out", 2), kwargs={"ranks": (1,)})
    with locks.locked(tmp_path / ".out.lock"):
        monkeypatch.setattr(fcntl, "flock", flock)
        share.start()
        assert waits.wait()
        assert contents(tmp_path / "out") == before
    share.join()
    assert load_manifest(tmp_path / "out").ranks == (0, 1)
    assert beside(tmp_path / "out") == {"out"}


def test_a_lock_is_on_a_file_that_is_open_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over NFS a lock is one of `fcntl`, which asks for that; a folder cannot be opened so."""
    locked: list[int] = []
    monkeypatch.setattr(fcntl, "flock", lambda fd, _: locked.append(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE))
    with commit.Staging(tmp_path / "out") as staging, staging.out_locked():
        pass
    assert locked == [os.O_RDWR, os.O_RDWR]


@pytest.mark.parametrize("replaced", [True, False])
def test_a_lock_is_on_the_file_that_has_the_name(
    replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last owner removes it between open and lock; another run may have made it again by then."""
    path, real, calls = tmp_path / "lock", fcntl.flock, itertools.count()

    def flock(fd: int, operation: int) -> None:
        if next(calls) == 0:
            path.unlink()
            if replaced:
                path.touch()
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    fd = locks.acquire(path, wait=False)
    assert os.path.samestat(os.fstat(fd), path.stat())
    with pytest.raises(BlockingIOError):
        locks.acquire(path, wait=False)
    os.close(fd)


def test_an_output_that_cannot_be_locked_is_said(small: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.lock").mkdir()
    with pytest.raises(WriteFailed, match="out: cannot be locked: Is a directory"):
        reshard_folder(small, tmp_path / "out", 2, ranks=(0,))


# --- ranks as text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ranks"), [("0-7", tuple(range(8))), ("3", (3,)), ("0,2,4", (0, 2, 4)), ("8-9,1-2,2", (1, 2, 8, 9))]
)
def test_ranks_are_read(text: str, ranks: tuple[int, ...]) -> None:
    assert parse_ranks(text) == ranks
    assert parse_ranks(span_of(ranks)) == ranks


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "2-1", "1,,2", "1 2"])
def test_text_that_is_no_list_of_ranks_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a list of ranks"):
        parse_ranks(text)


@pytest.mark.parametrize("text", ["4096", "0-4096", "9" * 5000, "0-99999999999999", "0," * 5000 + "5000"])
def test_ranks_beyond_any_layout_are_refused_before_they_are_counted_out(text: str) -> None:
    with pytest.raises(UsageError, match="the last rank that there can be is 4095") as raised:
        parse_ranks(text)
    assert len(str(raised.value)) < 200


def test_ranks_are_said_as_shortly_as_they_are_read() -> None:
    assert span_of((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"
    assert [say_ranks(ranks) for ranks in ((), (3,), (3, 4))] == ["no ranks", "rank 3", "ranks 3-4"]


def test_the_name_of_a_share_is_its_own_and_never_too_long_for_a_file_system() -> None:
    names = [share_name(range(first, 4096, step)) for step in (1, 2, 3) for first in (0, 1)]
    assert len(set(names)) == 6
    assert max(map(len, names)) < 100
