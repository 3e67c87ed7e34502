"""The engines' own texts: collected from a wheel by reachability, found again in a log, and answered by their kind."""

import ast
import json
import re
from pathlib import Path
from zipfile import ZipFile

import pytest
from engine_messages import facts
from engine_messages.collect import collect
from engine_messages.conditions import Facts
from engine_messages.logs import log_of
from engine_messages.table import TABLE as TABLE_FILE
from engine_messages.table import dump

import dsv4_shard
from dsv4_shard.diagnosis.engine_messages import EngineText, find_text

TABLE = json.loads(TABLE_FILE.read_text())

PLACES = [
    # messages that were found in the sources by hand: engine, file, text, and what the answer rests on
    ("vllm", "vllm/model_executor/model_loader/sharded_state_loader.py", "only pre-sharded checkpoints", "table"),
    ("sglang", "sglang/srt/model_loader/loader.py", "only pre-sharded checkpoints", "table"),
    ("vllm", "vllm/v1/core/kv_cache_planning.py", "To serve at least one request", "table"),
    ("vllm", "vllm/model_executor/model_loader/default_loader.py", "Following weights were not", "table"),
    ("sglang", "sglang/srt/layers/quantization/fp8.py", "block-wise quantization only supports", "table"),
    ("sglang", "sglang/srt/arg_groups/deepseek_v4_hook.py", "--dsv4-attn-backend trtllm requires", "kind"),
    ("vllm", "vllm/config/parallel.py", "is larger than the number of available GPUs", "table"),
    ("vllm", "vllm/models/deepseek_v4/quant_config.py", "Unsupported DeepSeek V4 expert_dtype", "table"),
]


@pytest.mark.parametrize(("engine", "file", "words", "basis"), PLACES, ids=lambda value: str(value)[-30:])
def test_known_places_are_in_the_table_and_answered(engine: str, file: str, words: str, basis: str) -> None:
    entry = next(entry for entry in TABLE[engine]["messages"][file] if words in entry[3])
    answer = dsv4_shard.explain(log_of(engine, file, entry))
    assert answer.log.engine == engine
    assert answer.basis == basis
    assert answer.remedies


def test_the_table_is_of_the_versions_that_the_rules_are_for() -> None:
    assert {name: table["version"] for name, table in TABLE.items()} == {"sglang": "0.5.23", "vllm": "0.33.0"}
    for table in TABLE.values():
        assert len(table["modules"]) > 100
        assert any("deepseek_v4" in module for module in table["modules"])


@pytest.mark.slow
@pytest.mark.parametrize("engine", TABLE)
def test_every_text_that_is_long_enough_is_found_again(engine: str) -> None:
    missed = []
    for file, entries in TABLE[engine]["messages"].items():
        for line, function, error, text, condition in entries:
            one = EngineText(engine, "", f"{file}:{line}", function, error, text, condition)
            if one.letters < 12:
                continue
            log = log_of(engine, file, [line, function, error, text])
            found = find_text(log.split("\n"), engine)
            if found is None:
                missed.append(text)
    assert missed == []


def test_the_options_of_a_message_are_shown_with_the_values_of_the_log() -> None:
    log = (
        "python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V4-Pro --tp 16 --dsv4-attn-backend trtllm "
        "--chunked-prefill-size 0\nValueError: --dsv4-attn-backend trtllm requires chunked prefill "
        "(--chunked-prefill-size > 0)."
    )
    answer = dsv4_shard.explain(log)
    assert answer.basis == "kind"
    assert "deepseek_v4_hook.py" in answer.meaning[0]
    assert "the log has --dsv4-attn-backend trtllm, --chunked-prefill-size 0" in answer.meaning
    assert answer.log.stage == "configuration"


def test_an_assertion_without_words_shows_its_condition_and_claims_no_cause() -> None:
    file, entry = next(
        (file, entry)
        for file, entries in TABLE["vllm"]["messages"].items()
        for entry in entries
        if entry[3].startswith("assert ") and ".shape" in entry[4] and "/fused_moe/experts/" in file
    )
    answer = dsv4_shard.explain(log_of("vllm", file, entry))
    assert answer.basis == "assertion"
    assert f"what must hold there, in its own words: {entry[4]}" in answer.meaning
    assert "--moe-backend" in answer.remedies[0]


