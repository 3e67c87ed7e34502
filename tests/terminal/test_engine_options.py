"""Options of the engines on our command lines: taken where they mean the same, else answered with ours."""

import json
from pathlib import Path

import pytest
from support.command_line import run

from dsv4_shard.errors import ExitCode, UsageError
from dsv4_shard.terminal.engine_options import ANSWERS, SAME, in_our_words

KNOWN = (
    "--tp",
    "--ep",
    "--dp",
    "--dp-lm-head",
    "--nodes",
    "--a2a",
    "--runner",
    "--context",
    "--gpus",
    "--engine",
    "--json",
)


@pytest.mark.parametrize(("theirs", "ours"), [
    ("--tensor-parallel-size 2", "--tp 2"), ("--tp-size=2", "--tp 2"), ("--tensor_parallel_size 2", "--tp 2"),
    ("--tp 4 --ep-size 4", "--tp 4 --ep 4"), ("--tp 4 --nnodes 2", "--tp 4 --nodes 2"),
    ("--tp 4 --moe-a2a-backend deepep", "--tp 4 --a2a deepep"),
    ("--tp 4 --dp 4 --enable-dp-lm-head", "--tp 4 --dp 4 --dp-lm-head"),
    ("--tp 2 --moe-runner-backend marlin", "--tp 2 --runner marlin"),
    ("--tp 4 --dp-size 4 --enable-dp-attention", "--tp 4 --dp 4"),
    ("--tp 4 --dp 4 --enable-dp-attention", "--tp 4 --dp 4"),
    ("--engine vllm -tp 2 --data-parallel-size 2", "--engine vllm --tp 2 --dp 2"),
    ("--tp 2 --max-model-len 4096", "--tp 2 --context 4096"),
    ("--tp 8 --gpu 8xH20-96", "--tp 8 --gpu h20-96"),
    ("--tp 16 --nodes 2 --gpu=8xH200", "--tp 16 --nodes 2 --gpu h200"),
    ("--tp 8 --dp 2 --engine vllm --gpu 16xB200", "--tp 8 --dp 2 --engine vllm --gpu b200"),
])  # fmt: skip
def test_an_option_that_means_the_same_gives_the_same_plan(theirs: str, ours: str, tiny_checkpoint: Path) -> None:
    found = [run("plan", tiny_checkpoint, *words.split(), "--json") for words in (theirs, ours)]
    assert json.loads(found[0].stdout)["kind"] == "plan"
    assert found[0].stdout == found[1].stdout


@pytest.mark.parametrize(("words", "said"), [
    ("--tp 8 --enable-dp-attention", "--enable-dp-attention: the size is missing"),
    ("--tp 8 --dp-size 8", "without --enable-dp-attention, SGLang runs replicas of the whole model"),
    ("--tp 8 --enable-expert-parallel", "--enable-expert-parallel: the size is wanted here"),
    *((f"--tp 8 {name}", f"{name}: ") for name in ANSWERS),
])  # fmt: skip
def test_an_option_with_another_meaning_is_answered_with_ours(words: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        in_our_words(words.split(), KNOWN)
    assert said in str(caught.value)
    assert caught.value.hint
    assert run("plan", "model", *words.split()).exit_code == ExitCode.USAGE


def test_ours_are_never_translated() -> None:
    assert not {*SAME, *ANSWERS} & {*KNOWN}
    assert in_our_words(["--tp", "2", "--", "--tp-size", "4"], KNOWN) == ["--tp", "2", "--", "--tp-size", "4"]


def test_a_number_before_a_gpu_searches_where_no_layout_is_named(tiny_checkpoint: Path) -> None:
    found, same = (run("plan", tiny_checkpoint, *words.split(), "--json") for words in (
        "--gpu 4xH200", "--gpus 4 --gpu h200"))  # fmt: skip
    assert json.loads(found.stdout) == json.loads(same.stdout)
    assert json.loads(found.stdout)["kind"] == "search"


def test_a_number_before_a_gpu_that_contradicts_the_layout_is_refused(tiny_checkpoint: Path) -> None:
    refused = run("plan", tiny_checkpoint, "--tp", "4", "--gpu", "8xH200")
    assert refused.exit_code == ExitCode.USAGE
    assert "Write --gpu h200, and --tp 8 for a layout or --gpus 8 to search them" in " ".join(refused.stderr.split())
