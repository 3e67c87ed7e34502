"""`explain`: every message that is known, with numbers of its own; nothing in other text; logs as they come."""

import io
import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from support.checkpoints.full_size import FLASH, PRO, REAL_MODELS
from support.checkpoints.full_size import inventory_of as real_inventory
from support.checkpoints.skeletons import DATA
from typer.testing import CliRunner, Result

import dsv4_shard
from dsv4_shard.cli import app
from dsv4_shard.diagnosis.document import Explanation
from dsv4_shard.diagnosis.explanation import explain
from dsv4_shard.diagnosis.known_model import KnownModel
from dsv4_shard.diagnosis.log_scan import lines_of, read_log
from dsv4_shard.diagnosis.messages import MESSAGES as TABLE
from dsv4_shard.diagnosis.patterns import compile_template, patterns
from dsv4_shard.diagnosis.releases import RELEASES, Release, find_release, inventory_of
from dsv4_shard.engines.deployment import Request
from dsv4_shard.engines.registry import ENGINES, engine_for, serving
from dsv4_shard.engines.sglang.rules import ROUTED_RULE
from dsv4_shard.engines.sglang.runners import RUNNERS
from dsv4_shard.errors import ExitCode
from dsv4_shard.limits import LOG_LINE
from dsv4_shard.models.families import FAMILIES
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.terminal.screens.explain import show_explanation

COLUMN = "ValueError: Weight output_partition_size = 192 is not divisible by weight quantization block_n = 128."
SHARED_192 = "shared intermediate size 3072 / TP 16 = 192, which is 1.5 blocks of 128"
ROUTED_192 = "moe_intermediate_size 3072 / MoE TP 16 = 192, which is 1.5"
O_GROUPS = "o_groups 8 / attention TP 16 = 0.5: not whole"

