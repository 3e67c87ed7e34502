"""The Hub as users name it and find it: moved branches, beginnings of commits, caches with damage, missing files."""

import json
import logging
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download
from support.checkpoints.small import small_config
from support.command_line import run
from support.servers.hub import HubServer

from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.errors import ExitCode, UsageError
from dsv4_shard.sharding.claims import claimed
from dsv4_shard.sources import retry as persistence
from dsv4_shard.sources.hub_names import hub_id

REPO = "org/name"
TP2 = ("--tp", 2)
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of five files. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("hub") / "model", small_config(), seed=5)


PAGE = "https://huggingface.co/org/name"
COMMIT = "0123456789" * 4


@pytest.mark.parametrize(("name", "revision"), [
    ("org/name", None),
    ("org/name/", None),
    ("org/name@v1/", "v1"),
    ("org/name@refs/pr/3", "refs/pr/3"),
    ("org/name@refs%2Fpr%2F3", "refs/pr/3"),
    ("org/name@rev/with/slash", "rev/with/slash"),
    ("org/name/tree/v1", "v1"),
    (PAGE, None),
    (f"{PAGE}/", None),
    (f"{PAGE}.git", None),
    (f"{PAGE}?library=transformers", None),
    (f"{PAGE}/tree/main", None),
    (f"{PAGE}/tree/main/", None),
    (f"{PAGE}/tree/refs%2Fpr%2F3", "refs/pr/3"),
    (f"{PAGE}/tree/refs/pr/3", "refs/pr/3"),
    (f"{PAGE}/tree/refs/convert/parquet/", "refs/convert/parquet"),
    (f"{PAGE}/tree/feature%2Fx", "feature/x"),
    (f"{PAGE}/commit/{COMMIT}", COMMIT),
    (f"{PAGE}/blob/refs%2Fpr%2F3/config.json", "refs/pr/3"),
    (f"{PAGE}/resolve/v1.0/config.json?download=true", "v1.0"),
    ("HTTPS://HuggingFace.co/org/name", None),
    ("hf.co/org/name/", None),
    ("hf://org/name", None),
    ("hf://org/name/", None),
    ("hf://models/org/name@v1", "v1"),
    ("hf://org/name@refs/pr/3", "refs/pr/3"),
    ("hf://org/name@feature%2Fx/", "feature/x"),
])  # fmt: skip
def test_each_way_to_write_a_repository_names_it(name: str, revision: str | None) -> None:
    assert hub_id(name) == ("org/name", revision)


