"""Rules and placements, compared with the engines' own verdicts and parameters.

What the engines said and declared is in `data/sglang` and `data/vllm`, made by `tools/derive_contracts.py`.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from support.checkpoints.full_size import (
    FLASH,
    PRO,
    PRO_FP8,
    Tensors,
    breaches_of,
    config_of,
    deployment,
    feasible,
    in_memory,
    inventory_of,
    to_fp8_experts,
    variant_of,
)
from support.checkpoints.other_exports import EXPORTS, exported
from support.checkpoints.skeletons import DATA
from support.module_bytes import bytes_by_module, without_shared_tables

from dsv4_shard.catalog.gpus import GPUS, find_gpu
from dsv4_shard.catalog.options import A2A
from dsv4_shard.catalog.rank_ranges import MAX_RANKS
from dsv4_shard.checkpoint.inventory import Inventory, TensorGroup, take_inventory
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, tensors_of
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.placement import Expert, Pad, Replicate, Split
from dsv4_shard.engines.registry import ENGINES, engine_for, find_engine
from dsv4_shard.engines.rules import Breach
from dsv4_shard.engines.sglang.rules import A2A_MAKERS
from dsv4_shard.errors import UsageError
from dsv4_shard.models.families import FAMILIES
from dsv4_shard.models.family import Family
from dsv4_shard.models.roles import Module, Part, Role, Stage
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.remedies import ways_out, words
from dsv4_shard.planning.weights import rank_nbytes
from dsv4_shard.sharding.recipe_builder import make_recipe

TARGET = (Stage.MODEL, Stage.LAYER)
MODELS = {"pro": PRO, "flash": FLASH}
GPU_OF_SM = {90: None, 100: "b200"}


def load(name: str) -> list[dict[str, Any]]:
    return json.loads((DATA / name).read_text())


def short(entry: dict[str, Any]) -> str:
    """An entry of the data as a test's name."""
    return entry.get("name") or "-".join(
        f"{key}={entry[key]}" for key in entry if key not in ("ok", "error", "n_local_groups", "bytes", "backend")
    )


def breach_of(inventory: Inventory, rule: str, **wanted: Any) -> Breach | None:
    """The breach of `rule`, or None where it holds."""
    return next((breach for breach in breaches_of(inventory, Request(**wanted)) if breach.rule == rule), None)


# --- the compatibility table ---------------------------------------------------------------------------------------

COLUMNS = ("attention", "shared", "fp8", "flashinfer", "marlin", "experts", "pad", "zero_ranks", "trtllm")
TPS = (1, 2, 4, 8, 3, 6, 12, 24, 16, 32, 64)
NO = None
TABLE = {
    # TP: attention rules broken; routed or shared rows where a cut is refused; vLLM's rows a rank, ranks of zeros;
    #     TensorRT-LLM's parts
    PRO: {
        1: ((), 0, 0, 0, 0, 0, NO, 0, 1),
        2: ((), 0, 0, 0, 0, 0, NO, 0, 2),
        4: ((), 0, 0, 0, 0, 0, NO, 0, 4),
        8: ((), 0, 0, 0, 0, 0, NO, 0, 8),
        3: (("q_b-blocks", "heads", "o_groups", "o_a-blocks", "o_b-blocks"), 0, 0, 0, 0, 0, NO, 0, 3),
        6: (("q_b-blocks", "heads", "o_groups", "o_a-blocks", "o_b-blocks"), 0, 0, 0, 0, 0, NO, 0, 6),
        12: (("q_b-blocks", "heads", "o_groups", "o_a-blocks", "o_b-blocks"), 0, 0, 0, 0, 0, NO, 0, 12),
        24: (("q_b-blocks", "heads", "o_groups", "o_a-blocks", "o_b-blocks"), 0, 0, 0, 0, 0, NO, 0, 24),
        16: ((), 192, 192, 192, 0, 0, 256, 4, 8),
        32: (("o_groups",), 96, 96, 96, 0, 0, 128, 8, 8),
        64: (("o_groups",), 48, 48, 48, 48, 0, 128, 40, 8),
    },
    FLASH: {
        1: ((), 0, 0, 0, 0, 0, NO, 0, 1),
        2: ((), 0, 0, 0, 0, 0, NO, 0, 2),
        4: ((), 0, 0, 0, 0, 0, NO, 0, 4),
        8: ((), 0, 0, 0, 0, 0, NO, 0, 8),
        3: (("q_b-blocks", "heads", "o_groups", "o_a-blocks", "o_b-blocks"), 682.67, 682.67, 682.67, 682.67,
            85.33, 768, 0, 1),
        6: (("q_b-blocks", "heads", "o_groups", "o_a-blocks", "o_b-blocks"), 341.33, 341.33, 341.33, 341.33,
            42.67, 384, 0, 2),
        12: (("q_b-blocks", "heads", "o_groups", "o_a-blocks", "o_b-blocks"), 170.67, 170.67, 170.67, 170.67,
             21.33, 256, 4, 4),
        24: (("q_b-blocks", "heads", "o_groups", "o_a-blocks", "o_b-blocks"), 85.33, 85.33, 85.33, 85.33,
             10.67, 128, 8, 8),
        16: (("o_groups",), 0, 0, 0, 0, 0, NO, 0, 16),
        32: (("o_groups",), 64, 64, 64, 0, 0, 128, 16, 16),
        64: (("o_groups",), 32, 32, 32, 0, 0, 128, 48, 16),
    },
}  # fmt: skip

CELLS = [
    pytest.param(model, tp, column, TABLE[model][tp][index], id=f"{model}-tp{tp}-{column}")  # type: ignore[index]
    for model in TABLE
    for tp in TPS
    for index, column in enumerate(COLUMNS)
]


def fp8_of(model: str) -> Inventory:
    return inventory_of(PRO_FP8)[1] if model == PRO else variant_of(FLASH, "FP8", o_a="BF16")


