"""V3's and V3.2's rank files are their converters', byte by byte; the rules are those of what loads them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints.full_size import V3, V32, config_of, in_memory, inventory_of
from support.checkpoints.small import (
    SMALL_V3,
    contents,
    load_checkpoint,
    open_folder,
    reshard_folder,
    rewrite,
    small_v3,
)
from support.oracles import v3 as oracle_v3
from typer.testing import CliRunner

from dsv4_shard.checkpoint.inventory import take_inventory
from dsv4_shard.checkpoint.synthetic import tensors_of
from dsv4_shard.cli import app
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.reference.v3 import REFERENCE_V3, REFERENCE_V32
from dsv4_shard.engines.registry import engine_for
from dsv4_shard.errors import InfeasiblePlan, UsageError
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.recipe_builder import make_recipe
from dsv4_shard.verification.documents import TOLERANCE
from dsv4_shard.verification.moe_numerics import check_numerics
from dsv4_shard.verification.result_folder import verify

FAMILIES = ("v3", "v32")
LAYERS = 3


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Small checkpoints by family. Only to be read."""
    folders = {family: small_v3(tmp_path_factory.mktemp(family) / "model", family) for family in FAMILIES}
    return folders.__getitem__


def same_as_the_oracle(out: Path, tensors: dict[str, torch.Tensor], mp: int, scratch: Path) -> None:
    """Every rank file is, as a whole, what safetensors writes of the oracle's tensors."""
    for rank, wanted in enumerate(oracle_v3.shards(tensors, mp, LAYERS)):
        save_file(wanted, scratch / "wanted.safetensors")
        assert (out / f"model{rank}-mp{mp}.safetensors").read_bytes() == (scratch / "wanted.safetensors").read_bytes()


def reference_plan(model: str, **wanted: Any) -> Plan:
    return make_plan(*inventory_of(model), Request(**wanted, engine="reference"))


# --- bytes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mp", [1, 2, 4, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_rank_files_are_the_oracles_byte_by_byte(
    family: str, mp: int, model_of: Callable[..., Any], tmp_path: Path
) -> None:
    reshard_folder(model_of(family), tmp_path / "out", mp)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == mp
    same_as_the_oracle(tmp_path / "out", load_checkpoint(model_of(family)), mp, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_are_not_quantized_are_the_oracles_too(
    family: str, model_of: Callable[..., Any], tmp_path: Path
) -> None:
    tensors = {
        name: tensor.bfloat16() if tensor.dtype == torch.float8_e4m3fn else tensor
        for name, tensor in load_checkpoint(model_of(family)).items()
        if not name.endswith("_scale_inv")
    }
    folder = small_v3(tmp_path / "model", family)
    rewrite(folder, tensors)
    reshard_folder(folder, tmp_path / "out", 4)
    same_as_the_oracle(tmp_path / "out", tensors, 4, tmp_path)
    assert check_numerics([tmp_path / "out"], *open_folder(folder)).ok


def test_each_kind_of_layer_is_among_those_compared(model_of: Callable[..., Any]) -> None:
    names = oracle_v3.shards(load_checkpoint(model_of("v32")), 1, LAYERS)[0]
    kinds = ("layers.0.ffn.w1.scale", "layers.2.ffn.shared_experts.w2.scale", "layers.1.ffn.experts.7.w3.weight",
             "layers.0.attn.indexer.k_norm.bias", "layers.1.ffn.gate.bias", "layers.2.attn.wkv_a.scale")  # fmt: skip
    assert set(kinds) < names.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mtp_layer_is_left_out_with_its_reason(family: str, model_of: Callable[..., Any], tmp_path: Path) -> None:
    checkpoint, inventory = open_folder(model_of(family))
    plan = make_plan(checkpoint, inventory, Request(2, engine="reference"))
    left_out = prepare(checkpoint, inventory, plan).recipe.left_out
    assert left_out.keys() == {name for name in checkpoint.tensors if name.startswith(f"model.layers.{LAYERS}.")}
    assert {"MTP" in reason for reason in left_out.values()} == {True}
    assert plan.totals is not None
    assert plan.totals.draft_bytes_per_rank == 0


def test_some_ranks_are_written_as_in_the_full_run(model_of: Callable[..., Any], tmp_path: Path) -> None:
    reshard_folder(model_of("v3"), tmp_path / "all", 4)
    reshard_folder(model_of("v3"), tmp_path / "some", 4, ranks=(1, 3))
    every, some = contents(tmp_path / "all"), contents(tmp_path / "some")
    names = {name for name in some if name.endswith(".safetensors")}
    assert names == {"model1-mp4.safetensors", "model3-mp4.safetensors"}
    assert {name: some[name] for name in names} == {name: every[name] for name in names}


# --- verify --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mp", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_result_verifies_alone_against_its_source_and_in_numbers(
    family: str, mp: int, model_of: Callable[..., Any], tmp_path: Path
) -> None:
    reshard_folder(model_of(family), tmp_path / "out", mp)
    source = open_folder(model_of(family))
    assert verify(tmp_path / "out").ok
    against = verify(tmp_path / "out", source)
    assert against.ok
    assert sum(against.accounts.values()) == len(source[0].tensors)
    sums = check_numerics([tmp_path / "out"], *source)
    assert (sums.ok, sums.layer, sums.ranks) == (True, LAYERS - 1, mp)
    assert sums.shared_experts == ("in parts" if mp > 1 else "whole")
    if mp > 1:
        assert sums.error_on_every_rank > 1e3 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shared_experts.w2.weight", "shared_experts.w1.scale", "experts.5.w3.weight"])