@pytest.mark.parametrize(("name", "said", "hint"), [
    (f"{PAGE}/tree/feature/x", "a folder inside the repository org/name@feature",
     "If feature/x is a branch, write org/name@feature/x."),
    ("hf://org/name@feature/x", "a folder inside the repository org/name@feature", "write org/name@feature/x."),
    ("hf://org/name@refs/pr/3/fp8", "a folder inside the repository org/name@refs/pr/3",
     "`hf download org/name --revision refs/pr/3 --include 'fp8/*' --local-dir name`"),
    (f"{PAGE}/blob/main/inference/model.py", "a folder inside the repository org/name", "--include 'inference/*'"),
    ("https://huggingface.co/datasets/org/name", "datasets on the Hub", "Write org/name of a model."),
    ("https://huggingface.co/gpt2", "no repository of a model", "Write org/name"),
    ("https://huggingface.co/", "no repository of a model", "Write org/name"),
    ("hf://org", "no repository of a model", "Write org/name"),
    ("org/name@", "no revision after the @", "A shell variable in its place may not be set."),
])  # fmt: skip
def test_an_address_that_is_no_checkpoint_gets_one_answer(name: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        hub_id(name)
    assert said in str(caught.value)
    assert hint in str(caught.value.hint)


@pytest.fixture
def hub(hub_server: HubServer, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A Hub that holds the checkpoint, which this process takes for the real one."""
    hub_server.add_repo(REPO, {"main": checkpoint})
    constants = {
        "ENDPOINT": hub_server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub_server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_OFFLINE": False,
    }
    for name, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(persistence, "_FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(persistence, "LONGEST_WAIT_SECONDS", 0.02)
    monkeypatch.chdir(tmp_path)
    return hub_server


def edited(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with another README, as after an edit on the Hub."""
    shutil.copytree(checkpoint, folder)
    (folder / "README.md").write_text("# Another README")
    return folder


def failed(code: ExitCode, *arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    return result.stderr


def cached(hub: HubServer) -> list[Path]:
    """The weight files in the Hub cache, put there by huggingface_hub itself."""
    folder = Path(snapshot_download(REPO, endpoint=hub.url))
    return sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")


@pytest.mark.parametrize("name", [REPO, f"https://huggingface.co/{REPO}/tree/main"])
def test_a_result_is_verified_against_the_commit_that_it_was_made_from(
    name: str, hub: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    assert run("reshard", REPO, "out", *TP2).exit_code == ExitCode.DONE
    hub.move_branch(REPO, "main", edited(checkpoint, tmp_path / "edited"))
    shutil.rmtree(tmp_path / "cache")  # the branch is asked for again
    found = run("verify", "out", "--against", name)
    assert found.exit_code == ExitCode.DONE, found.output
    now = failed(ExitCode.USAGE, "verify", "out", "--against", f"{REPO}@{hub.head(REPO)}")
    assert "the plan was made for another checkpoint" in now


def test_a_revision_with_slashes_is_read_from_the_hub(hub: HubServer, checkpoint: Path) -> None:
    hub.add_repo("org/other", {"main": checkpoint, "refs/pr/3": checkpoint, "feature/x": checkpoint})
    for name in ("org/other@refs/pr/3", "org/other@feature/x", "https://huggingface.co/org/other/tree/refs%2Fpr%2F3",
                 "hf://org/other@refs/pr/3", "org/other/"):  # fmt: skip
        found = run("inspect", name)
        assert found.exit_code == ExitCode.DONE, found.output


def test_the_beginning_of_a_known_commit_names_it(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    commit = hub.head(REPO)
    printed = run("inspect", REPO).stdout.splitlines()[0]
    assert printed == f"{REPO} @ {commit[:12]}"
    assert run("inspect", f"{REPO}@{commit[:12]}").exit_code == ExitCode.DONE
    shutil.rmtree(tmp_path / "cache")
    unknown = failed(ExitCode.NETWORK, "inspect", f"{REPO}@{commit[:12]}")
    assert "A commit has 40 digits" in unknown
    assert "Did you mean" not in failed(ExitCode.NETWORK, "inspect", f"{REPO}@nosuch")
    cached(hub)  # a snapshot is known by its name too
    assert run("inspect", f"{REPO}@{commit[:12]}").exit_code == ExitCode.DONE


def test_files_of_the_hub_cache_are_said_to_be_unchecked(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    damaged = cached(hub)[0].resolve()
    content = bytearray(damaged.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    made = run("reshard", REPO, "out", *TP2)
    assert "5 files came from the Hub cache, unchecked: `hf cache verify REPO`" in made.stdout
    assert json.loads(run("reshard", REPO, "again", *TP2, "--json").stdout)["unchecked"] == 5
    found = json.loads(run("verify", "out", "--against", REPO, "--json").stdout)
    assert found["ok"]  # it reads the same cache
    assert any("5 files of the checkpoint came from the Hub cache, unchecked" in note for note in found["notes"])
    assert run("verify", "out", "--against", checkpoint).exit_code == ExitCode.NO


def test_a_cached_file_that_was_cut_off_is_downloaded_again_at_once(
    hub: HubServer, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut = cached(hub)[0]
    cut.resolve().write_bytes(cut.read_bytes()[:-1000])
    with caplog.at_level(logging.WARNING):
        made = run("reshard", REPO, "out", *TP2, "--download")
    assert made.exit_code == ExitCode.DONE, made.output
    assert f"{cut.name}: the copy in the Hub cache had another size" in caplog.text
    assert cut.read_bytes() == (checkpoint / cut.name).read_bytes()
    assert run("verify", "out", "--against", checkpoint).exit_code == ExitCode.DONE


def test_a_finished_result_downloads_nothing_again(hub: HubServer, tmp_path: Path) -> None:
    command = ("reshard", REPO, "out", *TP2, "--download")
    assert run(*command).exit_code == ExitCode.DONE
    shutil.rmtree(tmp_path / "hub")
    again = run(*command)
    assert (again.exit_code, "already complete" in again.stdout) == (ExitCode.DONE, True)
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(("trouble", "said"), [
    ("strangers", "not empty"),
    ("no parent", "no such folder"),
    ("read-only", "cannot be written by this user"),
    ("full", "short"),
    ("busy", "another dsv4-shard is writing it"),
    ("other run", "holds the unfinished work of another run"),
])  # fmt: skip
def test_nothing_is_downloaded_for_a_destination_that_cannot_be_used(
    trouble: str, said: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path("out")
    with ExitStack() as stack:
        if trouble == "strangers":
            out.mkdir()
            (out / "notes.txt").write_text("mine")
        elif trouble == "no parent":
            out = Path("nowhere/out")
        elif trouble == "read-only":
            monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
        elif trouble == "full":
            usage = shutil.disk_usage(tmp_path)._replace(free=1000)
            monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        elif trouble == "busy":
            stack.enter_context(claimed(out, range(2), is_share=False))
        elif trouble == "other run":
            with monkeypatch.context() as patch:
                patch.setattr("dsv4_shard.sharding.run._complete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
                run("reshard", REPO, out, "--tp", 1)
        refused = failed(ExitCode.IO, "reshard", REPO, out, *TP2, "--download")
    assert said in refused
    assert not (tmp_path / "hub").exists()


def test_a_repository_that_lacks_a_file_says_so_by_its_listing(
    hub: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "bad")
    next((tmp_path / "bad").glob("model-00002*")).unlink()
    hub.add_repo("org/bad", {"main": tmp_path / "bad"})
    said = failed(ExitCode.CHECKPOINT, "inspect", "org/bad")
    assert "1 of them not there: model-00002-of-00005.safetensors" in said
    assert "The repository or store lacks it" in said
    assert [request.route for request in hub.requests if request.route != "unknown"].count("resolve") <= 2


def test_an_empty_folder_hides_no_repository(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / REPO).mkdir(parents=True)
    assert run("inspect", REPO).exit_code == ExitCode.DONE
    (tmp_path / "org/none").mkdir()
    assert "the folder here is empty" in failed(ExitCode.CHECKPOINT, "inspect", "org/none")


def test_weights_in_a_folder_of_the_repository_are_answered_with_the_download(
    hub: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "inner" / "fp8")
    hub.add_repo("org/inner", {"main": tmp_path / "inner"})
    command = "`hf download org/inner --include 'fp8/*' --local-dir inner`"
    assert command in failed(ExitCode.CHECKPOINT, "inspect", "org/inner")
    assert command in failed(ExitCode.USAGE, "inspect", "org/inner/fp8")
    assert command in failed(ExitCode.USAGE, "inspect", "hf://org/inner/fp8")


@pytest.mark.parametrize("is_local", [True, False])
def test_an_index_that_names_a_folder_is_told_from_a_hostile_one(
    is_local: bool, hub: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "nested")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {name: f"weights/{file}" for name, file in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    hub.add_repo("org/nested", {"main": folder})
    place = folder if is_local else "org/nested"
    assert "move them there" in failed(ExitCode.CHECKPOINT, "inspect", place)
    index["weight_map"] = {name: f"../{file}" for name, file in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    assert "Do not trust this checkpoint" in failed(ExitCode.CHECKPOINT, "inspect", folder)


def test_a_token_that_is_refused_is_named(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    said = failed(ExitCode.NETWORK, "inspect", REPO)
    assert "The token that is set (HF_TOKEN, or of `hf auth login`) was refused" in said


def test_a_proxy_that_does_not_answer_is_named(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    assert "https://hub.invalid through the proxy 127.0.0.1:9: " in failed(ExitCode.NETWORK, "inspect", "org/other")


def test_uploaded_shards_are_answered_with_the_download(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    run("reshard", checkpoint, "shards", *TP2)
    hub.add_repo("org/shards", {"main": tmp_path / "shards"})
    for command in (("inspect", "org/shards"), ("merge", "org/shards", "out")):
        said = failed(ExitCode.USAGE, *command)
        assert "`hf download org/shards --local-dir shards`" in said


def test_a_second_index_is_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "two")
    shutil.copy(folder / INDEX, folder / "model.fp8.safetensors.index.json")
    shown = " ".join(run("inspect", folder).stdout.split())
    assert f"another index is left alone, and {INDEX} is read: model.fp8.safetensors.index.json" in shown
