"""What SGLang's and vLLM's rank files hold is what these engines' own model classes declare, for every contract kept.

Names, dtypes and shapes of each layout that the engines built (tests/data/contracts, see conformance/compact.py), on
checkpoints of full width and as many layers as the contract was made with.
"""

import json
import re
import struct
from functools import cache
from typing import Any

import pytest
from support.checkpoints.full_size import DATA, FLASH, PRO, config_of, in_memory, inventory_of

from conformance.compact import read_contracts
from dsv4_shard.checkpoint.inventory import Inventory, take_inventory
from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.checkpoint.synthetic import tensors_of
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.registry import find_engine
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.recipe_builder import make_recipe
from dsv4_shard.tensors.header import nbytes_of

MODELS = {"pro": PRO, "flash": FLASH}
NOT_IN_FILES = (".attn_mqa.k_scale", ".attn_mqa.v_scale")
NOT_IN_DRAFTS = {"model.embed_tokens.weight", "lm_head.weight"}
"""What SGLang's NextN model declares and takes over from its target."""


def cut(document: dict[str, Any], layers: int) -> dict[str, Any]:
    """A config of fewer layers."""
    ratios = document["compress_ratios"]
    document |= {"num_hidden_layers": layers, "compress_ratios": [*ratios[:layers], 0]}
    if stages := document.get("dspark_target_layer_ids"):
        document |= {"dspark_target_layer_ids": list(range(layers - len(stages), layers))}
    return document


def files_of(
    engine: str, made: tuple[Checkpoint, Inventory], request: Request, rank: int, *, draft: bool
) -> dict[str, Any]:
    """Everything that a rank reads: name → (dtype, shape)."""
    checkpoint, inventory = made
    deployment = next(find_engine(engine).candidates(inventory, request))
    recipe = make_recipe(checkpoint, find_engine(engine), Context(inventory, deployment), (rank,))
    files = [file for file in recipe.files if file.name.startswith("draft/") == draft]
    return {name: (info.dtype, info.shape) for file in files for name, info in file.tensors.items()}


def sound(checkpoint: Checkpoint) -> tuple[Checkpoint, Inventory]:
    """A checkpoint with its inventory, which has no errors."""
    inventory = take_inventory(checkpoint)
    assert inventory.errors == ()
    return checkpoint, inventory


def declared(contract: dict[str, Any]) -> dict[str, Any]:
    return {name: (dtype, tuple(shape)) for name, (dtype, shape) in contract.items()}


# --- SGLang --------------------------------------------------------------------------------------------------------

SGLANG = json.loads((DATA / "sglang" / "contracts.json").read_text())
SGLANG_CONTRACTS = read_contracts("sglang")


@cache
def sglang_checkpoint(kind: Any, sm: Any) -> Any:
    model, experts = kind.split("-")
    document = cut(config_of(MODELS[model]), 5) | {"expert_dtype": experts}
    o_a = "BF16" if experts == "fp8" and sm == 90 else "FP8"
    return sound(in_memory(document, tensors_of(document, experts=experts.upper(), o_a=o_a)))


