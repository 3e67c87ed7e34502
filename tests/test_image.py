"""The Dockerfile: what the image promises its users. `make image` lints it, and builds it where something can."""

import re
from pathlib import Path

import pytest
from build_image import base_of, find_builder, is_sent, read_instructions, stages_of
from support.paths import ROOT

INSTRUCTIONS = read_instructions((ROOT / "Dockerfile").read_text())


def last(name: str) -> str:
    return [rest for kind, rest in stages_of(INSTRUCTIONS)[-1] if kind == name][-1]


def test_the_image_runs_the_command_as_no_root() -> None:
    assert last("ENTRYPOINT") == '["dsv4-shard"]'
    user, _, group = last("USER").partition(":")
    assert int(user) > 0 < int(group)  # Kubernetes checks that numbers alone are not root's


def test_the_base_is_pinned_and_sources_stay_in_the_first_stage() -> None:
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base_of(INSTRUCTIONS))
    first, final = stages_of(INSTRUCTIONS)
    assert {rest.split()[0] for kind, rest in (*first, *final) if kind == "FROM"} == {"${BASE}"}
    assert [rest for kind, rest in final if kind == "COPY"] == ["--from=build /opt/dsv4-shard /opt/dsv4-shard"]


@pytest.mark.parametrize(("path", "sent"), [
    ("dsv4_shard/cli.py", True), ("dsv4_shard/reporting/assets/report.css", True), ("README.md", True),
    ("dsv4_shard/__pycache__/cli.pyc", False), (".git/config", False), ("model.safetensors", False),
    ("tools/smoke_wheel.py", False), ("tests/README.md", False),
])  # fmt: skip
def test_a_builder_gets_only_what_the_image_needs(path: str, sent: bool) -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert is_sent(path, rules) is sent


@pytest.mark.parametrize(("answers", "works"), [
    ({"info": 0, "pull": 0}, True), ({"info": 0, "images": "0123abcd", "pull": 1}, True),  # pulled, or there already
    ({"info": 0, "pull": 1}, False), ({"info": 1, "pull": 0}, False),  # no registry, no server
])  # fmt: skip
def test_a_builder_works_and_gets_the_base_image(
    answers: dict[str, int | str], works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        f"{name}) {f'exit {answer}' if isinstance(answer, int) else f'echo {answer}'};;"
        for name, answer in answers.items()
    ]
    (tmp_path / "podman").write_text("\n".join(["#!/bin/sh", "case $1 in", *lines, "esac", ""]))
    (tmp_path / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_builder("python:3") == ("podman" if works else None)