def test_numerics_sees_a_wrong_expert(name: str, model_of: Callable[..., Any], tmp_path: Path) -> None:
    reshard_folder(model_of("v3"), tmp_path / "out", 2)
    file = tmp_path / "out" / "model1-mp2.safetensors"
    tensors = oracle_v3.shards(load_checkpoint(model_of("v3")), 2, LAYERS)[1]
    tensors[f"layers.2.ffn.{name}"] = tensors[f"layers.2.ffn.{name}"].flip(0).contiguous()
    save_file(tensors, file)
    assert not check_numerics([tmp_path / "out"], *open_folder(model_of("v3"))).ok


def test_numerics_of_a_dense_layer_is_refused(model_of: Callable[..., Any], tmp_path: Path) -> None:
    reshard_folder(model_of("v3"), tmp_path / "out", 2)
    with pytest.raises(UsageError, match="layer=0: this layer has a dense MLP"):
        check_numerics([tmp_path / "out"], *open_folder(model_of("v3")), 0)


# --- config --------------------------------------------------------------------------------------------------------

RELEASED = {
    "vocab_size": 129280, "dim": 7168, "inter_dim": 18432, "moe_inter_dim": 2048, "n_layers": 61, "n_dense_layers": 3,
    "n_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1, "n_activated_experts": 8, "n_expert_groups": 8,
    "n_limited_groups": 4, "route_scale": 2.5, "score_func": "sigmoid", "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "dtype": "fp8",
}  # fmt: skip
"""configs/config_671B.json of DeepSeek-V3."""

RELEASED_V31 = RELEASED | {"scale_fmt": "ue8m0"}
RELEASED_V32 = RELEASED_V31 | {"index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}

DEFAULTS = {
    "original_seq_len": 4096, "rope_theta": 10000, "rope_factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1,
}  # fmt: skip
"""Of ModelArgs, where the released configs say nothing."""


def inference_config_of(document: dict[str, Any], model: str) -> dict[str, Any]:
    inventory = inventory_of(model)[1]
    engine = engine_for("reference", inventory.family)
    context = Context(inventory, choose(inventory, Request(8, engine="reference")).deployment)
    assert engine.layout is not None
    (content,) = engine.layout.companions(document, context).values()
    return json.loads(content)


@pytest.mark.parametrize(
    ("model", "scale_fmt", "released"),
    [(V3, None, RELEASED), (V3, "ue8m0", RELEASED_V31), (V32, "ue8m0", RELEASED_V32)],
    ids=["V3 and R1", "V3.1", "V3.2"],
)
def test_inference_config_is_the_one_that_deepseek_released(
    model: str, scale_fmt: str | None, released: dict[str, Any]
) -> None:
    document = config_of(model)
    if scale_fmt:
        document["quantization_config"]["scale_fmt"] = scale_fmt
    assert inference_config_of(document, model) == released | DEFAULTS


# --- rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [V3, V32])
@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16])
def test_the_reference_runs_on_up_to_sixteen_ranks(model: str, tp: int) -> None:
    assert reference_plan(model, tp=tp).feasible


