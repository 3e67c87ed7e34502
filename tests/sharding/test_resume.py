"""A run that ended early is gone on with by the same command, and by no other."""

import json
import math
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints.small import (
    contents,
    job_for,
    load_checkpoint,
    open_folder,
    reshard_folder,
    rewrite,
    small_config,
    with_bf16_o_a,
)
from support.folders import apart_from_statements
from support.paths import ROOT
from typer.testing import CliRunner

import dsv4_shard
from dsv4_shard import cli
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, write_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import ExitCode, InexactCast, NotEnoughDisk, OtherRun, SourceChanged
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding import copy as copying
from dsv4_shard.sharding import journal
from dsv4_shard.sharding import progress as reporting_progress
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.journal import read_journal
from dsv4_shard.sharding.progress import Task
from dsv4_shard.sharding.run import reshard
from dsv4_shard.terminal.progress import ProgressBars
from dsv4_shard.verification.result_folder import verify

STAGING = ".out.partial"
SAVE_BYTES = 300_000
REAL_SAVE_BYTES, REAL_SYNC_BYTES = journal.SAVE_BYTES, journal.SYNC_BYTES


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint without anything to decode. Only to be read."""
    return with_bf16_o_a(write_checkpoint(tmp_path_factory.mktemp("small") / "model", small_config(), 31))


@pytest.fixture
def model(small: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(small, tmp_path / "model")


@pytest.fixture(scope="module")
def expected(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run writes for two ranks."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    reshard_folder(small, out, 2)
    return contents(out)


@pytest.fixture(autouse=True)
def saved_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal is appended to several times in a run."""
    monkeypatch.setattr(journal, "SAVE_BYTES", SAVE_BYTES)
    monkeypatch.setattr(journal, "SYNC_BYTES", 3 * SAVE_BYTES)


def stop_after(nbytes: int) -> Callable[[int], None]:
    """A progress callback that ends the run when so many bytes were put."""
    put = 0

    def progress(more: int) -> None:
        nonlocal put
        put += more
        if put >= nbytes:
            raise Stop

    return progress


def break_off(folder: Path, out: Path, tp: int = 2, *, after: int = 2_000_000, **options: Any) -> int:
    """Leave an unfinished run; returns the bytes that its journal says are there."""
    with pytest.raises(Stop):
        reshard_folder(folder, out, tp, workers=1, on_progress=stop_after(after), **options)
    found = read_journal(out.parent / STAGING / "journal")
    assert found is not None
    return sum(step.nbytes for step in [*found.finished, *found.unconfirmed])


def assert_refused(match: str, folder: Path, out: Path, tp: int = 2, **options: Any) -> None:
    """The run is not gone on with, and what it left stays as it is; with `restart`, it makes room."""

    def look() -> dict[Path, tuple[int, int]]:
        staged = (out.parent / STAGING).rglob("*")
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in staged if "staging" not in path.name}

    before = look()
    with pytest.raises(OtherRun, match=match) as caught:
        reshard_folder(folder, out, tp, **options)
    assert caught.value.exit_code is ExitCode.IO
    assert "--restart" in str(caught.value.hint)
    assert not hasattr(caught.value, "__notes__")  # "the same command goes on" would not be so
    assert look() == before
    assert reshard_folder(folder, out, tp, restart=True, **options).bytes_resumed == 0
    assert verify(out, open_folder(folder)).ok


# --- going on ------------------------------------------------------------------------------------------------------


