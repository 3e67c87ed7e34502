"""The commands as a user types them: what goes to stdout, what to stderr, and the exit code."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.full_size import FLASH, PRO
from support.checkpoints.small import small_config
from support.command_line import root_of, run
from support.shell import joined

from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.errors import ExitCode
from dsv4_shard.planning.plan_file import load_plan
from dsv4_shard.version import __version__


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "80")


def test_version_is_the_packages() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"dsv4-shard {__version__}\n")


@pytest.mark.parametrize("command", [(), ("inspect",), ("plan",), ("reshard",), ("verify",), ("demo",), ("explain",)])
def test_every_command_has_help(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect", "plan"])
def test_what_reads_headers_imports_nothing_that_reads_numbers(command: str, tiny_checkpoint: Path) -> None:
    options = ["--tp", "2"] if command == "plan" else []
    unwanted = {"torch", "numpy", "huggingface_hub"}
    code = f"import sys; from dsv4_shard.cli import app; app({[command, str(tiny_checkpoint), *options]!r}, "
    code += f"standalone_mode=False); sys.exit(bool({unwanted!r} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.slow
def test_inspect_shows_where_pro_breaks_at_tp16() -> None:
    result = run("inspect", root_of(PRO))
    assert result.exit_code == 0
    assert "145,116 tensors in 64 files, 864.70 GB" in result.stdout
    assert re.search(r"shared w1 rows /128 +24 +24 +12 +6 +3 +1\.5! ", result.stdout)
    assert "none; every layer, expert, scale and block is there and fits" in result.stdout


def test_inspect_json_is_one_document_with_a_version(tiny_checkpoint: Path) -> None:
    result = run("inspect", tiny_checkpoint, "--tp", "3,6", "--json")
    document = json.loads(result.stdout)
    assert document["schema_version"] == 2
    assert {cell["tp"] for cell in document["matrix"]} == {3, 6}


def test_inspect_of_a_checkpoint_with_errors_shows_them_and_exits_with_3(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    lost = "model-00004-of-00005.safetensors"
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != lost}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    result = run("inspect", folder)
    assert result.exit_code == ExitCode.CHECKPOINT
    assert "tensors are missing" in result.stdout


def test_plan_without_a_name_takes_the_checkpoint_last_inspected_and_says_so(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("inspect", tiny_checkpoint)
    result = run("plan", "--tp", "2")
    assert result.exit_code == 0
    assert f"planning for {tiny_checkpoint}" in result.stderr


def test_plan_without_a_name_prefers_the_current_folder(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_checkpoint)
    result = run("plan", "--tp", "2")
    assert result.exit_code == 0
    assert "the checkpoint in the current folder" in result.stderr


def test_plan_without_a_name_and_without_a_checkpoint_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("plan", "--tp", "2")
    assert result.exit_code == ExitCode.USAGE
    assert "Name one: `dsv4-shard plan REPO --tp 16`." in result.stderr


@pytest.mark.slow
def test_an_infeasible_plan_exits_with_1_and_names_what_runs() -> None:
    result = run("plan", root_of(FLASH), "--tp", "16")
    assert result.exit_code == ExitCode.NO
    assert "o_groups 8 / attention TP 16 = 0.5: not whole" in result.stdout
    assert "--tp 16 --dp 2" in joined(result.stdout)


def test_plan_json_and_plan_file_are_the_same_document(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = run("plan", tiny_checkpoint, "--tp", "2", "--json", "-o", tmp_path / "plan.json")
    assert result.stdout == (tmp_path / "plan.json").read_text()
    assert load_plan(tmp_path / "plan.json").feasible


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--engine", "sglng"), "Did you mean sglang?"),
        (("--gpu", "h20"), "h20-96 (NVIDIA H20 96 GB) or h20-141"),
        (("--shared-experts", "half"), "Known: auto, whole, split, pad."),
        (("--tp", "0"), "must be from 1 to 4096"),
        (("--tp", "100000"), "must be from 1 to 4096"),
        (("--tp", "4096", "--dp", "2", "--engine", "vllm"), "vLLM's 8192 GPUs are over 4096"),
    ],
)
def test_a_wrong_option_is_a_usage_error_that_helps(
    arguments: tuple[str, ...], said: str, tiny_checkpoint: Path
) -> None:
    result = run("plan", tiny_checkpoint, "--tp", "2", *arguments)
    assert result.exit_code == ExitCode.USAGE
    assert said in result.stderr


@pytest.mark.slow
def test_reshard_follows_a_plan_file_and_verify_proves_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plan_file, out = tmp_path / "plan.json", tmp_path / "out"
    run("plan", tiny_checkpoint, "--tp", "2", "--engine", "reference", "-o", plan_file)
    assert run("reshard", tiny_checkpoint, out, "--plan", plan_file).exit_code == 0
    result = run("verify", out, "--against", tiny_checkpoint, "--numerics")
    assert result.exit_code == 0
    assert "no problems found" in result.stdout


def test_reshard_with_options_writes_what_reshard_with_their_plan_writes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ("--tp", "2", "--engine", "reference", "--expert-dtype", "fp8")
    run("plan", tiny_checkpoint, *options, "-o", tmp_path / "plan.json")
    run("reshard", tiny_checkpoint, tmp_path / "a", "--plan", tmp_path / "plan.json")
    run("reshard", tiny_checkpoint, tmp_path / "b", *options)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert [(tmp_path / "a" / name).read_bytes() for name in names] == [
        (tmp_path / "b" / name).read_bytes() for name in names
    ]


def test_dry_run_says_what_would_be_written_and_writes_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dry = json.loads(
        run("reshard", tiny_checkpoint, out, "--tp", "2", "--engine", "reference", "--dry-run", "--json").stdout
    )
    assert list(tmp_path.glob("*out*")) == []
    run("reshard", tiny_checkpoint, out, "--tp", "2", "--engine", "reference")
    assert {name: (out / name).stat().st_size for name in dry["files"]} == dry["files"]
    assert dry["bytes"] == sum(path.stat().st_size for path in out.iterdir() if path.name != "manifest.json")


def test_ranks_writes_a_share_that_equals_the_whole_runs_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ("--tp", "4", "--engine", "reference")
    run("reshard", tiny_checkpoint, tmp_path / "all", *options)
    run("reshard", tiny_checkpoint, tmp_path / "some", *options, "--ranks", "1-2")
    written = sorted(path.name for path in (tmp_path / "some").glob("*.safetensors"))
    assert written == ["model1-mp4.safetensors", "model2-mp4.safetensors"]
    assert all((tmp_path / "all" / n).read_bytes() == (tmp_path / "some" / n).read_bytes() for n in written)
    assert run("verify", tmp_path / "some", "--against", tiny_checkpoint).exit_code == 0


@pytest.mark.parametrize("ranks", ["", "a", "3-1", "1,,2", "-1", "0-9"])
def test_ranks_that_make_no_sense_are_a_usage_error(ranks: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = run("reshard", tiny_checkpoint, tmp_path / "out", "--tp", "2", "--engine", "reference", "--ranks", ranks)
    assert result.exit_code == ExitCode.USAGE
    assert not (tmp_path / "out").exists()


def test_verify_of_damage_exits_with_1_and_names_the_tensor(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("reshard", tiny_checkpoint, out, "--tp", "2", "--engine", "reference")
    with (out / "model1-mp2.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    result = run("verify", out)
    assert result.exit_code == ExitCode.NO
    assert "model1-mp2.safetensors: " in result.stdout
    assert json.loads(run("verify", out, "--json").stdout)["ok"] is False


def test_verify_numerics_needs_the_checkpoint(tmp_path: Path) -> None:
    result = run("verify", tmp_path, "--numerics")
    assert result.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("inspect", "/nowhere"), ExitCode.USAGE),
        (("inspect", "no-such-org/no-such-model"), ExitCode.NETWORK),
        (("verify", "/nowhere"), ExitCode.USAGE),
    ],
)
def test_errors_are_one_line_and_a_hint_on_stderr_never_a_traceback(arguments: tuple[str, str], code: ExitCode) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


def test_names_that_would_control_the_terminal_are_shown_escaped(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["\x1b[31mred[/bold]"] = "model-00001-of-00005.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    result = run("inspect", folder)
    assert result.exit_code == ExitCode.CHECKPOINT
    assert "\x1b" not in result.stderr
    assert "\\x1b[31mred[/bold]" in result.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--tp", "2"), ("--ep", "1"), ("--dp", "1"), ("--engine", "sglang"), ("--runner", "marlin"), ("--a2a", "none"),
     ("--shared-experts", "auto"), ("--gpu", "h200"), ("--gpu-memory", "96GB"), ("--nodes", "1"),
     ("--expert-dtype", "fp8"), ("--engine-version", "0.5.23")],
)  # fmt: skip
def test_an_option_that_the_plan_would_overrule_is_refused_beside_it(
    option: str, value: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    result = run("reshard", tiny_checkpoint, tmp_path / "out", "--plan", tmp_path / "plan.json", option, value)
    assert result.exit_code == ExitCode.USAGE
    assert f"--plan and {option}: the plan says it already" in result.stderr
    assert not (tmp_path / "out").exists()


def test_reshard_needs_a_plan_or_a_tp(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = run("reshard", tiny_checkpoint, tmp_path / "out")
    assert result.exit_code == ExitCode.USAGE
    assert "neither --plan nor --tp" in result.stderr


@pytest.mark.slow
def test_output_closed_early_is_no_error(tiny_checkpoint: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dsv4_shard", "inspect", str(tiny_checkpoint), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


@pytest.mark.parametrize(("edit", "said"), [
    (lambda request: request.pop("tp"), "plan.json: request.tp: is missing"),
    (lambda request: request.update(tp="16"), "plan.json: request.tp: must be a whole number"),
    (lambda request: request.update(tp=-1), "error: the plan's request was edited: tp=-1: must be from 1 to 4096"),
])  # fmt: skip
def test_a_plan_whose_request_was_edited_says_where(
    edit: Callable[..., Any], said: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run("plan", tiny_checkpoint, "--tp", "2", "-o", tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text())
    edit(document["request"])
    (tmp_path / "plan.json").write_text(json.dumps(document))
    result = run("reshard", tiny_checkpoint, tmp_path / "out", "--plan", tmp_path / "plan.json")
    assert result.exit_code == ExitCode.USAGE
    assert said in result.stderr


def test_verifying_against_another_checkpoint_names_the_right_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run("reshard", tiny_checkpoint, tmp_path / "out", "--tp", "2", "--engine", "reference")
    other = write_checkpoint(tmp_path / "model", small_config(), seed=1)
    result = run("verify", tmp_path / "out", "--against", other)
    assert result.exit_code == ExitCode.USAGE
    assert result.stderr.splitlines()[1].endswith(f"was made from: {tiny_checkpoint}")


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True])
def test_a_reader_who_leaves_after_a_line_is_no_error(as_json: bool, tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "dsv4_shard", "inspect", str(tiny_checkpoint), *["--json"] * as_json]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("inspect", "{}"), ("inspect", "{}", "--json"), ("plan", "{}", "--tp", "16")])
def test_output_that_cannot_be_written_is_one_error(arguments: tuple[str, ...], tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "dsv4_shard", *(part.format(tiny_checkpoint) for part in arguments)]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == ExitCode.IO
    assert result.stderr == "error: standard output: No space left on device\n"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer.json"])
@pytest.mark.parametrize("command", ["plan", "report"])
def test_a_plan_or_page_is_not_written_over_a_file_of_another_kind(command: str, name: str, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", small_config(), seed=1)
    before = (model / name).read_bytes()
    result = run(command, model, "--tp", "2", "-o", model / name)
    assert (result.exit_code, "not a file of the kind to write" in result.stderr) == (ExitCode.IO, True)
    assert (model / name).read_bytes() == before
    (tmp_path / "empty").touch()
    for _ in range(2):
        assert run(command, model, "--tp", "2", "-o", tmp_path / "empty").exit_code == 0


def test_a_demo_that_is_there_says_how_to_have_another(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine").touch()
    result = run("demo", tmp_path / "demo")
    assert result.exit_code == ExitCode.IO
    assert result.stderr.splitlines()[1].endswith(f"another folder: `dsv4-shard demo {tmp_path / 'demo'}-2`.")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_and_leaves_nothing(
    number: signal.Signals, code: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    hold = "import importlib, os, signal; r = importlib.import_module('dsv4_shard.sharding.run'); real = r.copy\n"
    # As in a terminal: a shell's background job, such as CI may be, starts its children with SIGINT ignored.
    hold += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    hold += f"r.copy = lambda *a, **k: (os.kill(os.getpid(), {int(number)}), real(*a, **k))[1]\n"
    hold += "from dsv4_shard.cli import main; main()"
    arguments = ["reshard", str(tiny_checkpoint), str(tmp_path / "out"), "--tp", "2", "--engine", "reference"]
    result = subprocess.run([sys.executable, "-c", hold, *arguments], capture_output=True)
    assert result.returncode == code
    assert list(tmp_path.glob("*out*")) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "interrupted\n"), (signal.SIGTERM, "")])
@pytest.mark.parametrize(
    ("is_there", "moments"),
    [
        (True, "typer.main.get_group"),
        (True, "typer.core:TyperGroup.make_context"),
        (True, "dsv4_shard.inspect"),
        (True, "dsv4_shard.inspect dsv4_shard.terminal.show_error.notes_of"),
        (False, "dsv4_shard.terminal.show_error.notes_of"),
        (True, "typer.core:TyperCommand.invoke"),
        (True, "atexit.unregister"),
        (False, "atexit.unregister"),
        (True, "dsv4_shard.terminal.last_inspected:Part.__set_name__"),
    ],
)
def test_a_signal_at_any_moment_ends_with_its_code_and_an_interrupt_with_one_line(
    number: signal.Signals, said: str, is_there: bool, moments: str, tiny_checkpoint: Path
) -> None:
    """Before a command, in it, while an error or an interrupt is told, after it, and when Python itself ends."""
    code = f"""