@pytest.mark.parametrize("model", [V3, V32])
@pytest.mark.parametrize(
    ("tp", "rules", "reasons", "quotes"),
    [
        (32, {"dense-rows", "dense-columns", "shared-rows", "shared-columns"},
         {"intermediate_size 18432 / ranks 32 = 576, which is 4.5 blocks of 128",
          "shared intermediate size 2048 / ranks 32 = 64, which is 0.5 blocks of 128"},
         {"AssertionError: Dimension 1 must be divisible by 32", None}),
        (3, {"experts", "vocab", "heads", "o-blocks", "kv_b-blocks", "shared-rows", "shared-columns"},
         {"num_attention_heads 128 / ranks 3 = 42.67: not whole", "vocab_size 129280 / ranks 3 = 43093.33: not whole"},
         {"AssertionError: Number of experts must be divisible by model parallelism", None}),
    ],
)  # fmt: skip
def test_what_does_not_divide_is_refused_in_numbers_and_in_the_converters_words(
    model: str, tp: int, rules: set[str], reasons: set[str], quotes: set[str | None]
) -> None:
    plan = reference_plan(model, tp=tp, nodes=1)
    assert {breach.rule for breach in plan.breaches} == rules
    assert reasons <= {breach.reason for breach in plan.breaches}
    assert quotes <= {breach.engine_says for breach in plan.breaches}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "rule"),
    [
        ({"ep": 4}, "ep"),
        ({"dp": 2}, "dp"),
        ({"runner": "marlin"}, "options"),
        ({"a2a": "deepep"}, "options"),
        ({"shared_experts": "whole"}, "shared-way"),
        ({"expert_dtype": "fp4"}, "expert-dtype"),
        ({"nodes": 3}, "nodes"),
        ({"engine_version": "V4"}, "version"),
    ],
)
def test_what_the_reference_has_no_way_to_is_refused(wanted: dict[str, Any], rule: str) -> None:
    assert [breach.rule for breach in reference_plan(V3, **({"tp": 8} | wanted)).breaches] == [rule]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"n_shared_experts": 0}, "shared-experts"),
        ({"num_attention_heads": 4, "qk_nope_head_dim": 192, "v_head_dim": 256}, "heads"),
        ({"vocab_size": 260}, "vocab"),
        ({"n_routed_experts": 4}, "experts"),
        ({"intermediate_size": 640}, "dense-rows"),
    ],
)
def test_each_rule_has_a_checkpoint_that_breaks_it(changes: dict[str, Any], rule: str, tmp_path: Path) -> None:
    checkpoint, inventory = open_folder(small_v3(tmp_path / "model", **changes))
    plan = make_plan(checkpoint, inventory, Request(8, engine="reference"))
    assert rule in {breach.rule for breach in plan.breaches}
    with pytest.raises(InfeasiblePlan):
        prepare(checkpoint, inventory, plan)


@pytest.mark.parametrize(("block", "experts", "rule"), [((64, 64), "FP8", "blocks"), ((128, 128), "FP4", "format")])
def test_weights_that_model_py_cannot_read_are_refused(block: tuple[int, int], experts: str, rule: str) -> None:
    document = SMALL_V3 | {"quantization_config": {"quant_method": "fp8", "weight_block_size": block}}
    checkpoint = in_memory(document, tensors_of(document, scales="F32", experts=experts))
    plan = make_plan(checkpoint, take_inventory(checkpoint), Request(2, engine="reference"))
    assert [breach.rule for breach in plan.breaches] == [rule]


def test_without_dense_layers_their_size_is_not_looked_at(tmp_path: Path) -> None:
    folder = small_v3(tmp_path / "model", first_k_dense_replace=0, intermediate_size=640)
    reshard_folder(folder, tmp_path / "out", 8)
    same_as_the_oracle(tmp_path / "out", load_checkpoint(folder), 8, tmp_path)


