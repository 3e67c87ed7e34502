"""The same command again on a finished result: nothing to do, exit code 0. Anything else there is still refused."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.command_line import run
from support.folders import contents
from support.schemas import validator

from dsv4_shard.checkpoint import modified_since
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, write_checkpoint
from dsv4_shard.errors import ExitCode
from dsv4_shard.opening import open_checkpoint

if TYPE_CHECKING:
    from support.servers.store import StoreServer

TP2 = ("--tp", 2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, its shards, the share of rank 0, node folders, and the merged checkpoint."""
    root = tmp_path_factory.mktemp("finished")
    write_checkpoint(root / "model", DEMO_CONFIG, seed=4)
    for command in (("reshard", root / "model", root / "shards", *TP2),
                    ("reshard", root / "model", root / "share", *TP2, "--ranks", "0"),
                    ("reshard", root / "model", root / "nodes", *TP2, "--engine", "node", "--nodes", 2),
                    ("merge", root / "shards", root / "merged")):  # fmt: skip
        made = run(*command)
        assert made.exit_code == ExitCode.DONE, made.stderr
    return root


@pytest.mark.parametrize(("command", "schema"), [
    (("reshard", "model", "shards", *TP2), "reshard"),
    (("reshard", "model", "shards", *TP2, "--ranks", "1"), "reshard"),
    (("reshard", "model", "shards", "--plan", "shards/plan.json"), "reshard"),
    (("reshard", "model", "shards", *TP2, "--restart"), "reshard"),
    (("reshard", "model", "share", *TP2, "--ranks", "0"), "reshard"),
    (("reshard", "model", "nodes", *TP2, "--engine", "node", "--nodes", 2), "reshard"),
    (("reshard", "model", "shards", *TP2, "--dry-run"), "dry-run"),
    (("merge", "shards", "merged"), "merge"),
    (("merge", "shards", "merged", "--dry-run"), "dry-run"),
])  # fmt: skip
def test_the_same_command_again_has_nothing_to_do(
    command: tuple[object, ...], schema: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)  # the plans of results name the checkpoint as the first command did
    command = tuple(finished / str(word) if str(word) in ("model", "shards", "share", "nodes", "merged") else word
                    for word in command)  # fmt: skip
    before = {name: contents(finished / name) for name in ("shards", "share", "merged")}
    said = run(*command)
    assert (said.exit_code, said.output.startswith("already complete: ")) == (ExitCode.DONE, True), said.output
    again = run(*command, "--json")
    assert again.exit_code == ExitCode.DONE
    document = json.loads(again.stdout)
    validator(schema).validate(document)
    assert document.get("wrote", []) == []
    assert {name: contents(finished / name) for name in before} == before


@pytest.mark.parametrize(("command", "said"), [
    (("reshard", "model", "shards", "--tp", 1), "it has 2 ranks, this run has 1"),
    (("reshard", "model", "shards", *TP2, "--engine", "vllm"), "its layout is sglang, this run's is vllm"),
    (("reshard", "model", "shards", *TP2, "--ep", 2), "not empty"),
    (("reshard", "model", "share", *TP2), "it holds rank 0 of 2"),
    (("reshard", "other", "shards", *TP2), "not empty: it holds another result"),
    (("merge", "share", "merged"), "missing: 1"),
    (("reshard", "model", "merged", *TP2), "its layout is native"),
])  # fmt: skip
def test_another_plan_or_checkpoint_is_refused_with_the_difference(
    command: tuple[object, ...], said: str, finished: Path
) -> None:
    if not (finished / "other").exists():
        write_checkpoint(finished / "other", DEMO_CONFIG, seed=5)
    before = contents(finished / "shards")
    words = (finished / str(word) if str(word) in ("model", "other", "shards", "share", "merged") else word
             for word in command)  # fmt: skip
    refused = run(*words)
    assert refused.exit_code in (ExitCode.IO, ExitCode.CHECKPOINT)
    assert said in refused.stderr
    assert contents(finished / "shards") == before