import atexit, functools, os, pkgutil, signal
import dsv4_shard, typer.core
from dsv4_shard import cli; from dsv4_shard.terminal import last_inspected as recent

def interrupted(real):
    @functools.wraps(real)
    def function(*args, **kwargs):
        try:
            return real(*args, **kwargs)
        finally:
            os.kill(os.getpid(), {int(number)})
    return function

class Part:
    def __set_name__(self, *_):
        pass

recent.Part = Part
recent.remember = lambda _: type("Made", (), {{"part": Part()}})
signal.signal(signal.SIGINT, signal.default_int_handler)
for moment in {moments.split()!r}:
    owner, _, name = moment.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    setattr(owner, name, interrupted(getattr(owner, name)))
atexit.register(lambda: atexit.unregister(None))
cli.main()
"""
    source = tiny_checkpoint if is_there else f"{tiny_checkpoint}-not"
    result = subprocess.run([sys.executable, "-c", code, "inspect", source, "--json"], capture_output=True, text=True)
    assert result.returncode == 128 + number
    told = [line for line in result.stderr.splitlines(keepends=True) if not line.startswith(("error: ", "  "))]
    assert told == [said] * bool(said)  # beside the error and its hint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "interrupted\n  a note\n"), (signal.SIGTERM, "  a note\n")]
)
@pytest.mark.parametrize("then", ["raise ValueError('half written')", "raise ReadFailed('damaged') from None"])
def test_an_error_that_came_of_a_signal_ends_as_the_signal_does(
    number: signal.Signals, said: str, then: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """An archive closed with an entry half written raises an error, which would hide what stopped the writing."""
    code = f"""
