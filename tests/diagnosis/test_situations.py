"""Real users' logs: what the answer must say, and what it must not, as the log or the engine's code says otherwise."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from support.checkpoints.full_size import inventory_of

import dsv4_shard
from dsv4_shard.diagnosis.document import Explanation
from dsv4_shard.engines import StartStage
from dsv4_shard.tensors.header import build_header

ARGUMENTS: dict[str, str] = {
    "vllm dict": "(APIServer pid=7) INFO 11-30 09:00:00 [startup.py:96] non-default args: "
    "{{'model_tag': '{model}', 'model': '{model}', 'tensor_parallel_size': {tp}}}",
    "vllm config": "(EngineCore_DP0 pid=9) INFO 11-30 09:00:00 [core.py:140] Initializing a V1 LLM engine (v0.33.0) "
    "with config: model='{model}', speculative_config=None, tokenizer='{model}', load_format=auto, "
    "tensor_parallel_size={tp}, pipeline_parallel_size=1, data_parallel_size=1, quantization=fp8",
    "sglang dict": "[2026-11-30 09:00:00] server_args={{'model_path': '{model}', 'tokenizer_path': '{model}', "
    "'tp_size': {tp}, 'ep_size': 1, 'dp_size': 1, 'reasoning_parser': 'deepseek-v3'}}",
    "sglang dataclass": "[2026-11-30 09:00:00] server_args=ServerArgs(model_path='{model}', tp_size={tp}, dp_size=1, "
    "ep_size=1, tool_call_parser='deepseekv3')",
    "vllm command": "+ vllm serve {model} --tensor-parallel-size {tp} --trust-remote-code",
    "sglang command": "$ python3 -m sglang.launch_server --model-path={model} --tp {tp}",
    "kubernetes": "    args:\n    - --model-path\n    - {model}\n    - --tp\n    - '{tp}'",
    "json list": 'Command: ["vllm", "serve", "{model}", "-tp", "{tp}"]',
    "json log": '{{"level": "INFO", "message": "non-default args: {{\\"model\\": \\"{model}\\", '
    '\\"tensor_parallel_size\\": {tp}}}"}}',
    "shell variable": "export MODEL={model}\nvllm serve $MODEL -tp {tp}",
    "ray": "\x1b[36m(RayWorkerWrapper pid=4, ip=10.0.0.1)\x1b[0m vllm serve {model} -tp={tp}",
}
"""The forms in which engines, shells and schedulers print the arguments."""

GATE_UP = "ValueError: The output_size of gate's and up's weight = {} is not divisible by weight quantization "
GATE_UP += "block_n = 128."
COLUMN = "ValueError: Weight output_partition_size = {} is not divisible by weight quantization block_n = 128."
ROW = "ValueError: Weight input_size_per_partition = {} is not divisible by weight quantization block_k = 128."


def ask(text: str, repo: str | Path | None = None) -> Explanation:
    return dsv4_shard.explain(text, repo=repo) if repo else dsv4_shard.explain(text)


def words_of(explanation: Explanation) -> str:
    """Everything that the answer says of itself: all but the message, which is the log's."""
    return explanation.model_dump_json(exclude={"message", "also"})


# --- the log's model and TP are never replaced -----------------------------------------------------------------------


