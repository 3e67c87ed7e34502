"""config.json: what the tool needs of it, what it does without, and whose it is."""

import contextlib
import json
from typing import Any

import pytest
from support.checkpoints.full_size import REAL_MODELS
from support.checkpoints.tiny import TINY_CONFIG
from support.paths import DATA

from dsv4_shard.errors import BadConfig, ShardError, UnsupportedFamily
from dsv4_shard.models.config import UNSUPPORTED, parse_config
from dsv4_shard.models.v4 import V4Config

WHERE = "org/name/config.json"
REQUIRED = [name for name, field in V4Config.model_fields.items() if field.is_required()]
SIZES = [name for name in REQUIRED if name not in ("model_type", "compress_ratios")]


def parse(document: dict[str, Any]) -> V4Config:
    config, _ = parse_config(json.dumps(document).encode(), WHERE)
    assert isinstance(config, V4Config)
    return config


def refusal(document: dict[str, Any] | bytes, error: type[ShardError] = BadConfig) -> str:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(error) as caught:
        parse_config(raw, WHERE)
    assert type(caught.value) is error
    assert str(caught.value).startswith(WHERE)
    return str(caught.value)


def without(document: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in names}


@pytest.mark.parametrize("model", ["DeepSeek-V4-Pro", "DeepSeek-V4-Flash", "DeepSeek-V4-Pro-FP8"])
def test_reads_the_published_configs(model: str) -> None:
    raw = (DATA / model / "config.json").read_bytes()
    config, document = parse_config(raw, WHERE)
    assert document == json.loads(raw)
    assert isinstance(config, V4Config)
    for name in SIZES:
        assert getattr(config, name) == document[name]
    assert config.compress_ratios == tuple(document["compress_ratios"])
    assert config.declared_block == (128, 128)


def test_tolerates_the_fields_that_the_fp8_rereleases_lack() -> None:
    config, document = parse_config((DATA / "DeepSeek-V4-Pro-FP8" / "config.json").read_bytes(), WHERE)
    assert config.model_type == "deepseek_ref"
    assert not {"expert_dtype", "swiglu_limit"} & document.keys()
    assert config.expert_dtype is None
    assert config.swiglu_limit is None


def test_unknown_fields_are_kept_in_the_document_and_ignored_in_the_config() -> None:
    config, document = parse_config(json.dumps(TINY_CONFIG | {"new_in_v5": {"a": 1}}).encode(), WHERE)
    assert document["new_in_v5"] == {"a": 1}
    assert config == parse(TINY_CONFIG)


@pytest.mark.parametrize("name", [name for name in REQUIRED if name != "model_type"])
def test_a_required_field_that_is_missing_is_named(name: str) -> None:
    assert f"lacks 1 field ({name})" in refusal(without(TINY_CONFIG, name))


def test_every_missing_field_is_named_at_once() -> None:
    message = refusal(without(TINY_CONFIG, *SIZES))
    assert [name for name in SIZES if name not in message] == []


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [-1, 2**31, 1.5, 128.0, "128", True, None, [128]])
def test_a_size_is_a_positive_integer_below_2_to_the_31_and_nothing_that_looks_like_one(
    name: str, value: float | str | list[int] | None
) -> None:
    assert f"{name}: " in refusal(TINY_CONFIG | {name: value})


@pytest.mark.parametrize("name", SIZES)
def test_only_the_number_of_shared_experts_may_be_zero(name: str) -> None:
    if name == "n_shared_experts":
        assert parse(TINY_CONFIG | {name: 0}).n_shared_experts == 0
    else:
        assert f"{name}: " in refusal(TINY_CONFIG | {name: 0})


@pytest.mark.parametrize("name", ["num_nextn_predict_layers", "num_hash_layers"])
def test_mtp_and_hash_layers_may_be_zero_or_absent_but_not_negative(name: str) -> None:
    assert getattr(parse(TINY_CONFIG | {name: 0}), name) == 0
    assert getattr(parse(without(TINY_CONFIG, name)), name) == 0
    assert f"{name}: " in refusal(TINY_CONFIG | {name: -1})


def test_ratios_must_cover_the_layers() -> None:
    message = refusal(TINY_CONFIG | {"compress_ratios": [128]})
    assert "compress_ratios has 1 entries for 2 layers" in message
    assert parse(TINY_CONFIG | {"compress_ratios": [128, 4]}).compress_ratios == (128, 4)


