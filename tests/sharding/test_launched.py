"""`--ranks auto`: the processes of one launch share the ranks out among them, and their shares are one result."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints.small import contents, reshard_folder, small_config
from support.folders import apart_from_statements
from typer.testing import CliRunner

from dsv4_shard.catalog.rank_ranges import own_share, share_of
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.cli import app
from dsv4_shard.errors import ExitCode, UsageError
from dsv4_shard.sharding.manifest import load_manifest

TP = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("small") / "model", small_config(), 41)


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one run of all ranks writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    reshard_folder(model, out, TP)
    return apart_from_statements(contents(out))


def command(model: Path, out: Path | str) -> list[str]:
    return ["reshard", str(model), str(out), "--engine", "reference", "--tp", str(TP), "--ranks", "auto"]


def launcher_free() -> dict[str, str]:
    """This process's environment without what a launcher of its own may have set."""
    return {name: text for name, text in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}


def under_torchrun(model: Path, out: Path, processes: int) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--no-python"]
    return subprocess.run(
        [*torchrun, sys.executable, "-m", "dsv4_shard", *command(model, out)],
        capture_output=True, text=True, env=launcher_free(),
    )  # fmt: skip


@pytest.mark.slow
def test_processes_of_torchrun_write_one_result_and_a_second_launch_finds_nothing_to_do(
    model: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    for said in ("which holds", "there already: nothing to do"):
        launch = under_torchrun(model, tmp_path / "out", 4)
        assert launch.returncode == 0, launch.stderr
        assert said in " ".join((launch.stdout + launch.stderr).split())
        assert apart_from_statements(contents(tmp_path / "out")) == expected
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "out"), "--against", str(model)]).exit_code == 0


@pytest.mark.slow
def test_tasks_of_slurm_write_one_result(model: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "dsv4_shard", *command(model, tmp_path / "out")]
    tasks = [
        subprocess.Popen(arguments, env=launcher_free() | {"SLURM_PROCID": str(task), "SLURM_NTASKS": "3"})
        for task in range(3)
    ]
    assert [task.wait() for task in tasks] == [0, 0, 0]
    assert apart_from_statements(contents(tmp_path / "out")) == expected
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "out")]).exit_code == 0


def test_a_process_too_many_says_so_and_is_no_failure(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("WORLD_SIZE", "9")
    result = CliRunner().invoke(app, command(model, tmp_path / "out"))
    assert result.exit_code == 0
    assert result.stderr == "process 8 of 9: there are 8 ranks, nothing to do\n"
    assert list(tmp_path.iterdir()) == []


def test_torchruns_share_wins_over_slurms(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("RANK", "1"), ("WORLD_SIZE", "4"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2")):
        monkeypatch.setenv(name, text)
    assert CliRunner().invoke(app, command(model, tmp_path / "out")).exit_code == 0
    assert load_manifest(tmp_path / "out").ranks == (2, 3)


def test_shares_do_not_replace_each_other(model: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*command(model, tmp_path / "out"), "--overwrite"])
    assert result.exit_code == ExitCode.USAGE
    assert "each share would replace those of the others" in result.stderr


def test_processes_do_not_put_their_manifests_into_one_place_of_a_store() -> None:
    result = CliRunner().invoke(app, command(Path("nowhere"), "s3://bucket/shards"))
    assert result.exit_code == ExitCode.USAGE
    assert "an object store has room for one manifest" in result.stderr
    assert "--ranks 0-7" in result.stderr


@pytest.mark.parametrize(
    ("environment", "match"),
    [
        ({}, "none of RANK and WORLD_SIZE or SLURM_PROCID and SLURM_NTASKS is set"),
        ({"RANK": "1"}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, "RANK is not set"),
        ({"SLURM_NTASKS": "1"}, "SLURM_PROCID is not set"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one', not a number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1', not a number"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "\x1b[2J"}, r"SLURM_NTASKS is '\\x1b\[2J', not a number"),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '999"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, and WORLD_SIZE 2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK is 0, and WORLD_SIZE 0"),
    ],
)
def test_a_launch_that_is_not_told_or_told_wrongly_is_refused(environment: dict[str, str], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        own_share(environment)


@given(st.integers(1, 200), st.integers(1, 300))
def test_shares_are_contiguous_even_and_all_ranks_together(world: int, shares: int) -> None:
    found = [share_of(world, number, shares) for number in range(shares)]
    assert [rank for share in found for rank in share] == list(range(world))
    sizes = [len(share) for share in found[: min(world, shares)]]
    assert max(sizes) - min(sizes) <= 1
    assert all(share == () for share in found[world:])
