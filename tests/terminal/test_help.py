"""The help: it fits, nothing in it is cut, examples work as they stand, and a wrong option is told the right one."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main
from support.command_line import run
from support.keys import Authority
from support.paths import ROOT
from support.servers.hub import HubServer

from dsv4_shard.cli import app
from dsv4_shard.errors import ExitCode
from dsv4_shard.terminal.help import EXAMPLES, EXIT_CODES, NO

COMMANDS = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
SAID = "Weight output_partition_size = 192 is not divisible by weight quantization block_n = 128.\n"


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def help_of(*command: str) -> str:
    return run(*command, "--help").stdout


def of_heading(text: str, heading: str) -> list[str]:
    """The lines of a help below a heading."""
    return re.search(rf"^{heading}:\n((?:(?:  .*)?\n)*)", text, re.MULTILINE)[1].strip("\n").splitlines()  # type: ignore[index]


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_fits_80_columns_and_ends_with_every_exit_code_of_the_command(command: tuple[str, ...]) -> None:
    text = help_of(*command)
    assert max(map(len, text.splitlines())) <= 80
    codes = [line.split()[0] for line in of_heading(text, "Exit codes")]
    unused: set[ExitCode] = set()
    if command:
        unused |= set() if NO[command[0]] else {ExitCode.NO}
        unused |= set() if command[0] in ("plan", "reshard") else {ExitCode.NOT_VERIFIED}
    assert codes == [str(code.value) for code in ExitCode if code not in unused]


def test_the_list_of_commands_cuts_none_of_their_sentences() -> None:
    lines = of_heading(help_of(), "Commands")
    assert [line.split()[0] for line in lines] == COMMANDS
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


@pytest.mark.parametrize(("command", "usage"), [
    ("inspect", "REPO"), ("plan", "[REPO]"), ("report", "SOURCE"), ("reshard", "REPO OUT"), ("merge", "RANKS OUT"),
    ("verify", "OUT..."), ("explain", "[TEXT]..."), ("demo", "[FOLDER]"),
])  # fmt: skip
def test_arguments_are_called_as_all_texts_call_them(command: str, usage: str) -> None:
    assert help_of(command).splitlines()[0].endswith(f"{command} [OPTIONS] {usage}")


def test_options_stand_in_groups_and_the_arguments_before_them() -> None:
    headings = re.findall(r"^([\w ]+):$", help_of("reshard"), re.MULTILINE)
    assert headings == ["Examples", "Arguments", "Layout", "Engine", "Hardware", "Writing", "Options", "Exit codes"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_the_help_once_and_says_something(command: str) -> None:
    lines = help_of(command).partition("Exit codes:")[0]
    for param in typer.main.get_command(app).commands[command].params:  # type: ignore[attr-defined]
        assert param.help
        shown = param.opts[0] if param.param_type_name == "option" else param.metavar
        assert len(re.findall(rf"^  (?:-\w, )?{re.escape(shown)}(?: |$)", lines, re.MULTILINE)) == 1


def test_a_default_is_shown_whether_it_is_a_value_or_words() -> None:
    text = " ".join(help_of("plan").split())
    for default in ("1", "auto", "sglang", "the engine's", "as few as hold the GPUs", "the first",
                    "the current folder, else the one last inspected"):  # fmt: skip
        assert f"[default: {default}]" in text


def test_the_engine_that_cannot_be_written_is_offered_by_no_help_of_reshard() -> None:
    assert "trtllm" in help_of("plan")
    assert "trtllm" not in help_of("reshard")
    assert "--gpus" not in help_of("reshard")


def test_the_readme_says_the_same_of_exit_codes() -> None:
    said = ", ".join(f"{code.value} {meaning}" for code, meaning in EXIT_CODES.items())
    assert f"Exit codes: {said}." in " ".join((ROOT / "README.md").read_text().split())


@pytest.mark.parametrize(("arguments", "said"), [
    (("inspct",), "no command called 'inspct' | Did you mean inspect?"),
    (("zzz",), "no command called 'zzz' | Known: inspect, plan, "),
    (("plan", "model", "--gpuss", "4"), "no option called --gpuss | Did you mean --gpus"),
    (("plan", "model", "--gpu_memory", "4"), "no option called --gpu_memory | Did you mean --gpu-memory"),
    (("verify", "out", "--agianst=x"), "no option called --agianst | Did you mean --against?"),
    (("--versoin",), "no option called --versoin | Did you mean --version?"),
    (("plan", "--\x1b[31mgpu", "4"), "no option called --\\x1b[31mgpu | "),
    (("plan", "--zzz"), "no option called --zzz | `dsv4-shard plan --help` lists all options."),
    (("plan", "model", "--tp"), "--tp needs a value | "),
    (("plan", "--compare", "a.json"), "--compare needs 2 values | "),
    (("plan", "model", "--json=1"), "--json takes no value | "),
    (("plan", "model", "--tp", "x"), "--tp 'x': must be a whole number from 1 to 4096"),
    (("plan", "model", "--tp", "8.0"), "--tp '8.0': must be a whole number from 1 to 4096"),
    (("plan", "model", "--tp", "0"), "--tp 0: must be from 1 to 4096"),
    (("plan", "model", "--tp", "9" * 99), "--tp 999"),
    (("reshard", "model", "out", "--jobs", "many"), "--jobs 'many': must be a whole number of at least 1"),
    (("inspect",), "REPO is missing | Write it as `dsv4-shard inspect REPO`"),
    (("reshard", "model"), "OUT is missing | Write it as `dsv4-shard reshard REPO OUT`"),
    (("inspect", "a", "b", "c"), "'b c': 2 arguments too many | Write it as `dsv4-shard inspect REPO`"),
])  # fmt: skip
def test_a_wrong_command_line_is_answered_in_the_one_style_of_errors(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
    assert " | ".join(line.strip() for line in result.stderr.splitlines()).startswith(f"error: {said}")
    assert len(result.stderr.splitlines()) <= 2
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize(("words", "same"), [
    (("help",), ("--help",)), (("help", "plan"), ("plan", "--help")), (("version",), ("--version",)),
    (("-V",), ("--version",)),
])  # fmt: skip
def test_help_and_version_work_as_users_type_them(words: tuple[str, ...], same: tuple[str, ...]) -> None:
    assert (run(*words).exit_code, run(*words).stdout) == (ExitCode.DONE, run(*same).stdout)


@pytest.mark.slow
def test_every_example_of_the_help_works_as_it_stands(
    hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the commands, with the demo's checkpoint for V4-Pro, in a folder and on the Hub.

    Signing as an identity needs Sigstore's servers, so it is left out.
    """
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    url = hub_server.url
    constants = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
                 "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": False}  # fmt: skip
    for name, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    Path("server.log").write_text(SAID)
    pair = Authority(tmp_path, "root").issue("key")
    pair.certificate.rename("cert.pem")
    for command in ("demo", *COMMANDS[:-1]):
        examples = [line for line in of_heading(help_of(command), "Examples") if line and not line.startswith("  #")]
        assert len(examples) == len(EXAMPLES[command])
        for example in examples:
            program, *words = shlex.split(example)
            assert program == "dsv4-shard"
            if "--keyless" in words:
                continue
            if "--signature" in words:
                assert run("sign", "shards", "--key", "key.pem").exit_code == 0
            elif command == "sign":
                Path("shards/model.sig").unlink(missing_ok=True)
            result = run(*words)
            assert result.exit_code == 0, f"{example}\n{result.output}"
        if command == "demo":
            Path("DeepSeek-V4-Pro").symlink_to(tmp_path / "dsv4-demo" / "checkpoint")
            hub_server.add_repo("deepseek-ai/DeepSeek-V4-Pro", {"main": tmp_path / "dsv4-demo" / "checkpoint"})