def test_the_compatibility_table_is_whole() -> None:
    assert all(tuple(sorted(rows)) == tuple(sorted(TPS)) for rows in TABLE.values())  # type: ignore[call-overload]
    assert all(len(row) == len(COLUMNS) for rows in TABLE.values() for row in rows.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("model", "tp", "column", "cell"), CELLS)
def test_the_compatibility_table_holds_cell_by_cell(
    model: str, tp: int, column: str, cell: tuple[str, ...] | float | None
) -> None:
    inventory = inventory_of(model)[1]
    match column:
        case "attention":
            breaches = breaches_of(inventory, Request(tp))
            assert isinstance(cell, tuple)
            assert {breach.rule for breach in breaches if breach.module is Module.ATTENTION} == set(cell)
        case "shared":
            check_cut(breach_of(inventory, "shared-blocks", tp=tp, shared_experts="split"), cell, "TP", tp)
        case "fp8":
            check_cut(breach_of(fp8_of(model), "routed-blocks", tp=tp, runner="triton"), cell, "MoE TP", tp)
        case "flashinfer":
            check_cut(breach_of(inventory, "routed-blocks", tp=tp, runner="flashinfer_mxfp4"), cell, "MoE TP", tp)
        case "marlin":
            check_cut(breach_of(inventory, "routed-blocks", tp=tp, runner="marlin"), cell, "MoE TP", tp)
        case "experts":
            check_cut(breach_of(inventory, "experts", tp=tp, ep=tp), cell, "EP", tp)
        case "pad" | "zero_ranks":
            check_padding(inventory, tp, column, cell)
        case "trtllm":
            chosen = deployment(inventory, Request(tp, engine="trtllm"))
            assert chosen.shared_parts == cell
            assert chosen.shared == ("whole" if cell == 1 else "split" if cell == tp else "subgroup")
            said = find_engine("trtllm").addition(Context(inventory, chosen))
            assert f"{cell}/{tp} = {cell / tp:g}" in said or cell == 1


def check_cut(breach: Any, cell: Any, parts_name: Any, tp: Any) -> None:
    if cell == 0:
        assert breach is None
    else:
        assert breach is not None
        part = re.search(rf"/ {parts_name} {tp} = ([\d.]+)", breach.reason)
        assert part is not None
        assert float(part[1].rstrip(".")) == pytest.approx(cell, rel=1e-3)