MESSAGES = [
    # what the engine says, and what the explanation must say
    (COLUMN, ["SGLang", SHARED_192, "SGLANG_SHARED_EXPERT_TP1=1 sglang serve", "--moe-runner-backend marlin",
              "dsv4-shard plan deepseek-ai/DeepSeek-V4-Pro --tp 16", "the model and TP: a guess"]),
    ("Weight input_size_per_partition = 192 is not divisible by weight quantization block_k = 128.",
     ["vLLM", SHARED_192, "24 blocks of 128 / TP 16 = 1.5, so 2 (256 rows) per rank; ranks 12-15 hold only zeros",
      "a vLLM with PR 46001"]),
    ("AssertionError: 129280 is not divisible by 24",
     ["SGLang, vLLM", "vocab_size (padded to 64) 129280 / TP 24 = 5386.67: not whole", "--tp 24 (the model",
      "SGLang 0.5.23, which pads the vocabulary", "q_b rows 65536 / attention TP 24"]),
    ("AssertionError: 65536 is not divisible by 24",
     ["q_b rows 65536 / attention TP 24 = 2730.67: not whole", "V4-Pro"]),
    ("AssertionError: 32768 is not divisible by 24", ["q_b rows 32768 / attention TP 24 = 1365.33", "V4-Flash"]),
    ("ValueError: tp_size 16 must be divisible by ep_size 3", ["TP 16 / EP 3 = 5.33: not whole", "--tp 16 --ep 3"]),
    ("ValueError: moe_intermediate_size 2048 must be divisible by moe_tp_size (24) which is tp_size (24) divided by "
     "moe_ep_size (1).", ["moe_intermediate_size 2048 / MoE TP 24 = 85.33: not whole"]),
    ("ValueError: For quantized MoE models, please make sure (moe_intermediate_size=3072 / moe_tp_size=16) % "
     "weight_block_size_n=128 == 0 where moe_tp_size is equal to tp_size (16) divided by ep_size (1). You can fix this "
     "by setting arguments `--tp` and `--ep` correctly.", [ROUTED_192, "SGLANG_SHARED_EXPERT_TP1=1: -", "--ep 2"]),
    ("The output_size of gate's and up's weight = 192 is not divisible by weight quantization block_n = 128.",
     ["SGLang, vLLM", ROUTED_192]),
    ("ValueError: The input_size of down's weight = 192 is not divisible by weight quantization block_k = 128.",
     [ROUTED_192]),
    ("Mxfp4FlashinferCutlassMoEMethod requires hidden_size and intermediate_size_per_partition to be multiples of 128 "
     "(got hidden=7168, intermediate=192).", [ROUTED_192, "tiles of 128"]),
    ("MXFP4 Marlin requires SM90 or SM120.", ["runner marlin does not take FP4 experts on Blackwell (sm_100)"]),
    ("Current MXFP4 MoE layer does not satisfy Marlin constraints.",
     ["moe_intermediate_size 3072 / MoE TP 64 = 48, which is 1.5 FP4 groups of 32"]),
    ("ValueError: parallel topology is inconsistent (set by override_permanently):\ntp_size == moe_ep_size * "
     "moe_dp_size * moe_tp_size\n  8 != 3 * 1 * 2 (= 6)", ["TP 8 / EP 3 = 2.67: not whole"]),
    ("ValueError: Tensor parallel size 512 is greater than the number of experts 384.",
     ["TP 512 exceeds the 384 routed experts"]),
    ("Attention sink heads (64) must be divisible by tp_size with --tensor-parallel-size 24",
     ["num_attention_heads 64 / attention TP 24 = 2.67: not whole"]),
    ("Attention sink heads (64) must be divisible by tp_size", ["num_attention_heads 64 must divide by attention TP"]),
    ("    assert n_heads % tp_size == 0", ["vLLM", "num_attention_heads must divide by attention TP"]),
    ("    assert num_heads % attn_tp_size == 0\nAssertionError\n--model-path deepseek-ai/DeepSeek-V3 --tp 48",
     ["SGLang", "num_attention_heads 128 / attention TP 48 = 2.67: not whole"]),
    ("    assert intermediate_size % self.moe_tp_size == 0\nAssertionError\nDeepSeek-V4-Flash --tp 24",
     ["moe_intermediate_size 2048 / MoE TP 24 = 85.33: not whole"]),
    ("    assert self._num_global_routed % self.moe_ep_size == 0\nAssertionError\nDeepSeek-V4-Flash --tp 24 --ep 24",
     ["n_routed_experts 256 / EP 24 = 10.67: not whole", "--tp 24 --ep 24"]),
    ("    r = wq.size(0) // bmm_batch_size", [O_GROUPS, "--tp 8 --dp 2 --engine vllm"]),
    ("ZeroDivisionError in fp8_utils.py:deepgemm_post_process_fp8_weight_block when loading FP8 model with TP=16 on "
     "dual-node H20", [O_GROUPS, "DeepSeek-V4-Flash with --tp 16 --engine vllm (the model: a guess)"]),
    ("Value error, Total number of attention heads (128) must be divisible by tensor parallel size (3).",
     ["num_attention_heads 128 / attention TP 3 = 42.67"]),
    ("Block-aligned FP8 TP sharding requires 128-aligned global expert dimensions, pure TP, and no LoRA or expert "
     "bias.",
     ["whole blocks of 128", "--runner triton"]),
    ("Unsupported DeepSeek V4 expert_dtype='bf16'", ["config.json says expert_dtype 'bf16'"]),
    ("NotImplementedError: DeepSeek V4 MegaMoE currently requires expert parallel. Enable it with "
     "--enable-expert-parallel, or pick a different moe backend.", ["needs expert parallelism", "--ep = TP × DP"]),
    ("AssertionError: tp_size must be divisible by number of nodes", ["SGLang", "GPUs must divide by nodes"]),
    ("ValueError: Missing keys (...) in loaded state!",
     ["parameters that none of the files holds", "dsv4-shard verify"]),
    ("ValueError: Missing keys ('model.layers.0.self_attn.attn_mqa.k_scale', 'x') in loaded state!",
     ["the first is model.layers.0.self_attn.attn_mqa.k_scale"]),
    ("KeyError: 'mtp.0.e_proj.weight'", ["mtp.0.e_proj.weight", "draft_load_config"]),
    ("KeyError: 'layers.0.attn.wo_a.scale'", ["BF16, without a scale"]),
    ("RuntimeError: start (24) + length (2) exceeds dimension size (24).",
     ["24 to 26 (part 12 of parts of 2) of 24: 2 too many", "vllm#49415"]),
    ("RuntimeError: start (3072) + length (256) exceeds dimension size (3072).",
     ["3072 to 3328 (part 12 of parts of 256) of 3072: 256 too many", "sglang#32781"]),
    ("IndexError: start out of range (expected to be in range of [-24, 24], but got 26)",
     ["begins 2 after the end", "vllm#47273"]),
    ("n_physical_experts=256 must be divisible by ep_size=3", ["256 experts / EP 3 = 85.33: not whole; EP 1, 2, 4, 8"]),
    ("192 not divisible by block_n=128", [SHARED_192]),
    ("192 is not divisible by 128", [SHARED_192, ROUTED_192]),
    ("Network filesystem (NFS4) detected but checkpoint total size (850.00 GiB) exceeds 90% of available RAM (322.00 "
     "GiB). Skipping auto-prefetch.", ["850 GiB against 322 GiB of memory: 2.6 times", "prefetch"]),
    ("exceeds 90% of available RAM … Skipping auto-prefetch", ["nothing is read ahead"]),
    ("Some weights are not initialized from checkpoints: {'model.layers.3.mlp.gate.weight'}", ["garbage"]),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.63 GiB. GPU 3 has a total capacity of 139.80 GiB "
     "of which 1.2 GiB is free.", ["139.8 GiB is what CUDA counts on", "H200 141 GB"]),
    ("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", ["no room for the KV cache"]),
    ("ValueError: No available memory for the cache blocks.", ["no room for the KV cache", "vLLM"]),
    ("RuntimeError: Cannot access accelerator device when none is available.", ["sees no GPU"]),
    ("ValueError: vLLM CUTLASS FP8 MoE backend is disabled for this configuration.", ["CUTLASS kernels"]),
    ("AssertionError: Dimension 0 must be divisible by 24", ["vocab_size 129280 / ranks 24 = 5386.67: not whole"]),
    ("AssertionError: Number of experts must be divisible by model parallelism\n$ torchrun convert.py --tp 7",
     ["n_routed_experts 384 / ranks 7 = 54.86: not whole"]),
    ("    assert self.hc_attn_fn_broadcast is not None\nAssertionError", ["hc_attn_fn_broadcast is not set", "0.29.0"]),
]  # fmt: skip
"""Messages that the engines' sources, checkers and users' reports have, each as it is printed."""