FRAME = '  File "/usr/lib/python3.12/site-packages/{}", line {}, in {}\n    raise NotImplementedError'


def test_an_error_without_a_text_is_known_by_its_frame() -> None:
    file, entry = next(
        (file, entry)
        for file, entries in TABLE["sglang"]["messages"].items()
        for entry in entries
        if entry[2:4] == ["NotImplementedError", ""]
    )
    frame = FRAME.format(file, entry[0], entry[1].rpartition(".")[2])
    head = "Traceback (most recent call last):\n"
    assert dsv4_shard.explain(f"{head}{frame}\nNotImplementedError").basis == "assertion"
    other = frame.replace(f"line {entry[0]}", f"line {entry[0] + 100000}")
    assert not dsv4_shard.explain(f"{head}{other}\nNotImplementedError").recognised


def test_other_programs_short_errors_are_not_taken_for_an_engines() -> None:
    assert not dsv4_shard.explain("ValueError: Unsupported type int").recognised
    assert not dsv4_shard.explain("AssertionError: x is not None").recognised


def test_a_rule_or_row_goes_before_the_text() -> None:
    text = "ValueError: Weight output_partition_size = 192 is not divisible by weight quantization block_n = 128."
    assert dsv4_shard.explain(text).basis == "rule"


# --- the collector ---------------------------------------------------------------------------------------------------

SOURCES = {
    "__init__.py": "",
    "engine/__init__.py": "",
    "engine/arg_utils.py": """
from vllm.config.model import ModelConfig
from vllm.helpers import check as verify

class EngineArgs:
    def __post_init__(self):
        verify(self.tp, 3)
        self._private()
        ModelConfig(self.model)

    def _private(self):
        if self.tp < 1:
            raise ValueError(f"tensor parallel size {self.tp} must be positive")

    def never_called(self):
        pass

def not_reached():
    raise ValueError("nobody calls this function")
""",
    "config/__init__.py": "",
    "config/model.py": """
import logging
logger = logging.getLogger(__name__)

class Base:
    def __init__(self, model):
        assert model is not None and len(model) > 3
        self.load()

class ModelConfig(Base):
    def load(self):
        logger.error("the model %s cannot be loaded", self.model)
        raise RuntimeError("the model {} has no weights".format(self.model))
""",
    "helpers.py": """
def check(a, b):
    assert a % b == 0, f"{a} is no multiple of {b}"

def unused():
    raise RuntimeError("this helper is not used")
""",
    "lora/__init__.py": "",
    "lora/model.py": "def f():\n    raise ValueError('off the path')\n",
}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(facts.ENTRIES, "vllm", ("engine.arg_utils:EngineArgs",))
    return write_wheel(tmp_path, SOURCES)


def write_wheel(folder: Path, sources: dict[str, str]) -> Path:
    path = folder / "vllm-9.9.9-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        for name, text in sources.items():
            archive.writestr(f"vllm/{name}", text)
    return path


def test_the_collector_follows_calls_imports_and_classes(wheel: Path) -> None:
    found = collect(wheel)
    assert (found.engine, found.version, found.missing) == ("vllm", "9.9.9", [])
    assert found.modules == {"engine.arg_utils", "config.model", "helpers"}
    assert {(one.error, one.text) for one in found.said} == {
        ("AssertionError", "{} is no multiple of {}"),
        ("AssertionError", "assert model is not None and len(model) > 3"),
        ("ValueError", "tensor parallel size {} must be positive"),
        ("log", "the model {} cannot be loaded"),
        ("RuntimeError", "the model {} has no weights"),
    }
    place = next(one for one in found.said if one.error == "ValueError")
    assert (place.file, place.line, place.function) == ("vllm/engine/arg_utils.py", 13, "EngineArgs._private")
    assert place.condition == "self.tp < 1"