def check_padding(inventory: Any, tp: Any, column: Any, cell: Any) -> None:
    context = Context(inventory, deployment(inventory, Request(tp, engine="vllm")))
    vllm = find_engine("vllm")
    intermediate = inventory.config.moe_intermediate_size
    for role, axis in ((Role.SHARED_GATE, 0), (Role.SHARED_UP, 0), (Role.SHARED_DOWN, 1)):
        placement = vllm.place(role, context)
        group = weight_group(inventory, role)
        held = vllm.rank_tensor_of(group, context)
        assert held is not None
        rows = held.shape[axis]
        if column == "zero_ranks":
            assert tp - -(-intermediate // rows) == cell
        elif cell is NO:
            assert placement == (Replicate() if tp == 1 else Split(axis, "tp"))
            assert rows * tp == intermediate
            assert held.padding == 0
        else:
            assert placement == Pad(axis, "tp", 128)
            assert rows == cell
            assert held.padding * tp == pytest.approx(group.nbytes * (rows * tp / intermediate - 1), abs=tp)


def weight_group(inventory: Inventory, role: Role) -> TensorGroup:
    return next(g for g in inventory.groups if (g.stage, g.role, g.part) == (Stage.LAYER, role, Part.WEIGHT))


def test_arithmetic_is_never_written_with_an_exponent() -> None:
    for tp in (3, 6, 12, 24):
        for breach in breaches_of(inventory_of(PRO)[1], Request(tp)):
            assert "e+" not in breach.reason
    assert "= 21845.33: not whole" in breaches_of(inventory_of(PRO)[1], Request(3))[0].reason


# --- SGLang's own verdicts and parameters --------------------------------------------------------------------------

VERDICTS = load("sglang/verdicts.json")
SGLANG_CONTRACTS = load("sglang/contracts.json")


def sglang_request(entry: dict[str, Any]) -> Request:
    """The request that comes to the deployment of a verdict or contract, with nothing left to choose."""
    a2a = entry.get("a2a")
    return Request(
        tp=entry["tp"],
        ep=entry["ep"],
        dp=entry.get("dp", 1),
        runner=entry["runner"],
        a2a=a2a,
        shared_experts="whole" if entry["shared"] or a2a else "split",
        gpu=GPU_OF_SM[entry["sm"]],
    )


def five_layers(entry: dict[str, Any], o_a: str = "FP8") -> Inventory:
    """What SGLang built: the first five layers of the model."""
    model, _, experts = entry["model"].partition("-")
    return variant_of(MODELS[model], experts.upper(), layers=5, o_a=o_a)


def test_all_of_sglangs_verdicts_are_here() -> None:
    assert len([entry for entry in VERDICTS if entry["sm"] == 90]) == 235


@pytest.mark.parametrize("entry", VERDICTS, ids=short)
def test_sglang_says_what_it_said_when_it_was_run(entry: dict[str, Any]) -> None:
    breaches = breaches_of(five_layers(entry), sglang_request(entry))
    quotes = [" ".join(breach.quote.split()) for breach in breaches if breach.quote is not None]
    if not entry["ok"]:
        assert quotes[0] == " ".join(entry["error"].split())
    elif entry["n_local_groups"] > 0:
        assert breaches == []
    else:
        assert [breach.rule for breach in breaches] == ["o_groups"]
        assert quotes == []


@pytest.mark.parametrize("entry", SGLANG_CONTRACTS, ids=short)
def test_a_rank_of_sglang_holds_the_bytes_that_its_model_declares(entry: dict[str, Any]) -> None:
    inventory = five_layers(entry)
    chosen = deployment(inventory, sglang_request(entry))
    if entry["nextn"]:
        assert bytes_by_module(inventory, chosen, (Stage.MTP,)) == without_shared_tables(entry["bytes"])
    else:
        assert bytes_by_module(inventory, chosen, TARGET) == entry["bytes"]


@pytest.mark.parametrize("entry", [e for e in SGLANG_CONTRACTS if "fp8" in e["model"] and e["sm"] == 90], ids=short)
def test_a_rank_of_sglang_on_hopper_holds_as_much_of_an_fp8_re_release(entry: dict[str, Any]) -> None:
    """They store o_a in BF16, which is what SGLang makes of it on Hopper anyway."""
    inventory = five_layers(entry, o_a="BF16")
    chosen = deployment(inventory, sglang_request(entry))
    stages = (Stage.MTP,) if entry["nextn"] else TARGET
    expected = without_shared_tables(entry["bytes"]) if entry["nextn"] else entry["bytes"]
    assert bytes_by_module(inventory, chosen, stages) == expected


def test_sglang_cuts_no_fp4_group_in_half() -> None:
    """It builds Pro at TP64, EP1 with attention DP 4, and is wrong then: only the tool refuses it."""
    inventory = inventory_of(PRO)[1]
    (breach,) = breaches_of(inventory, Request(64, dp=4, runner="marlin", shared_experts="whole"))
    assert (breach.rule, breach.quote) == ("routed-blocks", None)
    assert breach.reason == "moe_intermediate_size 3072 / MoE TP 64 = 48, which is 1.5 FP4 groups of 32"
    assert breaches_of(inventory, Request(64, ep=4, dp=4, runner="marlin", shared_experts="whole")) == []


def test_sglang_says_of_experts_that_do_not_divide_what_its_fused_moe_asserts() -> None:
    """Reached where each rank has an attention of its own: 3072 / 7."""
    breach = breaches_of(inventory_of(PRO)[1], Request(7, dp=7, shared_experts="whole"))[0]
    assert (breach.rule, breach.quote) == ("routed-blocks", "assert intermediate_size % self.moe_tp_size == 0")


@pytest.mark.parametrize("runner", ["marlin", "flashinfer_mxfp4"])
def test_sglangs_check_of_quantized_experts_is_skipped_by_the_variable_and_by_no_runner(runner: str) -> None:
    """As `check_quantized_moe_compatibility` said beside each verdict: also to marlin, which takes 192."""
    inventory = inventory_of(PRO)[1]
    assert breach_of(inventory, "quantized-moe", tp=16, runner=runner, shared_experts="split") is not None
    assert breach_of(inventory, "quantized-moe", tp=16, runner=runner, shared_experts="whole") is None
    assert breach_of(inventory, "quantized-moe", tp=16, ep=2, runner=runner, shared_experts="split") is None


@pytest.mark.parametrize("tp", [3, 6, 12, 24])
def test_sglang_pads_a_vocabulary_that_the_ranks_do_not_divide(tp: int) -> None:
    """The vocabulary is no rule of SGLang 0.5.23: it is padded to 64 × TP where padding to 64 does not divide."""
    inventory = inventory_of(PRO)[1]
    chosen = feasible(inventory, tp=tp, dp=tp)
    head = next(group for group in inventory.groups if group.role is Role.HEAD)
    held = find_engine("sglang").rank_tensor_of(head, Context(inventory, chosen))
    assert held is not None
    assert held.shape == (-(-129280 // (64 * tp)) * 64, 7168)


def test_auto_is_the_runner_that_sglang_makes_of_it_and_the_command_names_it() -> None:
    inventory = inventory_of(PRO)[1]
    chosen = feasible(inventory, tp=8, ep=8, runner="auto")
    assert chosen == feasible(inventory, tp=8, ep=8)
    assert (
        "--moe-runner-backend flashinfer_mxfp4"
        in find_engine("sglang").launch(Context(inventory, chosen), "M", True).commands[0]
    )


@pytest.mark.parametrize("a2a", [name for name in A2A if name not in A2A_MAKERS])
def test_an_all_to_all_backend_keeps_shared_experts_whole_by_itself(a2a: str) -> None:
    inventory = inventory_of(PRO)[1]
    chosen = feasible(inventory, tp=16, dp=16, a2a=a2a, gpu="b200")
    assert (chosen.ep, chosen.moe_tp, chosen.shared, chosen.runner) == (16, 1, "whole", "auto")
    launch = find_engine("sglang").launch(Context(inventory, chosen), "MODEL", False)
    assert "SGLANG_SHARED_EXPERT_TP1" not in launch.environment
    assert f"--moe-a2a-backend {a2a}" in launch.commands[0]
    assert "--ep-size" not in launch.commands[0]


# --- vLLM's own parameters and backends ----------------------------------------------------------------------------

VLLM_CONTRACTS = load("vllm/contracts.json")
VLLM_BACKENDS = load("vllm/backends.json")


def vllm_inventory(entry: dict[str, Any]) -> Inventory:
    model, _, experts = entry["model"].lower().partition("-")
    layers = None if entry["layers"] == "full" else entry["layers"]
    return variant_of(MODELS[model], experts.upper(), layers=layers, scales="F32" if experts == "fp8" else "F8_E8M0")


def vllm_request(entry: dict[str, Any], runner: str | None = None) -> Request:
    ep = entry["tp"] if entry["ep"] else None
    return Request(entry["tp"], ep=ep, engine="vllm", runner=runner, gpu=GPU_OF_SM[entry["sm"]])


@pytest.mark.slow
@pytest.mark.parametrize("entry", VLLM_CONTRACTS, ids=short)
def test_a_rank_of_vllm_holds_the_bytes_that_its_model_declares(entry: dict[str, Any]) -> None:
    inventory = vllm_inventory(entry)
    chosen = deployment(inventory, vllm_request(entry))
    if entry["mtp"]:
        assert bytes_by_module(inventory, chosen, (Stage.MTP,)) == without_shared_tables(entry["bytes"])
    else:
        assert bytes_by_module(inventory, chosen, TARGET) == entry["bytes"]


@pytest.mark.parametrize("entry", VLLM_CONTRACTS, ids=short)
def test_vllm_refuses_what_builds_and_cannot_run_and_nothing_else(entry: dict[str, Any]) -> None:
    breaches = breaches_of(vllm_inventory(entry), vllm_request(entry))
    assert [(breach.rule, breach.quote) for breach in breaches] == ([] if entry["runs"] else [("o_groups", None)])


@pytest.mark.parametrize("entry", VLLM_CONTRACTS, ids=short)
def test_vllm_picks_the_backend_that_it_picked_when_it_was_run(entry: dict[str, Any]) -> None:
    assert_same_backend(deployment(vllm_inventory(entry), vllm_request(entry)).runner, entry["backend"])


def assert_same_backend(runner: str, backend: str) -> None:
    """vLLM calls backends by more than their option: FLASHINFER_TRTLLM_MXFP4_MXFP8."""
    assert backend == runner or backend.startswith(f"{runner}_mxfp4"), (runner, backend)


@cache
def five_layers_of_pro(experts: str) -> Inventory:
    return variant_of(PRO, experts.upper(), layers=5, scales="F32" if experts == "fp8" else "F8_E8M0")


@pytest.mark.parametrize("entry", [e for e in VLLM_BACKENDS if "error" not in e], ids=short)
def test_a_backend_that_vllm_takes_is_taken_with_the_bytes_that_it_declares(entry: dict[str, Any]) -> None:
    inventory = five_layers_of_pro(entry["experts"])
    runner = None if entry["runner"] == "auto" else entry["runner"]
    request = vllm_request(entry, runner)
    assert breaches_of(inventory, request) == []
    chosen = deployment(inventory, request)
    if runner is None:
        assert_same_backend(chosen.runner, entry["backend"])
    nbytes = bytes_by_module(inventory, chosen, (Stage.LAYER,))
    for module in (Module.ROUTED, Module.SHARED):
        assert nbytes[module] == 5 * entry["bytes"][module], module
    assert (chosen.shared == "whole") == entry["sequence_parallel"]


@pytest.mark.parametrize(
    "entry",
    [e for e in VLLM_BACKENDS if "error" in e and "when none is available" not in e["error"]],
    ids=short,
)
def test_a_backend_that_vllm_refuses_is_refused(entry: dict[str, Any]) -> None:
    breaches = breaches_of(five_layers_of_pro(entry["experts"]), vllm_request(entry, entry["runner"]))
    assert [breach.module for breach in breaches] == [Module.ROUTED]


# --- DeepSeek's reference ------------------------------------------------------------------------------------------

REFERENCE_FILES = [
    # model, ranks, tensors a rank, bytes a rank with FP4 experts, with experts cast to FP8
    (FLASH, 1, 69_143, 161_085_790_792, 293_978_643_016),
    (FLASH, 2, 35_351, 81_684_107_080, 148_130_533_192),
    (FLASH, 4, 18_455, 41_983_265_224, 75_206_478_280),
    (FLASH, 8, 10_007, 22_132_844_296, 38_744_450_824),
    (PRO, 1, 145_054, 868_865_288_312, 1_606_194_096_248),
    (PRO, 2, 73_630, 438_121_755_000, 806_786_158_968),
    (PRO, 4, 37_918, 222_749_988_344, 407_082_190_328),
    (PRO, 8, 20_062, 115_064_105_016, 207_230_206_008),
    (PRO, 16, 11_134, 61_221_163_352, 107_304_213_848),
]


@pytest.mark.parametrize(("model", "ranks", "tensors", "fp4", "fp8"), REFERENCE_FILES)
def test_a_rank_of_the_reference_weighs_what_the_converter_writes(
    model: str, ranks: int, tensors: int, fp4: int, fp8: int
) -> None:
    inventory = inventory_of(model)[1]
    for expert_dtype, nbytes in ((None, fp4), ("fp4", fp4), ("fp8", fp8)):
        chosen = feasible(inventory, tp=ranks, engine="reference", expert_dtype=expert_dtype)
        assert rank_nbytes(inventory, chosen) == nbytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "ranks", "tensors", "expert_dtype", "nbytes"),
    [(model, ranks, tensors, "fp4", fp4) for model, ranks, tensors, fp4, _ in REFERENCE_FILES]
    + [(model, ranks, tensors, "fp8", fp8) for model, ranks, tensors, _, fp8 in REFERENCE_FILES if ranks in (4, 16)],
)
def test_a_file_of_the_reference_holds_as_many_tensors_and_bytes_as_the_converters(
    model: str, ranks: int, tensors: int, expert_dtype: str, nbytes: int
) -> None:
    checkpoint, inventory = inventory_of(model)
    chosen = feasible(inventory, tp=ranks, engine="reference", expert_dtype=expert_dtype)
    (file,) = make_recipe(checkpoint, find_engine("reference"), Context(inventory, chosen), (ranks - 1,)).files
    assert file.name == f"model{ranks - 1}-mp{ranks}.safetensors"
    assert (len(file.tensors), file.payload) == (tensors, nbytes)


@pytest.mark.parametrize(("model", "ranks"), [(FLASH, 16), (FLASH, 32), (FLASH, 64), (PRO, 32), (PRO, 64)])
def test_the_reference_refuses_what_its_converter_accepts_and_its_model_cannot_run(model: str, ranks: int) -> None:
    (breach,) = breaches_of(inventory_of(model)[1], Request(ranks, engine="reference"))
    assert (breach.rule, breach.quote) == ("o_groups", None)


@pytest.mark.parametrize("model", [FLASH, PRO])
@pytest.mark.parametrize("ranks", [3, 6, 12, 24])
def test_the_reference_refuses_what_its_converter_refuses(model: str, ranks: int) -> None:
    inventory = inventory_of(model)[1]
    breaches = breaches_of(inventory, Request(ranks, engine="reference"))
    counts_experts = inventory.config.n_routed_experts % ranks
    assert breaches[0].quote == (
        "AssertionError: Number of experts must be divisible by model parallelism" if counts_experts
        else f"AssertionError: Dimension 0 must be divisible by {ranks}"
    )  # fmt: skip
    assert {"vocab", "heads", "o_groups", "index-heads"} <= {breach.rule for breach in breaches}


@pytest.mark.slow
def test_the_reference_takes_an_fp8_re_release_as_it_is() -> None:
    inventory = inventory_of(PRO_FP8)[1]
    assert rank_nbytes(inventory, feasible(inventory, tp=16, engine="reference")) == 107_304_213_848


# --- every rule ----------------------------------------------------------------------------------------------------


DRAFTS: dict[str, Callable[[Tensors], Tensors]] = {
    "none": lambda tensors: {},
    "FP8": to_fp8_experts,
    "INT8": lambda tensors: exported(tensors, EXPORTS["ModelSlim"]),
}


@cache
def demo(fp8: bool = False, draft: str | None = None, **changes: Any) -> Inventory:
    """The demo's inventory, with other numbers in its config, and its draft in another format."""
    document = DEMO_CONFIG | changes
    tensors = tensors_of(document)
    if draft is not None:
        drafts = DRAFTS[draft](tensors)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("mtp.")}
        tensors |= {name: tensor for name, tensor in drafts.items() if name.startswith("mtp.")}
    inventory = take_inventory(in_memory(document, to_fp8_experts(tensors) if fp8 else tensors))
    assert inventory.errors == ()
    return inventory


