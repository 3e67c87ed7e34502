"""`report`: what it takes, what it refuses, and what it leaves behind."""

import os
import shutil
from pathlib import Path

import pytest
from support.command_line import run

import dsv4_shard
from dsv4_shard.errors import ExitCode


@pytest.fixture
def plan_file(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    dsv4_shard.plan(tiny_checkpoint, tp=2, engine="reference", output=path)
    return path


@pytest.mark.slow
def test_a_report_of_a_plan_file_is_that_of_the_same_options(
    plan_file: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    assert run("report", plan_file, "-o", pages[0]).exit_code == ExitCode.DONE
    assert run("report", tiny_checkpoint, "--tp", 2, "--engine", "reference", "-o", pages[1]).exit_code == ExitCode.DONE
    assert pages[0].read_bytes() == pages[1].read_bytes()


@pytest.mark.slow
def test_the_command_says_what_it_wrote_of_what(plan_file: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    assert "TP 2 on DeepSeek reference V4: runs" in run("report", plan_file, "-o", page).output
    assert ": does not run" in run("report", tiny_checkpoint, "--tp", 7, "-o", page).output
    assert "the checkpoint alone" in run("report", tiny_checkpoint, "-o", page).output
    assert (
        "7 GPUs: no layout runs" in run("report", tiny_checkpoint, "--gpus", 7, "-o", page, "--engine", "sglang").output
    )


@pytest.mark.slow
def test_a_layout_that_does_not_run_has_a_report_all_the_same(tiny_checkpoint: Path, tmp_path: Path) -> None:
    outcome = run("report", tiny_checkpoint, "--tp", 7, "-o", tmp_path / "a.html")
    assert outcome.exit_code == ExitCode.DONE
    assert "Does not run" in (tmp_path / "a.html").read_text()


def test_without_a_name_the_page_is_report_html_here(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("report", tiny_checkpoint).exit_code == ExitCode.DONE
    assert os.listdir(tmp_path) == ["report.html"]


@pytest.mark.slow
def test_a_plan_whose_checkpoint_was_moved_says_how_to_name_it(folder: Path, tmp_path: Path) -> None:
    dsv4_shard.plan(folder, tp=2, engine="reference", output=tmp_path / "plan.json")
    moved = shutil.move(folder, tmp_path / "elsewhere")
    outcome = run("report", tmp_path / "plan.json", "-o", tmp_path / "a.html")
    assert outcome.exit_code != ExitCode.DONE
    assert "--repo" in outcome.output
    assert not (tmp_path / "a.html").exists()
    assert run("report", tmp_path / "plan.json", "--repo", moved, "-o", tmp_path / "a.html").exit_code == ExitCode.DONE


def test_a_plan_that_was_edited_is_refused(plan_file: Path, tmp_path: Path) -> None:
    plan_file.write_text(plan_file.read_text().replace('"verdict": "runs"', '"verdict": "not verified"'))
    outcome = run("report", plan_file, "-o", tmp_path / "a.html")
    assert outcome.exit_code == ExitCode.USAGE
    assert "the plan was edited: verdict" in outcome.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("PLAN", "--tp", 4), "--tp beside a plan: the plan says it already"),
        (("PLAN", "--gpus", 4), "--gpus beside a plan: the plan says it already"),
        (("MODEL", "--ep", 4), "--ep without --tp or --gpus"),
        (("MODEL", "--gpus", 4, "--tp", 2), "--gpus and --tp: the search tries them all"),
        (("MODEL", "--repo", "MODEL"), "is no plan file, but a checkpoint itself"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: tuple[str | int, ...], message: str, plan_file: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    names = {"PLAN": plan_file, "MODEL": tiny_checkpoint}
    outcome = run("report", *(names.get(one, one) for one in arguments), "-o", tmp_path / "a.html")  # type: ignore[arg-type]
    assert outcome.exit_code == ExitCode.USAGE
    assert message in outcome.output
    assert not (tmp_path / "a.html").exists()


def test_a_page_that_cannot_be_written_is_an_error_and_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    outcome = run("report", tiny_checkpoint, "-o", tmp_path / "missing" / "a.html")
    assert outcome.exit_code == ExitCode.IO
    assert "No such file or directory" in outcome.output
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_page_of_before(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "a.html"
    page.write_text("before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    assert run("report", tiny_checkpoint, "-o", page).exit_code == ExitCode.IO
    assert page.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.html"]
