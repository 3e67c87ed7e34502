"""V4.1, and V4's DSpark releases: rank files are the converters', node folders lack only other nodes' experts, and what
the model cannot run is refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints.full_size import V41, config_of, in_memory, inventory_of
from support.checkpoints.small import (
    dspark_config,
    load_checkpoint,
    load_tensors,
    open_folder,
    raw,
    reshard_folder,
    rewrite,
    v41_config,
)
from support.checkpoints.small import write_dspark as write
from support.oracles import v4 as oracle
from typer.testing import CliRunner

from dsv4_shard.checkpoint.inventory import Inventory, take_inventory
from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.checkpoint.synthetic import V41_CONFIG, tensors_of
from dsv4_shard.cli import app
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.registry import engine_for
from dsv4_shard.errors import ExitCode, InfeasiblePlan
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.planning.weights import rank_nbytes
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.recipe_builder import make_recipe
from dsv4_shard.sharding.run import reshard
from dsv4_shard.verification.moe_numerics import check_numerics
from dsv4_shard.verification.result_folder import verify

FLASH_0731, PRO_0813 = "DeepSeek-V4-Flash-0731", "DeepSeek-V4-Pro-0813"

WIDE = v41_config(
    hidden_size=128, moe_intermediate_size=256, head_dim=128, q_lora_rank=128, o_lora_rank=128, index_head_dim=128,
    engram_head_dim=128,
)  # fmt: skip
"""As V4.1's own config, where sizes allow blocks of 128 too."""