@pytest.mark.parametrize("form", ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize(
    ("model", "tp", "message", "said"),
    [
        ("MiniMaxAI/MiniMax-M2.7", 8, GATE_UP.format(192),
         ["192 × 8 = 1536", "12 blocks of 128", "1.5 per rank", "TP 1, 2, 3, 4, 6, 12", "expert parallelism"]),
        ("Qwen/Qwen3-235B-A22B-FP8", 8, GATE_UP.format(192), ["192 × 8 = 1536"]),
        ("moonshotai/Kimi-K2-Instruct", 32, COLUMN.format(576), ["576 × 32 = 18432", "144 blocks of "
                                                                                     "128", "4.5 per rank"]),
        ("/models/ds", 16, COLUMN.format(192), ["192 × 16 = 3072", "24 blocks of 128"]),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", 16, ROW.format(1728), ["1728 × 16 = 27648", "216 blocks"]),
    ],
)  # fmt: skip
def test_a_named_model_that_is_not_known_gets_the_numbers_of_its_message(
    form: str, model: str, tp: int, message: str, said: list[str]
) -> None:
    explanation = ask(form.format(model=model, tp=tp) + "\n" + message)
    assert (explanation.log.model, explanation.log.known, explanation.log.tp) == (model, False, tp)
    assert (explanation.cases, explanation.way) == ((), None)
    assert [words for words in said if words not in " ".join(explanation.meaning + explanation.remedies)] == []
    assert f"dsv4-shard inspect {model}" in " ".join(explanation.remedies)
    assert not re.search(r"DeepSeek-V\d|sgl-project", words_of(explanation).replace(model, ""))


RELATIVES = [
    # a name in the log, a message at the TP, and the release whose sizes it has
    ("deepseek-ai/DeepSeek-V4-Pro-0813", 16, 192, ""),
    ("deepseek-ai/DeepSeek-V4-Flash-0731", 32, 64, ""),
    ("deepseek-ai/DeepSeek-V4-Flash-Base", 32, 64, ""),
    ("deepseek-ai/DeepSeek-R1-0528", 32, 64, "DeepSeek-V3"),
    ("/mnt/DeepSeek-R1", 32, 64, "DeepSeek-V3"),
    ("deepseek-ai/DeepSeek-V3.1-Terminus", 32, 64, "DeepSeek-V3"),
    ("deepseek-ai/DeepSeek-V3.2-Exp", 32, 64, "DeepSeek-V3.2"),
    ("/data/models/DeepSeek-V4-Pro", 16, 192, "DeepSeek-V4-Pro"),
    (
        "/root/.cache/huggingface/hub/models--deepseek-ai--DeepSeek-V4-Pro/snapshots/0123abcd",
        16,
        192,
        "DeepSeek-V4-Pro",
    ),
]


@pytest.mark.parametrize(("model", "tp", "part", "release"), RELATIVES, ids=lambda value: str(value)[-30:])
@pytest.mark.parametrize("form", ["vllm dict", "vllm config", "vllm command"])
def test_a_relative_keeps_its_name_and_says_whose_sizes_it_has(
    model: str, tp: int, part: int, release: str, form: str
) -> None:
    explanation = ask(ARGUMENTS[form].format(model=model, tp=tp) + "\n" + ROW.format(part))
    assert {case.model for case in explanation.cases} == {model}
    assert {case.guessed for case in explanation.cases} == {()}
    assert explanation.way.next.startswith(f"dsv4-shard plan {model} --tp {tp}")
    assert explanation.way.command is None or f"vllm serve {model} " in explanation.way.command
    sizes = " ".join(explanation.notes)
    assert (f"sizes are those of deepseek-ai/{release}," in sizes) if release else "sizes" not in sizes


def test_a_name_that_tells_of_another_format_says_so() -> None:
    log = ARGUMENTS["vllm dict"].format(model="nvidia/DeepSeek-V4-Pro-NVFP4", tp=16)
    assert "stored otherwise (NVFP4)" in " ".join(ask(f"{log}\n{ROW.format(192)}").notes)


@pytest.mark.parametrize("tp", [8, 16, 64])
def test_no_case_has_another_tp_than_the_log(tp: int) -> None:
    log = ARGUMENTS["vllm dict"].format(model="deepseek-ai/DeepSeek-V4-Flash", tp=tp)
    explanation = ask(f"{log}\n{ROW.format(64)}")
    assert explanation.cases == ()
    assert f"64 × {tp} = {64 * tp}" in " ".join(explanation.meaning)
    assert explanation.way is None or not explanation.way.verdict.is_good


def test_a_log_without_a_model_gets_guesses_that_are_marked() -> None:
    explanation = ask(COLUMN.format(192))
    assert explanation.cases[0].guessed == explanation.way.guessed == ("the model", "TP")
    case = ask(f"vllm serve --tensor-parallel-size 16\n{COLUMN.format(192)}").cases[0]
    assert case.guessed == ("the model",)


@pytest.mark.parametrize(
    "prefix", ["(Worker_TP{}_EP{} pid=77) ERROR 11-30 09:00:00 [x.py:1]", "[2026-11-30 09:00:00 TP{} EP{}]"]
)
def test_a_guess_of_tp_is_not_below_the_ranks_of_the_log(prefix: str) -> None:
    """192 is a part of V4-Pro's shared expert at TP 16; with ranks up to TP 31 it is something else."""
    lines = "\n".join(f"{prefix.format(rank, rank)} loading" for rank in (0, 17, 31))
    options = " ".join(case.options for case in ask(f"{lines}\n{COLUMN.format(192)}").cases)
    assert all(int(tp) >= 32 for tp in re.findall(r"--tp (\d+)", options))


def test_version_and_pipeline_of_the_log_are_used_and_printed() -> None:
    log = "Initializing a V1 LLM engine (v0.25.0) with config: model='deepseek-ai/DeepSeek-V4-Pro', "
    log += "tensor_parallel_size=16, pipeline_parallel_size=2, data_parallel_size=1\n"
    explanation = ask(log + ROW.format(192))
    assert (explanation.log.engine, explanation.log.engine_version, explanation.log.pp) == ("vllm", "0.25.0", 2)
    assert "--engine-version 0.25.0" in explanation.way.next
    assert "PP 2" in " ".join(explanation.notes)
    other = ask(log.replace("0.25.0", "0.21.3") + ROW.format(192))
    assert "the log is of vLLM 0.21.3, the rules are those of 0.33.0" in other.notes


def test_experts_are_cut_over_the_ranks_that_ep_and_dp_leave() -> None:
    """SGLang cuts experts over TP / EP, vLLM without expert parallelism over TP × DP."""
    log = "server_args={'model_path': 'zai-org/GLM-4.6-FP8', 'tp_size': 16, 'dp_size': 2, 'enable_dp_attention': True, "
    meaning = ask(log + "'ep_size': 4}\n" + GATE_UP.format(96)).meaning
    assert meaning[0] == "96 × 4 = 384 in all (TP 16 / EP 4), 3 blocks of 128, 0.75 per rank"
    assert "over 1, 3 ranks" in meaning[1]
    meaning = ask("vllm serve Qwen/Qwen3-Coder -tp 8 --data-parallel-size 2\n" + GATE_UP.format(160)).meaning
    assert meaning[0].startswith("160 × 16 = 2560 in all (TP 8 × DP 2), 20 blocks of 128")


def test_no_layout_is_called_good_that_the_log_shows_to_fail() -> None:
    log = ARGUMENTS["vllm dict"].format(model="deepseek-ai/DeepSeek-V4-Pro", tp=16)
    explanation = ask(f"{log}\n{COLUMN.format(100)}")
    assert explanation.way is None
    assert "12.5 blocks are not whole" in " ".join(explanation.meaning)


def test_a_request_to_the_server_names_no_model() -> None:
    assert ask('curl -d \'{"model": "my-alias", "prompt": "x"}\'\n' + COLUMN.format(192)).log.model is None


# --- the traceback tells the source ----------------------------------------------------------------------------------


def traceback(error: str, *frames: tuple[str, str]) -> str:
    lines = [f'  File "{path}", line {10 + at}, in {name}\n    x = y' for at, (path, name) in enumerate(frames)]
    return "\n".join(["Traceback (most recent call last):", *lines, error])


SGLANG = "/sgl-workspace/sglang/python/sglang/srt/"
VLLM = "/usr/local/lib/python3.12/dist-packages/vllm/"

ORIGINS = [
    (("sglang", "sharded_state", "loading"), [(SGLANG + "model_loader/loader.py", "load_model")]),
    (
        ("sglang", "default", "loading"),
        [
            (SGLANG + "model_loader/loader.py", "load_weights_and_postprocess"),
            (SGLANG + "models/deepseek_v2.py", "load_weights"),
        ],
    ),
    (("sglang", "presharded", "loading"), [(SGLANG + "model_loader/loader.py", "_load_from_presharded")]),
    (("sglang", "dsv4_shard", "loading"), [("/venv/dsv4_shard/sglang_plugin/copying.py", "copy_parameters")]),
    (
        ("sglang", None, "construction"),
        [
            (SGLANG + "model_loader/loader.py", "_initialize_model"),
            (SGLANG + "models/deepseek_v4.py", "__init__"),
            (SGLANG + "layers/quantization/fp8.py", "create_weights"),
        ],
    ),
    (("sglang", None, "configuration"), [(SGLANG + "server_args.py", "__post_init__")]),
    (
        ("sglang", None, "KV planning"),
        [
            (SGLANG + "model_executor/model_runner.py", "init_memory_pool"),
            (SGLANG + "mem_cache/memory_pool.py", "__init__"),
        ],
    ),
    (
        ("sglang", None, "serving"),
        [(SGLANG + "managers/scheduler.py", "event_loop_overlap"), (SGLANG + "models/deepseek_v4.py", "forward")],
    ),
    (
        ("vllm", "sharded_state", "loading"),
        [(VLLM + "model_executor/model_loader/sharded_state_loader.py", "load_weights")],
    ),
    (
        ("vllm", "default", "loading"),
        [
            (VLLM + "model_executor/model_loader/default_loader.py", "load_weights"),
            (VLLM + "models/deepseek_v4/nvidia/model.py", "load_weights"),
        ],
    ),
    (
        ("vllm", "runai_streamer", "loading"),
        [
            (VLLM + "model_executor/model_loader/runai_streamer_loader.py", "load_weights"),
            (VLLM + "models/deepseek_v4/nvidia/model.py", "load_weights"),
        ],
    ),
    (
        ("vllm", None, "configuration"),
        [(VLLM + "engine/arg_utils.py", "create_engine_config"), (VLLM + "config/vllm.py", "__post_init__")],
    ),
    (
        ("vllm", None, "KV planning"),
        [(VLLM + "v1/engine/core.py", "_initialize_kv_caches"), (VLLM + "v1/core/kv_cache_planning.py", "check")],
    ),
    (
        ("vllm", None, "KV planning"),
        [
            (VLLM + "v1/worker/gpu_worker.py", "determine_available_memory"),
            (VLLM + "models/deepseek_v4/attention.py", "forward"),
        ],
    ),
    (
        ("vllm", None, "serving"),
        [
            (VLLM + "v1/worker/gpu_model_runner.py", "execute_model"),
            (VLLM + "models/deepseek_v4/attention.py", "forward"),
        ],
    ),
]


@pytest.mark.parametrize(("origin", "frames"), ORIGINS, ids=lambda value: "-".join(map(str, value))[:60])
@pytest.mark.parametrize("prefix", ["", "(Worker_TP3 pid=7) ERROR 11-30 09:00:00 [x.py:1] ", "[rank3]: "])
def test_engine_loader_and_stage_are_those_of_the_frames(
    origin: tuple[str, str | None, str], frames: list[tuple[str, str]], prefix: str
) -> None:
    if origin[0] == "sglang" and "Worker" in prefix:
        prefix = "[2026-11-30 09:00:00 TP3] "
    text = traceback("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.", *frames)
    log = ask("\n".join(prefix + line for line in text.split("\n"))).log
    assert (log.engine, log.loader, log.stage) == origin


def test_the_load_format_of_the_log_tells_the_loader_where_frames_do_not() -> None:
    log = "vllm serve x/y --load-format runai_streamer_sharded\n"
    text = traceback(
        "KeyError: 'layers.0.attn.wq_a.scale'", (VLLM + "model_executor/model_loader/sharded_state_loader.py", "load")
    )
    assert ask(log + text).log.loader == "runai_streamer_sharded"


def test_a_traceback_in_a_line_of_json_keeps_its_frames() -> None:
    text = traceback("KeyError: 'layers.0.attn.wq_a.scale'", DEFAULT)
    log = ask(json.dumps({"stream": "stderr", "log": f"\x1b[31m{text}\x1b[0m"})).log
    assert (log.engine, log.loader, log.stage) == ("vllm", "default", "loading")


# --- names and shapes ------------------------------------------------------------------------------------------------

DEFAULT = (VLLM + "model_executor/model_loader/default_loader.py", "load_weights")
SHARDED = (VLLM + "model_executor/model_loader/sharded_state_loader.py", "load_weights")
MTP = (VLLM + "models/deepseek_v4/nvidia/mtp.py", "load_weights")
V2 = (SGLANG + "models/deepseek_v2.py", "load_weights")


@dataclass(frozen=True)
class Situation:
    """A log, with the words that the answer must have, and those that it must not."""

    log: str
    must: tuple[str, ...]
    must_not: tuple[str, ...] = ()
    repo: Callable[[], Path] | None = None


@cache
def skeleton(model: str) -> Path:
    return Path(str(inventory_of(model)[0].source.label))


def key_error(key: str, *frames: tuple[str, str], head: str = "") -> str:
    return head + traceback(f"KeyError: '{key}'", *frames)


KEYS = {
    "dspark draft": Situation(
        key_error("model.layers.43.mtp_block.main_norm.weight", DEFAULT, MTP),
        ("DSpark", "classic MTP", '"method": "dspark"'),
        ("sharded_state", "reshard", "draft_load_config"),
    ),
    "dspark draft with its checkpoint": Situation(
        key_error("model.layers.43.mtp_block.main_norm.weight", DEFAULT, MTP),
        ("has it (mtp.0.main_norm.weight)", '"method": "dspark"'),
        ("sharded_state",),
        lambda: skeleton("DeepSeek-V4-Flash-0731"),
    ),
    "markov head in sglang": Situation(
        key_error(
            "model.layers.61.markov_head.markov_w1.weight", (SGLANG + "models/deepseek_v4_nextn.py", "load_weights")
        ),
        ("DSpark", "--speculative-algorithm DSPARK"),
        ("--speculative-config",),
    ),
    "classic draft": Situation(
        key_error(
            "model.layers.61.eh_proj.weight", DEFAULT, (VLLM + "models/deepseek_v4/nvidia/dspark.py", "load_weights")
        ),
        ("classic MTP block", '"method": "mtp"'),
        ("sharded_state",),
    ),
    "no quantization": Situation(
        key_error("model.layers.0.mlp.down_proj.weight_scale_inv", V2),
        ("block scale", "quantization_config", "SGLang"),
        ("sharded_state", "vLLM", "reshard"),
    ),
    "no quantization, name without model": Situation(
        key_error("layers.0.attn.wq_a.scale", DEFAULT),
        ("block scale", "quantization_config"),
        ("sharded_state", "SGLang"),
    ),
    "expert scale of the other dtype": Situation(
        key_error("layers.3.ffn.experts.routed_experts.w13_weight_scale_inv", DEFAULT),
        ("the experts' dtype", "expert_dtype"),
        ("sharded_state",),
    ),
    "saved after a forward": Situation(
        key_error(
            "model.layers.22.self_attn.attn_mha.kv_b_proj.weight", (SGLANG + "model_loader/loader.py", "load_model")
        ),
        ("sharded_state", "saved after", "before the first forward"),
        ("vLLM", "draft_load_config"),
    ),
    "rank files of another layout": Situation(
        key_error("model.layers.0.ffn.experts.routed_experts.w13_weight", SHARDED),
        ("sharded_state", "this version and", "--engine-version"),
    ),
    "fused names in a checkpoint": Situation(
        key_error("model.layers.0.mlp.experts.gate_up_proj", DEFAULT),
        ("fused tensors", "inspect"),
        ("sharded_state takes",),
    ),
    "MLX": Situation(key_error("model.layers.0.attn.wq_a.scales", DEFAULT), ("MLX",), ("sharded_state",)),
    "ModelSlim": Situation(key_error("model.layers.0.mlp.up_proj.weight_offset", V2), ("ModelSlim", "vllm-ascend")),
    "NVFP4": Situation(key_error("model.layers.0.mlp.experts.3.up_proj.weight_scale_2", V2), ("NVFP4",)),
    "not in the checkpoint": Situation(
        key_error("model.layers.0.attn.nothing.weight", DEFAULT),
        ("no tensor of this name",),
        (),
        lambda: skeleton("DeepSeek-V4-Flash"),
    ),
    "model type": Situation("KeyError: 'deepseek_v4'", ("Transformers does not know the model type deepseek_v4",)),
    "config": Situation("KeyError: 'compress_ratios'", ("config.json", "compress_ratios")),
}

SHAPES = {
    "FlashInfer's tiles, of vllm#46879": Situation(
        'File ".../flashinfer/utils.py", line 882, in get_shuffle_matrix_sf_a_row_indices\n    M, K = '
        "input_tensor.shape\n    assert M % 128 == 0\nAssertionError",
        ("tiles of 128 rows", "--enable-expert-parallel"),
    ),
    "a dtype in place of a shape": Situation(
        "vllm serve deepseek-ai/DeepSeek-V3.2 -tp 8 --dtype float16\n"
        "RuntimeError: expected mat1 and mat2 to have the same dtype, but got: c10::Half != c10::BFloat16",
        ("computes with c10::Half and its weight is c10::BFloat16", "--dtype"),
        ("no tensor of", "guess"),
    ),
    "FP4 built, FP8 in the files": Situation(
        "RuntimeError: The size of tensor a (2048) must match the size of tensor b (16) at non-singleton dimension 0",
        ("in FP4", "in FP8", "built FP4 experts", "expert_dtype", "SGLANG_DSV4_FP4_EXPERTS", "guess"),
    ),
    "the same with its checkpoint": Situation(
        "RuntimeError: The size of tensor a (2048) must match the size of tensor b (16) at non-singleton dimension 0",
        ("built FP4 experts, and the checkpoint's are FP8",),
        ("guess",),
        lambda: skeleton("DeepSeek-V4-Flash-Base"),
    ),
    "the other way round": Situation(
        "vllm serve deepseek-ai/DeepSeek-V4-Pro -tp 8\nRuntimeError: The expanded size of the tensor (7168) must match "
        "the existing size (3584) at non-singleton dimension 1. Target sizes: [384, 7168]. Tensor sizes: [384, 3584]",
        ("built FP8 experts, and the checkpoint's are FP4", "expert_dtype"),
        ("guess", "SGLANG_DSV4"),
    ),
    "files of TP 8 at TP 16": Situation(
        "vllm serve deepseek-ai/DeepSeek-V4-Pro -tp 16 --load-format sharded_state\nRuntimeError: The size of tensor a "
        "(4096) must match the size of tensor b (8192) at non-singleton dimension 0",
        ("q_b", "at TP 16", "at TP 8", "the TP that the files were cut for"),
        ("guess",),
    ),
    "whole shapes": Situation(
        "sglang serve --model-path deepseek-ai/DeepSeek-V4-Flash --tp 4\nRuntimeError: size mismatch for "
        "model.x.weight: copying a param with shape torch.Size([32768, 1024]) from checkpoint, the shape in current "
        "model is torch.Size([8192, 1024]).",
        ("q_b", "at TP 4", "at TP 1"),
        ("guess",),
    ),
    "vLLM's default loader": Situation(
        "vllm serve deepseek-ai/DeepSeek-V4-Flash-Base -tp 1\nAssertionError: Attempted to load weight "
        "(torch.Size([16, 32])) into parameter (torch.Size([2048, 128]))",
        ("built FP4 experts, and the checkpoint's are FP8",),
        ("guess",),
    ),
    "a narrow that is a dtype": Situation(
        "sglang serve --model-path deepseek-ai/DeepSeek-V4-Flash-Base --tp 4\nRuntimeError: start (512) + length (512) "
        "exceeds dimension size (16).",
        ("built FP4 experts, and the checkpoint's are FP8", "SGLANG_DSV4_FP4_EXPERTS=0"),
        ("rounded up",),
    ),
    "sizes of a model that is not known": Situation(
        "vllm serve MiniMaxAI/MiniMax-M2.7 -tp 8\nRuntimeError: The size of tensor a (1536) must match the size of "
        "tensor b (12) at non-singleton dimension 0",
        ("1536 / 12 = 128", "--repo"),
        ("DeepSeek", "guess"),
    ),
    "a bare assertion": Situation(
        traceback("AssertionError", (VLLM + "model_executor/parameter.py", "load_merged_column_weight")).replace(
            "x = y", "assert param_data.shape == loaded_weight.shape"
        ),
        ("different shapes", "--repo", "loading"),
    ),
    "packed FP4 in triton": Situation(
        "    hidden_states.shape[1] == w1.shape[2] - padded_size\nAssertionError: Hidden size mismatch",
        ("packed", "runner triton does not take FP4", "--runner marlin", "SGLANG_DSV4_FP4_EXPERTS=0", "SGLang"),
    ),
}

LOADING = {
    "no files of a rank": Situation(
        "ValueError: Could not find checkpoint files '/models/V4-Pro-tp16/model-rank-9-part-*.safetensors', only "
        "pre-sharded checkpoints are currently supported!",
        ("/models/V4-Pro-tp16 has none for rank 9", "fewer ranks", "another node's share", "manifest", "reshard"),
    ),
    "more ranks than the folder": Situation(
        "ValueError: Could not find checkpoint files '/models/V4-Pro-tp8/model-rank-9-part-*.safetensors', only "
        "pre-sharded checkpoints are currently supported!",
        ("its name says TP 8", "rank 9 is one too many"),
    ),
    "missing of the index": Situation(
        "RuntimeError: /models/V4/model.safetensors.index.json references 3 shard file(s) missing from /models/V4 "
        "(incomplete download?): ['model-00042-of-00064.safetensors']",
        ("3 files", "/models/V4", "model-00042-of-00064.safetensors", "hf download", "link"),
    ),
    "missing of vLLM's index": Situation(
        "FileNotFoundError: Weight files referenced in index but missing: ['model-00042-of-00064.safetensors']",
        ("model-00042-of-00064.safetensors", "hf download"),
    ),
    "a file that is not there": Situation(
        'FileNotFoundError: No such file or directory: "/models/V4/model-00042-of-00064.safetensors"',
        ("/models/V4/model-00042-of-00064.safetensors", "not mounted"),
    ),
    "no weights": Situation(
        "RuntimeError: Cannot find any model weights with `/models/X`", ("/models/X holds no file",)
    ),
    "a pointer in place of a file": Situation(
        "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
        ("Git-LFS pointer", "inspect REPO"),
    ),
    "a file that was cut off": Situation(
        "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer",
        ("cut off",),
    ),
    "newer safetensors": Situation(
        "safetensors_rust.SafetensorError: Error while deserializing header: invalid header length "
        "18446744073709551615",
        ("invalid header length",),
    ),
    "nothing came for it": Situation(
        "ValueError: Following weights were not initialized from checkpoint: "
        "{'model.layers.3.ffn.experts.w2_weight_scale'}",
        ("model.layers.3.ffn.experts.w2_weight_scale", "no tensor came for", "inspect REPO"),
    ),
    "another tool's tensor": Situation(
        "ValueError: There is no module or parameter named 'layers.0.attn.wo_a.0' in DeepseekV4ForCausalLM",
        ("layers.0.attn.wo_a.0", "DeepseekV4ForCausalLM does not have", "MLX"),
    ),
    "an expert with no mapping": Situation(
        traceback(
            "UnboundLocalError: cannot access local variable 'name_mapped' where it is not associated with a value",
            (VLLM + "models/deepseek_v4/nvidia/model.py", "load_weights"),
        ),
        ("expert's tensor", "another export", "inspect REPO"),
    ),
    "an old Transformers": Situation(
        "ValueError: The checkpoint you are trying to load has model type `deepseek_v4` but Transformers does not "
        "recognize this architecture.",
        ("Transformers does not know the model type deepseek_v4", "too old"),
    ),
    "Marlin's tiles": Situation(
        "vllm serve deepseek-ai/DeepSeek-V2-Lite -tp 8\nRuntimeError: size_n = 2736 is not divisible by tile_n_size "
        "= 64",
        ("42.75 tiles of 64", "2736 × TP 8 = 21888", "TP 1, 2,", "Marlin"),
    ),
}

MEMORY = {
    "the context": Situation(
        "ValueError: To serve at least one request with the model's max seq len (1048576), (15.90 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (7.70 GiB). Based on the available memory, the "
        "estimated maximum model length is 121344. Try increasing `gpu_memory_utilization`",
        ("the weights fit", "1,048,576", "7.70 GiB", "--max-model-len 121344", "one KV head", "KV planning"),
        ("does not hold",),
    ),
    "the context, older words": Situation(
        "ValueError: To serve at least one request with the models's max seq len (163840), (15.90 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (7.70 GiB). Based on the available memory, the "
        "estimated maximum model length is 79344.",
        ("--max-model-len 79344",),
    ),
    "the context, without an estimate": Situation(
        "ValueError: To serve at least one request with the model's max seq len (1048576), (15.90 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (0.10 GiB). Try increasing",
        ("a shorter --max-model-len",),
    ),
    "another process": Situation(
        "ValueError: Free memory on device (80.1/94.99 GiB) on startup is less than desired GPU memory utilization "
        "(0.9, 85.49 GiB). Decrease",
        ("another process holds 14.9 GiB", "nvidia-smi"),
    ),
    "another process, 0.33.0": Situation(
        "ValueError: Free memory on device cuda:3 (80.1/94.99 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 85.49 GiB).",
        ("another process holds 14.9 GiB",),
    ),
    "killed": Situation(
        "[2026-11-30 10:00:00] Rank 0 scheduler is dead. Please check if there are relevant logs.\n"
        "[2026-11-30 10:00:00] Exit code: -9",
        ("signal 9", "host's memory", "not the GPU's"),
    ),
    "killed, 0.5.23": Situation(
        "RuntimeError: Rank 3 scheduler died during initialization (exit code: -9). If exit code is -9 (SIGKILL), a "
        "common cause is the OS OOM killer.",
        ("signal 9", "host's memory"),
    ),
    "killed by Slurm": Situation(
        "slurmstepd: error: Detected 1 oom_kill event in StepId=71.0. Some of the step tasks have been OOM Killed.\n"
        "srun: error: node1: task 0: Out Of Memory",
        ("host's memory", "--mem"),
    ),
    "pinned memory, as a traceback has it": Situation(
        "server_args=ServerArgs(model_path='deepseek-ai/DeepSeek-V3', tp_size=8)\nTraceback (most recent call last):\n"
        '  File "/sgl-workspace/sglang/python/sglang/srt/utils/common.py", line 480, in maybe_offload_to_cpu\n'
        "    cpu_data = torch.empty_strided(size=p.data.size(), pin_memory=pin_memory)\n"
        "RuntimeError: CUDA error: out of memory",
        ("not the GPU's", "ulimit -l", "--cpu-offload-gb"),
        ("do not fit into the GPU's memory",),
    ),
    "engram tables cannot be pinned": Situation(
        "vllm serve deepseek-ai/DeepSeek-V4.1-Flash -tp 8\nRuntimeError: cudaHostRegister failed: 2",
        ("pins 202.76 GB of every host", "cpu_offload"),
    ),
    "tables of V4.1 on the GPU": Situation(
        "sglang serve --model-path deepseek-ai/DeepSeek-V4.1-Flash --tp 8\ntorch.OutOfMemoryError: CUDA out of memory. "
        "Tried to allocate 11.44 GiB. GPU 2 has a total capacity of 79.18 GiB of which 8.00 GiB is free.",
        ("SGLANG_ENABLE_DSV41_ENGRAM_HOST_TABLE=1",),
    ),
    "tables of V4.1 on the host": Situation(
        "vllm serve deepseek-ai/DeepSeek-V4.1-Flash --tensor-parallel-size 4\ntorch.OutOfMemoryError: CUDA out of "
        "memory. Tried to allocate 11.44 GiB. GPU 2 has a total capacity of 79.18 GiB of which 8.00 GiB is free.",
        ("weights of a rank at TP 4: 77.8 GiB (not verified)", "beside 202.76 GB in the host's memory"),
        ("SGLANG_ENABLE",),
    ),
    "a card of 24 GB": Situation(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.63 GiB. GPU 3 has a total capacity of 23.56 "
        "GiB of which 1.2 GiB is free.",
        ("23.56 GiB", "(a guess)", "at least 34 such GPUs", "at least 7 such GPUs"),
    ),
    "a card of 24 GB, with its model": Situation(
        "vllm serve deepseek-ai/DeepSeek-V4-Flash -tp 4\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate "
        "2.63 GiB. GPU 3 has a total capacity of 23.56 GiB of which 1.2 GiB is free.",
        ("weights of a rank at TP 4: ", "at least 7 such GPUs", "--tp 8 --engine vllm is the smallest TP"),
        ("a guess", "V4-Pro"),
    ),
}


@pytest.mark.parametrize("situation", [*KEYS.values(), *SHAPES.values(), *LOADING.values(), *MEMORY.values()],
                         ids=[*KEYS, *SHAPES, *LOADING, *MEMORY])  # fmt: skip
def test_the_answer_is_the_right_one(situation: Situation) -> None:
    explanation = ask(situation.log, situation.repo() if situation.repo else None)
    assert explanation.recognised
    assert explanation.remedies
    text = words_of(explanation).replace('\\"', '"') + " ".join(explanation.engines)
    assert [words for words in situation.must if words not in text] == []
    assert [words for words in situation.must_not if words in text] == []


def test_exit_code_1_is_no_kill() -> None:
    text = "RuntimeError: Rank 3 scheduler died during initialization (exit code: 1). If exit code is -9 (SIGKILL), a"
    explanation = ask(text)
    assert "its own traceback" in explanation.meaning[0]


def test_heads_of_v4_are_those_of_the_message() -> None:
    message = "ValueError: Total number of attention heads ({}) must be divisible by tensor parallel size ({})."
    explanation = ask(message.format(64, 3), skeleton("DeepSeek-V4-Flash"))
    assert explanation.meaning == ("attention: num_attention_heads 64 / attention TP 3 = 21.33: not whole",)
    assert ask(message.format(128, 24)).cases[0].model == "deepseek-ai/DeepSeek-V4-Pro"


@pytest.mark.parametrize(("message", "stage"), [
    ("Value error, Total number of attention heads (64) must be divisible by tensor parallel size (3).",
     StartStage.CONFIGURATION),
    ("ValueError: Weight output_partition_size = 192 is not divisible by weight quantization block_n = 128.",
     StartStage.CONSTRUCTION),
    ("ValueError: For quantized MoE models, please make sure (moe_intermediate_size=3072 / moe_tp_size=16) % "
     "weight_block_size_n=128 == 0 where moe_tp_size is equal to tp_size (16) divided by ep_size (1).",
     StartStage.LOADING),
    ("RuntimeError: Current MXFP4 MoE layer does not satisfy Marlin constraints.", StartStage.LOADING),
])  # fmt: skip
def test_a_message_without_a_traceback_has_the_stage_of_its_rule(message: str, stage: StartStage) -> None:
    explanation = ask(message)
    assert explanation.recognised
    assert explanation.log.stage == stage


# --- checkpoints of other families -----------------------------------------------------------------------------------


def write_zeros(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """A file of tensors that are all zero."""
    header, placed = build_header(tensors)
    path.write_bytes(header + bytes(max(info.stop for info in placed.values())))


@pytest.fixture
def other_family(tmp_path: Path) -> Path:
    """A Qwen3-Next whose experts are 320 wide: two and a half blocks."""
    config = {"model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"], "num_hidden_layers": 1,
              "hidden_size": 512, "num_attention_heads": 20, "moe_intermediate_size": 320, "num_experts": 2,
              "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}  # fmt: skip
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for expert in range(2):
        for name, shape in (("gate_proj", (320, 512)), ("up_proj", (320, 512)), ("down_proj", (512, 320))):
            stem = f"model.layers.0.mlp.experts.{expert}.{name}"
            tensors[f"{stem}.weight"] = ("F8_E4M3", shape)
            tensors[f"{stem}.weight_scale_inv"] = ("F32", (-(-shape[0] // 128), -(-shape[1] // 128)))
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_zeros(tmp_path / "model.safetensors", tensors)
    return tmp_path


def test_a_checkpoint_with_errors_is_taken_and_they_are_named(folder: Path) -> None:
    """Another tool's export is what a message of loading is most often about."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["layers.0.attn.wkv.weight_offset"] = "model-offsets.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_zeros(folder / "model-offsets.safetensors", {"layers.0.attn.wkv.weight_offset": ("F32", (4, 1))})
    explanation = ask(key_error("layers.0.attn.wkv.weight_offset", DEFAULT), folder)
    assert "has 1 error" in explanation.notes[0]
    assert "ModelSlim" in " ".join(explanation.meaning)


def test_a_checkpoint_of_another_family_is_taken(other_family: Path) -> None:
    explanation = ask(GATE_UP.format(160), other_family)
    text = " ".join(explanation.meaning)
    assert "320 rows / TP 2 = 160, 1.25 blocks of 128; 2.5 blocks in all" in text
    assert "no TP gives whole blocks" in text
    assert "DeepSeek" not in words_of(explanation)
    assert "no parallelism helps" in explanation.remedies[0]
    heads = ask("AssertionError: 20 is not divisible by 16\nsglang serve --model-path x/y --tp 16", other_family)
    assert "20 is attention heads" in " ".join(heads.meaning)


# --- models, experts and features that are not verified --------------------------------------------------------------

CUTLASS = (
    "ValueError: Mxfp4FlashinferCutlassMoEMethod requires hidden_size and intermediate_size_per_partition to be "
    "multiples of 128 (got hidden=5120, intermediate=288)."
)
NO_NVFP4 = (
    "ValueError: Current platform does not support NVFP4 quantization with the selected MoE backend. Please use "
    "Blackwell and above, or use moe_runner_backend=marlin on SM80+."
)
NO_HEADS = "AssertionError: Engram sharding leaves ranks without hash heads: 24 heads over {} shards"


def test_a_message_of_v4_1_has_its_sizes_and_no_verdict() -> None:
    found = ask(f"sglang serve --model-path deepseek-ai/DeepSeek-V4.1-Flash --tp 8\n{CUTLASS}")
    assert [case.arithmetic for case in found.cases] == [
        "moe_intermediate_size 2304 / MoE TP 8 = 288, which is 2.25 tiles of 128"
    ]
    assert found.way is not None
    assert found.way.verdict == "not verified"
    assert "60.3 GiB of weights per rank" in found.way.notes[-1]
    assert any("marlin" in way for way in found.remedies)
    assert not any("in all" in way or "reference" in way for way in found.remedies)


def test_nvfp4_below_blackwell_needs_marlin_by_name() -> None:
    found = ask(NO_NVFP4)
    assert "marlin" in found.remedies[0]
    assert not any("leave moe_runner_backend out" in way for way in found.remedies)


@pytest.mark.parametrize(
    ("feature", "way"),
    [("pipeline parallelism", "leave --pp"), ("two-batch overlap", "leave it out"), ("HiSparse", "leave it out")],
)
def test_what_v4_1_is_served_without_is_named(feature: str, way: str) -> None:
    found = ask(f"ValueError: DeepSeek-V4.1 does not support {feature} yet; disable it to serve this model.")
    assert feature in found.meaning[0]
    assert any(way in one for one in found.remedies)


@pytest.mark.parametrize("shards", [16, 32])
def test_ranks_without_hash_heads_get_the_tp_that_have_some(shards: int) -> None:
    found = ask(f"vllm serve deepseek-ai/DeepSeek-V4.1-Flash -tp {shards}\n{NO_HEADS.format(shards)}")
    tps = re.search(r"at TP ([\d, ]+);", " ".join(found.meaning))
    assert tps is not None
    assert [int(tp) for tp in tps[1].split(", ")] == [
        tp for tp in range(1, 25) if all(24 - rank * -(-24 // tp) > 0 for rank in range(tp))
    ]