BROKEN_RULES = [
    # engine, rule, the request that breaks it, and changes to the demo's config
    ("node", "ep-tp", {"tp": 8, "ep": 4}, {}),
    ("node", "draft-format", {"tp": 8, "nodes": 2}, {"draft": "INT8"}),
    ("node", "node-places", {"tp": 8, "nodes": 2, "redundant_experts": 8}, {}),
    ("sglang", "nodes", {"tp": 8, "nodes": 3}, {}),
    ("sglang", "version", {"tp": 8, "engine_version": "0.5.0"}, {}),
    ("sglang", "expert-dtype", {"tp": 8, "expert_dtype": "fp8"}, {}),
    ("sglang", "a2a", {"tp": 8, "a2a": "carrier-pigeon"}, {}),
    ("sglang", "a2a-ep", {"tp": 8, "ep": 4, "a2a": "deepep"}, {}),
    ("sglang", "ep", {"tp": 8, "ep": 3}, {}),
    ("sglang", "ep", {"tp": 4, "ep": 8}, {}),
    ("sglang", "attention-dp", {"tp": 8, "dp": 3}, {}),
    ("sglang", "attention-dp", {"tp": 4, "dp": 8}, {}),
    ("sglang", "triton-fp4", {"tp": 8, "runner": "triton"}, {}),
    ("sglang", "marlin-gpu", {"tp": 8, "runner": "marlin", "gpu": "b200"}, {}),
    ("sglang", "runner", {"tp": 8, "runner": "deep_gemm"}, {}),
    ("sglang", "runner", {"tp": 8, "runner": "marlin"}, {"fp8": True, "expert_dtype": "fp8"}),
    ("sglang", "marlin-a2a", {"tp": 8, "runner": "marlin", "a2a": "deepep"}, {}),
    ("sglang", "a2a-runner", {"tp": 8, "runner": "flashinfer_mxfp4", "a2a": "deepep"}, {}),
    ("sglang", "a2a-gpu", {"tp": 8, "a2a": "megamoe", "gpu": "rtx-pro-6000"}, {}),
    ("sglang", "megamoe-gpu", {"tp": 8, "dp": 8, "a2a": "flashinfer_megamoe"}, {}),
    ("sglang", "a2a-maker", {"tp": 8, "a2a": "ascend_fuseep"}, {}),
    ("sglang", "megamoe", {"tp": 8, "dp": 4, "a2a": "flashinfer_megamoe", "gpu": "b200"}, {}),
    (
        "sglang",
        "megamoe-experts",
        {"tp": 8, "dp": 8, "a2a": "flashinfer_megamoe", "gpu": "b200"},
        {"fp8": True, "expert_dtype": "fp8"},
    ),
    ("sglang", "megamoe-runner", {"tp": 8, "dp": 8, "runner": "marlin", "a2a": "flashinfer_megamoe"}, {}),
    ("sglang", "shared-way", {"tp": 8, "shared_experts": "pad"}, {}),
    ("sglang", "a2a-shared", {"tp": 8, "a2a": "deepep", "shared_experts": "split"}, {}),
    ("sglang", "tp-experts", {"tp": 32}, {}),
    ("sglang", "q_b-blocks", {"tp": 32}, {"num_attention_heads": 16}),
    ("sglang", "heads", {"tp": 32}, {"num_attention_heads": 16}),
    ("sglang", "o_groups", {"tp": 32}, {}),
    ("sglang", "o_a-blocks", {"tp": 32}, {}),
    ("sglang", "o_b-blocks", {"tp": 32}, {}),
    ("sglang", "experts", {"tp": 8, "ep": 8}, {"n_routed_experts": 12}),
    ("sglang", "physical-experts", {"tp": 8, "ep": 8, "redundant_experts": 1}, {}),
    ("sglang", "expert-locations", {"tp": 8, "expert_locations": str(DATA / "locations" / "strided-ten.json")}, {}),
    ("sglang", "routed-blocks", {"tp": 16, "runner": "flashinfer_mxfp4"}, {}),
    ("sglang", "shared-blocks", {"tp": 16, "shared_experts": "split"}, {}),
    ("sglang", "quantized-moe", {"tp": 16, "shared_experts": "split", "runner": "marlin"}, {}),
    ("sglang", "quantized-moe", {"tp": 7, "shared_experts": "whole"}, {}),
    ("sglang", "draft", {"tp": 8, "draft": "mtp"}, {"draft": "none"}),
    ("sglang", "draft-dspark", {"tp": 8, "draft": "dspark"}, {}),
    ("sglang", "draft-experts", {"tp": 8, "ep": 8, "redundant_experts": 4, "draft": "mtp"}, {"n_routed_experts": 12}),
    ("sglang", "draft-known", {"tp": 8, "draft": "mtp"}, {"draft": "INT8"}),
    ("sglang", "draft-experts-format", {"tp": 8, "draft": "mtp"}, {"draft": "FP8"}),
    ("vllm", "draft", {"tp": 8, "draft": "mtp"}, {"draft": "none"}),
    ("vllm", "draft-dspark", {"tp": 8, "draft": "dspark"}, {}),
    ("vllm", "draft-known", {"tp": 8, "draft": "mtp"}, {"draft": "INT8"}),
    ("vllm", "draft-experts-format", {"tp": 8, "draft": "mtp"}, {"draft": "FP8"}),
    ("vllm", "nodes", {"tp": 8, "nodes": 3}, {}),
    ("vllm", "version", {"tp": 8, "engine_version": "0.24.0"}, {}),
    ("vllm", "broken-version", {"tp": 8, "engine_version": "0.26.0"}, {}),
    ("vllm", "expert-dtype", {"tp": 8, "expert_dtype": "fp8"}, {}),
    ("vllm", "ep", {"tp": 8, "ep": 4}, {}),
    ("vllm", "ep", {"tp": 8, "ep": 8, "dp": 2}, {}),
    ("vllm", "a2a", {"tp": 8, "a2a": "deepep"}, {}),
    ("vllm", "sglang-options", {"tp": 8, "dp": 2, "dp_lm_head": True}, {}),
    ("vllm", "runner", {"tp": 8, "runner": "triton"}, {}),
    ("vllm", "runner-known", {"tp": 8, "runner": "humming"}, {}),
    ("vllm", "runner-gpu", {"tp": 8, "runner": "flashinfer_trtllm"}, {}),
    (
        "vllm",
        "mega-experts",
        {"tp": 8, "ep": 8, "runner": "deep_gemm_mega_moe", "gpu": "b200"},
        {"n_routed_experts": 12},
    ),
    ("vllm", "mega-ep", {"tp": 8, "runner": "deep_gemm_mega_moe", "gpu": "b200"}, {}),
    ("vllm", "shared-whole", {"tp": 8, "shared_experts": "whole"}, {}),
    ("vllm", "shared-way", {"tp": 4, "dp": 2, "ep": 8, "shared_experts": "split"}, {}),
    ("vllm", "shared-way", {"tp": 4, "dp": 2, "ep": 8, "shared_experts": "pad"}, {}),
    ("vllm", "vocab", {"tp": 3}, {}),
    ("vllm", "q_b-blocks", {"tp": 32}, {}),
    ("vllm", "heads", {"tp": 32}, {}),
    ("vllm", "o_groups", {"tp": 32}, {}),
    ("vllm", "o_a-blocks", {"tp": 32}, {}),
    ("vllm", "o_b-blocks", {"tp": 32}, {}),
    ("vllm", "routed-parts", {"tp": 8, "dp": 7}, {}),
    ("vllm", "routed-groups", {"tp": 8, "dp": 8}, {}),
    ("vllm", "routed-blocks", {"tp": 8, "dp": 8}, {"fp8": True, "expert_dtype": "fp8"}),
    ("vllm", "shared-blocks", {"tp": 16, "shared_experts": "split"}, {}),
    ("trtllm", "nodes", {"tp": 8, "nodes": 3}, {}),
    ("trtllm", "version", {"tp": 8, "engine_version": "1.0"}, {}),
    ("trtllm", "expert-dtype", {"tp": 8, "expert_dtype": "fp8"}, {}),
    ("trtllm", "options", {"tp": 8, "runner": "marlin"}, {}),
    ("trtllm", "options", {"tp": 8, "a2a": "deepep"}, {}),
    ("trtllm", "sglang-options", {"tp": 8, "dp_lm_head": True}, {}),
    ("trtllm", "draft-option", {"tp": 8, "draft": "mtp"}, {}),
    ("trtllm", "attention-dp", {"tp": 8, "dp": 2}, {}),
    ("trtllm", "ep", {"tp": 8, "ep": 3}, {}),
    ("trtllm", "shared-way", {"tp": 8, "shared_experts": "pad"}, {}),
    ("trtllm", "shared-way", {"tp": 16, "shared_experts": "whole"}, {}),
    ("trtllm", "vocab", {"tp": 3}, {}),
    ("trtllm", "q_b-blocks", {"tp": 32}, {}),
    ("trtllm", "heads", {"tp": 32}, {}),
    ("trtllm", "o_groups", {"tp": 32}, {}),
    ("trtllm", "o_a-blocks", {"tp": 32}, {}),
    ("trtllm", "o_b-blocks", {"tp": 32}, {}),
    ("trtllm", "experts", {"tp": 8, "ep": 8}, {"n_routed_experts": 12}),
    ("trtllm", "routed-blocks", {"tp": 64}, {}),
    ("reference", "ep", {"tp": 8, "ep": 4}, {}),
    ("reference", "dp", {"tp": 8, "dp": 2}, {}),
    ("reference", "options", {"tp": 8, "runner": "marlin"}, {}),
    ("reference", "options", {"tp": 8, "a2a": "deepep"}, {}),
    ("reference", "sglang-options", {"tp": 8, "dp_lm_head": True}, {}),
    ("reference", "draft-option", {"tp": 8, "draft": "none"}, {}),
    ("reference", "shared-way", {"tp": 8, "shared_experts": "split"}, {}),
    ("reference", "shared-way", {"tp": 8, "shared_experts": "pad"}, {}),
    ("reference", "expert-dtype", {"tp": 8, "expert_dtype": "fp4"}, {"fp8": True, "expert_dtype": "fp8"}),
    ("reference", "draft-format", {"tp": 8}, {"draft": "FP8"}),
    ("reference", "draft-format", {"tp": 8}, {"draft": "INT8"}),
    ("reference", "nodes", {"tp": 8, "nodes": 3}, {}),
    ("reference", "version", {"tp": 8, "engine_version": "V3"}, {}),
    ("reference", "one-shared-expert", {"tp": 8}, {"n_shared_experts": 2}),
    ("reference", "vocab", {"tp": 3}, {}),
    ("reference", "heads", {"tp": 32}, {}),
    ("reference", "q_b-blocks", {"tp": 32}, {}),
    ("reference", "o_groups", {"tp": 32}, {}),
    ("reference", "o_a-blocks", {"tp": 32}, {}),
    ("reference", "o_a-columns", {"tp": 8}, {"num_attention_heads": 24}),
    ("reference", "o_b-blocks", {"tp": 32}, {}),
    ("reference", "index-heads", {"tp": 32}, {}),
    ("reference", "indexer-blocks", {"tp": 32}, {}),
    ("reference", "experts", {"tp": 32}, {}),
    ("reference", "cast-blocks", {"tp": 8, "expert_dtype": "fp8"}, {"moe_intermediate_size": 3136}),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_states_each_rule_once(engine: str, family: Family) -> None:
    names = [rule.name for rule in engine_for(engine, family).rules]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("engine", "rule", "wanted", "changes"), BROKEN_RULES)
