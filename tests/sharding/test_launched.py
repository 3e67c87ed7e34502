"""`--ranks auto`: the processes of one launch share the ranks out among them, and their shares are one result."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints.small import contents, reshard_folder, small_config
from support.folders import apart_from_statements
from support.schemas import validator
from typer.testing import CliRunner

from dsv4_shard.catalog.rank_ranges import _LAUNCHERS, _TORCHRUN_ID, own_share, share_of
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.cli import app
from dsv4_shard.errors import ExitCode, UsageError

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
    ours = {name for one in _LAUNCHERS for name in (one.number, *one.counts)}
    return {name: text for name, text in os.environ.items() if name not in {*ours, _TORCHRUN_ID}}


def needs(program: str) -> Any:
    return pytest.param(program, marks=pytest.mark.skipif(shutil.which(program) is None, reason=f"no {program}"))


LAUNCHERS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node"],
    "mpirun.openmpi": ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-n"],
    "mpiexec.hydra": ["mpiexec.hydra", "-n"],
}


def launched(launcher: str, processes: int, *command: str) -> subprocess.CompletedProcess[str]:
    """A command as so many processes of a real launcher."""
    start = [*LAUNCHERS[launcher], str(processes), sys.executable, "-m", "dsv4_shard", *command]
    return subprocess.run(start, capture_output=True, text=True, env=launcher_free())


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", needs("mpirun.openmpi"), needs("mpiexec.hydra")])
def test_processes_of_a_launcher_write_one_result_and_a_second_launch_finds_nothing_to_do(
    launcher: str, model: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    shares = ["ranks 0-1", "ranks 2-4", "ranks 5-7"]
    launch = launched(launcher, 3, *command(model, tmp_path / "out"))
    assert launch.returncode == 0, launch.stderr
    said = " ".join(launch.stdout.split())
    assert all(f"{share} into {tmp_path / 'out'}, which holds " in said for share in shares), said
    again = launched(launcher, 3, *command(model, tmp_path / "out"))
    assert again.returncode == 0, again.stderr
    assert all(f"{share} are there already; nothing to do" in again.stderr for share in shares), again.stderr
    assert apart_from_statements(contents(tmp_path / "out")) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "out"), "--against", str(model)]).exit_code == 0


def as_process(number: int, count: int, model: Path, out: Path, *more: str) -> Any:
    environment = {"OMPI_COMM_WORLD_RANK": str(number), "OMPI_COMM_WORLD_SIZE": str(count)}
    return CliRunner().invoke(app, [*command(model, out), *more], env=environment)


def test_another_number_of_processes_writes_what_is_missing(
    model: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """First 2 of 3 processes, then 2 that divide the ranks otherwise, then 9 for 8 ranks."""
    out = tmp_path / "out"
    for number, count, said in [
        (0, 3, "ranks 0-1 into"),
        (1, 3, "ranks 2-4 into"),
        (0, 2, None),
        (1, 2, "ranks 5-7 into"),
    ]:
        done = as_process(number, count, model, out)
        assert done.exit_code == 0, done.stderr
        if said is None:
            assert done.stderr == f"{out}: ranks 0-3 are there already; nothing to do\n"
        else:
            assert f"{said} {out}, which holds " in " ".join(done.stdout.split())
    assert "which holds all 8 ranks" in " ".join(done.stdout.split())
    for number in (3, 8):
        assert as_process(number, 9, model, out).exit_code == 0
    assert apart_from_statements(contents(out)) == expected


def test_what_is_missing_is_looked_for_in_a_dry_run_too(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert as_process(0, 4, model, out).exit_code == 0
    found = json.loads(as_process(0, 2, model, out, "--dry-run", "--json").stdout)
    assert sorted(found["files"]) == ["model2-mp8.safetensors", "model3-mp8.safetensors"]


def test_json_says_which_ranks_were_written_and_that_there_was_nothing_to_do(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number, count, wrote, there in [(1, 4, [2, 3], [2, 3]), (1, 4, [], [2, 3]), (0, 2, [0, 1], [0, 1, 2, 3]),
                                        (8, 9, [], [0, 1, 2, 3])]:  # fmt: skip
        done = as_process(number, count, model, out, "--json")
        found = json.loads(done.stdout)
        validator("reshard").validate(found)
        assert (found["wrote"], found["ranks"], found["world"], done.exit_code) == (wrote, there, TP, 0)
        assert found["files"] == len(wrote)
    dry = json.loads(as_process(0, 4, model, out, "--json", "--dry-run").stdout)
    assert (dry["files"], dry["bytes"]) == ({}, 0)


def test_another_deployment_in_the_folder_is_no_reason_to_do_nothing(model: Path, tmp_path: Path) -> None:
    assert as_process(0, 2, model, tmp_path / "out").exit_code == 0
    done = as_process(0, 2, model, tmp_path / "out", "--ep", "8")
    assert done.exit_code == ExitCode.IO
    assert "of another deployment" in done.stderr


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


BY_HAND = {"RANK": "1", "WORLD_SIZE": "4"}
TORCHRUN = BY_HAND | {"TORCHELASTIC_RUN_ID": "none"}
SLURM = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "5"}


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        (BY_HAND, (1, 4)),
        (SLURM, (0, 2)),
        (OPEN_MPI, (3, 5)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_FD": "7"}, (1, 2)),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"}, (1, 2)),
        ({"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2"}, (1, 2)),
        ({"SLURM_PROCID": "1", "SLURM_NPROCS": "3"}, (1, 3)),
        # one launcher inside another
        (TORCHRUN | SLURM, (1, 4)),
        (TORCHRUN | OPEN_MPI, (1, 4)),
        (OPEN_MPI | SLURM, (3, 5)),
        (OPEN_MPI | {"SLURM_NTASKS": "16"}, (3, 5)),
        (TORCHRUN | {"SLURM_NTASKS": "16"}, (1, 4)),
        # several that say the same
        ({"RANK": "0", "WORLD_SIZE": "2"} | SLURM, (0, 2)),
        ({"WORLD_SIZE": "2"} | SLURM, (0, 2)),
        ({"PMI_RANK": "0", "PMI_SIZE": "2", "PMIX_RANK": "0"} | SLURM, (0, 2)),
    ],
)
def test_the_launcher_that_started_the_process_counts(environment: dict[str, str], share: tuple[int, int]) -> None:
    assert own_share(environment | {"HOME": "/"}) == share


@pytest.mark.parametrize(
    ("environment", "match"),
    [
        (BY_HAND | SLURM, "SLURM_PROCID is 0 and SLURM_NTASKS 2, but RANK is 1 and WORLD_SIZE 4"),
        (BY_HAND | OPEN_MPI, "OMPI_COMM_WORLD_RANK is 3 and OMPI_COMM_WORLD_SIZE 5, but RANK is 1 and WORLD_SIZE 4"),
        (OPEN_MPI | {"PMI_RANK": "3", "PMI_SIZE": "6"}, "PMI_RANK is 3 and PMI_SIZE 6, but OMPI_COMM_WORLD_RANK is 3"),
        (SLURM | {"WORLD_SIZE": "4"}, "WORLD_SIZE is 4, but SLURM_PROCID is 0 and SLURM_NTASKS 2"),
        (SLURM | {"RANK": "1"}, "RANK is 1, but SLURM_PROCID is 0 and SLURM_NTASKS 2"),
    ],
)
def test_launchers_that_contradict_each_other_are_refused(environment: dict[str, str], match: str) -> None:
    with pytest.raises(UsageError, match=match) as refused:
        own_share(environment)
    assert refused.value.hint == "Unset those that are not of this launch, or name the ranks."


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
        ({}, r"none of these is set: RANK and WORLD_SIZE \(torchrun\), OMPI_COMM_WORLD_RANK and .*_SIZE \(mpirun\), "),
        ({"RANK": "1"}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "1"}, "RANK is not set"),
        ({"PMI_RANK": "0"}, "PMI_SIZE is not set"),
        ({"SLURM_NTASKS": "1"}, "SLURM_PROCID is not set"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one', not a number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1', not a number"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "\x1b[2J"}, r"SLURM_NTASKS is '\\x1b\[2J', not a number"),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '999"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE 2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK is 0 and WORLD_SIZE 0"),
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
