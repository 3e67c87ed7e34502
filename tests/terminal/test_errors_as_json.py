"""Errors with `--json`: a document on stdout, by its schema, whatever goes wrong; and one style on stderr."""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from support.command_line import run
from support.schemas import validator

from docs.generate import DOCUMENTS
from dsv4_shard import errors
from dsv4_shard.errors import ExitCode, ShardError
from dsv4_shard.terminal.text import wrap_whole

CODES = """
access-refused bad-answer bad-config bad-index bad-key bad-padding bad-plan bad-ranks bad-signature bad-skeleton
bad-stack bad-tensor-entry bad-tensor-offsets checkpoint-too-large damaged-ranks damaged-result damaged-transfer
duplicate-key duplicate-tensor foreign-plan git-lfs-pointer header-error header-not-json header-too-large
incomplete-checkpoint index-mismatch inexact-cast infeasible-plan layout-not-verified load-refused missing-file
missing-ranks mixed-dialects mixed-ranks newer-schema no-repository no-result-named nodes-lost not-a-checkpoint
not-a-result not-converted not-enough-disk not-found not-safetensors nothing-to-do other-deployment other-export
other-run output-busy output-error output-inside-input output-not-empty ranks-disagree ranks-there read-failed
server-failed shard-error shares-differ signature-refused source-changed throttled truncated-file unequal-scales
unknown-gpu unreachable unsafe-file-name unsupported-family usage-error worker-lost write-failed wrong-rank-header
"""
"""Scripts compare with these: a code may be added, and none may change."""


def failed(*arguments: object) -> dict[str, Any]:
    """The error on stdout, by the published schema; stderr says the same."""
    result = run(*arguments, "--json")
    document = json.loads(result.stdout)
    validator("error").validate(document)
    assert list(document) == ["kind", "schema_version", "tool_version", "error"]
    error = document["error"]
    assert (document["kind"], error["exit_code"]) == ("error", result.exit_code)
    assert result.stderr.splitlines()[0] == f"error: {error['message']}"
    return error


def test_codes_are_those_that_scripts_know() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ShardError)]
    assert sorted(kind.code() for kind in kinds) == CODES.split()


def test_each_kind_of_document_names_its_schema() -> None:
    for name, document in DOCUMENTS.items():
        if name not in ("manifest", "provenance"):  # files of a result, not output
            assert get_args(document.model.model_fields["kind"].annotation) == (name,)
            assert {"schema_version", "tool_version"} <= document.model.model_fields.keys()


@pytest.mark.parametrize(("arguments", "code", "exit_code"), [
    (("inspect", "nosuch"), "usage-error", ExitCode.USAGE),
    (("inspect",), "usage-error", ExitCode.USAGE),
    (("inspct",), "usage-error", ExitCode.USAGE),
    (("plan", "{}", "--tp", "x"), "usage-error", ExitCode.USAGE),
    (("plan", "{}", "--nonsense"), "usage-error", ExitCode.USAGE),
    (("plan", "{}", "--tp"), "usage-error", ExitCode.USAGE),
    (("plan", "{}", "--tp", "2", "--gpu", "h20"), "unknown-gpu", ExitCode.USAGE),
    (("plan", "{}", "--tp", "2", "--gpu", "x"), "unknown-gpu", ExitCode.USAGE),
    (("reshard", "{}", "out", "--tp", "64"), "infeasible-plan", ExitCode.NO),
    (("reshard", "{}", "{}", "--tp", "2"), "output-inside-input", ExitCode.IO),
    (("reshard", "{}", "out", "--plan", "none.json"), "bad-plan", ExitCode.USAGE),
    (("verify", "{}"), "no-result-named", ExitCode.USAGE),
    (("verify", "empty"), "not-a-result", ExitCode.NO),
    (("verify", "nosuch"), "usage-error", ExitCode.USAGE),
    (("merge", "{}", "out"), "usage-error", ExitCode.USAGE),
    (("explain", "no.log"), "usage-error", ExitCode.USAGE),
    (("sign", "{}"), "usage-error", ExitCode.USAGE),
    (("gpus", "more"), "usage-error", ExitCode.USAGE),
    (("inspect", "empty"), "not-a-checkpoint", ExitCode.CHECKPOINT),
    (("inspect", "broken"), "bad-config", ExitCode.CHECKPOINT),
])  # fmt: skip
def test_an_error_is_a_document_with_a_code(
    arguments: tuple[str, ...], code: str, exit_code: ExitCode, tiny_checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    shutil.copytree(tiny_checkpoint, "broken")
    Path("broken/config.json").write_text("{")
    error = failed(*(word.replace("{}", str(tiny_checkpoint)) for word in arguments))
    assert (error["code"], error["exit_code"]) == (code, exit_code)
    assert "Input should" not in error["message"]


def test_json_after_two_dashes_is_no_option() -> None:
    assert run("inspect", "--nonsense", "--", "--json").stdout == ""


def test_an_interrupted_command_says_so_in_json(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A pipe that never ends holds `explain`, until Ctrl-C."""
    command = [sys.executable, "-m", "dsv4_shard", "explain", "-", "--json"]
    reading, writing = os.pipe()
    process = subprocess.Popen(command, stdin=reading, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.close(reading)
    os.write(writing, b"line\n" * 20_000)  # more than a pipe holds: the command reads
    while process.poll() is None:  # Python drops one that arrives in a finalizer
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    stdout, _ = process.communicate(timeout=60)
    os.close(writing)
    assert process.returncode == ExitCode.INTERRUPTED
    document = json.loads(stdout)
    validator("error").validate(document)
    assert document["error"]["code"] == "interrupted"


# --- on a terminal -------------------------------------------------------------------------------------------------


def on_terminal(*arguments: str, columns: int = 60) -> str:
    """What a command prints on a terminal of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    command = [sys.executable, "-m", "dsv4_shard", *arguments]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=clean | {"TERM": "xterm-256color"}) as process:
        os.close(theirs)
        text = b""
        try:
            while chunk := os.read(ours, 1 << 16):
                text += chunk
        except OSError:  # the other end was closed
            pass
    os.close(ours)
    assert process.returncode == ExitCode.USAGE
    return text.decode().replace("\r\n", "\n")


def test_an_error_is_red_on_a_terminal_and_wraps_between_words(tmp_path: Path) -> None:
    said = on_terminal("inspect", "https://example.org/" + "a" * 70)
    assert said.startswith("\x1b[1;31merror:\x1b[0m")
    plain = re.sub(r"\x1b\[[\d;]*m", "", said)
    assert "https://example.org/" + "a" * 70 in plain
    short = on_terminal("plan", str(tmp_path), "--tp", "2", "--model-path", "x", columns=50)
    lines = re.sub(r"\x1b\[[\d;]*m", "", short).splitlines()
    assert "`dsv4-shard plan REPO --tp 16`" in short
    assert len(lines) > 2
    assert all(len(line) <= 50 for line in lines)


@pytest.mark.parametrize("width", [10, 33, 60])
def test_lines_never_break_inside_a_word_or_a_command(width: int) -> None:
    text = "throw its work away with `dsv4-shard reshard A B --restart`, or look at /very/long/path/that/has/no/end now"
    lines = wrap_whole(text, width)
    assert " ".join(lines) == text
    whole = {"`dsv4-shard reshard A B --restart`,", "/very/long/path/that/has/no/end"}
    assert whole <= {part for line in lines for part in whole if part in line}
    assert all(len(line) <= width or line in whole for line in lines)