def test_a_bad_ratio_is_named_with_its_place() -> None:
    assert "compress_ratios.1: " in refusal(TINY_CONFIG | {"compress_ratios": [128, -4, 0]})


def test_hash_layers_cannot_outnumber_the_layers() -> None:
    assert "num_hash_layers 3 exceeds 2 layers" in refusal(TINY_CONFIG | {"num_hash_layers": 3})


@pytest.mark.parametrize("block", [[128], [128, 128, 128], [0, 128], [128, -1], ["128", 128], "128x128"])
def test_a_block_is_a_pair_of_sizes(block: list[int | str] | str) -> None:
    assert "quantization_config.weight_block_size" in refusal(
        TINY_CONFIG | {"quantization_config": {"weight_block_size": block}}
    )


@pytest.mark.parametrize("quantization", [None, {}, {"quant_method": "fp8"}])
def test_a_config_may_declare_no_block(quantization: dict[str, str] | None) -> None:
    assert parse(TINY_CONFIG | {"quantization_config": quantization}).declared_block is None
    assert parse(without(TINY_CONFIG, "quantization_config")).declared_block is None


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": \xff}', "not JSON"),
        (b"[" * 40_000, "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'"x"', "not a JSON object"),
    ],
)
def test_what_is_not_a_json_object_is_refused(raw: bytes, said: str) -> None:
    assert said in refusal(raw)


@pytest.mark.parametrize(
    ("architecture", "model_type", "family"),
    [
        ("DeepseekV3ForCausalLM", "kimi_k2", "Kimi-K2"),
        ("KimiK2ForCausalLM", "kimi_k2", "Kimi-K2"),
        ("LlamaForCausalLM", "llama", "llama"),
    ],
)
def test_another_family_is_refused_by_its_name(architecture: str, model_type: str, family: str) -> None:
    document = TINY_CONFIG | {"architectures": [architecture], "model_type": model_type}
    with pytest.raises(UnsupportedFamily) as caught:
        parse(document)
    assert f"a checkpoint of {family} " in str(caught.value)
    assert architecture in str(caught.value)
    assert "DeepSeek-V4" in caught.value.hint


def test_the_family_is_judged_before_the_fields() -> None:
    assert "Qwen3 MoE" in refusal(
        {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}, UnsupportedFamily
    )


@pytest.mark.parametrize("nested", [{}, None, [], "text_config", 1])
def test_sizes_that_are_not_in_text_config_are_missed_there(nested: Any) -> None:
    """V4.1 nests its sizes: those of the outer document are not looked at."""
    document = TINY_CONFIG | {"architectures": ["DeepseekV41ForCausalLM"], "model_type": "deepseek_v41"}
    assert "fields (hidden_size, " in refusal(document | {"text_config": nested}, BadConfig)


@pytest.mark.parametrize("model", REAL_MODELS)
def test_the_config_of_every_known_release_is_read(model: str) -> None:
    document = json.loads((DATA / model / "config.json").read_text())
    config, _ = parse_config(json.dumps(document).encode(), WHERE)
    text = document.get("text_config", document)
    assert (config.hidden_size, config.n_routed_experts) == (text["hidden_size"], text["n_routed_experts"])


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_no_architectures_and_another_model_type_is_another_family(model_type: str) -> None:
    document = without(TINY_CONFIG, "architectures") | {"model_type": model_type}
    assert f"a checkpoint of {UNSUPPORTED[model_type]} " in refusal(document, UnsupportedFamily)


def test_no_architectures_but_the_model_type_of_v4_is_v4() -> None:
    assert parse(without(TINY_CONFIG, "architectures")) == parse(TINY_CONFIG | {"architectures": []})


@pytest.mark.parametrize("document", [{}, {"model_type": None}, {"architectures": None}, {"model_type": ["x"]}])
def test_neither_architecture_nor_model_type_is_no_family(document: dict[str, Any]) -> None:
    refusal(document, UnsupportedFamily)


@pytest.mark.parametrize("value", [{}, [1], "DeepseekV4ForCausalLM", 1, [["DeepseekV4ForCausalLM"]]])
@pytest.mark.parametrize("name", ["architectures", "model_type", "quantization_config", "compress_ratios"])
def test_fields_of_the_wrong_type_never_raise_anything_untyped(name: str, value: Any) -> None:
    with contextlib.suppress(ShardError):
        parse(TINY_CONFIG | {name: value})
