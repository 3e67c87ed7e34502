"""`hf upload` of a result: all of it goes up, comes down, and verifies. The client is huggingface_hub's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects  # type: ignore[attr-defined]
from support.command_line import run
from support.servers.hub import HubServer

import dsv4_shard

REPO = "org/shards"


def hf(server: HubServer, home: Path, *arguments: str | Path) -> str:
    """Run `hf` in a process of its own, with the token of the server's owner."""
    hf = [sys.executable, "-m", "huggingface_hub.cli.hf"]
    variables = os.environ | server.env(home) | {"HF_TOKEN": server.token, "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    done = subprocess.run([*hf, *map(str, arguments)], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sglang", "reference", "node"])
def test_a_result_is_whole_and_verifies_after_upload_and_download(
    engine: str, hub_server: HubServer, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    hub_server.uploads = tmp_path / "uploads"
    options = ("--nodes", "2") if engine == "node" else ()
    assert run("reshard", tiny_checkpoint, out, "--tp", "2", "--engine", engine, *options).exit_code == 0
    hf(hub_server, tmp_path / "home", "upload", REPO, out)
    hf(hub_server, tmp_path / "home", "download", REPO, "--local-dir", back)
    names = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert {name for name in names if (back / name).read_bytes() != (out / name).read_bytes()} == set()
    found = dsv4_shard.verify(back, against=tiny_checkpoint)
    assert (found.ok, found.problems) == (True, ())
    assert {note.partition(" ")[0] for note in found.notes} == {".gitattributes", ".cache"}  # the Hub's, and hf's


@pytest.mark.slow
def test_a_node_downloads_its_own_share_alone(hub_server: HubServer, tiny_checkpoint: Path, tmp_path: Path) -> None:
    hub_server.uploads = tmp_path / "uploads"
    for rank in "01":
        assert run("reshard", tiny_checkpoint, tmp_path / rank, "--tp", "2", "--ranks", rank).exit_code == 0
        hf(hub_server, tmp_path / "home", "upload", REPO, tmp_path / rank, f"node-{rank}")
    hf(hub_server, tmp_path / "home", "download", REPO, "--local-dir", tmp_path / "back", "--include", "node-1/*")
    assert {path.name for path in (tmp_path / "back").iterdir()} == {"node-1", ".cache"}
    found = dsv4_shard.verify(tmp_path / "back" / "node-1", against=tiny_checkpoint)
    assert (found.ok, found.ranks) == (True, (1,))


def test_no_file_of_a_result_is_left_behind_by_hf(tiny_checkpoint: Path, tmp_path: Path) -> None:
    dsv4_shard.reshard(tiny_checkpoint, tmp_path / "out", tp=2)
    names = [str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert list(filter_repo_objects(names, ignore_patterns=DEFAULT_IGNORE_PATTERNS)) == names
