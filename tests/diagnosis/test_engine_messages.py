"""The engines' own texts: collected from a wheel by reachability, found again in a log, and answered by their kind."""

import json
from pathlib import Path
from zipfile import ZipFile

import engine_messages
import pytest

import dsv4_shard
from dsv4_shard.diagnosis.engine_messages import EngineText, find_text

TABLE = json.loads(engine_messages.TABLE.read_text())

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
    answer = dsv4_shard.explain(engine_messages.log_of(engine, file, entry))
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
        for line, function, error, text in entries:
            one = EngineText(engine, "", f"{file}:{line}", function, error, text)
            if one.letters < 12:
                continue
            log = engine_messages.log_of(engine, file, [line, function, error, text])
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


def test_a_place_alone_claims_no_cause() -> None:
    file, entry = next(
        (file, entry)
        for file, entries in TABLE["vllm"]["messages"].items()
        for entry in entries
        if entry[3].startswith("assert isinstance(layer, RoutedExperts)")
    )
    answer = dsv4_shard.explain(engine_messages.log_of("vllm", file, entry))
    assert answer.basis == "place"
    assert "its cause is not known here" in answer.meaning[1]


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


def test_the_collector_follows_calls_imports_and_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "vllm-9.9.9-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for name, text in SOURCES.items():
            archive.writestr(f"vllm/{name}", text)
    monkeypatch.setitem(engine_messages.ENTRIES, "vllm", ("engine.arg_utils:EngineArgs",))
    name, version, said, modules = engine_messages.collect(wheel)
    assert (name, version) == ("vllm", "9.9.9")
    assert modules == {"engine.arg_utils", "config.model", "helpers"}
    assert {(one.error, one.text) for one in said} == {
        ("AssertionError", "{} is no multiple of {}"),
        ("AssertionError", "assert model is not None and len(model) > 3"),
        ("ValueError", "tensor parallel size {} must be positive"),
        ("log", "the model {} cannot be loaded"),
        ("RuntimeError", "the model {} has no weights"),
    }
    place = next(one for one in said if one.error == "ValueError")
    assert (place.file, place.line, place.function) == ("vllm/engine/arg_utils.py", 13, "EngineArgs._private")