KINDS = {
    "v4.1": (v41_config(), oracle.shards_v41),
    "v4.1 in blocks of 128": (
        WIDE | {"quantization_config": WIDE["quantization_config"] | {"weight_block_size": [128, 128]}},
        oracle.shards_v41,
    ),
    "dspark": (dspark_config(), oracle.shards),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint of each kind. Only to be read."""
    scratch = tmp_path_factory.mktemp("kinds")
    return {kind: write(scratch / str(n), config, 51) for n, (kind, (config, _)) in enumerate(KINDS.items())}


def assert_files(out: Path, expected: list[dict[str, torch.Tensor]], scratch: Path) -> None:
    """Each rank's file is the one that safetensors itself would write of these tensors."""
    for rank, tensors in enumerate(expected):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch)
        path = out / f"model{rank}-mp{len(expected)}.safetensors"
        found = load_tensors(path)
        assert found.keys() == tensors.keys()
        assert [name for name, tensor in tensors.items() if raw(found[name]) != raw(tensor)] == []
        assert path.read_bytes() == scratch.read_bytes()


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("expert_dtype", ["fp4", "fp8"])
@pytest.mark.parametrize("mp", [1, 2, 4, 8])
def test_rank_files_are_the_oracles_byte_by_byte(
    mp: int, expert_dtype: str, kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    source = load_checkpoint(folders[kind])
    outcome = reshard_folder(folders[kind], tmp_path / "out", mp, expert_dtype)
    assert_files(tmp_path / "out", KINDS[kind][1](source, mp, expert_dtype), tmp_path / "twin")
    casts = {name for name in source if expert_dtype == "fp8" and ".experts." in name and name.endswith(".scale")}
    assert outcome.bytes_read == sum(tensor.nbytes * (1 + (name in casts)) for name, tensor in source.items())


def test_each_kind_of_tensor_is_among_those_compared(folders: dict[str, Path]) -> None:
    names = {kind: "\n".join(load_checkpoint(folder)) for kind, folder in folders.items()}
    for word in ("engram.embed.scale", "engram.wkv.scale", "bias_vl", "indexer.wk.weight", "markov_head.embed",
                 "markov_head.head", "confidence_head", "main_proj.scale", "vision.blocks.1.mlp.w1", "aligner.w2.bias",
                 "image_newline", "mtp.1.ffn.experts.7.w2.scale"):  # fmt: skip
        assert word in names["v4.1"]
    for word in ("markov_w1", "markov_w2", "confidence_head", "main_norm", "mtp.2.ffn.experts.7.w1", "tid2eid"):
        assert word in names["dspark"]


@pytest.mark.slow
def test_rows_that_fill_up_an_engram_table_are_zeros_with_scales_of_one(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    reshard_folder(folders["v4.1"], tmp_path / "out", 8)
    for rank, own in enumerate((2, 2, 2, 2, 1, 0, 0, 0)):
        held = load_tensors(tmp_path / "out" / f"model{rank}-mp8.safetensors")
        weight, scale = (held[f"layers.2.engram.embed.{part}"].float() for part in ("weight", "scale"))
        assert (len(weight), len(scale)) == (2, 2)
        assert not weight[own:].any()
        assert (scale[own:] == 1).all()
        assert weight[:own].any() == (own > 0)


@pytest.mark.slow
def test_a_drafts_own_embedding_and_head_are_dropped_as_the_converter_does(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["v4.1"], tmp_path / "model")
    source = load_checkpoint(folder)
    source |= {name: source["embed.weight"].clone() for name in ("mtp.0.embed.weight", "mtp.1.head.weight")}
    rewrite(folder, source)
    reshard_folder(folder, tmp_path / "out", 2)
    assert_files(tmp_path / "out", oracle.shards_v41(source, 2, "fp4"), tmp_path / "twin")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("expert_dtype", ["fp4", "fp8"])
def test_a_result_is_verified_and_its_experts_add_up(
    kind: str, expert_dtype: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    reshard_folder(folders[kind], tmp_path / "out", 4, expert_dtype)
    checkpoint, inventory = open_folder(folders[kind])
    assert verify(tmp_path / "out", (checkpoint, inventory)).ok
    found = check_numerics([tmp_path / "out"], checkpoint, inventory)
    assert found.ok
    assert found.error_on_every_rank > 0.1


# --- rules ---------------------------------------------------------------------------------------------------------


def small_inventory(config: dict[str, Any], blocks: int = 2, **stored: Any) -> Inventory:
    inventory = take_inventory(in_memory(config, tensors_of(config, blocks, dspark=blocks > 0, **stored)))
    assert inventory.errors == ()
    return inventory


@pytest.mark.parametrize(("rule", "tp", "changes", "quote"), [
    ("experts", 16, {"n_routed_experts": 24}, "AssertionError: (24, 16, 16)"),
    ("draft-experts", 16, {"dspark_n_routed_experts": 24}, "AssertionError: (32, 24, 16)"),
    ("vocab", 16, {"vocab_size": 264}, "AssertionError: Dimension 0 must be divisible by 16"),
    ("heads", 32, {}, "AssertionError: Dimension 0 must be divisible by 32"),
    ("o_groups", 32, {}, None),
    ("index-heads", 32, {}, "AssertionError: Dimension 0 must be divisible by 32"),
    ("q_b-blocks", 16, {"head_dim": 16}, "AssertionError: Dimension 0 must be divisible by 16"),
    ("o_a-columns", 2, {"head_dim": 80, "num_attention_heads": 32, "o_groups": 64}, None),
    ("cast-blocks", 2, {"moe_intermediate_size": 80}, "AssertionError"),
])  # fmt: skip
def test_what_the_converter_or_the_model_cannot_do_is_refused(
    rule: str, tp: int, changes: dict[str, int], quote: str | None
) -> None:
    inventory = small_inventory(V41_CONFIG | {"text_config": V41_CONFIG["text_config"] | changes})
    engine = engine_for("reference", inventory.family)
    deployment = next(engine.candidates(inventory, Request(tp, engine="reference", expert_dtype="fp8")))
    assert rule in {breach.rule for breach in engine.breaches(Context(inventory, deployment))}
    breach = next(one for one in engine.rules if one.name == rule).check(Context(inventory, deployment))
    assert breach.quote == quote
    assert breach.reason


def test_experts_of_a_draft_that_is_not_there_need_not_divide() -> None:
    inventory = small_inventory(v41_config(dspark_n_routed_experts=3), blocks=0)
    assert choose(inventory, Request(8, engine="reference")).feasible


@pytest.mark.parametrize("kind", ["v4.1 in blocks of 64", "v4 in blocks of 32"])
def test_blocks_that_the_converter_does_not_decode_are_refused(kind: str, tmp_path: Path) -> None:
    if kind.startswith("v4.1"):
        config = WIDE | {"quantization_config": WIDE["quantization_config"] | {"weight_block_size": [64, 64]}}
    else:
        config = dspark_config()
        config["quantization_config"] = config["quantization_config"] | {"weight_block_size": [32, 32]}
    with pytest.raises(InfeasiblePlan, match="wo_a is decoded to BF16 in blocks of"):
        reshard_folder(write(tmp_path / "model", config, 3), tmp_path / "out", 2)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sglang", "vllm", "trtllm"])
def test_of_engines_that_serve_v41_nothing_is_verified(engine: str) -> None:
    (breach,) = choose(inventory_of(V41)[1], Request(8, engine=engine)).breaches
    assert breach.rule == "family"


# --- node folders --------------------------------------------------------------------------------------------------


def node_plan(checkpoint: Checkpoint, inventory: Inventory, **wanted: Any) -> Plan:
    return make_plan(checkpoint, inventory, Request(**({"tp": 8, "nodes": 2} | wanted), engine="node"))


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "nodes"), [(2, 2), (8, 2), (8, 4), (8, 8)])
def test_each_node_has_the_dense_tensors_and_its_experts_of_the_layers_and_of_the_draft(
    tp: int, nodes: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint, inventory = open_folder(folders["v4.1"])
    plan = node_plan(checkpoint, inventory, tp=tp, nodes=nodes)
    reshard(prepare(checkpoint, inventory, plan), checkpoint, tmp_path / "out")
    source, each = load_checkpoint(folders["v4.1"]), {"layers": 32 // nodes, "mtp": 16 // nodes}
    for node in range(nodes):
        there = load_checkpoint(tmp_path / "out" / f"node-{node}")
        due = set()
        for name in source:
            expert = re.search(r"\.experts\.(\d+)\.", name)
            if expert is None or int(expert[1]) // each[name.split(".")[0]] == node:
                due.add(name)
        assert there.keys() == due
        for name, tensor in there.items():
            assert (tensor.dtype, tensor.shape, raw(tensor)) == (
                source[name].dtype,
                source[name].shape,
                raw(source[name]),
            )
    assert verify(tmp_path / "out", (checkpoint, inventory)).ok
    assert check_numerics([tmp_path / "out"], checkpoint, inventory).ok


@pytest.mark.parametrize(("rule", "wanted", "changes"), [
    ("ep-tp", {"ep": 2}, {}),
    ("options", {"runner": "marlin"}, {}),
    ("options", {"a2a": "deepep"}, {}),
    ("options", {"shared_experts": "split"}, {}),
    ("options", {"engine_version": "0.33.0"}, {}),
    ("nodes", {"nodes": 3}, {}),
    ("expert-dtype", {"expert_dtype": "fp8"}, {}),
    ("attention-dp", {"dp": 3}, {}),
    ("heads", {}, {"num_attention_heads": 12, "o_groups": 12}),
    ("experts", {}, {"n_routed_experts": 12}),
    ("draft-experts", {}, {"dspark_n_routed_experts": 12}),
])  # fmt: skip
def test_node_folders_that_no_engine_could_serve_are_refused(
    rule: str, wanted: dict[str, Any], changes: dict[str, int]
) -> None:
    config = V41_CONFIG | {"text_config": V41_CONFIG["text_config"] | changes}
    checkpoint = in_memory(config, tensors_of(config, 2, dspark=True))
    plan = node_plan(checkpoint, take_inventory(checkpoint), **wanted)
    assert [breach.rule for breach in plan.breaches] == [rule]


@pytest.mark.slow
def test_a_plan_of_node_folders_says_that_no_engine_was_held() -> None:
    checkpoint, inventory = inventory_of(V41)
    plan = node_plan(checkpoint, inventory, tp=16)
    assert plan.feasible
    assert plan.launch.commands == ()
    assert [words.partition(":")[0] for words in plan.assumptions] == ["not verified"]
    assert "192 of 384 experts, 64 of 128 in the draft model" in plan.notes[0]
    assert "no engine was run with DeepSeek-V4.1" in plan.notes[-1]
    dense = sum(t.nbytes for name, t in checkpoint.tensors.items() if ".experts." not in name)
    experts = sum(t.nbytes for name, t in checkpoint.tensors.items() if ".experts." in name)
    assert plan.totals is not None
    assert plan.totals.target_bytes_per_rank_max + plan.totals.draft_bytes_per_rank == dense + experts // 16
    recipe = prepare(checkpoint, inventory, plan, (1,)).recipe
    assert sum(file.payload for file in recipe.files) == dense + experts // 2


@pytest.mark.slow
def test_the_commands_take_v41_from_plan_to_verification(folders: dict[str, Path], tmp_path: Path) -> None:
    """Both engines that write it; a plan for any engine gives no command of one."""
    for engine, words in (("reference", "torchrun"), ("node", "node folders for any engine")):
        out, options = tmp_path / engine, ("--engine", engine, "--tp", "4", "--nodes", "2")
        code = ExitCode.DONE if engine == "reference" else ExitCode.NOT_VERIFIED
        assert words in run("plan", folders["v4.1"], *options, "-o", tmp_path / f"{engine}.json", code=code)
        run("reshard", folders["v4.1"], out, "--plan", tmp_path / f"{engine}.json", "--dry-run")
        run("reshard", folders["v4.1"], out, "--plan", tmp_path / f"{engine}.json")
        assert "no problems found" in run("verify", out, "--against", folders["v4.1"], "--numerics")
    folders_only = run("plan", folders["v4.1"], "--engine", "node", "--tp", 4, "--nodes", 2, code=ExitCode.NOT_VERIFIED)
    assert "no engine was run with such folders" in folders_only
    assert "Write node folders: each node reads" in folders_only
    assert "Runs" not in folders_only


def run(*arguments: Any, code: ExitCode = ExitCode.DONE) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.stdout.split())


# --- at full size --------------------------------------------------------------------------------------------------

PUBLISHED = [
    # model, ranks, tensors, bytes with FP4 kept, bytes with FP4 cast to FP8: what the converters write
    (FLASH_0731, 4, 19_279, 43_884_972_280, 78_618_331_384),
    (FLASH_0731, 8, 10_447, 23_128_809_976, 40_495_489_528),
    (PRO_0813, 8, 20_694, 118_789_323_304, 213_928_524_328),
    (PRO_0813, 16, 11_478, 63_201_254_536, 110_770_855_048),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "ranks", "tensors", "fp4", "fp8"), PUBLISHED)
def test_a_rank_of_a_dspark_release_has_as_many_tensors_and_bytes_as_the_converters(
    model: str, ranks: int, tensors: int, fp4: int, fp8: int
) -> None:
    checkpoint, inventory = inventory_of(model)
    engine = engine_for("reference", inventory.family)
    for expert_dtype, nbytes in (("fp4", fp4), ("fp8", fp8)):
        choice = choose(inventory, Request(ranks, engine="reference", expert_dtype=expert_dtype))
        assert choice.feasible
        assert rank_nbytes(inventory, choice.deployment) == nbytes
        (file,) = make_recipe(checkpoint, engine, Context(inventory, choice.deployment), (1,)).files
        assert (len(file.tensors), file.payload) == (tensors, nbytes)


def by_hand(tensors: dict[str, torch.Tensor], ranks: int, cast: bool) -> tuple[int, int]:
    """Tensors and bytes of each rank of V4.1, from names, dtypes and shapes alone."""
    cut = re.compile(r"(^|\.)(embed|head|wq_b|weights_proj|wo_b|attn_sink)(\.|$)")
    count = nbytes = 0
    for name, tensor in tensors.items():
        expert, size = ".experts." in name, tensor.nbytes
        if ".wo_a." in name:
            if name.endswith(".weight"):
                count, nbytes = count + 1, nbytes + 2 * size // ranks
            continue
        if ".engram.embed." in name:
            size = -(-tensor.shape[0] // ranks) * tensor.shape[1]
        elif cut.search(name):
            size //= ranks
        elif expert and cast:
            size = size * 2 if name.endswith(".weight") else size // 32
        count, nbytes = (count + 1 / ranks, nbytes + size / ranks) if expert else (count + 1, nbytes + size)  # type: ignore[assignment]
    return round(count), round(nbytes)


@pytest.mark.slow
@pytest.mark.parametrize("expert_dtype", ["fp4", "fp8"])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_rank_of_v41_flash_weighs_what_its_parts_do(ranks: int, expert_dtype: str) -> None:
    checkpoint, inventory = inventory_of(V41)
    engine = engine_for("reference", inventory.family)
    choice = choose(inventory, Request(ranks, engine="reference", expert_dtype=expert_dtype))
    assert choice.feasible
    files = make_recipe(checkpoint, engine, Context(inventory, choice.deployment), (0, ranks - 1)).files
    due = by_hand(checkpoint.tensors, ranks, expert_dtype == "fp8")  # type: ignore[arg-type]
    assert {(len(file.tensors), file.payload) for file in files} == {due}
    assert rank_nbytes(inventory, choice.deployment) == due[1]


@pytest.mark.slow
def test_v41_flashs_second_table_does_not_divide_by_eight_and_its_last_rank_says_so() -> None:
    checkpoint, inventory = inventory_of(V41)
    plan = make_plan(checkpoint, inventory, Request(8, engine="reference"))
    (row,) = [row for row in plan.modules if row.role == "engram.embed"]
    assert row.placement == "rows over TP, rounded up"
    deployment = choose(inventory, Request(8, engine="reference")).deployment
    recipe = make_recipe(checkpoint, engine_for("reference", inventory.family), Context(inventory, deployment), (0, 7))
    for layer, each, padding in ((1, 48_000_771, 0), (14, 48_002_086, 6)):
        for part, columns, fill in (("weight", 256, b"\0"), ("scale", 8, b"\x7f")):
            name = f"layers.{layer}.engram.embed.{part}"
            assert {file.tensors[name].shape for file in recipe.files} == {(each, columns)}
            steps = [step for step in recipe.steps if step.source.name == name]
            assert len(steps) > 500 if part == "weight" else len(steps) == 1, "98 GB are many steps"
            rows, pads = [0, 0], [0, 0]
            for cut, files in (piece for step in steps for piece in step.landings[0].spread):
                rows[files[0]] += cut.rows
                pads[files[0]] += cut.pad_rows
            assert (rows, pads) == ([each, each], [0, padding])
            assert {(step.fill, step.source.shape[0]) for step in steps} == {(fill, 8 * each - padding)}


@pytest.mark.slow
def test_the_plan_of_v41_flash_counts_vision_with_the_target_and_only_dspark_as_the_draft() -> None:
    checkpoint, inventory = inventory_of(V41)
    plan = make_plan(checkpoint, inventory, Request(1, engine="reference"))
    totals, tensors = plan.totals, checkpoint.tensors.values()
    assert totals is not None
    # wo_a is twice as large in BF16, and loses its scale.
    decoded = {t.name: 2 * t.nbytes if t.name.endswith("weight") else 0 for t in tensors if ".wo_a." in t.name}
    sizes = {t.name: decoded.get(t.name, t.nbytes) for t in tensors}
    draft = sum(nbytes for name, nbytes in sizes.items() if name.startswith("mtp."))
    assert totals.draft_bytes_per_rank == draft
    assert totals.target_bytes_per_rank_max == sum(sizes.values()) - draft


@pytest.mark.slow
def test_v41_flash_goes_to_eight_ranks_and_no_further() -> None:
    inventory = inventory_of(V41)[1]
    assert config_of(V41)["text_config"]["o_groups"] == 8
    runs = [tp for tp in (1, 2, 3, 4, 6, 8, 16, 32) if choose(inventory, Request(tp, engine="reference")).feasible]
    assert runs == [1, 2, 4, 8]


@pytest.mark.parametrize("config", [v41_config(), dspark_config()])
def test_the_written_config_has_as_many_mtp_layers_as_there_are(config: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path / "model", config, 5)
    reshard_folder(folder, tmp_path / "out", 2)
    written = json.loads((tmp_path / "out/inference_config.json").read_text())
    assert written["n_mtp_layers"] == open_folder(folder)[1].mtp_blocks
