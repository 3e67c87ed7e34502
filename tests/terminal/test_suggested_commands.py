"""Commands that messages suggest, with names that bash would read in another way: copied, they do what they say."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from support.command_line import run

from dsv4_shard.checkpoint.folders import refuse_other_folders
from dsv4_shard.errors import ShardError
from dsv4_shard.opening import _to_download
from dsv4_shard.sources.hub_names import HubName, download_of
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.text.shell import shell_word

ODD = "it's $HOME; `id` & a\"b"
"""A folder's name with a blank, both quotes, a variable, a backquote and control operators."""


def suggested(text: str) -> list[list[str]]:
    """The words of each suggested command, as bash reads them."""
    plain = text.replace("`id`", "\0id\0")  # the backquotes of the name do not end a command
    return [shlex.split(found.replace("\0", "`")) for found in re.findall("`([^`]*)`", plain)]


def test_a_name_is_one_word_and_no_option() -> None:
    assert shlex.split(shell_word(ODD)) == [ODD]
    assert shell_word("-rf") == "./-rf"
    assert shell_word(Path("org/name")) == "org/name"


@pytest.fixture
def here(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a checkpoint and a result in a folder with an odd name."""
    (tmp_path / ODD).mkdir()
    shutil.copytree(tiny_checkpoint, tmp_path / ODD / "model")
    monkeypatch.chdir(tmp_path)
    made = run("reshard", f"{ODD}/model", f"{ODD}/shards", "--tp", 2, "--progress", "none")
    assert made.exit_code == 0, made.stderr
    return tmp_path


def test_each_error_quotes_the_folders_in_its_command(here: Path) -> None:
    plan = f"{ODD}/plan.json"
    shutil.copy(f"{ODD}/shards/plan.json", plan)
    shutil.copytree(f"{ODD}/shards", f"{ODD}/cut")
    Path(f"{ODD}/cut/config.json").write_text("{}")
    for arguments, words in (
        (("inspect", ODD), ["dsv4-shard", "inspect", f"{ODD}/model"]),
        (("verify", f"{ODD}/model"), ["dsv4-shard", "inspect", f"{ODD}/model"]),
        (("verify", f"{ODD}/model"), ["dsv4-shard", "verify", "OUT", "--against", f"{ODD}/model"]),
        (("inspect", plan), ["dsv4-shard", "reshard", "REPO", "OUT", "--plan", plan]),
        (("reshard", f"{ODD}/model", f"{ODD}/a b/out", "--tp", 2), ["mkdir", "-p", f"{ODD}/a b"]),
        (("reshard", f"{ODD}/model", f"{ODD}/cut", "--tp", 2), ["dsv4-shard", "verify", f"{ODD}/cut"]),
        (("demo", ODD), ["dsv4-shard", "demo", f"{ODD}-2"]),
    ):
        failed = run(*arguments)
        assert failed.exit_code != 0
        assert words in suggested(failed.stderr), failed.stderr


def test_a_folder_of_results_names_one_that_can_be_copied(here: Path) -> None:
    Path(f"{ODD}/inner").mkdir()
    shutil.move(f"{ODD}/shards", f"{ODD}/inner/shards")
    assert ["dsv4-shard", "verify", f"{ODD}/inner/shards"] in suggested(run("verify", f"{ODD}/inner").stderr)


def test_an_adapter_cannot_smuggle_a_command_into_the_hint(tmp_path: Path) -> None:
    base = "org/name; rm -rf $HOME"
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    source = LocalSource(tmp_path, "adapter")
    with pytest.raises(ShardError) as caught:
        refuse_other_folders(source, source.sizes())
    assert ["dsv4-shard", "inspect", base] in suggested(str(caught.value.hint))


def test_a_store_of_shards_is_downloaded_into_a_quoted_folder() -> None:
    assert suggested(_to_download("s3://bucket/my shards")) == [
        ["aws", "s3", "sync", "s3://bucket/my shards", "my shards"]
    ]
    assert suggested(_to_download("gs://b/$x/")) == [["gcloud", "storage", "rsync", "-r", "gs://b/$x/", "$x"]]


def test_a_download_quotes_revision_and_folder() -> None:
    command = download_of(HubName("org/name", "a'b"), "fp8 $x")
    assert suggested(command) == [
        ["hf", "download", "org/name", "--revision", "a'b", "--include", "fp8 $x/*", "--local-dir", "name"]
    ]