import importlib, os, signal
from dsv4_shard.errors import ReadFailed

def write(checkpoint):
    try:
        os.kill(os.getpid(), {int(number)})
    except BaseException:
        try:
            {then}
        except Exception as error:
            error.add_note("a note")
            raise

signal.signal(signal.SIGINT, signal.default_int_handler)
importlib.import_module("dsv4_shard.sharding.companions").write_skeleton = write
from dsv4_shard.cli import main; main()
"""
    arguments = ["reshard", str(tiny_checkpoint), str(tmp_path / "out"), "--tp", "2", "--engine", "reference"]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.returncode == 128 + number
    assert result.stderr == said


@pytest.mark.slow
def test_an_interrupted_demo_does_not_go_on_to_its_next_step(tmp_path: Path) -> None:
    hold = "import importlib, os, signal; r = importlib.import_module('dsv4_shard.sharding.run')\n"
    hold += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    hold += "r.copy = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)\n"
    hold += "from dsv4_shard.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", hold, "demo", str(tmp_path / "here")], capture_output=True, text=True
    )
    assert result.returncode == 130
    assert result.stderr.splitlines().count("interrupted") == 1
    assert "$ dsv4-shard reshard" in result.stdout
    assert "$ dsv4-shard verify" not in result.stdout


def test_a_layer_without_numerics_is_refused(tmp_path: Path) -> None:
    result = run("verify", str(tmp_path), "--layer", "3")
    assert result.exit_code == ExitCode.USAGE
    assert "--layer needs --numerics" in result.stderr


@pytest.mark.slow
def test_the_demo_ends_with_where_its_files_are_and_fits_a_narrow_terminal_in_ascii(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-m", "dsv4_shard", "demo", "here"], cwd=tmp_path, capture_output=True,
                            text=True, check=True, env=os.environ | {"COLUMNS": "40", "LC_ALL": "C"})  # fmt: skip
    lines = result.stdout.splitlines()
    assert [line for line in lines if len(line) > 40 and " --" not in line and not line.startswith("$ ")] == []
    assert result.stdout.isascii()
    steps = re.findall(r"^\$ dsv4-shard (\w+)", result.stdout, re.MULTILINE)
    assert steps == ["inspect", "plan", "reshard", "verify", "report"]
    assert "which is 1.5 blocks of 128" in " ".join(result.stdout.split())
    assert "OK: no problems found" in lines
    assert "Open here/report.html in a browser." in lines
    assert " ".join(lines[-2:]).endswith("Next: dsv4-shard plan YOUR-CHECKPOINT")
    assert (tmp_path / "here" / "report.html").is_file()
    assert len(list((tmp_path / "here" / "shards").glob("model-rank-*-part-0.safetensors"))) == 16


@pytest.mark.slow
def test_the_demo_runs_without_torch_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['torch'] = None; from dsv4_shard.cli import main; main()"
    command = [sys.executable, "-c", hide, "demo", "here"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "torch is not installed" in result.stdout
    assert "$ dsv4-shard verify here/shards --against here/checkpoint\n" in result.stdout
    assert "no problems found" in result.stdout
    command[3:] = ["verify", "here/shards", "--against", "here/checkpoint", "--numerics"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert "--numerics: torch is not installed here\n  pip install torch" in result.stderr


@pytest.mark.parametrize(("arguments", "said"), [
    (("--engine", "vllm", "--engine-version", "0.5.23"), "'0.5.23': not supported for vLLM"),
    (("--engine", "sglang", "--engine-version", "0.33.0"), "'0.33.0': not supported for SGLang"),
    (("--runner", "foo"), "'foo': no engine has it"),
])  # fmt: skip
def test_a_name_is_refused_for_the_engine_that_lacks_it(
    arguments: tuple[str, ...], said: str, tiny_checkpoint: Path
) -> None:
    refused = run("plan", tiny_checkpoint, "--tp", "8", *arguments)
    assert refused.exit_code == ExitCode.USAGE
    assert said in refused.stderr