def sglang_request(entry: dict[str, Any]) -> Request:
    runner = None if entry["runner"] == "auto" else entry["runner"]
    return Request(
        entry["tp"], ep=entry["ep"], dp=entry["dp"], runner=runner, a2a=entry["a2a"],
        shared_experts="whole" if entry["shared"] or entry["a2a"] else "split",
        gpu="h100" if entry["sm"] == 90 else "b200",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("entry", SGLANG, ids=lambda entry: entry["name"])
def test_sglang_files_hold_what_its_classes_declare(entry: dict[str, Any]) -> None:
    o_groups = config_of(MODELS[entry["model"].split("-")[0]])["o_groups"]
    if o_groups % (entry["tp"] // entry["dp"]):
        pytest.skip("built with no output group on a rank: refused by a rule, see test_engines")
    held = files_of(
        "sglang", sglang_checkpoint(entry["model"], entry["sm"]), sglang_request(entry), 0, draft=entry["nextn"]
    )
    wanted = declared(SGLANG_CONTRACTS[entry["name"]])
    for name in [name for name in wanted if name.endswith(NOT_IN_FILES)]:
        assert held.pop(name, wanted[name]) == wanted.pop(name)
    assert held == {name: spec for name, spec in wanted.items() if not entry["nextn"] or name not in NOT_IN_DRAFTS}


@pytest.mark.slow
def test_a_folder_for_stock_sharded_state_holds_every_parameter_also_those_of_no_checkpoint() -> None:
    held = files_of("sglang", sglang_checkpoint("pro-fp8", 90), Request(8, ep=8, gpu="h100"), 0, draft=False)
    assert held.keys() == SGLANG_CONTRACTS["pro-fp8-auto-tp8-ep-sharedtp1-0-rank0"].keys()


# --- vLLM ----------------------------------------------------------------------------------------------------------

VLLM = json.loads((DATA / "vllm" / "contracts.json").read_text())
VLLM_CONTRACTS = read_contracts("vllm")
BACKENDS = [name for name in VLLM_CONTRACTS if name.startswith("backends")]


@cache
def vllm_checkpoint(kind: Any) -> Any:
    model, experts = kind.lower().split("-")
    document = cut(config_of(MODELS[model]), 5) | {"expert_dtype": experts}
    scales = "F32" if experts == "fp8" else "F8_E8M0"
    return sound(in_memory(document, tensors_of(document, experts=experts.upper(), scales=scales)))


def vllm_request(tp: int, ep: bool, sm: int, runner: str | None = None) -> Request:
    return Request(tp, ep=tp if ep else 1, engine="vllm", runner=runner, gpu="h100" if sm == 90 else "b200")


def five_layers(contract: dict[str, Any], depth: int) -> dict[str, Any]:
    """The first five layers of a contract of all: the others repeat these kinds. A draft's layer comes after them."""
    kept = {}
    for name, spec in contract.items():
        number = name.split(".")[2] if name.startswith("model.layers.") else "0"
        if int(number) < 5:
            kept[name] = spec
        elif int(number) >= depth:
            kept[name.replace(f"model.layers.{number}.", f"model.layers.{5 + int(number) - depth}.")] = spec
    return kept


@pytest.mark.parametrize("entry", [entry for entry in VLLM if entry["runs"]], ids=lambda entry: entry["name"])
def test_vllm_files_hold_what_its_classes_declare(entry: dict[str, Any]) -> None:
    request = vllm_request(entry["tp"], entry["ep"], entry["sm"])
    depth = config_of(MODELS[entry["model"].split("-")[0].lower()])["num_hidden_layers"]
    contract = declared(VLLM_CONTRACTS[entry["name"]])
    wanted = five_layers(contract, depth) if entry["layers"] == "full" else contract
    assert files_of("vllm", vllm_checkpoint(entry["model"]), request, 0, draft=entry["mtp"]) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_vllm_files_hold_what_each_backend_declares(name: str) -> None:
    folder, _, layout = name.partition("/")
    experts, rest = layout.split("-", 1)
    backend, _, parallelism = rest.partition("-tp")
    tp, ep = int(parallelism.removesuffix("-ep")), parallelism.endswith("-ep")
    request = vllm_request(tp, ep, 90 if folder.endswith("90") else 100, None if backend == "auto" else backend)
    checkpoint, inventory = vllm_checkpoint(f"pro-{experts[:3]}")
    vllm = find_engine("vllm")
    context = Context(inventory, next(vllm.candidates(inventory, request)))
    assert vllm.breaches(context) == []
    held = files_of("vllm", (checkpoint, inventory), request, 0, draft=False)
    if backend == "deep_gemm_mega_moe":
        held = {name: _in_words(name, spec) for name, spec in held.items()}
    wanted = declared(VLLM_CONTRACTS[name])
    assert {name: held.get(name) for name in wanted} == wanted
    prefix = "model.layers.3.ffn."
    assert {name for name in held if name.startswith(prefix)} == {name for name in wanted if name.startswith(prefix)}


def _in_words(name: str, spec: Any) -> Any:
    """MegaMoE keeps four scales in a word; our loader has vLLM pack them."""
    _, shape = spec
    return ("I32", (*shape[:-1], shape[-1] // 4)) if name.endswith(("w13_weight_scale", "w2_weight_scale")) else spec


def test_an_older_vllm_gets_the_map_of_its_experts_and_a_broken_one_nothing() -> None:
    checkpoint, inventory = vllm_checkpoint("pro-fp4")
    vllm = find_engine("vllm")
    deployment = next(vllm.candidates(inventory, Request(8, ep=8, engine="vllm", engine_version="0.25.0")))
    recipe = make_recipe(checkpoint, vllm, Context(inventory, deployment), (3,))
    maps = {fixed.tensor: struct.unpack("<384i", fixed.data) for fixed in recipe.fixed}
    assert len(maps) == 5 + 1
    for name, slots in maps.items():
        assert name.endswith("ffn.experts.routed_experts._expert_map")
        assert slots == tuple(e - 144 if 144 <= e < 192 else -1 for e in range(384))
    newest = next(vllm.candidates(inventory, Request(8, ep=8, engine="vllm")))
    assert make_recipe(checkpoint, vllm, Context(inventory, newest), (3,)).fixed == ()
    for version in ("0.26.0", "0.27.0", "0.28.0"):
        broken = next(vllm.candidates(inventory, Request(8, engine="vllm", engine_version=version)))
        (breach,) = vllm.breaches(Context(inventory, broken))
        assert "0.29.0" in " ".join(map(str, breach.remedies))


@pytest.mark.parametrize(("version", "refused"), [("0.25.0", True), (None, False), ("0.34.0", False)])
def test_only_an_old_vllm_is_refused_uneven_fp8_experts(version: str | None, refused: bool) -> None:
    """0.34.0 stands for the next version that is looked at."""
    inventory = vllm_checkpoint("pro-fp8")[1]
    vllm = find_engine("vllm")
    deployment = next(vllm.candidates(inventory, Request(16, engine="vllm", runner="triton", engine_version=version)))
    assert ("do not fall into whole blocks" in (vllm.layout.refusal(Context(inventory, deployment)) or "")) == refused


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (Request(8, ep=16, dp=2, engine="vllm", engine_version="0.25.0"), "data parallelism"),
        (
            Request(8, ep=8, engine="vllm", runner="deep_gemm_mega_moe", gpu="b200", engine_version="0.25.0"),
            "MoE backend deep_gemm_mega_moe needs our loader",
        ),
    ],
)
def test_what_vllm_would_load_wrongly_is_not_written(request_: Request, why: str) -> None:
    inventory = vllm_checkpoint("pro-fp4")[1]
    vllm = find_engine("vllm")
    context = Context(inventory, next(vllm.candidates(inventory, request_)))
    assert vllm.breaches(context) == []
    assert why in vllm.layout.refusal(context)


# --- DSpark drafts ----------------------------------------------------------------------------------------------------

DSPARK_CONTRACTS = read_contracts("dspark")
"""Drafts that the engines declare with the configs of 0731 and 0813; most of SGLang have no confidence head."""

DSPARK_NAME = re.compile(
    r"(?P<engine>\w+)/(?P<sm100>sm100/)?(?P<model>\w+)-(?P<release>\d{4})(-(?P<runner>[a-z]\w+))?-tp(?P<tp>\d+)(?P<ep>-ep)?"
    r"(-sharedtp1-(?P<shared>[01]))?-rank0-dspark(?P<mode>-ragged_compact)?(-sm(?P<sm>100))?"
)

CACHE_SCALES = re.compile(r".*\.self_attn\.attn\.[kv]_scale")


@cache
def dspark_checkpoint(release: str) -> Any:
    document = cut(config_of(release), 5)
    return sound(in_memory(document, tensors_of(document, 3, dspark=True)))


def dspark_request(name: str) -> tuple[str, Request]:
    """The release and the request of a contract."""
    found = DSPARK_NAME.fullmatch(name)
    assert found is not None, name
    tp, on_b200 = int(found["tp"]), bool(found["sm100"] or found["sm"])
    runner = found["runner"] if found["runner"] != "auto" else None
    shared = {"0": "split", "1": "whole", None: "auto"}[found["shared"]]
    release = f"DeepSeek-V4-{found['model'].capitalize()}-{found['release']}"
    return release, Request(
        tp, ep=tp if found["ep"] else 1, engine=found["engine"], runner=runner, shared_experts=shared,
        gpu="b200" if on_b200 else "h100",
    )  # fmt: skip


@pytest.mark.parametrize("name", DSPARK_CONTRACTS)
def test_dspark_drafts_hold_what_the_engines_classes_declare(name: str) -> None:
    release, request = dspark_request(name)
    if config_of(release)["o_groups"] % request.tp:
        pytest.skip("built with no output group on a rank: refused by a rule, see test_engines")
    wanted = {key: spec for key, spec in declared(DSPARK_CONTRACTS[name]).items() if not CACHE_SCALES.fullmatch(key)}
    held = files_of(request.engine, dspark_checkpoint(release), request, 0, draft=True)
    if request.engine == "sglang" and "confidence_head.proj.weight" not in wanted:
        assert held.pop("confidence_head.proj.weight")[0] == "F32"
    assert held == wanted


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sglang", "vllm"])
@pytest.mark.parametrize("release", ["DeepSeek-V4-Flash-0731", "DeepSeek-V4-Pro-0813"])
def test_bytes_of_a_plan_are_those_of_the_drafts_files(release: str, engine: str) -> None:
    checkpoint, inventory = inventory_of(release)
    plan = make_plan(checkpoint, inventory, Request(8, engine=engine))
    held = files_of(engine, (checkpoint, inventory), Request(8, engine=engine), 0, draft=True)
    assert plan.totals is not None
    assert plan.totals.draft_bytes_per_rank == sum(nbytes_of(dtype, shape) for dtype, shape in held.values())