def test_a_broken_rule_is_told_with_its_words(
    engine: str, rule: str, wanted: dict[str, Any], changes: dict[str, Any]
) -> None:
    inventory = demo(**changes)
    breach = breach_of(inventory, rule, engine=engine, **wanted)
    assert breach is not None
    for text in (breach.reason, breach.quote or "", breach.consequence, *words(breach.remedies)):
        assert "{" not in text
    assert breach.reason


WAYS_OUT = [
    # model, request, rule, ways out that are offered: all of them
    (PRO, {"tp": 7}, "routed-blocks", ("--tp 7 --ep 7 --dp 7 --redundant-experts 1",)),
    (PRO, {"tp": 7}, "q_b-blocks", ("--tp 7 --ep 7 --dp 7 --redundant-experts 1",)),
    (PRO, {"tp": 12}, "q_b-blocks", ("--dp 3",)),
    (PRO, {"tp": 16, "runner": "flashinfer_mxfp4"}, "routed-blocks", ("--runner marlin", "--ep 2")),
    (
        PRO,
        {"tp": 16, "runner": "flashinfer_mxfp4", "gpu": "b200", "shared_experts": "split"},
        "shared-blocks",
        ("whole",),
    ),
    (PRO_FP8, {"tp": 16}, "routed-blocks", ("--ep 2",)),
    (PRO, {"tp": 64, "dp": 4, "runner": "marlin"}, "routed-blocks", ("--ep 2",)),
    (PRO, {"tp": 64, "dp": 4}, "routed-blocks", ("--ep 2",)),
    (PRO, {"tp": 16, "shared_experts": "split", "a2a": "deepep"}, "a2a-shared", ("leave --shared-experts out",)),
    (FLASH, {"tp": 16}, "o_groups", ("--dp 2",)),
    (FLASH, {"tp": 16, "engine": "vllm"}, "o_groups", ("--tp 8 --dp 2",)),
    (PRO, {"tp": 8, "ep": 3}, "ep", ("--ep 1",)),
]


