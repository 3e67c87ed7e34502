"""What a shell is told when it asks: by the variables of Typer's scripts, and in a real bash that sources its own."""

import os
import pty
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from dsv4_shard.catalog.gpus import GPUS
from dsv4_shard.catalog.options import A2A, ENGINES, RUNNERS

HEAVY = {"torch", "numpy", "huggingface_hub", "pydantic", "rich", "obstore", "ray", "xxhash"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with checkpoints and plans, caches with repositories, and the program on the path."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for folder in ("here/DeepSeek-V4-Pro", "here/my model", "here/.hidden", "here/models/V4-Flash", "bin",
                   "cache/huggingface/hub/models--deepseek-ai--DeepSeek-V4-Pro",
                   "cache/dsv4-shard/https%3A%2F%2Fhuggingface.co/deepseek-ai%2FDeepSeek-V4-Flash",
                   "cache/dsv4-shard/https%3A%2F%2Fhuggingface.co/models%2F%24%28touch%20x%29"):  # fmt: skip
        (tmp_path / folder).mkdir(parents=True)
    for file in ("plan.json", "model.log"):
        (tmp_path / "here" / file).touch()
    program = tmp_path / "bin" / "dsv4-shard"
    program.write_text(f"#!{sys.executable}\nfrom dsv4_shard.cli import main\n\nmain()\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def ask(**variables: Any) -> subprocess.CompletedProcess[Any]:
    """The program's answer to a shell."""
    return subprocess.run(["dsv4-shard"], env=os.environ | variables, capture_output=True, text=True)


def offered(line: str, shell: str = "bash") -> list[str]:
    """What may stand in place of the last word of `line`, as the scripts of bash, zsh and fish ask."""
    words = line.split(" ")
    if shell == "bash":
        answer = ask(_DSV4_SHARD_COMPLETE="complete_bash", COMP_WORDS="\n".join(words), COMP_CWORD=str(len(words) - 1))
    else:
        answer = ask(_DSV4_SHARD_COMPLETE=f"complete_{shell}", _TYPER_COMPLETE_ARGS=line,
                     _TYPER_COMPLETE_FISH_ACTION="get-args")  # fmt: skip
    assert (answer.returncode, answer.stderr) == (0, "")
    return [line for line in answer.stdout.splitlines() if line]


# --- what is offered -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("line", "values"), [
    ("dsv4-shard ", ["inspect", "plan", "report", "reshard", "merge", "verify", "sign", "explain", "gpus", "demo"]),
    ("dsv4-shard re", ["report", "reshard"]),
    ("dsv4-shard plan model --gpu", ["--gpus", "--gpu", "--gpu-memory"]),
    ("dsv4-shard plan model --gpu h20-96 --gpu", ["--gpus", "--gpu-memory"]),
    ("dsv4-shard plan model --gpu ", list(GPUS)),
    ("dsv4-shard inspect model --gpu h20-", ["h20-96", "h20-141"]),
    ("dsv4-shard plan model --engine ", list(ENGINES)),
    ("dsv4-shard plan model --gpus 16 --engine sglang,", [f"sglang,{name}" for name in ENGINES if name != "sglang"]),
    ("dsv4-shard report model --gpus 16 --engine sglang,vllm,r", ["sglang,vllm,reference"]),
    ("dsv4-shard reshard model out --engine ", [name for name in ENGINES if name != "trtllm"]),
    ("dsv4-shard reshard model out --engine sglang,", []),
    ("dsv4-shard plan model --runner ", list(RUNNERS["sglang"])),
    ("dsv4-shard plan model --engine vllm --runner flashinfer_moe_ep_m", ["flashinfer_moe_ep_mega_deep_gemm"]),
    ("dsv4-shard plan model --engine reference --runner ", ["tilelang"]),
    ("dsv4-shard plan model --engine sglang,vllm --runner triton", ["triton", "triton_unfused"]),
    ("dsv4-shard plan model --engine vllm --engine-version 0.3", ["0.33.0"]),
    ("dsv4-shard plan model --a2a ", list(A2A)),
    ("dsv4-shard plan model --shared-experts ", ["auto", "whole", "split", "pad"]),
    ("dsv4-shard plan model --expert-dtype ", ["fp4", "fp8"]),
    ("dsv4-shard inspect deep", ["deepseek-ai/DeepSeek-V4-Flash", "deepseek-ai/DeepSeek-V4-Pro"]),
    ("dsv4-shard explain TEXT --repo deepseek-ai/DeepSeek-V4-P", ["deepseek-ai/DeepSeek-V4-Pro"]),
    ("dsv4-shard verify a b --against deepseek-ai/DeepSeek-V4-F", ["deepseek-ai/DeepSeek-V4-Flash"]),
])  # fmt: skip
def test_what_may_follow_is_offered(line: str, values: list[str], place: Path) -> None:
    assert sorted(offered(line)) == sorted(values)