KERNELS = """
from vllm.config.model import Loader, is_hip
from vllm.lora import model as adapters

class EngineArgs:
    loader: Loader

    def __post_init__(self):
        self.loader.load("x")
        adapters.f()
        if is_hip():
            raise ValueError("AMD alone")
        elif self.tp > 8:
            raise ValueError("more than eight")
        if not is_hip():
            return
        raise ValueError("not reached either")
"""

LOADERS = """
from vllm.star import *

class Loader:
    def load(self, name):
        raise NotImplementedError

class Made(Loader):
    def load(self, name):
        raise RuntimeError("the loader that is made")

class NotMade(Loader):
    def load(self, name):
        raise RuntimeError("nobody makes this loader")

LOADERS = {"made": Made}

def is_hip():
    made_elsewhere()
    return LOADERS
"""

STAR = """
def made_elsewhere():
    raise OSError("of a star import")
"""


def test_what_is_not_made_or_cannot_run_here_is_off_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(facts.ENTRIES, "vllm", ("engine.arg_utils:EngineArgs", "nowhere:Nothing"))
    sources = {**SOURCES, "engine/arg_utils.py": KERNELS, "config/model.py": LOADERS, "star.py": STAR}
    found = collect(write_wheel(tmp_path, sources))
    assert found.missing == ["nowhere:Nothing"]
    assert {(one.text, one.condition) for one in found.said} == {
        ("more than eight", "self.tp > 8"),
        ("the loader that is made", ""),
        ("of a star import", ""),
        ("", ""),  # Loader.load itself: a caller's annotation is all that is known of it
    }
    assert found.reach.left_out == {("lora.model", "f"): facts.excluded("lora.model")}


@pytest.mark.parametrize(
    ("test", "known"),
    [("a", True), ("b", False), ("c", None), ("not b", True), ("a and c", None), ("b and c", False), ("a or c", True),
     ("b or c", None), ("not (a and b)", True), ("False", False)],
)  # fmt: skip
def test_conditions_are_true_false_or_not_known(test: str, known: bool | None) -> None:
    assert Facts(re.compile("a"), re.compile("b")).of(ast.parse(test, mode="eval").body) is known


def test_the_table_is_written_with_one_message_a_line() -> None:
    assert dump(TABLE) == TABLE_FILE.read_text()
    assert sum(line.startswith("[") for line in TABLE_FILE.read_text().split("\n")) > 1000


# --- what the engines print, with their own words --------------------------------------------------------------------


@pytest.mark.parametrize("engine", TABLE)
def test_no_message_of_a_sample_is_unknown_or_only_a_place(engine: str) -> None:
    """Every 40th message, as a traceback or a line of the log, leads to an answer with its cause and remedies."""
    places = [(file, entry) for file, entries in TABLE[engine]["messages"].items() for entry in entries][::40]
    answers = {(file, entry[0]): dsv4_shard.explain(log_of(engine, file, entry)) for file, entry in places}
    assert [place for place, answer in answers.items() if answer.basis in (None, "place")] == []
    assert [place for place, answer in answers.items() if not answer.remedies or answer.log.engine != engine] == []


def rendered(engine: str, words: str, *values: object) -> str:
    """The log of the table's message with these words and the given values in place of its own."""
    file, entry = next(
        (file, entry) for file, entries in TABLE[engine]["messages"].items() for entry in entries if words in entry[3]
    )
    return log_of(engine, file, [*entry[:3], entry[3].format(*values).replace("{", "{{").replace("}", "}}")])


