"""Names → roles, held against every tensor of the real checkpoints."""

import json

import pytest
from fullsize import PRO, REAL_MODELS, config_of, inventory_of
from hypothesis import given
from hypothesis import strategies as st
from skeletons import expand

from dsv4_shard.blocks import logical_shape
from dsv4_shard.config import parse_config
from dsv4_shard.roles import (
    MODULE,
    SPEC,
    LayerKind,
    Module,
    Part,
    Role,
    Stage,
    TensorName,
    layer_kind,
    parse_name,
    unparse_name,
)


@pytest.mark.parametrize("model", REAL_MODELS)
def test_every_tensor_of_a_real_checkpoint_has_a_role_and_its_name_comes_back(model):
    for name in expand(model):
        parsed = parse_name(name)
        assert parsed is not None, name
        assert unparse_name(parsed) == name


@pytest.mark.parametrize("model", REAL_MODELS)
def test_no_two_tensors_of_a_real_checkpoint_have_the_same_place(model):
    names = expand(model)
    assert len({parse_name(name) for name in names}) == len(names)


@pytest.mark.parametrize("model", REAL_MODELS)
def test_the_shapes_of_the_table_are_those_of_the_real_checkpoints(model):
    config, _ = parse_config(json.dumps(config_of(model)).encode(), model)
    for name, (dtype, shape) in expand(model).items():
        at = parse_name(name)
        assert at is not None
        if at.part is Part.WEIGHT:
            kind = layer_kind(config, at.stage, at.layer)
            packed = MODULE[at.role] is Module.ROUTED
            assert SPEC[at.stage, at.role].shape(config, kind) == logical_shape(dtype, shape, packed), name