@pytest.mark.parametrize(
    ("family", "tp", "parts"),
    [
        ("v3", 1, ["router bias only where hidden_size is 7168"]),
        ("v32", 2, ["router bias only where hidden_size is 7168"]),
        ("v32", 1, ["router bias only where hidden_size is 7168", "fails there: take two or more"]),
    ],
)
def test_the_plan_says_what_model_py_does_not_take(
    family: str, tp: int, parts: list[str], model_of: Callable[..., Any]
) -> None:
    plan = make_plan(*open_folder(model_of(family)), Request(tp, engine="reference"))
    assert len(plan.notes) == len(parts)
    for line, part in zip(plan.notes, parts, strict=True):
        assert part in line


@pytest.mark.slow
def test_generate_py_is_started_on_the_files_with_their_config() -> None:
    plan = reference_plan(V3, tp=16)
    assert plan.launch.commands == tuple(
        "torchrun --nnodes 2 --nproc-per-node 8 --master-addr $NODE0 "
        f"--node-rank {node} generate.py --ckpt-path DeepSeek-V3-reference-tp16 "
        "--config DeepSeek-V3-reference-tp16/inference_config.json --interactive"
        for node in range(2)
    )


@pytest.mark.parametrize(("model", "part"), [(V3, "an all-reduce of its own"), (V32, "summed by one all-reduce")])
def test_each_generation_adds_the_shared_output_in_its_own_way(model: str, part: str) -> None:
    assert part in reference_plan(model, tp=8).shared_expert_addition


# --- full size -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("model", "mp"), [(V3, 8), (V3, 16), (V32, 16)])
def test_the_files_of_all_ranks_are_the_checkpoint_with_what_is_whole_repeated(model: str, mp: int) -> None:
    checkpoint, inventory = inventory_of(model)
    plan = make_plan(checkpoint, inventory, Request(mp, engine="reference"))
    assert plan.totals is not None
    engine = {V3: REFERENCE_V3, V32: REFERENCE_V32}[model]
    recipe = make_recipe(checkpoint, engine, Context(inventory, choose(inventory, Request(mp,
    engine="reference")).deployment),
                         tuple(range(mp)))  # fmt: skip
    assert {file.payload for file in recipe.files} == {plan.totals.target_bytes_per_rank_max}
    moved = sum(t.nbytes for name, t in checkpoint.tensors.items() if name not in recipe.left_out)
    repeated = (mp - 1) * plan.totals.replicated_bytes_per_rank
    assert sum(file.payload for file in recipe.files) == moved + repeated
    assert sum(not step.part for step in recipe.steps) + len(recipe.left_out) == len(checkpoint.tensors)


@pytest.mark.slow
@pytest.mark.parametrize("mp", [8, 16])
@pytest.mark.parametrize("model", [V3, V32])
def test_the_commands_take_a_real_checkpoint_from_inspection_to_a_dry_run(
    model: str, mp: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    root, layout = inventory_of(model)[0].source.root, ("--engine", "reference", "--tp", mp)
    identity = run("inspect", root, "--tp", mp, "--json")["identity"]
    assert (identity["dense_layers"], identity["o_groups"], identity["head_dim"]) == (3, None, None)
    assert identity["index_heads"] == {V3: None, V32: 64}[model]
    plan = run("plan", root, *layout, "--json")
    dry = run("reshard", root, tmp_path / "out", *layout, "--dry-run", "--json")
    files = [nbytes for name, nbytes in dry["files"].items() if name.endswith(f"-mp{mp}.safetensors")]
    assert len(files) == mp
    assert 0 < sum(files) - mp * plan["totals"]["target_bytes_per_rank_max"] < mp * 4_000_000
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_inspection_shows_only_what_the_family_has() -> None:
    shown = CliRunner().invoke(app, ["inspect", str(inventory_of(V3)[0].source.root), "--tp", "8"]).stdout
    assert "61 layers (3 dense), 1 MTP" in shown
    assert "None" not in shown


def run(*arguments: object) -> dict[str, Any]:
    """What a command prints as JSON."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