ROWS: list[tuple[str, str, tuple[object, ...], str]] = [
    # engine, words of its own text, values, and what the answer says
    ("sglang", "is not equal to tensor_model_parallel_size", (16, 8, 1), "16 ranks were started, and TP 8 × PP 1 = 8"),
    ("sglang", "must be divisible by decode_context_parallel_size", (8, 3), "8 divides by 1, 2, 4, 8"),
    ("vllm", "must be divisible by dcp_size", (8, 3), "8 / 3 = 2.67: not whole"),
    ("vllm", "exceeds the maximum supported value", (16, 8, 8, 1), "leaves DCP at most 8"),
    ("vllm", "EPLB requires tensor", (1, 1, 1), "has one rank"),
    ("vllm", "data_parallel_rank ({}) must be in the range", (8, 8), "replica 8 of 8: they are counted from 0"),
    ("sglang", "cannot serve MXFP8 weight shape", (96, 7168), "96 rows are 1.5 × 64"),
    ("sglang", "MXFP8 needs a 32-wide K block", (128, 7168), "blocks of 128 columns, and MXFP8's are of 32"),
    ("sglang", "unexpected block scale shape", ((24, 56), (192, 7168)), "(24, 56) are not one for each block"),
    ("sglang", "cannot encode as e8m0", (), "powers of two"),
    ("sglang", "FP4 experts require torch.float4_e2m1fn_x2", (), "older than 2.8"),
    ("vllm", "FlashInfer MLA Sparse does not support", (24,), "a rank has 24 heads; this kernel takes {8, 16, 32"),
    ("vllm", "FlashMLA does not support", (256,), "a rank has 256 heads; this kernel takes {64, 128}"),
    ("vllm", "Engram sharding leaves ranks", (12, 16), "12 hash heads of the engram tables over 16 ranks"),
    ("vllm", "Compressed vocab size mismatch", (99000, 99100), "the tokenizer gives 99000 compressed tokens"),
    ("vllm", "Engram CPU offload requires UVA", (), "--engram-config"),
    ("sglang", "speculative_num_draft_tokens must equal gamma", (6, 5, 4), "a block of 5 tokens and verifies one more"),
    ("sglang", "confidence head is enabled but", ("mtp.0.confidence_head.weight",), "the draft lacks mtp.0.confidence"),
    ("sglang", "No model weights found in", ("/models/V4",), "/models/V4 holds no file of weights"),
    ("sglang", "In paged swa mode", (), "pages of 256 tokens"),
    ("vllm", "Missing keys", ("('model.layers.0.x',)",), "model.layers.0.x"),
    ("vllm", "on startup is less than desired", ("cuda:0", "80.1", "94.99", "0.9", "85.49"), "holds 14.9 GiB"),
]  # fmt: skip


@pytest.mark.parametrize(("engine", "words", "values", "said"), ROWS, ids=lambda value: str(value)[:30])
def test_a_message_with_numbers_of_the_layout_is_answered_with_them(
    engine: str, words: str, values: tuple[object, ...], said: str
) -> None:
    answer = dsv4_shard.explain(rendered(engine, words, *values))
    assert answer.basis == "table"
    assert answer.log.engine == engine
    assert said in " ".join((*answer.meaning, *answer.remedies))


KINDS = [
    # engine, words of its own text, and what the answer says
    ("vllm", "UVA is not available", "the GPU, its driver or this build"),
    ("vllm", "Please use torchao version", "lacks a Python package"),
    ("vllm", "per-rank intermediate sizes must align to", "equal parts"),
    ("sglang", "--bf16-gemm-backend gemv requires SM90", "the GPU, its driver or this build"),
    ("sglang", "requires hidden_size to be a multiple of 128", "equal parts"),
    ("vllm", "Could not load logging config. File does not exist", "missing, empty or not what it expects"),
    ("vllm", "WorkerProc failed to start", "its own traceback"),
    ("vllm", "Duplicate layer name", "set up in another order, twice"),
    ("vllm", "HiSparse does not support decode context parallelism", "no code for this choice"),
]


@pytest.mark.parametrize(("engine", "words", "said"), KINDS, ids=lambda value: str(value)[:30])
def test_a_kind_is_told_by_the_words_of_the_message(engine: str, words: str, said: str) -> None:
    entries = TABLE[engine]["messages"].items()
    file, entry = next((file, entry) for file, found in entries for entry in found if words in entry[3])
    answer = dsv4_shard.explain(log_of(engine, file, entry))
    assert said in " ".join(answer.meaning)
    assert answer.remedies