@pytest.mark.parametrize("model", REAL_MODELS)
def test_a_layer_of_a_real_checkpoint_has_what_its_kind_says_and_nothing_else(model):
    checkpoint, inventory = inventory_of(model)
    held = {(at.stage, at.layer, at.role) for at in inventory.names.values() if at.part is Part.WEIGHT}
    blocks = [(Stage.MODEL, -1), (Stage.MTP, 0)]
    blocks += [(Stage.LAYER, layer) for layer in range(checkpoint.config.num_hidden_layers)]
    for stage, layer in blocks:
        kind = layer_kind(checkpoint.config, stage, layer)
        due = {role for (at, role), spec in SPEC.items() if at is stage and spec.present(kind) and not spec.optional}
        assert {role for at, number, role in held if (at, number) == (stage, layer)} == due, (stage, layer)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("embed.weight", TensorName(Role.EMBED, Part.WEIGHT, Stage.MODEL)),
        ("norm.weight", TensorName(Role.FINAL_NORM, Part.WEIGHT, Stage.MODEL)),
        ("layers.0.ffn.gate.tid2eid", TensorName(Role.ROUTER_HASH, Part.WEIGHT, Stage.LAYER, 0)),
        ("layers.60.attn.attn_sink", TensorName(Role.ATTN_SINK, Part.WEIGHT, Stage.LAYER, 60)),
        ("layers.3.attn.wo_b.scale", TensorName(Role.O_B, Part.SCALE, Stage.LAYER, 3)),
        ("layers.3.ffn.shared_experts.w2.scale", TensorName(Role.SHARED_DOWN, Part.SCALE, Stage.LAYER, 3)),
        ("layers.3.ffn.experts.383.w3.weight", TensorName(Role.ROUTED_UP, Part.WEIGHT, Stage.LAYER, 3, 383)),
        ("layers.2.attn.indexer.compressor.ape", TensorName(Role.INDEXER_APE, Part.WEIGHT, Stage.LAYER, 2)),
        ("mtp.0.norm.weight", TensorName(Role.FINAL_NORM, Part.WEIGHT, Stage.MTP, 0)),
        ("mtp.0.e_proj.scale", TensorName(Role.MTP_E_PROJ, Part.SCALE, Stage.MTP, 0)),
        ("mtp.0.emb.tok_emb.weight", TensorName(Role.MTP_EMBED, Part.WEIGHT, Stage.MTP, 0)),
    ],
)
def test_a_name_says_role_part_stage_layer_and_expert(name, place):
    assert parse_name(name) == place
    assert unparse_name(place) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "embed",
        "embed.",
        "embed.scale",
        "embed.weight.",
        ".embed.weight",
        "EMBED.weight",
        "model.embed.weight",
        "layers",
        "layers.",
        "layers.3",
        "layers.3.",
        "layers..attn_norm.weight",
        "layers.03.attn_norm.weight",
        "layers.00.attn_norm.weight",
        "layers.-1.attn_norm.weight",
        "layers.+1.attn_norm.weight",
        "layers. 1.attn_norm.weight",
        "layers.1 .attn_norm.weight",
        "layers.1_0.attn_norm.weight",
        "layers.1e1.attn_norm.weight",
        "layers.0x1.attn_norm.weight",
        "layers.٣.attn_norm.weight",
        "layers.３.attn_norm.weight",
        "layers.³.attn_norm.weight",
        "layers.1234567.attn_norm.weight",
        "layers.3.attn_norm",
        "layers.3.attn_norm.weight.",
        "layers.3.attn_norm.weight\n",
        "layers.3.attn_norm.scale",
        "layers.3.attn_norm.bias",
        "layers.3..attn_norm.weight",
        "layers.3.norm.weight",
        "layers.3.e_proj.weight",
        "layers.3.attn.attn_sink.weight",
        "layers.3.attn.wq_b",
        "layers.3.attn.wq_b.weight_scale_inv",
        "layers.3.ffn.gate.tid2eid.weight",
        "layers.3.ffn.gate.tie2eid",
        "layers.3.ffn.gate.bias_vl",
        "layers.3.ffn.experts",
        "layers.3.ffn.experts.",
        "layers.3.ffn.experts.w1.weight",
        "layers.3.ffn.experts.0",
        "layers.3.ffn.experts.0.",
        "layers.3.ffn.experts.00.w1.weight",
        "layers.3.ffn.experts.-1.w1.weight",
        "layers.3.ffn.experts.0.w1",
        "layers.3.ffn.experts.0.w4.weight",
        "layers.3.ffn.experts.0.w1.weight.",
        "layers.3.ffn.shared_experts.0.w1.weight",
        "layers.3.ffn.shared_experts.w1",
        "mtp.embed.weight",
        "mtp.0.embed.weight",
        "mtp.0.main_proj.weight",
        "norm.weight.0",
        "../../etc/passwd",
        "model.layers.3.mlp.shared_experts.gate_proj.weight_scale_inv",
    ],
)
def test_a_name_that_no_v4_model_has_is_unknown(name):
    assert parse_name(name) is None


@given(st.text(max_size=40) | st.from_regex(r"(layers|mtp)\.\d{1,3}\.(attn|ffn)\.[\w.]{0,30}", fullmatch=True))
def test_any_name_is_unknown_or_comes_back_as_it_was(name):
    parsed = parse_name(name)
    assert parsed is None or unparse_name(parsed) == name


def test_an_mtp_block_is_a_plain_layer_whatever_its_number():
    config, _ = parse_config(json.dumps(config_of(PRO)).encode(), PRO)
    assert layer_kind(config, Stage.LAYER, 0) == LayerKind(128, True)
    assert layer_kind(config, Stage.LAYER, 4) == LayerKind(4, False)
    assert layer_kind(config, Stage.MTP, 0) == LayerKind(0, False)
    assert layer_kind(config, Stage.MTP, 4) == LayerKind(0, False)


def test_every_role_belongs_to_one_module_and_every_module_has_a_role():
    assert set(MODULE) == set(Role)
    assert set(MODULE.values()) == set(Module)
