"""`explain`: every way out that it offers, in the terminal or as JSON, is planned again, and runs."""

import json
import re
from io import StringIO

import pytest
from rich.console import Console
from support.deployments import request_after, requested

import dsv4_shard
from dsv4_shard.checkpoint import Inventory
from dsv4_shard.diagnosis.document import Explanation
from dsv4_shard.diagnosis.releases import find_release, inventory_of
from dsv4_shard.engines import Request, Verdict
from dsv4_shard.planning.outcome import outcome_of
from dsv4_shard.terminal.screens.explain import show_explanation

PART = "ValueError: Weight output_partition_size = {} is not divisible by weight quantization block_n = 128."
EXPERTS = "The output_size of gate's and up's weight = {} is not divisible by weight quantization block_n = 128."
HEADS = "Value error, Total number of attention heads ({}) must be divisible by tensor parallel size ({})."
MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of {} GiB"
ON_SGLANG = "$ python3 -m sglang.launch_server --model-path=deepseek-ai/{} --tp {}\n"
ON_VLLM = "+ vllm serve deepseek-ai/{} --tensor-parallel-size {}\n"

LOGS = {
    "block": PART.format(192),
    "block on sglang": ON_SGLANG.format("DeepSeek-V4-Pro", 16) + PART.format(192),
    "block of the experts": ON_VLLM.format("DeepSeek-V4-Flash", 32) + EXPERTS.format(64),
    "block of r1": ON_SGLANG.format("DeepSeek-R1", 32) + PART.format(576),
    "vocabulary": "AssertionError: 129280 is not divisible by 24",
    "heads": HEADS.format(128, 3),
    "heads of v3": ON_VLLM.format("DeepSeek-V3", 24) + HEADS.format(128, 24),
    "heads of v3.2": ON_VLLM.format("DeepSeek-V3.2", 12) + HEADS.format(128, 12),
    "output groups": "    r = wq.size(0) // bmm_batch_size",
    "expert parallelism": "ValueError: tp_size 16 must be divisible by ep_size 3",
    "expert tensor parallelism": "ValueError: moe_intermediate_size 2048 must be divisible by moe_tp_size (24) which "
    "is tp_size (24) divided by moe_ep_size (1).",
    "tiles": "Mxfp4FlashinferCutlassMoEMethod requires hidden_size and intermediate_size_per_partition to be "
    "multiples of 128 (got hidden=7168, intermediate=192).",
    "marlin": "Current MXFP4 MoE layer does not satisfy Marlin constraints.",
    "topology": "ValueError: parallel topology is inconsistent (set by override_permanently):\n"
    "tp_size == moe_ep_size * moe_dp_size * moe_tp_size\n  8 != 3 * 1 * 2 (= 6)",
    "mega moe": "NotImplementedError: DeepSeek V4 MegaMoE currently requires expert parallel. Enable it with "
    "--enable-expert-parallel, or pick a different moe backend.",
    "memory of an h20": ON_SGLANG.format("DeepSeek-V4-Pro", 8) + MEMORY.format("95.00"),
    "memory of an h100": ON_SGLANG.format("DeepSeek-V3.2", 8) + MEMORY.format("79.18"),
    "memory of an h200": ON_VLLM.format("DeepSeek-V3", 4) + MEMORY.format("139.80"),
    "no room for cache": ON_VLLM.format("DeepSeek-V4-Pro", 4) + "No available memory for the cache blocks",
    "not verified": ON_VLLM.format("DeepSeek-V4.1-Flash", 4) + MEMORY.format("139.80"),
}


def explained(log: str) -> Explanation:
    return dsv4_shard.explain(log)


def sizes_of(model: str) -> Inventory:
    release = find_release(model)
    assert release is not None
    return inventory_of(release)


def assert_runs(model: str, request: Request, asked: Verdict) -> None:
    """A way out runs; where the layout asked for is not verified, neither need that be."""
    verdict = outcome_of(sizes_of(model), request).verdict
    assert verdict.is_good or verdict is asked is Verdict.UNVERIFIED, request


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_every_way_out_is_planned_again_and_runs(log: str) -> None:
    explanation = json.loads(explained(log).model_dump_json())
    assert explanation["recognised"]
    for case in explanation["cases"]:
        asked = requested(case["options"])
        verdict = outcome_of(sizes_of(case["model"]), asked).verdict
        for remedy in case["remedies"]:
            request = request_after(remedy, asked)
            if request is not None:
                assert_runs(case["model"], request, verdict)
    way = explanation["way"]
    if way is not None:
        model = re.match(r"dsv4-shard plan (\S+) ", way["next"])[1]  # type: ignore[index]
        assert outcome_of(sizes_of(model), requested(way["options"])).verdict == way["verdict"]
        for options in way["nearest"]:
            assert_runs(model, requested(options), Verdict(way["verdict"]))
        assert (way["command"] is not None) == Verdict(way["verdict"]).is_good
        assert not (way["nearest"] and Verdict(way["verdict"]).is_good)


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_the_terminal_offers_what_the_document_has(log: str) -> None:
    explanation = explained(log)
    console = Console(file=StringIO(), width=400)
    show_explanation(console, explanation)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert explanation.cases or explanation.way or explanation.remedies
    for remedy in explanation.remedies:
        assert remedy in text
    if explanation.way is not None:
        offered = re.findall(r"nearest that runs: (.*?)\s*\n", text)
        assert tuple(offered) == explanation.way.nearest
        assert f"{explanation.way.options}" in text
        assert str(explanation.way.verdict) in text


def test_some_logs_have_a_case_a_way_that_runs_and_nearest_layouts() -> None:
    """So that the other tests look at something."""
    found = [explained(log) for log in LOGS.values()]
    ways = [one.way for one in found if one.way is not None]
    assert sum(bool(one.cases) for one in found) > len(LOGS) // 2
    assert {way.verdict for way in ways} == set(Verdict)
    assert sum(bool(way.nearest) for way in ways) > 2


def test_the_command_has_the_options_that_the_verdict_counts_on() -> None:
    """V3.2 leaves no room for KV cache on eight H20 with SGLang's default share of memory."""
    way = explained(ON_SGLANG.format("DeepSeek-V3.2", 8) + MEMORY.format("95.00")).way
    assert way is not None
    outcome = outcome_of(sizes_of("DeepSeek-V3.2"), requested(way.options))
    settings = [setting for change in outcome.cache_changes for setting in change.settings]
    assert settings
    assert way.command is not None
    assert [setting for setting in settings if setting not in way.command] == []
