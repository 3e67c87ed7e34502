"""What this machine has of repositories, by name, and what a name was meant for that it has not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import run

from dsv4_shard.errors import ExitCode
from dsv4_shard.sources import known_repos as cached
from dsv4_shard.sources.remote_headers import HeaderCache

HUB = "https://huggingface.co"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that holds nothing yet."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def test_repositories_of_both_caches_are_found_by_name(home: Path) -> None:
    for folder in ("models--org--a", "models--org--b--c", "models--gpt2", "datasets--org--d", "version.txt"):
        (home / "cache" / "huggingface" / "hub" / folder).mkdir(parents=True)
    HeaderCache(HUB, "org/kept").remember("main", "0" * 40)
    HeaderCache("https://other", "org/elsewhere").remember("main", "0" * 40)
    assert cached.cached_repos() == ["org/a", "org/b--c", "org/kept"]


@pytest.mark.parametrize("variables", [
    {}, {"HF_HOME": "{}/home"}, {"HF_HUB_CACHE": "{}/hub"}, {"HUGGINGFACE_HUB_CACHE": "{}/old"},
    {"HF_HOME": "~/x", "HOME": "{}"}, {"HF_HUB_CACHE": "$HERE/hub", "HERE": "{}"}, {"HF_HOME": "$HERE", "HERE": "{}"},
])  # fmt: skip
def test_the_hub_cache_is_where_huggingface_hub_has_it(
    variables: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(home))
    code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    (Path(theirs) / "models--org--a").mkdir(parents=True)
    assert cached.cached_repos() == ["org/a"]


def test_caches_that_are_not_there_or_cannot_be_read_hold_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cached.cached_repos() == []
    (home / "file").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "file"))
    assert cached.cached_repos() == []


@pytest.mark.parametrize(("asked", "meant"), [
    ("DeepSek-V4-Pro", "DeepSeek-V4-Pro"), ("./DeepSek-V4-Pro", "DeepSeek-V4-Pro"),
    ("models/V4-Flsh", "models/V4-Flash"), ("Kimi-K3", "moonshotai/Kimi-K2"),
])  # fmt: skip
def test_a_folder_that_is_not_there_is_a_usage_error_that_names_what_was_meant(
    asked: str, meant: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("DeepSeek-V4-Pro", "models/V4-Flash", "cache/huggingface/hub/models--moonshotai--Kimi-K2"):
        (home / folder).mkdir(parents=True)
    monkeypatch.chdir(home)
    result = run("inspect", asked if "/V4" not in asked else f"./{asked}")
    assert result.exit_code == ExitCode.USAGE
    assert result.stderr.splitlines() == [
        f"error: {'./' if '/V4' in asked else ''}{asked}: no such folder", f"  Did you mean {meant}?"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "meant"), [
    ("deepseek-ai/DeepSek-V4-Pro", "deepseek-ai/DeepSeek-V4-Pro"), ("models/V4-Flsh", "models/V4-Flash"),
])  # fmt: skip
def test_a_repository_that_cannot_be_had_names_what_was_meant_before_what_else_to_do(
    asked: str, meant: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("models/V4-Flash", "cache/huggingface/hub/models--deepseek-ai--DeepSeek-V4-Pro"):
        (home / folder).mkdir(parents=True)
    monkeypatch.chdir(home)
    code = "from dsv4_shard.cli import main; main()"  # the Hub's offline switch is read when its library is imported
    result = subprocess.run([sys.executable, "-c", code, "inspect", asked], capture_output=True, text=True)
    assert result.returncode == ExitCode.NETWORK
    assert result.stderr.splitlines()[1].startswith(f"  Did you mean {meant}? ")


def test_a_name_that_nothing_comes_near_to_has_no_hint_made_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    result = run("inspect", "nothing-like-it")
    assert result.stderr.startswith(
        "error: nothing-like-it: no such folder\n  Name a folder, org/name on the Hub, or s3:"
    )


def test_a_folder_of_any_name_is_shown_escaped(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkdir(home / "mod\x1b[31mel")
    monkeypatch.chdir(home)
    assert "Did you mean mod\\x1b[31mel?" in run("inspect", "mod[31mel").stderr
