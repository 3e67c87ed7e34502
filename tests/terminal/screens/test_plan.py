"""The screen of `plan`: the answer fits a terminal, and each command of it can be pasted into bash."""

import re
import subprocess

import pytest
from support.checkpoints.full_size import FLASH, PRO, PRO_NVFP4, V3
from support.command_line import root_of, run

DSPARK = "DeepSeek-V4-Pro-0813"

MOST_LINES = 24
"""Rows of the smallest terminal that is still common."""


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def screen(model: str, options: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that `plan` prints for a checkpoint in the current folder."""
    monkeypatch.chdir(root_of(model).parent)
    return run("plan", model, *options.split()).stdout.splitlines()


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (PRO, "--tp 16 --gpu h20-96"),
        (PRO, "--tp 16 --gpu h20-96 --engine vllm"),
        (PRO, "--tp 8 --gpu h200"),
        (PRO, "--tp 8 --dp 8 --a2a deepep --gpu b200"),
        (FLASH, "--tp 16"),
        (V3, "--tp 8 --gpu h200"),
        (PRO_NVFP4, "--tp 4 --gpu gb300"),
    ],
)
def test_a_plan_fits_one_screen(model: str, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = screen(model, options, monkeypatch)
    assert 4 < len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= 80


def test_the_verdict_is_one_line_and_the_settings_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = screen(PRO, "--tp 16 --gpu h20-96", monkeypatch)
    assert lines[1] == "✓ Runs with 2 changes from the defaults"
    assert lines[2].startswith("  weights 56.4 of 95.0 GiB per GPU, 38.6 GiB free")
    text = "\n".join(lines)
    for setting, why in (("SGLANG_SHARED_EXPERT_TP1=1", "1.5 blocks of"), ("--moe-runner-backend marlin", "1.5 tiles")):
        assert re.search(rf"^  {setting}  [^\n]*\n    [^\n]*{why}", text, re.MULTILINE)


def test_a_plan_that_is_not_verified_has_its_reason_below_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = screen(PRO, "--tp 8 --gpu mi355x", monkeypatch)
    assert lines[1:3] == ["? Not verified", "  SGLang 0.5.23's own classes were not run for AMD MI355X (gfx950)"]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (PRO, "--tp 16 --gpu h20-96"),
        (PRO, "--tp 16 --engine vllm"),
        (PRO, "--tp 16 --engine node --nodes 2"),
        (DSPARK, "--tp 16 --gpu h20-96"),
        (PRO_NVFP4, "--tp 8 --ep 8 --engine vllm --gpu b200"),
    ],
)
def test_bash_takes_every_indented_line_of_the_ways_to_serve(
    model: str, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = screen(model, options, monkeypatch)
    ways = lines[lines.index("") + 1 :]
    script = "\n".join(line for line in ways if line.startswith("  "))
    commands = ("sglang", "vllm", "pip", "dsv4-shard")
    stubs = "\n".join(f'{name}() {{ printf "%s " {name} "$@"; echo; }}' for name in commands)
    done = subprocess.run(["bash", "-eu", "-c", f"{stubs}\n{script}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    served = re.findall(r"^(?:sglang|vllm) serve .*$", done.stdout, re.MULTILINE)
    assert len(served) == 2
    assert all(("10.0.0.1" in line) == ("--tp 16" in options) for line in served)
    assert "dsv4-shard reshard" in done.stdout


def test_details_show_the_notes_that_the_screen_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    options = "--tp 16 --engine node --nodes 2"
    short, long = (" ".join(screen(PRO, options + more, monkeypatch)) for more in ("", " --details"))
    assert "--details (2 more notes)" in short
    assert "hard links" not in short
    assert "hard links" in long