CACHED = ["deepseek-ai/DeepSeek-V4-Flash", "deepseek-ai/DeepSeek-V4-Pro"]


@pytest.mark.slow
@pytest.mark.parametrize("line", ["dsv4-shard inspect ", "dsv4-shard plan ", "dsv4-shard reshard ",
                                  "dsv4-shard verify out --against "])  # fmt: skip
def test_folders_stand_beside_cached_repositories_and_names_that_a_shell_would_run_do_not(
    line: str, place: Path
) -> None:
    assert offered(line) == [*CACHED, "DeepSeek-V4-Pro/", "models/"]


@pytest.mark.slow
def test_for_a_report_plans_stand_beside_them_too(place: Path) -> None:
    assert offered("dsv4-shard report ") == [*CACHED, "DeepSeek-V4-Pro/", "model.log", "models/", "plan.json"]


@pytest.mark.slow
@pytest.mark.parametrize("line", [
    "dsv4-shard inspect DeepS", "dsv4-shard inspect ./", "dsv4-shard inspect ~/", "dsv4-shard plan --compare ",
    "dsv4-shard reshard model ", "dsv4-shard reshard model out --plan ", "dsv4-shard explain ", "dsv4-shard merge ",
    "dsv4-shard verify ", "dsv4-shard plan model -o ", "dsv4-shard reshard model s3://bucket --scratch ",
])  # fmt: skip
def test_where_a_file_is_wanted_nothing_is_offered_and_each_shell_completes_files(line: str, place: Path) -> None:
    """bash by `-o default`, zsh by `_files`, fish by the exit code of its question whether there is anything."""
    assert offered(line) == []
    assert offered(line, "zsh") == ["_files"]
    asked = {"_DSV4_SHARD_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": line}
    assert ask(**asked, _TYPER_COMPLETE_FISH_ACTION="is-args").returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish_show_the_gpus_titles(shell: str, place: Path) -> None:
    lines = offered("dsv4-shard plan model --gpu h20-", shell)
    line = {"zsh": '"h20-141":"NVIDIA H20-3e 141 GB"))\'', "fish": "h20-141\tNVIDIA H20-3e 141 GB"}[shell]
    assert (len(lines), lines[1]) == (2, line)


@pytest.mark.slow
def test_fish_is_told_that_there_is_something(place: Path) -> None:
    asked = {"_DSV4_SHARD_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": "dsv4-shard plan --gpu h"}
    assert ask(**asked, _TYPER_COMPLETE_FISH_ACTION="is-args").returncode == 0


@pytest.mark.slow
def test_an_equals_sign_that_bash_takes_for_a_word_is_none(place: Path) -> None:
    assert offered("dsv4-shard plan model --engine =") == list(ENGINES)
    assert offered("dsv4-shard plan model --engine=v", "fish") == ["vllm\tvLLM"]