@pytest.mark.parametrize(("model", "wanted", "rule", "ways"), WAYS_OUT)
def test_only_ways_out_that_help_are_offered(
    model: str, wanted: dict[str, Any], rule: str, ways: tuple[str, ...]
) -> None:
    inventory, request = inventory_of(model)[1], Request(**wanted)
    breach = next(one for one in choose(inventory, request).breaches if one.rule == rule)
    offered = ways_out(inventory, request, breach)
    assert len(offered) == len(ways), offered
    for way, said in zip(ways, offered, strict=True):
        assert way in said


@pytest.mark.slow
def test_o_a_that_is_not_fp8_is_refused_for_vllm() -> None:
    breaches = breaches_of(inventory_of(PRO_FP8)[1], Request(8, engine="vllm"))
    assert [(breach.rule, breach.quote) for breach in breaches] == [("o_a-format", None)]
    assert "BF16" in breaches[0].reason


_OF_NVFP4 = {
    "sglang": {"nvfp4-runner", "nvfp4-a2a", "draft-nvfp4"},
    "vllm": {"nvfp4-backend", "draft-nvfp4"},
    "node": set[str](),
}

_OF_DSPARK = {"sglang": {"draft-mtp", "dspark-head", "dspark-a2a"}, "vllm": {"draft-mtp", "dspark-version"}}

