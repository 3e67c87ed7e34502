"""Real users' situations that `plan` answers: what the engine's code, or what it printed, says of each.

Those of `explain` stand in tests/diagnosis/test_situations.py.
"""

from dataclasses import dataclass

import pytest
from support.checkpoints.full_size import FLASH, PRO, PRO_NVFP4, V3, V32, V41, inventory_of
from typer.testing import CliRunner

from dsv4_shard.cli import app

FLASH_0731, FLASH_BASE = "DeepSeek-V4-Flash-0731", "DeepSeek-V4-Flash-Base"


@dataclass(frozen=True)
class Situation:
    """What a user asks of `plan`, the exit code, and the words that the answer must and must not have."""

    model: str
    options: str
    code: int
    must: tuple[str, ...]
    must_not: tuple[str, ...] = ()


SITUATIONS = {
    # vLLM 0.26.0 on these GPUs: 7.7 GiB of cache, 150,000 tokens, longest context 121,344
    "no token is named where the bounds are too far apart": Situation(
        FLASH_0731, "--tp 2 --engine vllm --gpu h20-96 --details", 0,
        ("2.1 GiB to 10.1 GiB for KV cache", "not certain enough to say", "a context of 1,048,576 tokens may not fit"),
        ("at most", "3,850"),
    ),
    "a context is answered with sessions": Situation(
        PRO, "--tp 8 --gpu b200 --context 131072", 0, ("21 sessions of 131,072 tokens at once",),
    ),
    # vLLM 0.33.0, experts/trtllm_mxfp4_moe.py:123 and trtllm_fp8_moe.py:170: capability family 100 alone
    "sm_120 is not sm_100": Situation(
        FLASH, "--tp 2 --engine vllm --gpu rtx-pro-6000", 0, ("runner deep_gemm", "vLLM takes marlin"), ("trtllm",),
    ),
    "sm_120 has no TRTLLM": Situation(
        FLASH, "--tp 2 --engine vllm --gpu rtx-pro-6000 --runner flashinfer_trtllm", 1,
        ("flashinfer_trtllm does not take FP4 experts on Blackwell (sm_120)",),
    ),
    "sm_120 with FP8 experts": Situation(
        FLASH_BASE, "--tp 4 --engine vllm --gpu rtx-pro-6000", 0, ("runner deep_gemm",), ("trtllm",),
    ),
    "the sellers' name of a GPU": Situation(FLASH, "--tp 8 --gpu h20-3e", 0, ("8 × NVIDIA H20-3e 141 GB",)),
    "DGX Spark": Situation(FLASH, "--tp 8 --gpu dgx-spark", 6, ("8 × NVIDIA GB10", "Not verified", "121.7 GiB")),
    "two GPUs of one name": Situation(FLASH, "--tp 8 --gpu a100", 2, ("Did you mean a100-80 (",)),
    "a GPU below Hopper": Situation(
        FLASH, "--tp 8 --gpu l40s", 6, ("44.4 GiB", "own classes were not run for NVIDIA L40S (sm_89)"), ("marlin",),
    ),
    "another GPU below Hopper": Situation(FLASH, "--tp 8 --gpu l20", 6, ("44.4 GiB", "NVIDIA L20 (sm_89)")),
    "a card of 24 GB": Situation(FLASH, "--tp 8 --gpu rtx-4090", 6, ("RTX 4090 (sm_89)",)),
    # contracts of the engines' own classes: 83.56 GB without the tables, which vLLM keeps in host memory
    "V4.1 on vLLM has bytes": Situation(
        V41, "--tp 4 --engine vllm --gpu h20-96", 6,
        ("Not verified", "weights 77.8 of 95.0 GiB", "engram tables in host memory", "188.8 GiB of host memory"),
        ("--engine node", "oes not run"),
    ),
    "V4.1 on node folders has a bound": Situation(
        V41, "--tp 4 --engine node --gpu h20-96", 6, ("Not verified", "weights are at most these"), ("leave --gpu",),
    ),
    "NVFP4 runs": Situation(
        PRO_NVFP4, "--tp 4 --gpu gb300", 0, ("Runs", "weights 211.8 of 276.5 GiB per GPU", "draft model"),
    ),
    "V3 on TensorRT-LLM has a bound": Situation(
        V3, "--tp 8 --engine trtllm --gpu h200", 6, ("weights 93.9 of 139.8 GiB", "at least 78.4 GiB"),
    ),
    "AMD has bytes": Situation(
        PRO, "--tp 8 --gpu mi350x", 6, ("weights 102.4 of 288.0 GiB", "bytes are those on Hopper"),
    ),
    # the parts' own code (tests/data/kv_cache), and published logs within 15 %
    "V3 has tokens": Situation(
        V3, "--tp 8 --gpu h200", 0, ("about 632,000 tokens", "3 sessions of 163,840 tokens at once"),
    ),
    "V3.2 has tokens": Situation(
        V32, "--tp 8 --engine vllm --gpu h200", 0, ("KV cache: about", "of 163,840 tokens at once"),
    ),
    "GH200": Situation(FLASH, "--tp 4 --gpu gh200", 0, ("4 × NVIDIA GH200 96 GB on 4 nodes", "94.5 GiB")),
    "RTX 5090": Situation(FLASH, "--tp 8 --gpu rtx5090 --engine vllm", 0, ("31.4 GiB", "NVIDIA RTX 5090")),
    "a product's name": Situation(FLASH, "--tp 8 --gpu nvidia_h100_nvl", 0, ("8 × NVIDIA H100 NVL 94 GB",)),
    "the context does not fit": Situation(
        PRO, "--tp 1 --dp 8 --ep 8 --engine vllm --gpu h200", 0,
        ("a context of 1,048,576 tokens does not fit", "vLLM stops, and names the longest that fits"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_the_plan_is_the_right_one(situation: Situation) -> None:
    source = str(inventory_of(situation.model)[0].source.label)
    result = CliRunner().invoke(app, ["plan", source, *situation.options.split()], terminal_width=200)
    assert result.exit_code == situation.code
    text = " ".join(result.output.split())
    assert [words for words in situation.must if words not in text] == []
    assert [words for words in situation.must_not if words in text] == []