def test_the_same_command_goes_on_and_reads_only_what_is_missing(
    small: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    saved = break_off(small, tmp_path / "out")
    told: list[int] = []
    job, checkpoint = job_for(small, 2)
    outcome = reshard(job, checkpoint, tmp_path / "out", on_resume=told.append)
    whole = reshard_folder(small, tmp_path / "whole", 2)
    assert told == [saved] == [outcome.bytes_resumed]
    assert saved > 1_000_000
    assert 0 < outcome.bytes_read < whole.bytes_read - saved // 2  # at most two files get each byte
    assert contents(tmp_path / "out") == expected
    assert not (tmp_path / STAGING).exists()


class StopsAfter(dsv4_shard.Progress):
    """Ends the run when so many bytes were put."""

    def __init__(self, nbytes: int) -> None:
        self.stop = stop_after(nbytes)

    def advance(self, task: Task, nbytes: int) -> None:
        self.stop(nbytes)


@pytest.mark.parametrize("after", [300_000, 600_000, 1_000_000, 2_000_000])
@pytest.mark.parametrize("jobs", [1, 3])
def test_node_folders_are_resumed_after_any_of_their_links(
    jobs: int, after: int, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each linked file is hashed by one worker; some are finished."""
    monkeypatch.setattr(journal, "SAVE_BYTES", 1)
    monkeypatch.setattr(reporting_progress, "SECONDS_BETWEEN_CALLS", 0)
    layout: dict[str, Any] = {"engine": "node", "tp": 2, "nodes": 2}
    dsv4_shard.reshard(small, tmp_path / "whole", **layout)
    with pytest.raises(Stop):
        dsv4_shard.reshard(small, tmp_path / "out", jobs=1, progress=StopsAfter(after), **layout)
    assert dsv4_shard.reshard(small, tmp_path / "out", jobs=jobs, **layout).bytes_resumed > after // 2
    assert contents_of_all(tmp_path / "out") == contents_of_all(tmp_path / "whole")


def contents_of_all(folder: Path) -> dict[str, bytes]:
    """Those of files in folders too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_steps_whose_bytes_are_not_those_of_the_journal_are_done_again_and_no_later_mark_confirms_them(
    small: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a power failure: the journal lists steps whose bytes never reached the disk."""
    monkeypatch.setattr(journal, "SYNC_BYTES", 1 << 40)
    monkeypatch.setattr(journal, "SYNC_SECONDS", math.inf)
    saved = break_off(small, tmp_path / "out")
    for file in (tmp_path / STAGING / "result").glob("*.safetensors"):
        with file.open("r+b") as staged:
            staged.seek(file.stat().st_size // 3)
            staged.write(bytes(file.stat().st_size // 3))
    monkeypatch.setattr(journal, "SYNC_BYTES", 1)
    again = break_off(small, tmp_path / "out", after=200_000)
    found = read_journal(tmp_path / STAGING / "journal")
    assert found is not None
    assert found.finished, "marks were made"
    assert again < saved + 200_000, "what was lost is listed no more"
    assert reshard_folder(small, tmp_path / "out", 2).bytes_resumed == again
    assert contents(tmp_path / "out") == expected


def test_a_slow_run_is_marked_by_time_so_that_a_lost_machine_costs_little(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SYNC_BYTES", 1 << 40)
    monkeypatch.setattr(journal, "SYNC_SECONDS", 0)
    break_off(small, tmp_path / "out")
    found = read_journal(tmp_path / STAGING / "journal")
    assert found is not None
    assert found.finished, "marks were made"


def test_a_run_that_begins_anew_says_nothing_of_going_on(small: Path, tmp_path: Path) -> None:
    told: list[int] = []
    outcome = reshard_folder(small, tmp_path / "out", 2, on_resume=told.append)
    assert (told, outcome.bytes_resumed) == ([], 0)


def test_a_run_may_end_early_many_times(small: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    before = 0
    for _ in range(4):
        saved = break_off(small, tmp_path / "out", after=700_000)
        assert saved > before
        before = saved
    assert reshard_folder(small, tmp_path / "out", 2).bytes_resumed == before
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("engine", ["sglang", "node"])
def test_a_run_with_links_is_gone_on_with(engine: str, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", DEMO_CONFIG, 5)
    checkpoint, inventory = open_folder(model)
    request = Request(tp=16, engine=engine, nodes=2)
    job = prepare(checkpoint, inventory, make_plan(checkpoint, inventory, request))
    before = {path: path.read_bytes() for path in model.iterdir()}
    reshard(job, checkpoint, tmp_path / "whole")
    with pytest.raises(Stop):
        reshard(job, checkpoint, tmp_path / "out", on_progress=stop_after(12_000_000))
    outcome = reshard(job, checkpoint, tmp_path / "out")
    assert outcome.bytes_resumed > 1_000_000
    for path in (tmp_path / "whole").rglob("*.*"):
        twin = tmp_path / "out" / path.relative_to(tmp_path / "whole")
        assert twin.read_bytes() == path.read_bytes()
        assert (twin.stat().st_nlink > 1) == (path.stat().st_nlink > 1)
    assert {path: path.read_bytes() for path in model.iterdir()} == before


def test_a_cast_that_was_refused_goes_on_when_rounding_is_allowed(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", small_config(), 32)
    tensors = load_checkpoint(model)
    name = "layers.1.ffn.experts.7.w2"
    scale = tensors[f"{name}.scale"].view(torch.uint8)
    scale[0, 0] = int(scale.max()) + 30
    rewrite(model, tensors)
    with pytest.raises(InexactCast):
        reshard_folder(model, tmp_path / "out", 2, "fp8", workers=1)
    outcome = reshard_folder(model, tmp_path / "out", 2, "fp8", workers=1, allow_inexact=True)
    assert outcome.bytes_resumed > 0
    assert list(outcome.inexact) == [f"{name}.weight"]


def test_inexact_values_of_the_earlier_run_are_counted_too(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", small_config(), 32)
    tensors = load_checkpoint(model)
    for expert in range(8):
        scale = tensors[f"layers.0.ffn.experts.{expert}.w1.scale"].view(torch.uint8)
        scale[0, 0] = int(scale.max()) + 30
    rewrite(model, tensors)
    whole = reshard_folder(model, tmp_path / "whole", 2, "fp8", allow_inexact=True)
    break_off(model, tmp_path / "out", after=3_000_000, expert_dtype="fp8", allow_inexact=True)
    outcome = reshard_folder(model, tmp_path / "out", 2, "fp8", allow_inexact=True)
    assert outcome.bytes_resumed > 0
    assert outcome.inexact == whole.inexact


def test_a_file_that_was_linked_in_place_of_a_staged_one_is_never_written_to(
    small: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    break_off(small, tmp_path / "out")
    staged = tmp_path / STAGING / "result/model0-mp2.safetensors"
    precious = tmp_path / "precious"
    precious.write_bytes(bytes(staged.stat().st_size))
    staged.unlink()
    os.link(precious, staged)
    assert reshard_folder(small, tmp_path / "out", 2).bytes_resumed == 0
    assert not any(precious.read_bytes())
    assert contents(tmp_path / "out") == expected


# --- what is trusted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 7, 8, 100, 10_000])
def test_a_journal_that_was_cut_short_counts_as_far_as_it_is_whole(
    cut: int, small: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    saved = break_off(small, tmp_path / "out")
    path = tmp_path / STAGING / "journal"
    os.truncate(path, max(0, path.stat().st_size - cut))
    assert reshard_folder(small, tmp_path / "out", 2).bytes_resumed < saved
    assert contents(tmp_path / "out") == expected


@pytest.mark.slow
def test_whichever_byte_of_a_journal_is_damaged_the_result_is_right(
    small: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    saved = break_off(small, tmp_path / "out")
    shutil.move(tmp_path / STAGING, tmp_path / "spare")
    sound = (tmp_path / "spare/journal").read_bytes()
    for at in range(0, len(sound), len(sound) // 20):
        shutil.copytree(tmp_path / "spare", tmp_path / STAGING)
        damaged = bytearray(sound)
        damaged[at] ^= 0x40
        (tmp_path / STAGING / "journal").write_bytes(damaged)
        assert reshard_folder(small, tmp_path / "out", 2).bytes_resumed < saved
        assert contents(tmp_path / "out") == expected
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("harm", ["gone", "shorter", "longer", "a link", "a folder"])
def test_staged_files_that_are_not_as_they_were_left_are_written_anew(
    harm: str, small: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    break_off(small, tmp_path / "out")
    staged = tmp_path / STAGING / "result/model1-mp2.safetensors"
    match harm:
        case "shorter" | "longer":
            os.truncate(staged, staged.stat().st_size + (1 if harm == "longer" else -1))
        case _:
            staged.rename(tmp_path / "elsewhere")
    if harm == "a link":
        staged.symlink_to(tmp_path / "elsewhere")
    if harm == "a folder":
        staged.mkdir()
    assert reshard_folder(small, tmp_path / "out", 2).bytes_resumed == 0
    assert contents(tmp_path / "out") == expected


def test_what_the_killed_run_left_counts_as_room(
    small: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(small, tmp_path / "out")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(NotEnoughDisk):
        reshard_folder(small, tmp_path / "elsewhere", 2)
    assert reshard_folder(small, tmp_path / "out", 2).bytes_resumed > 0
    assert contents(tmp_path / "out") == expected


def test_what_a_killed_run_left_counts_as_room_in_a_dry_run_too(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(small, tmp_path / "out")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    for out, code in (("out", ExitCode.DONE), ("elsewhere", ExitCode.IO)):
        arguments = ["reshard", str(small), str(tmp_path / out), "--tp", "2", "--engine", "reference", "--dry-run"]
        assert CliRunner().invoke(cli.app, arguments).exit_code == code


# --- another run ---------------------------------------------------------------------------------------------------


def test_another_layout_is_refused(model: Path, tmp_path: Path) -> None:
    break_off(model, tmp_path / "out")
    assert_refused("tp was 2, it is 4 now", model, tmp_path / "out", 4)


def test_another_dtype_is_refused(model: Path, tmp_path: Path) -> None:
    break_off(model, tmp_path / "out")
    assert_refused("expert_dtype was not given, it is fp8 now", model, tmp_path / "out", expert_dtype="fp8")


def test_other_ranks_have_a_place_of_their_own(small: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        reshard_folder(small, tmp_path / "out", 4, ranks=(0, 1), workers=1, on_progress=stop_after(1_500_000))
    assert reshard_folder(small, tmp_path / "out", 4, ranks=(2, 3)).bytes_resumed == 0
    assert reshard_folder(small, tmp_path / "out", 4, ranks=(0, 1)).bytes_resumed > 0
    reshard_folder(small, tmp_path / "whole", 4)
    found, whole = contents(tmp_path / "out"), contents(tmp_path / "whole")
    assert apart_from_statements(found) == apart_from_statements(whole)


def test_what_another_version_left_is_continued(
    small: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[reshard.__module__], "__version__", "0.0.9")
        saved = break_off(small, tmp_path / "out")
    assert reshard_folder(small, tmp_path / "out", 2).bytes_resumed == saved > 0
    assert contents(tmp_path / "out") == expected


def test_a_version_that_keeps_its_journal_in_another_way_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(journal.RunIdentity, "model_dump_json", lambda _: '{"tool_version": "9.0.0", "new": "field"}')
        with pytest.raises(Stop):
            reshard_folder(model, tmp_path / "out", 2, workers=1, on_progress=stop_after(2_000_000))
    assert_refused("unfinished work of another version of dsv4-shard", model, tmp_path / "out")


def test_weights_that_were_written_to_since_are_refused(model: Path, tmp_path: Path) -> None:
    break_off(model, tmp_path / "out")
    file = model / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert_refused(r"model\.safetensors of the checkpoint was modified since", model, tmp_path / "out")


def test_another_config_is_refused(model: Path, tmp_path: Path) -> None:
    break_off(model, tmp_path / "out")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rope_theta": 1}))
    assert_refused(r"config\.json differs", model, tmp_path / "out")


def test_a_checkpoint_with_another_header_is_refused(model: Path, tmp_path: Path) -> None:
    break_off(model, tmp_path / "out")
    tensors = load_checkpoint(model)
    tensors["mtp.0.head.weight"] = tensors["embed.weight"].clone()
    rewrite(model, tensors)
    assert_refused(r"model\.safetensors: \d+ bytes then, \d+ now", model, tmp_path / "out")


def test_the_same_checkpoint_under_another_name_is_gone_on_with(model: Path, tmp_path: Path) -> None:
    saved = break_off(model, tmp_path / "out")
    (tmp_path / "other").symlink_to(model)
    assert reshard_folder(tmp_path / "other", tmp_path / "out", 2).bytes_resumed == saved


def test_weights_that_change_between_header_and_first_byte_are_refused(model: Path, tmp_path: Path) -> None:
    job, checkpoint = job_for(model, 2)
    os.utime(model / "model.safetensors", ns=(1, 1))
    with pytest.raises(SourceChanged, match=r"model\.safetensors: modified since its header was read"):
        reshard(job, checkpoint, tmp_path / "out")
    assert not (tmp_path / STAGING).exists()


def test_what_the_page_shows_of_a_run_that_ends_early_is_what_is_printed(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    readme = (ROOT / "docs/how-to/resume.md").read_text()
    block = readme.split("```text\n$ dsv4-shard reshard")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    command = ["dsv4-shard", "reshard", str(small), "shards", "--tp", "2", "--engine", "reference"]
    put = 0

    def interrupt(_: ProgressBars, task: Task, nbytes: int) -> None:
        nonlocal put
        put += nbytes
        if put > 2_000_000:
            put = -(1 << 60)
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBars, "advance", interrupt)
        patch.setattr(reporting_progress, "SECONDS_BETWEEN_CALLS", 0)
        assert run_cli(command) == ExitCode.INTERRUPTED
    assert run_cli(command) == 0
    printed = without_numbers(capfd.readouterr().err).splitlines()
    shown = [line for line in block.replace("^C", "").splitlines()[1:] if not line.startswith("$")]
    assert len(shown) == 3
    for line in shown:
        assert without_numbers(line.replace("/data", str(tmp_path))) in printed


def test_the_page_says_what_a_kill_and_a_power_failure_can_cost() -> None:
    readme = " ".join((ROOT / "docs/how-to/resume.md").read_text().split())
    assert f"every {REAL_SAVE_BYTES >> 20} MiB, and at least every {journal.SAVE_SECONDS:g} seconds" in readme
    seconds = f"{journal.SYNC_SECONDS:g} seconds"
    assert f"marks that every {REAL_SYNC_BYTES >> 30} GiB, and at least every {seconds}" in readme


def without_numbers(text: str) -> str:
    return re.sub(r"\d[\d,]*(?:\.\d+)?(?: [kMG]?B)?", "N", text)


# --- killed, again and again ---------------------------------------------------------------------------------------

KILLS = 50
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # fifty processes, each as long as the machine takes
@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_a_process_that_is_killed_fifty_times_loses_nothing(
    workers: str,
    small: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copying, "_LARGE_BYTES", 0 if workers == "processes" else 1 << 40)
    monkeypatch.setattr(copying, "_BATCH_BYTES", 20_000)
    chance = random.Random(7)
    command = ["dsv4-shard", "reshard", str(small), str(tmp_path / "out"), "--tp", "2", "--engine", "reference"]
    command += ["--jobs", "2"]
    started = time.monotonic()
    assert run_cli(command) == 0
    longest = time.monotonic() - started
    shutil.rmtree(tmp_path / "out")
    kills = finished = resumed = 0
    while kills < KILLS:
        code = run_cli(command, chance.choice(SIGNALS), longest * chance.uniform(0.2, 1.2))
        assert code in (0, ExitCode.INTERRUPTED, 128 + signal.SIGTERM, -signal.SIGKILL)
        kills += code != 0
        resumed += "Resuming:" in capfd.readouterr().err
        if (tmp_path / "out").exists():
            assert contents(tmp_path / "out") == expected
            assert verify(tmp_path / "out", open_folder(small)).ok
            finished += 1
            shutil.rmtree(tmp_path / "out")
    assert run_cli(command) == 0
    assert contents(tmp_path / "out") == expected
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert finished > 0
    assert resumed > 0


def run_cli(command: list[str], number: signal.Signals | None = None, after: float = 0) -> int:
    """The exit code of the command line in a process of its own, which gets a signal after so many seconds in it."""
    begun, begins = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.argv = command
            cli.allow_open_files = lambda: os.write(begins, b"!")  # type: ignore[assignment, attr-defined]  # what main does once signals are handled
            cli.main()
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.read(begun, 1)
    os.close(begun)
    os.close(begins)
    if number is not None:
        time.sleep(after)
        os.kill(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