_OF_BOTH = {"pp-family", "pp-size", "pp-stages", "pp-layers"}

_OF_STAGES = {
    "sglang": _OF_BOTH | {"pp-v41", "pp-nodes", "draft-stages", "dspark-stages"},
    "vllm": _OF_BOTH | {"pp-dp", "dspark-stages"},
}


@pytest.mark.parametrize("engine", ENGINES)
def test_there_is_a_case_for_every_rule(engine: str) -> None:
    tested = {rule for name, rule, _, _ in BROKEN_RULES if name == engine}
    tested |= {"o_a-format"} if engine == "vllm" else {"o_a-decoding"} if engine != "trtllm" else set()
    tested |= {rule.name for rule in find_engine("sglang").rules} if engine == "node" else set()
    tested |= _OF_NVFP4.get(engine, {"nvfp4"})  # tests/models/test_nvfp4.py
    tested |= _OF_DSPARK.get(engine, set())  # tests/planning/test_draft_option.py
    tested |= _OF_STAGES.get(engine, {"pp"})  # tests/planning/test_stages.py
    assert {rule.name for rule in find_engine(engine).rules} == tested


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", [PRO, FLASH, PRO_FP8])
@pytest.mark.parametrize("gpu", ["h200", "b200", "rtx-pro-6000"])
def test_whatever_no_rule_refuses_can_be_weighed(engine: str, model: str, gpu: str) -> None:
    """Rules must refuse every deployment whose placements do not divide: `rank_nbytes` raises for these."""
    inventory = inventory_of(model)[1]
    for tp in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64):
        for ep in (None, 2, 3, 8, tp):
            for dp in (1, 2, 3, tp):
                choice = choose(inventory, Request(tp, ep=ep, dp=dp, engine=engine, gpu=gpu))
                if choice.feasible:
                    assert rank_nbytes(inventory, choice.deployment) > 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("vocab", [129_281, 1000, 128, 64, 1])
