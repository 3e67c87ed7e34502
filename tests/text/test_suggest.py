"""Names that are not known: what was meant comes first, and the exit code is that of wrong usage."""

import re
from pathlib import Path

import pytest
from support.command_line import run

from dsv4_shard.catalog import options as names
from dsv4_shard.engines.deployment import ANY_ENGINE
from dsv4_shard.engines.registry import ENGINES
from dsv4_shard.errors import ExitCode
from dsv4_shard.planning.layouts import RANKINGS
from dsv4_shard.text.suggest import near


@pytest.mark.slow
def test_the_names_that_are_offered_are_those_that_the_engines_have() -> None:
    assert list(names.ENGINES) == list(ENGINES)
    assert tuple(names.PLANNED_ONLY) == tuple(name for name, engine in ENGINES.items() if engine.layout is None)
    assert list(names.RANKINGS) == list(RANKINGS)


def test_the_versions_that_are_offered_are_those_that_the_engines_rules_know() -> None:
    for name, engine in ENGINES.items():
        assert engine.versions == names.VERSIONS[name]
        assert engine.version == engine.versions[0]
        assert {table.version for table in engine.variants} <= {*engine.versions, ANY_ENGINE}


@pytest.mark.parametrize(("name", "known", "meant"), [
    ("sglng", names.ENGINES, ["sglang"]),
    ("VLLN", names.ENGINES, ["vllm"]),
    ("deepp", names.A2A, ["deepep", "deepep_v2"]),
    ("h20", ["h20-96", "h100", "h200", "h20-141"], ["h20-96", "h20-141", "h200"]),
    ("DeepSek-V4-Pro", ["deepseek-ai/DeepSeek-V4-Pro", "org/other"], ["deepseek-ai/DeepSeek-V4-Pro"]),
    ("deepseek/DeepSeek-V4-Pro", ["deepseek-ai/DeepSeek-V4-Pro", "org/other"], ["deepseek-ai/DeepSeek-V4-Pro"]),
    ("", names.ENGINES, []),
    ("nothing of the kind", names.ENGINES, []),
    ("x" * 10**6, names.ENGINES, []),
])  # fmt: skip
def test_the_nearest_name_comes_first(
    name: str, known: dict[str, str] | tuple[str, ...] | list[str], meant: list[str]
) -> None:
    assert near(name, known) == meant


@pytest.mark.parametrize(("arguments", "meant"), [
    (("--engine", "sglng"), "Did you mean sglang? Known: sglang, vllm"),
    (("--engine", "sglang,vllm"), "Several engines are for --gpus"),
    (("--gpu", "h20-95"), "Did you mean h20-96"),
    (("--gpu", "H20"), "Did you mean h20-96 (NVIDIA H20 96 GB) or h20-141"),
    (("--runner", "marln"), "Did you mean marlin or lora_marlin? Known: flashinfer_mxfp4, marlin, triton, deep_gemm, "),
    (("--engine", "vllm", "--runner", "triton_unfuse"), "Did you mean triton_unfused"),
    (("--a2a", "deepp"), "Did you mean deepep or deepep_v2"),
    (("--shared-experts", "hole"), "Did you mean whole? Known: auto, whole, split, pad."),
    (("--expert-dtype", "fp9"), "Did you mean fp8 or fp4? Known: fp4, fp8."),
    (("--engine-version", "0.5.24"), "Supported: 0.5.23."),
    (("--engine", "trtllm", "--engine-version", "1.0"), "Supported: 02586bf."),
])  # fmt: skip
def test_a_name_that_is_not_known_is_a_usage_error_that_names_what_was_meant(
    arguments: tuple[str, ...], meant: str, tiny_checkpoint: Path
) -> None:
    result = run("plan", tiny_checkpoint, "--tp", "2", *arguments)
    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
    message, hint = result.stderr.splitlines()
    assert message.startswith("error: ")
    assert repr(arguments[-1]) in message
    assert hint.startswith(f"  {meant}")


@pytest.mark.parametrize(("arguments", "verdict"), [
    (("--runner", "triton_unfused"), "Not verified"),
    (("--engine", "reference", "--runner", "marlin"), "Does not run"),
    (("--engine", "vllm", "--a2a", "deepep"), "Does not run"),
    (("--engine", "vllm", "--engine-version", "0.27.0"), "Does not run"),
])  # fmt: skip
def test_what_another_engine_has_is_answered_by_the_rule_that_it_breaks(
    arguments: tuple[str, ...], verdict: str, tiny_checkpoint: Path
) -> None:
    result = run("plan", tiny_checkpoint, "--tp", "2", *arguments)
    assert result.exit_code == (ExitCode.NOT_VERIFIED if verdict == "Not verified" else ExitCode.NO)
    assert re.search(rf"^\S {verdict}", result.stdout, re.MULTILINE)


def test_a_search_refuses_an_engine_that_is_not_known(tiny_checkpoint: Path) -> None:
    result = run("plan", tiny_checkpoint, "--gpus", "2", "--engine", "sglang,vlm")
    assert result.exit_code == ExitCode.USAGE
    assert "Did you mean vllm" in result.stderr