@pytest.mark.parametrize("damage", ["cut", "removed", "config"])
def test_a_finished_result_that_is_damaged_is_refused(damage: str, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    shutil.copytree(finished / "shards", out)
    rank_file = next(out.glob("model-rank-1-*"))
    if damage == "cut":
        rank_file.write_bytes(rank_file.read_bytes()[:-1])
    elif damage == "removed":
        rank_file.unlink()
    else:
        (out / "config.json").write_text("{}")
    refused = run("reshard", finished / "model", out, *TP2)
    assert refused.exit_code == ExitCode.IO
    assert "it holds this result, but" in refused.stderr
    assert f"`dsv4-shard verify {out}`" in refused.stderr


@pytest.mark.parametrize("command", [
    ("reshard", "model", "shards", *TP2),
    ("reshard", "model", "shards", *TP2, "--ranks", "1"),
    ("reshard", "model", "shards", *TP2, "--ranks", "auto"),
    ("reshard", "model", "shards", *TP2, "--dry-run"),
    ("merge", "shards", "merged"),
])  # fmt: skip
def test_a_checkpoint_that_was_modified_later_is_no_finished_work(
    command: tuple[object, ...], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers and sizes are equal, and bytes may not be: only the time says so."""
    shutil.copytree(finished, tmp_path / "all")
    monkeypatch.chdir(tmp_path / "all")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    for folder in ("shards", "merged"):
        shutil.rmtree(folder)
    assert run("reshard", "model", "shards", *TP2).exit_code == ExitCode.DONE
    assert run("merge", "shards", "merged").exit_code == ExitCode.DONE
    assert run(*command).exit_code == ExitCode.DONE
    source = Path(str(command[1]))
    modified = next(source.glob("model-*.safetensors"))
    later = max(Path(out, "manifest.json").stat().st_mtime_ns for out in ("shards", "merged")) + 1
    os.utime(modified, ns=(later, later))
    refused = run(*command)
    assert (refused.exit_code, refused.stdout) == (ExitCode.IO, "")
    assert f"but {command[1]} was modified later: model-" in refused.stderr
    assert f"`dsv4-shard verify {command[2]} --against {command[1]}` compares the bytes" in refused.stderr
    if "--ranks" not in command and "--dry-run" not in command:
        assert run(*command, "--overwrite").exit_code == ExitCode.DONE
        assert "already complete" in run(*command).output


def test_an_upload_of_a_checkpoint_that_was_modified_later_is_refused(
    store_server: "StoreServer", finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / "model", "model")
    command = ("reshard", "model", f"s3://{store_server.bucket}/modified", *TP2)
    assert run(*command).exit_code == ExitCode.DONE
    later = time.time_ns() + 10**10
    os.utime(next(Path("model").glob("model-*.safetensors")), ns=(later, later))
    refused = run(*command)
    assert (refused.exit_code, "but model was modified later: model-" in refused.stderr) == (ExitCode.IO, True)


def test_objects_of_a_checkpoint_have_times_and_a_commit_has_none(
    store_server: "StoreServer", finished: Path, tmp_path: Path
) -> None:
    before = time.time_ns()
    for file in (finished / "model").iterdir():
        store_server.put(f"model/{file.name}", file.read_bytes())
    checkpoint, _ = open_checkpoint(f"s3://{store_server.bucket}/model")
    names = [file.name for file in checkpoint.files]
    assert modified_since(checkpoint, before - 10**10) == sorted(names)
    assert modified_since(checkpoint, time.time_ns() + 10**10) == []
    snapshot = shutil.copytree(finished / "model", tmp_path / "snapshots" / ("a" * 40))
    assert modified_since(open_checkpoint(str(snapshot))[0], 0) == []


def test_a_finished_upload_has_nothing_to_do(
    store_server: "StoreServer", finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"s3://{store_server.bucket}/done"
    command = ("reshard", finished / "model", url, *TP2)
    first = run(*command)
    assert first.exit_code == ExitCode.DONE, first.stderr
    before = store_server.objects()
    again = run(*command)
    assert (again.exit_code, again.stdout.startswith("already complete: ")) == (ExitCode.DONE, True), again.output
    document = json.loads(run(*command, "--json").stdout)
    validator("reshard-store").validate(document)
    assert (document["sent"], document["objects"], document["was_complete"]) == (0, len(before), True)
    assert (document["ranks"], document["world"]) == ([0, 1], 2)
    assert f"already complete: {url} holds all 2 ranks of the same plan" in again.stdout
    assert "already complete" in run(*command, "--dry-run").stderr
    validator("dry-run").validate(json.loads(run(*command, "--dry-run", "--json").stdout))
    other = run("reshard", finished / "model", url, "--tp", 1)
    assert (other.exit_code, "holds a result, it has 2 ranks" in other.stderr) == (ExitCode.IO, True)
    rank_file = next(key for key in before if "model-rank-1-part-0" in key)
    store_server._backend.delete_object(store_server.bucket, rank_file)
    lost = run(*command)
    assert (lost.exit_code, "is not there" in lost.stderr) == (ExitCode.IO, True)
    assert list(tmp_path.iterdir()) == []
