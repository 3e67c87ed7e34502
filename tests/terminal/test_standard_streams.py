"""Readers that go away, and closed streams: each command ends with its own exit code, and a run does its work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import run

from dsv4_shard.errors import ExitCode
from dsv4_shard.verification.result_folder import verify


def ended(*arguments: object, without: str) -> "subprocess.CompletedProcess[str]":
    """A command whose streams are pipes that nobody reads from."""
    reading, writing = os.pipe()
    os.close(reading)
    stdout, stderr = (writing if without in (name, "both") else subprocess.PIPE for name in ("stdout", "stderr"))
    command = [sys.executable, "-m", "dsv4_shard", *map(str, arguments)]
    try:
        return subprocess.run(command, stdout=stdout, stderr=stderr, text=True, check=False)
    finally:
        os.close(writing)


@pytest.mark.parametrize("without", ["stdout", "stderr", "both"])
def test_each_command_ends_with_its_own_exit_code(without: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    assert run("reshard", tiny_checkpoint, shards, "--tp", 2).exit_code == ExitCode.DONE
    damaged = next(shards.glob("model-rank-1-*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for arguments, code in (
        (("plan", tiny_checkpoint, "--tp", 64), ExitCode.NO),
        (("plan", tiny_checkpoint, "--tp", 64, "--json"), ExitCode.NO),
        (("verify", shards), ExitCode.NO),
        (("verify", shards, "--json"), ExitCode.NO),
        (("inspect", tmp_path / "nosuch"), ExitCode.USAGE),
        (("inspect", tmp_path / "nosuch", "--json"), ExitCode.USAGE),
        (("inspect", "--nonsense", "--json"), ExitCode.USAGE),
        (("explain", "no engine says this"), ExitCode.NO),
        (("inspect", tiny_checkpoint), ExitCode.DONE),
        (("gpus",), ExitCode.DONE),
        (("--help",), ExitCode.DONE),
        (("--version",), ExitCode.DONE),
    ):
        done = ended(*arguments, without=without)
        assert done.returncode == code, (arguments, done.stderr)
        assert "Traceback" not in (done.stderr or "")


@pytest.mark.parametrize("without", ["stderr", "both"])
def test_a_run_whose_progress_nobody_reads_does_its_work(without: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for how in ("auto", "json"):
        out = tmp_path / how
        done = ended("reshard", tiny_checkpoint, out, "--tp", 2, "--progress", how, without=without)
        assert done.returncode == ExitCode.DONE
        assert verify(out).ok


def test_what_was_read_before_the_reader_left_is_the_beginning_of_the_output(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "dsv4_shard", "plan", str(tiny_checkpoint), "--tp", "64", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        beginning = process.stdout.read(2)
        process.stdout.close()
        assert (beginning, process.stderr.read(), process.wait()) == (b"{\n", b"", ExitCode.NO)


def test_streams_keep_their_encoding_and_order(tiny_checkpoint: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-u", "-m", "dsv4_shard", "plan", str(tiny_checkpoint), "--tp", "64", "--json"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert json.loads(done.stdout)["kind"] == "plan"
    assert done.returncode == ExitCode.NO
