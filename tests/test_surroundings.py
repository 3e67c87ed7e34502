"""What surrounds a process: closed streams, a folder that is gone, paths that lead nowhere, planted links."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkpoints.small import least_config, reshard_folder

from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.errors import ExitCode, NotAResult, OutputError, ReadFailed
from dsv4_shard.limits import Limit
from dsv4_shard.planning.plan_file import load_plan
from dsv4_shard.sharding.manifest import load_manifest
from dsv4_shard.storage import output_folder, read_regular, write_text
from dsv4_shard.verification.result_folder import verify

COMMAND = f"{shlex.quote(sys.executable)} -m dsv4_shard"


@pytest.fixture(scope="module")
def least(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least checkpoint. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("least") / "model", least_config(), 4, 0, o_a="BF16")


@pytest.fixture(scope="module")
def shards(least: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its two ranks. Only to be read."""
    reshard_folder(least, tmp_path_factory.mktemp("shards") / "out", 2)
    return next(tmp_path_factory.getbasetemp().glob("shards*/out"))


def shell(line: str) -> "subprocess.CompletedProcess[str]":
    """Run a line of bash in which `$B` is the command."""
    environment = os.environ | {"B": COMMAND, "XDG_STATE_HOME": os.devnull, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_a_closed_stream_changes_neither_the_work_nor_the_exit_code(
    closed: str, least: Path, shards: Path, tmp_path: Path
) -> None:
    for line in (f"reshard {least} {tmp_path}/out --tp 2 --engine reference", f"verify {shards}", f"inspect {least}"):
        done = shell(f"$B {line} {closed}")
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), line
    assert verify(tmp_path / "out").ok
    assert shell(f"$B verify {least} {closed}").returncode == ExitCode.USAGE


@pytest.mark.slow
def test_a_current_folder_that_is_gone_is_one_line(least: Path, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    for line in ("plan --tp 2", f"reshard {least} out --tp 2 --engine reference", f"merge {shards} m", "demo"):
        (tmp_path / "gone").mkdir(exist_ok=True)
        done = shell(f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && $B {line}")
        assert done.returncode in (ExitCode.USAGE, ExitCode.IO), line
        assert done.stderr.count("error: ") == 1, done.stderr
        assert "Traceback" not in done.stderr, line


def test_a_loop_of_links_above_the_output_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match=r"a loop of links|Too many levels|no such folder"):
        output_folder.check_output(tmp_path / "loop/out", tmp_path / "model", overwrite=False)
    with pytest.raises(NotAResult, match="Too many levels of symbolic links"):
        load_manifest(tmp_path / "loop/out")


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "link to a device"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ReadFailed, match=r"manifest\.json: (a directory|a pipe, socket or device), not a file"):
        read_regular(path, Limit("", "", nbytes=100))
    with pytest.raises(NotAResult, match="not a file"):
        load_manifest(tmp_path)
    with pytest.raises(Exception, match="not a file"):
        load_plan(path)


def test_a_small_file_is_read_up_to_its_limit_and_no_further(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert read_regular(tmp_path / "file", Limit("", "", nbytes=100)) == b"x" * 100
    with pytest.raises(ReadFailed, match="100 bytes, too large: at most 99 are read"):
        read_regular(tmp_path / "file", Limit("", "", nbytes=99))


@pytest.mark.slow
def test_a_companion_of_any_size_is_hashed_in_little_memory(shards: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", shards, tmp_path / "out"], check=True)
    os.truncate(tmp_path / "out/inference_config.json", 1 << 30)
    code = (
        "import json, sys; from pathlib import Path; from dsv4_shard.sharding.manifest import Manifest; "
        "p = Path(sys.argv[1], 'manifest.json'); d = json.loads(p.read_bytes()); "
        "[c.update(nbytes=1 << 30) for c in d['companions'] if c['name'] == 'inference_config.json']; "
        "p.write_bytes(Manifest.model_validate_json(json.dumps(d)).sealed().to_bytes()); "
        "from dsv4_shard.verification.result_folder import verify; print([x.file for x in verify(p.parent).problems]); "
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, check=True)
    problems, peak = done.stdout.splitlines()
    assert problems == "['inference_config.json']"
    assert int(peak) < 512 << 10


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    """Every name that a process could be foreseen to use is a link to somebody's file."""
    (tmp_path / "victim").write_text("precious")
    for number in (os.getpid(), os.getppid(), 1):
        for name in (f".plan.json.{number}", f".plan.json.{number}.tmp", f"plan.json.{number}"):
            (tmp_path / name).unlink(missing_ok=True)
            (tmp_path / name).symlink_to(tmp_path / "victim")
    write_text(tmp_path / "plan.json", "{}")
    assert (tmp_path / "plan.json").read_text() == "{}"
    assert not (tmp_path / "plan.json").is_symlink()
    assert (tmp_path / "victim").read_text() == "precious"


def test_two_temporary_names_of_one_file_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = os.replace

    def replace(source: "os.PathLike[str]", target: "os.PathLike[str]") -> None:
        seen.append(os.fspath(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    for _ in range(2):
        write_text(tmp_path / "plan.json", "{}")
    assert len({*seen}) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
