"""The screens of `inspect`: what runs or divides is on the first screen, the rest under --details."""

import json
from pathlib import Path

import pytest
from support.checkpoints.full_size import PRO, V3, V41
from support.checkpoints.other_families import FAMILIES, write_family
from support.command_line import root_of, run

MOST_LINES = 36


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for name, content in FAMILIES.items():
        write_family(folder / name, *content)
    return folder


@pytest.mark.parametrize("model", [PRO, V3, V41])
def test_a_known_family_is_answered_on_one_screen(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root_of(model).parent)
    lines = run("inspect", model, "--gpu", "h200").stdout.splitlines()
    assert len(lines) <= MOST_LINES
    assert next(number for number, line in enumerate(lines) if line.startswith("What runs, and GiB")) < 10
    assert f"  dsv4-shard plan {model}" in "\n".join(lines)


def test_details_add_roles_dimensions_and_reasons() -> None:
    short, long = (run("inspect", root_of(PRO), *more).stdout for more in ((), ("--details",)))
    for text in ("Tensors by role", "attention heads            128", "o_groups 16 / ranks 32 = 0.5: not whole"):
        assert text not in short
        assert text in long
    assert "--details" in short.splitlines()[-1]


def test_details_leave_the_document_as_it_is(tiny_checkpoint: Path) -> None:
    documents = [json.loads(run("inspect", tiny_checkpoint, "--json", *more).stdout) for more in ((), ("--details",))]
    assert documents[0] == documents[1]


@pytest.mark.parametrize("model", FAMILIES)
def test_an_unknown_family_is_answered_first(model: str, families: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(families)
    lines = run("inspect", model).stdout.splitlines()
    assert len(lines) <= MOST_LINES
    answer = lines.index("") + 1
    assert answer < 10
    assert " at TP 1, 2, 4" in lines[answer]


def test_the_sizes_that_do_not_divide_are_named(families: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(families)
    said = run("inspect", "Qwen3-235B-A22B-FP8").stdout
    assert "The weights divide into whole blocks at TP 1, 2, 4; not at 8, 16, 32, 64" in said


@pytest.mark.parametrize("model", FAMILIES)
def test_names_of_tensors_are_never_broken(model: str, families: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(families)
    words = set(run("inspect", model, "--details").stdout.split())
    document = json.loads(run("inspect", model, "--json").stdout)
    assert {row["template"] for row in document["templates"]} <= words
