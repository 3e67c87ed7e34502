"""`--progress json`: lines for scripts on stderr."""

import io
import json
import time
from pathlib import Path

import pytest
from support.command_line import run

from dsv4_shard.errors import ExitCode
from dsv4_shard.sharding.progress import Task
from dsv4_shard.terminal import progress_lines
from dsv4_shard.terminal.progress_lines import ProgressLines


def test_each_command_that_moves_bytes_says_how_far_it_is(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shards, merged = tmp_path / "shards", tmp_path / "merged"
    for work, arguments in (("reshard", (tiny_checkpoint, shards, "--tp", 2)), ("verify", (shards,)),
                            ("merge", (shards, merged))):  # fmt: skip
        result = run(work, *arguments, "--progress", "json", "--json")
        assert json.loads(result.stdout)
        lines = [json.loads(line) for line in result.stderr.splitlines()]
        assert {line["task"] for line in lines} == {work}
        assert [lines[0]["state"], lines[-1]["state"]] == ["begun", "done"]
        assert 0 < lines[-1]["bytes"] <= lines[-1]["total_bytes"]


def test_a_slow_task_has_a_line_per_second_with_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_lines, "SECONDS_BETWEEN_LINES", 0.01)
    stream, task = io.StringIO(), Task("reshard")
    progress = ProgressLines(stream)
    with progress:
        progress.begin(task, 100)
        progress.resume(task, 40)
        progress.advance(task, 10)
        while stream.getvalue().count('"bytes": 50') < 3:
            time.sleep(0.01)
    last = json.loads(stream.getvalue().splitlines()[-1])
    assert (last["state"], last["bytes"], last["resumed_bytes"], last["total_bytes"]) == ("running", 50, 40, 100)
    assert last["bytes_per_second"] > 0


def test_none_says_nothing_and_other_words_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    quiet = run("reshard", tiny_checkpoint, tmp_path / "a", "--tp", 2, "--progress", "none")
    assert (quiet.exit_code, quiet.stderr) == (ExitCode.DONE, "")
    assert run("reshard", tiny_checkpoint, tmp_path / "b", "--tp", 2, "--progress", "yaml").exit_code == ExitCode.USAGE