# --- what it takes, and what may be broken -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("line", ["dsv4-shard ", "dsv4-shard plan model --tp 8 --", "dsv4-shard inspect ",
                                  "dsv4-shard plan model --gpu h"])  # fmt: skip
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_nothing_is_imported_that_takes_long(line: str, shell: str, place: Path) -> None:
    code = "import sys; sys.argv = ['dsv4-shard']\nfrom dsv4_shard import cli\ntry: cli.main()\nfinally:\n"
    code += f"    found = {HEAVY!r} & {{name for name, module in sys.modules.items() if module is not None}}\n"
    code += "    open('imported', 'w').write(' '.join(found))"
    words = line.split(" ")
    variables = {"_DSV4_SHARD_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line,
                 "_TYPER_COMPLETE_FISH_ACTION": "get-args", "COMP_WORDS": "\n".join(words),
                 "COMP_CWORD": str(len(words) - 1)}  # fmt: skip
    result = subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True)
    assert (result.returncode, result.stderr, result.stdout != "") == (0, "", True)
    assert (place / "imported").read_text() == ""


@pytest.mark.slow
@pytest.mark.parametrize("variables", [
    {},
    {"COMP_WORDS": "dsv4-shard\n", "COMP_CWORD": "one"},
    {"COMP_WORDS": "dsv4-shard\ninspect\n", "COMP_CWORD": "99"},
    {"COMP_WORDS": "", "COMP_CWORD": "0"},
    {"COMP_WORDS": "dsv4-shard\ninspect\n'deep", "COMP_CWORD": "2"},
    {"COMP_WORDS": "dsv4-shard\nplan\n\udcff\x1b", "COMP_CWORD": "2"},
    {"COMP_WORDS": "dsv4-shard\nnonsense\n--", "COMP_CWORD": "2"},
    {"COMP_WORDS": "dsv4-shard\nplan\n--tp\nx\n--engine\n", "COMP_CWORD": "5"},
    {"COMP_WORDS": "dsv4-shard\nplan\n--nonsense\n3\n--engine\n", "COMP_CWORD": "5"},
    {"COMP_WORDS": "dsv4-shard\ninspect\n", "COMP_CWORD": "2", "HF_HUB_CACHE": "plan.json"},
    {"COMP_WORDS": "dsv4-shard\ninspect\n", "COMP_CWORD": "2", "HF_HUB_CACHE": "x" * 5000},
    {"COMP_WORDS": "dsv4-shard\ninspect\n", "COMP_CWORD": "2", "HOME": "", "XDG_CACHE_HOME": ""},
    {"COMP_WORDS": "dsv4-shard\ninspect\n", "COMP_CWORD": "2", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    {"_DSV4_SHARD_COMPLETE": "complete_nushell"},
    {"_DSV4_SHARD_COMPLETE": "nonsense"},
    {"_DSV4_SHARD_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "dsv4-shard inspect 'x"},
])  # fmt: skip
def test_whatever_is_broken_nothing_is_said_of_it(variables: dict[str, str], place: Path) -> None:
    (place / "Modèle").mkdir()
    answer = ask(**{"_DSV4_SHARD_COMPLETE": "complete_bash"} | variables)
    assert answer.stderr == ""
    assert "Traceback" not in answer.stdout


@pytest.mark.slow
def test_a_current_folder_that_is_gone_is_no_error(place: Path) -> None:
    (place / "gone").mkdir()
    asked = "_DSV4_SHARD_COMPLETE=complete_bash COMP_WORDS='dsv4-shard inspect ' COMP_CWORD=2 dsv4-shard"
    result = subprocess.run(["bash", "-c", f"cd gone; rmdir ../gone; {asked}"], capture_output=True, text=True)
    assert (result.stdout.splitlines(), result.stderr) == (CACHED, "")


# --- a real bash ---------------------------------------------------------------------------------------------------


def completed(line: str) -> list[str]:
    """`line` as bash has it after the tab key: it runs in a terminal of its own, and then prints the line."""
    here, there = pty.openpty()
    options = ["--norc", "--noprofile", "-i"]
    environment = os.environ | {"INPUTRC": "/dev/null", "TERM": "dumb", "HISTFILE": "", "PS1": ""}
    bash = subprocess.Popen(["bash", *options], stdin=there, stdout=there, stderr=there, start_new_session=True,
                            env=environment)  # fmt: skip
    os.close(there)
    os.write(here, b'eval "$(dsv4-shard --show-completion)"\n')
    os.write(here, f"{line}\t\x01printf '[%s]' \x05; echo\n".encode() + b"exit\n")
    said = b""
    try:
        while more := os.read(here, 4096):
            said += more
    except OSError:  # the other end was closed
        pass
    os.close(here)
    bash.wait()
    words = said.decode().splitlines()
    printed = next(word for word in words if word.startswith("[dsv4-shard]"))
    return [word.removesuffix("]") for word in printed.split("[")[1:]]


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "words"), [
    ("dsv4-shard insp", ["inspect"]),
    ("dsv4-shard inspect DeepS", ["inspect", "DeepSeek-V4-Pro/"]),
    ("dsv4-shard inspect my", ["inspect", "my model/"]),
    ("dsv4-shard inspect models/V4", ["inspect", "models/V4-Flash/"]),
    ("dsv4-shard inspect deepseek-ai/DeepSeek-V4-F", ["inspect", "deepseek-ai/DeepSeek-V4-Flash"]),
    ("dsv4-shard plan model --gpu h20-1", ["plan", "model", "--gpu", "h20-141"]),
    ("dsv4-shard plan model --gpus 8 --engine sglang,v", ["plan", "model", "--gpus", "8", "--engine", "sglang,vllm"]),
    ("dsv4-shard plan model --engine=vl", ["plan", "model", "--engine=vllm"]),
    ("dsv4-shard plan m --engine=vllm --runner=triton_", ["plan", "m", "--engine=vllm", "--runner=triton_unfused"]),
    ("dsv4-shard reshard model out --pl", ["reshard", "model", "out", "--plan"]),
    ("dsv4-shard reshard model out --plan pl", ["reshard", "model", "out", "--plan", "plan.json"]),
    ("dsv4-shard explain model.", ["explain", "model.log"]),
])  # fmt: skip
def test_the_tab_key_in_bash(typed: str, words: list[str], place: Path) -> None:
    assert completed(typed) == ["dsv4-shard", *words]