def test_any_vocabulary_is_weighed_or_refused(engine: str, vocab: int) -> None:
    inventory = demo(vocab_size=vocab)
    for tp in (1, 2, 3, 4, 8, 16):
        for dp in (1, tp):
            choice = choose(inventory, Request(tp, dp=dp, engine=engine))
            if choice.feasible:
                assert rank_nbytes(inventory, choice.deployment) > 0


@pytest.mark.parametrize("engine", ["sglang", "vllm", "trtllm"])
def test_ranks_hold_together_at_least_what_the_checkpoint_holds_of_each_split_weight(engine: str) -> None:
    inventory = inventory_of(PRO)[1]
    context = Context(inventory, feasible(inventory, tp=16, engine=engine))
    for group in inventory.groups:
        held = find_engine(engine).rank_tensor_of(group, context)
        placement = find_engine(engine).place(group.role, context)
        inner = placement.inner if isinstance(placement, Expert) else placement
        if held is not None and isinstance(inner, Split | Pad) and group.role is not Role.ATTN_SINK:
            parts = context.deployment.group(inner.group)
            padding = held.padding * parts // held.nbytes if held.nbytes else 0
            assert held.shape[inner.axis] * parts >= group.shape[inner.axis], group.role
            assert padding or held.shape[inner.axis] * parts == group.shape[inner.axis], group.role


def test_nothing_is_quoted_of_an_engine_whose_checks_were_not_read() -> None:
    assert [rule.name for rule in find_engine("trtllm").rules if rule.messages] == []


# --- names and numbers ---------------------------------------------------------------------------------------------


def test_an_engine_is_found_by_its_name_in_any_case() -> None:
    assert {find_engine(name.upper()) for name in ENGINES} == set(ENGINES.values())


@pytest.mark.parametrize(("name", "near"), [("sglan", "sglang"), ("vlm", "vllm"), ("zzz", "sglang, vllm")])
def test_an_unknown_engine_is_refused_with_the_names_that_come_near(name: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_engine(name)
    assert near in str(caught.value.hint)


def test_a_gpu_is_found_by_its_name_in_any_case() -> None:
    assert find_gpu("H200").memory == 143_156 << 20
    assert {find_gpu(name.upper()) for name in GPUS} == set(GPUS.values())


def test_an_unknown_gpu_is_refused_with_the_names_that_come_near() -> None:
    with pytest.raises(UsageError) as caught:
        find_gpu("h20")
    assert "h20-96" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["tp", "ep", "dp", "nodes"])
@pytest.mark.parametrize("value", [0, -1, MAX_RANKS + 1])
def test_a_number_that_means_nothing_is_refused(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"{name}={value}: must be from 1"):
        choose(demo(), Request(**{"tp": 8, name: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wanted", [{"shared_experts": "halved"}, {"expert_dtype": "fp6"}, {"engine": "x"}, {"gpu": "x"}]
)
def test_a_word_that_means_nothing_is_refused(wanted: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        choose(demo(), Request(8, **wanted))  # type: ignore[arg-type]


def test_routed_experts_go_by_blocks_of_experts_and_within_them_by_columns() -> None:
    inventory = inventory_of(PRO)[1]
    place = find_engine("sglang").place
    both = Context(inventory, deployment(inventory, Request(16, ep=4)))
    assert place(Role.ROUTED_GATE, both) == Expert(Split(0, "moe"))
    assert place(Role.ROUTED_DOWN, both) == Expert(Split(1, "moe"))
    spread = Context(inventory, deployment(inventory, Request(16, ep=16)))
    assert place(Role.ROUTED_DOWN, spread) == Expert(Replicate())


def test_attention_dp_keeps_the_embedding_whole_and_still_cuts_the_head_and_the_shared_experts() -> None:
    inventory = variant_of(FLASH, "FP4", layers=5)
    context = Context(inventory, deployment(inventory, Request(16, dp=2)))
    place = find_engine("sglang").place
    assert place(Role.EMBED, context) == Split(0, "one")
    assert place(Role.HEAD, context) == Split(0, "tp")
    assert place(Role.SHARED_GATE, context) == Split(0, "tp")
    assert place(Role.Q_B, context) == Split(0, "attention")
    assert (context.deployment.attention_tp, context.deployment.moe_tp) == (8, 16)


def test_the_config_of_the_reference_is_the_released_one() -> None:
    for model in (PRO, FLASH):
        inventory = inventory_of(model)[1]
        layout = find_engine("reference").layout
        assert layout is not None
        chosen = feasible(inventory, tp=4, engine="reference")
        (content,) = layout.companions(config_of(model), Context(inventory, chosen)).values()
        assert json.loads(content) == json.loads((DATA / model / "inference_config.json").read_text())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("engine", ENGINES)
def test_no_rule_stands_twice(engine: str, family: Family) -> None:
    rules = engine_for(engine, family).rules
    assert len({rule.name for rule in rules}) == len(rules)