@cache
def of(text: str) -> Explanation:
    return explain(lines_of(io.BytesIO(text.encode())))


def shown(explanation: Explanation, width: int = 2000) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), highlight=False, emoji=False)
    show_explanation(console, explanation)
    return console.export_text()


def run(*arguments: str | Path, **options: Any) -> Result:
    return CliRunner().invoke(app, ["explain", *map(str, arguments)], **options)


# --- what is known ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("message", "wanted"), MESSAGES, ids=[message[:60] for message, _ in MESSAGES])
def test_a_message_is_explained_with_its_numbers_and_a_way_out(message: str, wanted: list[str]) -> None:
    explanation = of(message)
    assert explanation.recognised
    assert explanation.remedies or explanation.way
    text = shown(explanation)
    assert [words for words in wanted if words not in text] == []


def _refusals(name: Any) -> Iterator[Any]:
    """Refusals that the engines' own constructors gave, with what was asked of them."""
    for entry in json.loads((DATA / name).read_text()):
        if entry.get("error"):
            yield entry


SAID_TO_SGLANG = list(_refusals("sglang/verdicts.json"))


@pytest.mark.parametrize(
    "entry", SAID_TO_SGLANG, ids=lambda entry: f"{entry['model']}-{entry['tp']}-{entry['error'][:40]}"
)
def test_what_sglang_said_is_told_back_to_the_layout_that_it_was_said_of(entry: dict[str, Any]) -> None:
    """A log that names model and parallelism leaves nothing to guess."""
    model = "DeepSeek-V4-Pro" if entry["model"].startswith("pro") else "DeepSeek-V4-Flash"
    name = f"deepseek-ai/{model}" + ("-FP8" if entry["model"].endswith("fp8") else "")
    explanation = of(f"sglang serve --model-path {name} --tp {entry['tp']} --ep-size {entry['ep']}\n{entry['error']}")
    case = explanation.cases[0]
    assert (case.engine, case.guessed) == ("sglang", ())
    assert case.model.endswith(name.partition("/")[2])
    assert re.search(rf"--tp {entry['tp']}\b", case.options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sglang/verdicts.json", "sglang/v3.json", "vllm/v3.json", "vllm/backends.json"])
def test_every_refusal_of_the_engines_own_classes_is_explained(name: str) -> None:
    texts = set(re.findall(r'"error": ("(?:[^"\\]|\\.)*")', (DATA / name).read_text()))
    errors = [json.loads(text) for text in texts]
    assert errors
    for error in errors:
        explanation = of(error)
        assert explanation.recognised == (not error.endswith("Error: ")), error
        if not explanation.recognised:
            assert "the class of an error, not its message" in explanation.hint


def test_every_template_of_every_rule_is_recognised() -> None:
    """So that a new rule is known at once: from its own quotes, and from what is heard of it."""
    for name in serving():
        for family in FAMILIES:
            engine = engine_for(name, family)
            for rule in (*engine.rules, *engine.others):
                for template in rule.messages:
                    if compile_template(template) is None:
                        assert re.fullmatch(r"\w+Error:?", template)  # a class alone
                        continue
                    fields = [(text, field) for text, field, _, _ in Formatter().parse(template)]
                    text = "".join(words.replace("…", " x\n y ") + ("4711" if field else "") for words, field in fields)
                    found = read_log(lines_of(io.BytesIO(text.encode()))).found
                    sources = [source.rule for one in found for source in one.pattern.sources]
                    assert rule in sources, template


def test_what_a_runner_says_is_heard_of_the_rule() -> None:
    quotes = {row.quote for rows in RUNNERS.values() for row in rows if row.quote}
    assert quotes <= set(ROUTED_RULE.cut.messages)


BREACHES = [
    # what is said, and of which of the two breaches of a rule: the arithmetic of every case ends so, whatever the model
    ("assert intermediate_size % self.moe_tp_size == 0", r": not whole$"),
    ("assert self._num_global_routed % self.moe_ep_size == 0", r": not whole$"),
    ("assert n_heads % tp_size == 0", r": not whole$"),
    ("AssertionError: 65536 is not divisible by 24", r": not whole$"),
    ("Current MXFP4 MoE layer does not satisfy Marlin constraints.", r" FP4 groups of 32$"),
    ("The input_size of down's weight = 192 is not divisible by weight quantization block_k = 128.", r" of 128$"),
    ("192 is not divisible by 128", r" of 128$"),
]


@pytest.mark.parametrize("model", ["DeepSeek-V4-Pro", "DeepSeek-V4-Flash", "DeepSeek-V3"])
@pytest.mark.parametrize("tp", [6, 7, 16, 24, 32, 64])
@pytest.mark.parametrize(("message", "ending"), BREACHES, ids=[message[:40] for message, _ in BREACHES])
def test_a_message_is_explained_by_the_breach_that_it_is_of_and_by_no_other(
    message: str, ending: str, tp: int, model: str
) -> None:
    for explanation in (of(message), of(f"--model-path {model} --tp {tp} --ep 1\n{message}")):
        for case in explanation.cases:
            assert re.search(ending, case.arithmetic), case.arithmetic
    assert of(message).recognised


def test_a_size_that_divides_is_no_case_of_an_assertion_that_it_divides() -> None:
    """3072 / 16 = 192 is whole: the assertion passes, whatever the runner says of 192 then."""
    explanation = of("assert intermediate_size % self.moe_tp_size == 0  # --tp 16, DeepSeek-V4-Pro")
    assert explanation.cases == ()
    assert explanation.meaning == ("moe_intermediate_size must divide by MoE TP",)
    bare = of("assert intermediate_size % self.moe_tp_size == 0")
    assert bare.remedies == ("more EP: --ep N, so that fewer ranks share one expert",)


def test_messages_of_no_rule_are_found_by_plain_text_in_them() -> None:
    for pattern in patterns():
        assert pattern.anchors
        assert all(len(anchor) >= 4 for anchor in pattern.anchors), pattern.regex.pattern
    assert len({known.regex for known in TABLE}) == len(TABLE)


@pytest.mark.slow
@pytest.mark.parametrize("known", TABLE, ids=lambda known: known.regex[:50])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_each_text_of_a_row_has_one_of_its_anchors(known: Any, data: Any) -> None:
    """Texts are made from the row's own regular expression: an anchor that is not in them would hide the row."""
    text = data.draw(st.from_regex(known.regex, fullmatch=True))
    pattern = next(pattern for pattern in patterns() if pattern.known is known)
    assert any(anchor in text for anchor in pattern.anchors)


# --- releases --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.title)
def test_a_release_by_its_sizes_is_the_release_by_its_headers(release: Release) -> None:
    made, real = inventory_of(release), real_inventory(release.title)[1]
    assert made.groups == real.groups
    assert made.formats == real.formats
    assert made.draft == real.draft


def test_releases_are_told_by_their_names_in_paths() -> None:
    for release in RELEASES:
        assert find_release(f"/models/{release.title}/x") is release
        assert find_release(release.repo.lower().replace("-", "_")) is release
    assert {release.title for release in RELEASES} <= set(REAL_MODELS)
    assert find_release("/models/DeepSeek-R1-0528") is RELEASES[-1]
    assert find_release("Qwen3-235B-A22B-FP8") is None


# --- numbers are reckoned --------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=40)
@given(st.integers(1, 10**6), st.integers(1, 5000))
def test_numbers_that_fit_no_model_are_not_explained_and_others_are_a_true_division(number: int, divisor: int) -> None:
    explanation = of(f"{number} is not divisible by {divisor}")
    for case in explanation.cases:
        size, parts, part = re.search(r" (\d+) / \D+(\d+) = ([\d.]+)", case.arithmetic).groups()
        assert int(size) / int(parts) == pytest.approx(float(part), rel=0.005, abs=0.005)
        assert (
            (int(size), int(parts)) == (number, divisor)
            or (float(part), divisor) == (number, 128)
            or re.search(rf" of {divisor}$", case.arithmetic)
        )
    assert explanation.recognised == bool(explanation.cases)


@pytest.mark.slow
@pytest.mark.parametrize("tp", [32, 64])
def test_another_part_is_another_tp(tp: int) -> None:
    case = of(COLUMN.replace("192", str(3072 // tp))).cases[0]
    assert case.options == f"--tp {tp}"
    assert (
        case.arithmetic
        == f"shared intermediate size 3072 / TP {tp} = {3072 // tp}, which is {24 / tp:.4g} blocks of 128"
    )


def test_a_number_that_no_model_has_is_still_reckoned() -> None:
    explanation = of(COLUMN.replace("192", "77"))
    assert explanation.cases == ()
    assert "77 = 0.6016 blocks of 128" in explanation.meaning[0]


def test_the_way_out_is_the_plans() -> None:
    plan = make_plan(*real_inventory(PRO), Request(16))
    way = of(COLUMN).way
    assert way.environment == plan.launch.environment
    assert way.notes == tuple(map(str, plan.changes))
    assert "--tp 16 --moe-runner-backend marlin" in way.command
    refused = make_plan(*real_inventory(FLASH), Request(16, engine="vllm"))
    way = of("r = wq.size(0) // bmm_batch_size   # --tp 16").way
    assert way.verdict == "does not run"
    assert list(way.nearest) == [near.options for near in refused.alternatives]


@pytest.mark.slow
def test_memory_is_compared_with_what_a_rank_weighs() -> None:
    plan = make_plan(*real_inventory(PRO), Request(8, gpu="h20-96"))
    text = "vllm serve deepseek-ai/DeepSeek-V4-Pro --tensor-parallel-size 8\nsglang: no\n"
    way = of(text.replace("vllm", "sglang").replace("tensor-parallel-size", "tp")
             + "CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has a total capacity of 95.00 GiB").way  # fmt: skip
    gib = plan.totals.target_bytes_per_rank_max / (1 << 30)
    assert way.verdict == "does not run"
    assert f"{gib:.1f} GiB of weights per GPU, NVIDIA H20 96 GB has 95.0 GiB, 7.4 GiB short" in way.notes
    assert list(way.nearest) == [near.options for near in plan.alternatives]


# --- what is not known -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.text(max_size=500))
def test_arbitrary_text_is_not_recognised(text: str) -> None:
    explanation = of(text)
    assert not explanation.recognised
    assert explanation.hint


WORDS = sorted({word for message, _ in MESSAGES for word in re.findall(r"[A-Za-z_]{3,}", message)})


@given(st.lists(st.sampled_from([*WORDS, "16", "128", "192", "=", "(", ")", "'", "\n", ".", "%"]), max_size=60))
def test_words_of_the_messages_in_another_order_are_not_recognised(words: list[str]) -> None:
    """But for a message that comes about whole."""
    text = " ".join(words)
    if not any(pattern.regex.search(text) for pattern in patterns()):
        assert not of(text).recognised


@given(st.binary(max_size=2000))
def test_bytes_that_are_no_text_do_no_harm(raw: bytes) -> None:
    explanation = explain(lines_of(io.BytesIO(raw)))
    assert not explanation.recognised


@pytest.mark.parametrize("text", ["AssertionError", "ZeroDivisionError: integer modulo by zero", "ValueError:"])
def test_a_class_without_a_message_says_what_else_to_give(text: str) -> None:
    explanation = of(text)
    assert not explanation.recognised
    assert "give the traceback above it" in explanation.hint


# --- logs ------------------------------------------------------------------------------------------------------------

TRACEBACK = ["Traceback (most recent call last):", '  File "/opt/sglang/srt/models/deepseek_v2.py", line 886, in f',
             "    self.shared_experts = DeepseekV2MLP(", "    raise ValueError(", COLUMN]  # fmt: skip


def noise(count: int) -> str:
    return "".join(
        f"(RayWorkerWrapper pid={1000 + n}) \x1b[32mINFO\x1b[0m 11-27 09:00:{n % 60:02} [loader.py:384] shards: {n}%\n"
        for n in range(count)
    )


def of_ranks(lines: list[str], form: str = "[2026-11-27 09:00:00 TP{rank}] {line}\n", ranks: int = 16) -> str:
    """Each line from each rank before the next: as interleaved as it gets."""
    return "".join(form.format(rank=rank, line=line) for line in lines for rank in range(ranks))


FORMS = {
    "sglang": "[2026-11-27 09:00:00 TP{rank}] {line}\n",
    "vllm": "\x1b[1;36m(Worker_TP{rank} pid=12{rank})\x1b[0;0m ERROR 11-27 09:00:00 [executor.py:879] {line}\r\n",
    "ray": "\x1b[36m(RayWorkerWrapper pid=4{rank}, ip=10.0.0.1)\x1b[0m {line}\n",
    "torchrun": "[rank{rank}]: {line}\n",
    "compose": "node-{rank}  | {line}\n",
    "plain": "{line}\n",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_sixteen_ranks_that_say_the_same_are_one_message(form: str) -> None:
    explanation = of(noise(300) + of_ranks(TRACEBACK, form) + noise(50))
    assert explanation.message.times == 16
    assert explanation.message.line == 301 + 16 * (len(TRACEBACK) - 1)
    assert explanation.also == ()
    assert explanation.meaning == (f"shared experts: {SHARED_192}",)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_message_of_several_lines_is_found_between_those_of_other_ranks(form: str) -> None:
    if form != FORMS["vllm"]:  # the message is SGLang's
        topology = next(message for message, _ in MESSAGES if "topology" in message)
        explanation = of(noise(20) + of_ranks(topology.split("\n"), form) + noise(20))
        assert explanation.meaning == ("routed experts: TP 8 / EP 3 = 2.67: not whole",)
    if form != FORMS["sglang"]:  # the message is vLLM's
        trap = ['  File "fp8_utils.py", line 9, in deepgemm_post_process_fp8_weight_block', "    x = 1 // n",
                "ZeroDivisionError: integer modulo by zero"]  # fmt: skip
        assert O_GROUPS in of(noise(20) + of_ranks(trap, form)).meaning[0]


@pytest.mark.parametrize("between", [0, 1, 8, 38])
def test_a_message_spans_up_to_forty_different_lines(between: int) -> None:
    first = "in deepgemm_post_process_fp8_weight_block"
    lines = [first, *(f"frame {n}" for n in range(between)), "ZeroDivisionError: integer modulo by zero"]
    assert O_GROUPS in of(noise(50) + "\n".join(lines)).meaning[0]
    assert not of(noise(50) + "\n".join([first, *(f"{n}" for n in range(39)), lines[-1]])).recognised


def test_a_division_by_zero_elsewhere_is_not_the_output_groups() -> None:
    explanation = of(of_ranks(['  File "my_script.py", line 3, in mean', "ZeroDivisionError: division by zero"]))
    assert not explanation.recognised


def test_the_first_cause_counts_and_what_follows_from_it_is_named_after_it() -> None:
    later = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.63 GiB.\n"
    warning = "Some weights are not initialized from checkpoints: {'x'}\n"
    explanation = of(warning + noise(10) + of_ranks(TRACEBACK)
                     + "\nDuring handling of the above exception, another exception occurred:\n" + later)  # fmt: skip
    assert "192" in explanation.message.text
    assert [one.text[:12] for one in explanation.also] == ["torch.OutOfM", "Some weights"]


def test_a_warning_is_explained_where_nothing_worse_is_said() -> None:
    explanation = of(noise(10) + "Some weights are not initialized from checkpoints: {'x'}\n" + noise(10))
    assert "garbage" in explanation.meaning[0]


def test_the_log_says_what_need_not_be_guessed() -> None:
    head = (
        "ServerArgs(model_path='/models/DeepSeek-V4-Pro', tp_size=16, moe_tp_size=4, reasoning_parser='deepseek-v3')\n"
    )
    explanation = of(head + of_ranks(TRACEBACK))
    assert [(case.engine, case.options, case.guessed) for case in explanation.cases] == [("sglang", "--tp 16", ())]
    vllm = of("vllm serve --tensor-parallel-size 16\n" + of_ranks(TRACEBACK[-1:]))
    assert vllm.engines == ("vLLM",)
    assert vllm.way.next.endswith("--tp 16 --engine vllm")


@pytest.mark.parametrize(
    ("said", "dp"),
    [
        ("sglang serve --tp 24 --dp-size 2 --enable-dp-attention", 2),
        ("sglang serve --tp 24 --dp 2 --enable-dp-attention", 2),
        ("sglang serve --tp 24 --attn-dp-size 2", 2),
        ("sglang: ServerArgs(tp_size=24, dp_size=2, enable_dp_attention=True, moe_dp_size=1)", 2),
        ("--tp 24 --dp-size 2 --enable-dp-attention", 2),
        ("sglang: ServerArgs(tp_size=12, dp_size=2, enable_dp_attention=False)", 1),
        ("sglang serve --tp 12 --dp 2", 1),
    ],
)
def test_the_attention_dp_that_a_log_tells_is_that_of_its_case(said: str, dp: int) -> None:
    """Without --enable-dp-attention, SGLang's --dp-size are replicas of the whole model."""
    explanation = of(f"{said}\nAssertionError: 65536 is not divisible by 12")
    options = f"--tp {12 * dp}" + (" --dp 2" if dp > 1 else "")
    assert explanation.engines == ("SGLang",)
    assert [case.options for case in explanation.cases] == [options]
    assert explanation.way.next.endswith(options)
    assert explanation.cases[0].arithmetic == "q_b rows 65536 / attention TP 12 = 5461.33: not whole"


def test_vllms_data_parallel_size_is_that_of_its_case() -> None:
    explanation = of("vllm serve --tensor-parallel-size 16 --data-parallel-size 2\n" + COLUMN)
    assert [case.options for case in explanation.cases] == ["--tp 16 --dp 2 --engine vllm"]


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
@pytest.mark.parametrize(
    "message",
    [
        "AssertionError: 129280 is not divisible by 24",
        COLUMN,
        "The output_size of gate's and up's weight = 192 is not divisible by weight quantization block_n = 128.",
        "ValueError: The input_size of down's weight = 192 is not divisible by weight quantization block_k = 128.",
    ],
)
def test_the_engine_that_a_log_is_of_is_the_one_that_is_named_and_planned_for(engine: str, message: str) -> None:
    explanation = of(f"File /opt/{engine}/model.py\n{message}")
    assert explanation.engines == (ENGINES[engine].title,)
    assert {case.engine for case in explanation.cases} == {engine}
    assert ("--engine vllm" in explanation.way.options) == (engine == "vllm")
    assert ("--engine vllm" in explanation.way.next) == (engine == "vllm")


def test_a_vllm_that_cut_the_shared_expert_is_told_of_the_one_that_pads_it() -> None:
    """Padding is no option of vLLM's, and what 0.33.0 does anyway."""
    message = "Weight input_size_per_partition = 192 is not divisible by weight quantization block_k = 128."
    explanation = of(f"vllm serve DeepSeek-V4-Pro --tensor-parallel-size 16\n{message}")
    assert [way for way in explanation.remedies if "PR 46001" in way]
    assert not [way for way in explanation.remedies if "--shared-experts" in way]


def test_fp8_experts_in_a_log_of_vllm_have_no_way_out_of_sglang() -> None:
    explanation = of(
        "vllm serve DeepSeek-V4-Pro-FP8 --tensor-parallel-size 16\nThe output_size of gate's and up's weight = 192 is "
        "not divisible by weight quantization block_n = 128."
    )
    assert explanation.cases[0].arithmetic.startswith(ROUTED_192)
    assert not [way for way in explanation.remedies if "--runner marlin" in way]


def test_a_number_that_no_cut_of_the_model_gives_is_said_to_be_of_something_else() -> None:
    """V4-Flash has no dense MLP and no kv_b, of which messages of V3 are."""
    for explanation in (of(f"--model-path DeepSeek-V4-Flash\n{COLUMN}"), explain_of_flash(COLUMN)):
        assert "no cut of" in explanation.meaning[0]
        assert "DeepSeek-V4-Flash" in explanation.meaning[0]
        assert explanation.cases == ()
        assert explanation.remedies == ("fewer ranks in a TP group, with data parallelism for the others",)
        assert not re.search("kv_b|intermediate_size|moe-dense", shown(explanation))


def explain_of_flash(text: str) -> Explanation:
    return explain(
        lines_of(io.BytesIO(text.encode())), KnownModel("my/DeepSeek-V4-Flash", real_inventory(FLASH)[1], True)
    )


def test_a_line_that_a_terminal_broke_is_put_together() -> None:
    broken = "ValueError: Weight output_partition_size = 192 is not divisible by\nweight quantization block_n = 128."
    assert SHARED_192 in of(broken).meaning[0]


def test_a_traceback_in_one_line_of_json_is_read() -> None:
    assert SHARED_192 in of(json.dumps({"log": "\n".join(TRACEBACK)})).meaning[0]


def test_progress_bars_that_end_in_carriage_returns_do_not_hide_a_message() -> None:
    assert SHARED_192 in of("loading 1%\rloading 2%\rloading 3%\r" + COLUMN).meaning[0]


@pytest.mark.slow
@given(st.integers(0, 3 * LOG_LINE.nbytes))
def test_a_message_is_found_anywhere_in_a_line_of_any_length(offset: int) -> None:
    line = "x" * offset + " " + COLUMN + " " + "y" * LOG_LINE.nbytes
    assert [one.values for one in read_log(lines_of(io.BytesIO(line.encode()))).found] == [("192", "128")]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_log() -> None:
    def peak(count: Any) -> Any:
        lines = (line for n in range(count) for line in lines_of(io.BytesIO(noise(10).encode() + b"%d%%\n" % n)))
        patterns()
        tracemalloc.start()
        read_log(lines)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(3000) < 1.2 * peak(300)


@pytest.mark.slow
def test_so_many_messages_are_kept_and_no_more() -> None:
    text = "".join(COLUMN.replace("192", str(n)) + "\n" for n in range(1, 5000))
    assert len(read_log(lines_of(io.BytesIO(text.encode()))).found) < 100


def test_what_a_log_says_is_shown_escaped() -> None:
    hostile = (
        "KeyError: 'mtp.0.x'\nUnsupported DeepSeek V4 expert_dtype=[red]\nMissing keys ('\x9b2J\u202e[bold]x', 'y')"
    )
    text = shown(of(hostile), 80)
    assert not any(char in text for char in "\x1b\x9b\u202e")
    assert "\\u202e[bold]x" in text


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_text_file_and_pipe_are_explained_alike(tmp_path: Path) -> None:
    (tmp_path / "server.log").write_text(COLUMN)
    results = [run(COLUMN), run(tmp_path / "server.log"), run("-", input=COLUMN), run(input=COLUMN)]
    assert {result.exit_code for result in results} == {0}
    assert len({result.stdout for result in results}) == 1
    assert SHARED_192 in results[0].stdout.replace("\n  ", " ")


def test_unknown_text_exits_with_1_and_says_what_to_give() -> None:
    result = run("the server is slow")
    assert result.exit_code == ExitCode.NO
    assert "not recognised" in result.stdout
    assert "Give the whole log" in result.stdout
    assert json.loads(run("the server is slow", "--json").stdout)["recognised"] is False


@pytest.mark.slow
def test_json_is_one_document_with_a_version() -> None:
    document = json.loads(run(COLUMN, "--json").stdout)
    assert document["schema_version"] == 3
    assert document["cases"][0]["rule"] == "shared-blocks"
    assert Explanation.model_validate(document) == of(COLUMN)


@pytest.mark.slow
def test_a_terminal_without_text_is_a_usage_error() -> None:
    ours, theirs = os.openpty()
    try:
        result = subprocess.run(
            [sys.executable, "-m", "dsv4_shard", "explain"], stdin=theirs, capture_output=True, text=True
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert result.returncode == ExitCode.USAGE
    assert "nothing to explain" in result.stderr


def test_no_text_is_a_usage_error(tmp_path: Path) -> None:
    assert run(" ").exit_code == ExitCode.USAGE
    (tmp_path / "log").touch()
    assert "nothing to explain" in run(str(tmp_path / "log")).stderr


@pytest.mark.parametrize(("name", "said"), [("nosuch.log", "no such file"), ("", "a folder")])
def test_a_log_that_is_none_is_not_taken_for_a_message(name: str, said: str, tmp_path: Path) -> None:
    result = run(str(tmp_path / name))
    assert (result.exit_code, said in result.stderr) == (ExitCode.USAGE, True)


def test_a_log_that_cannot_be_read_is_an_error_of_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.isfile", lambda path: True)
    result = run(tmp_path)
    assert result.exit_code == ExitCode.IO


def test_a_checkpoint_at_hand_leaves_no_model_to_guess(tiny_checkpoint: Path) -> None:
    """Whose shared expert of 256 rows is half a block over 4 ranks, of which no release says anything."""
    result = run(COLUMN.replace("192", "64"), "--repo", tiny_checkpoint, "--json")
    document = json.loads(result.stdout)
    case = document["cases"][0]
    assert case["arithmetic"] == "shared intermediate size 256 / TP 4 = 64, which is 0.5 blocks of 128"
    assert case["guessed"] == ["TP"]
    assert document["way"]["next"] == f"dsv4-shard plan {tiny_checkpoint} --tp 4"


def test_a_damaged_checkpoint_is_not_compared_with(folder: Path) -> None:
    (folder / "model-00004-of-00005.safetensors").unlink()
    assert run(COLUMN, "--repo", folder).exit_code == ExitCode.CHECKPOINT


@pytest.mark.parametrize(
    "log",
    [
        "sglang --tp 1536 --dp 1024 enable_dp_attention\nassert n_heads % tp_size == 0\n",
        "server args: tp_size=4095 ep_size=4093 dp_size=4091 enable_dp_attention=True sglang\n"
        "assert intermediate_size % self.tp_size == 0\n",
        "vllm tensor_parallel_size=4096 data_parallel_size=4096\nassert intermediate_size % self.tp_size == 0\n",
    ],
)
def test_a_log_of_more_gpus_than_any_layout_has_is_answered_and_not_called_misused(log: str) -> None:
    assert dsv4_shard.explain(log).recognised