@pytest.mark.slow
def test_bash_gets_what_is_offered_by_the_function_of_its_script(place: Path) -> None:
    script = 'eval "$(dsv4-shard --show-completion)"\n'
    script += "COMP_WORDS=(dsv4-shard plan model --gpu h20); COMP_CWORD=4\n"
    script += "_dsv4_shard_completion dsv4-shard h20 --gpu; printf '%s\\n' \"${COMPREPLY[@]}\"; complete -p dsv4-shard"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[:-1] == ["h20-96", "h20-141", "h200"]
    assert shlex.split(result.stdout.splitlines()[-1]) == [
        "complete", "-o", "default", "-F", "_dsv4_shard_completion", "dsv4-shard"
    ]  # fmt: skip


# --- a real fish ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(("typed", "offers"), [
    ("dsv4-shard insp", ["inspect"]),
    ("dsv4-shard inspect DeepS", ["DeepSeek-V4-Pro/"]),
    ("dsv4-shard plan model --gpu h20-", ["h20-96", "h20-141"]),
    ("dsv4-shard plan model --gpus 8 --engine sglang,v", ["sglang,vllm"]),
    ("dsv4-shard report pl", ["plan.json"]),
])  # fmt: skip
@pytest.mark.slow
def test_fish_offers_the_same_by_its_script(typed: str, offers: list[str], place: Path) -> None:
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = f"dsv4-shard --show-completion fish | source; complete -C '{typed}'"
    result = subprocess.run(["fish", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == offers
