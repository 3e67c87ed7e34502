"""Pipeline stages: divided and refused as by the engines' own functions, weighed as the files that are written.

`tests/data/pipeline` has what the engines' `get_pp_indices` answer; the oracles of stages are compared with files in
`tests/engines`.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.full_size import PRO, V3, V41, inventory_of
from support.paths import DATA

import dsv4_shard
from conformance.tiny import write_variant
from dsv4_shard.engines import Context, Request, find_engine
from dsv4_shard.engines.pipeline import rest_before_the_last, rest_to_the_last
from dsv4_shard.errors import UsageError
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.reading import landings_in
from dsv4_shard.sharding.recipe import spans
from dsv4_shard.sharding.recipe_builder import make_recipe

SPLITS = {"sglang": rest_to_the_last, "vllm": rest_before_the_last}

ANSWERS: dict[str, Any] = {name: json.loads((DATA / "pipeline" / f"{name}.json").read_text()) for name in SPLITS}


def planned(**wanted: Any) -> Plan:
    return make_plan(*inventory_of(PRO), Request(**wanted), PRO)


@pytest.mark.parametrize("engine", SPLITS)
def test_layers_are_divided_as_the_engine_divides_them(engine: str) -> None:
    divided = ANSWERS[engine]["divided"]
    assert len(divided) > 20
    for sizes, answer in divided.items():
        layers, stages = map(int, sizes.split("/"))
        if stages <= layers:  # else a rule refuses it
            assert list(SPLITS[engine](layers, stages)) == answer


@pytest.mark.parametrize("engine", SPLITS)
def test_given_layers_are_taken_or_refused_with_the_engines_words(engine: str) -> None:
    for partition, answer in ANSWERS[engine]["given"].items():
        plan = planned(tp=8, pp=2, pp_partition=partition, engine=engine)
        if isinstance(answer, list):
            assert list(plan.deployment.stage_layers) == answer
            assert plan.breaches == ()
        else:
            assert plan.breaches[0].is_first_stop
            assert answer in plan.breaches[0].words("the engine")


@pytest.mark.parametrize(
    ("partition", "pp", "why"),
    [("31,x", 2, "not the layers"), ("61,0", 2, "not the layers"), ("", 2, "not the layers"), ("61", 1, "without")],
)
def test_a_partition_that_is_none_is_a_usage_error(partition: str, pp: int, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        planned(tp=8, pp=pp, pp_partition=partition)


@pytest.mark.parametrize(
    ("wanted", "rule"),
    [
        ({"engine": "reference"}, "pp"),
        ({"engine": "node", "ep": 8}, "pp"),
        ({"engine": "trtllm"}, "pp"),
        ({"engine": "vllm", "dp": 2, "ep": 16}, "pp-dp"),
        ({"pp": 3, "nodes": 2}, "pp-nodes"),
        ({"pp": 62, "tp": 1}, "pp-size"),
        ({"pp": 62, "tp": 1, "engine": "vllm"}, "pp-size"),
    ],
)
def test_stages_that_an_engine_does_not_have_are_refused(wanted: dict[str, Any], rule: str) -> None:
    plan = planned(**{"tp": 8, "pp": 2} | wanted)
    assert plan.breaches[0].rule == rule
    assert plan.layout is None


@pytest.mark.parametrize(("model", "engine"), [(V3, "sglang"), (V3, "vllm"), (V41, "vllm")])
def test_stages_of_other_families_are_not_verified(model: str, engine: str) -> None:
    plan = make_plan(*inventory_of(model), Request(8, pp=2, engine=engine), model)
    assert plan.verdict == "not verified"


def test_sglang_refuses_stages_of_v41_with_its_own_words() -> None:
    plan = make_plan(*inventory_of(V41), Request(8, pp=2), V41)
    assert "DeepSeek-V4.1 does not support pipeline parallelism yet" in plan.breaches[0].words("SGLang")


def test_the_fullest_stage_decides_what_fits() -> None:
    plan = planned(tp=8, pp=2, gpu="h100", engine="vllm")
    assert plan.totals is not None
    assert plan.memory is not None
    most = [stage.target_bytes_per_rank_max for stage in plan.stages]
    assert plan.memory.weights == plan.totals.target_bytes_per_rank_max == max(most)
    assert plan.totals.target_bytes_per_rank_min == min(most)
    alone = planned(tp=8, gpu="h100", engine="vllm")
    assert not alone.feasible
    assert alone.memory is not None
    assert sum(most) == pytest.approx(alone.memory.weights, rel=1e-4)


def test_each_stage_is_on_the_nodes_of_its_ranks() -> None:
    halves, quarters = planned(tp=8, pp=2, gpu="h200"), planned(tp=4, pp=4, gpu="h200")
    assert [stage.nodes for stage in halves.stages] == [(0, 1), (1, 2)]
    assert [stage.nodes for stage in quarters.stages] == [(0, 1), (0, 1), (1, 2), (1, 2)]
    assert [stage.nodes for stage in planned(tp=16, pp=2, gpu="h200").stages] == [(0, 2), (2, 4)]
    assert [stage.layers for stage in quarters.stages] == [(0, 15), (15, 30), (30, 45), (45, 61)]


@pytest.mark.parametrize("engine", SPLITS)
def test_the_launch_has_the_stages_and_only_a_partition_that_differs(engine: str) -> None:
    option = {"sglang": "--pp-size 2", "vllm": "--pipeline-parallel-size 2"}[engine]
    variable = f"{engine.upper()}_PP_LAYER_PARTITION"
    own = planned(tp=8, pp=2, engine=engine).launch
    other = planned(tp=8, pp=2, engine=engine, pp_partition="29,32").launch
    assert all(option in command for launch in (own, other) for command in launch.commands)
    assert (own.environment.get(variable), other.environment.get(variable)) == (None, "29,32")


@pytest.mark.parametrize("pp", [2, 4])
def test_a_node_that_loads_by_plan_reads_what_the_recipe_of_its_ranks_reads(pp: int) -> None:
    checkpoint, inventory = inventory_of(PRO)
    request = Request(16 // pp, pp=pp, gpu="h200")
    plan = make_plan(checkpoint, inventory, request, PRO)
    [way] = [way for way in plan.ways if way.serves == "checkpoint by plan"]
    context = Context(inventory, choose(inventory, request).deployment)
    last = make_recipe(checkpoint, find_engine("sglang"), context, tuple(range(8, 16)))
    every = [number for number, file in enumerate(last.files) if "/" not in file.name]
    steps = [replace(step, landings=tuple(landings_in(step, every))) for step in last.steps]
    read = sum(span.stop - span.start for some in spans(one for one in steps if one.landings) for span in some)
    assert way.node_bytes == pytest.approx(read, rel=0.001)


# --- written files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of three layers. Only to be read."""
    return write_variant(tmp_path_factory.mktemp("stages") / "model", "fp4")


STAGED: tuple[dict[str, Any], ...] = (
    {"tp": 2, "pp": 2, "engine": "vllm", "gpu": "h200"},
    {"tp": 2, "ep": 2, "pp": 3, "engine": "vllm", "gpu": "h200"},
    {"tp": 2, "pp": 2, "pp_partition": "2,1", "runner": "marlin", "gpu": "h200"},
    {"tp": 4, "ep": 2, "dp": 2, "pp": 2, "runner": "marlin", "gpu": "h200"},
)


@pytest.mark.parametrize("wanted", STAGED, ids=str)
def test_stages_are_written_as_weighed_verified_and_merged_back(
    wanted: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    plan = dsv4_shard.plan(model, **wanted)
    dsv4_shard.reshard(model, out, **wanted)
    for stage in plan.stages:
        for rank in range(*stage.ranks):
            name = f"model-pp-{stage.stage}-tp-{rank % wanted['tp']}-part-*.safetensors"
            assert sum(map(tensor_bytes, out.glob(name))) == stage.target_bytes_per_rank_max
            assert sum(map(tensor_bytes, out.glob(f"draft/{name}"))) == stage.draft_bytes_per_rank
    assert plan.stages[-1].draft_bytes_per_rank > 0 or wanted.get("engine") != "vllm"
    found = dsv4_shard.verify(out, against=model, numerics=True)
    assert found.ok
    dsv4_shard.merge(out, tmp_path / "back")
    again = tmp_path / "again"
    dsv4_shard.reshard(tmp_path / "back", again, **wanted)
    assert rank_files(again) == rank_files(out)


def test_nodes_that_write_apart_write_the_files_of_their_stages(model: Path, tmp_path: Path) -> None:
    wanted = STAGED[0] | {"nodes": 2}
    dsv4_shard.reshard(model, tmp_path / "all", **wanted)
    parts: dict[str, bytes] = {}
    for ranks in ("0-1", "2-3"):
        dsv4_shard.reshard(model, tmp_path / ranks, ranks=ranks, **wanted)
        mine = rank_files(tmp_path / ranks)
        assert {name.partition("model-pp-")[2][0] for name in mine} == {"0" if ranks == "0-1" else "1"}
        parts |= mine
    assert parts == rank_files(tmp_path / "all")


def tensor_bytes(file: Path) -> int:
    """Bytes of the tensors of a file, by its header alone."""
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    ends = (info["data_offsets"] for name, info in header.items() if name != "__metadata__")
    return sum(stop - start for start, stop in ends)


def rank_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize(("model", "engine", "draft", "rule"), [
    (PRO, "sglang", "mtp", "draft-stages"),
    ("DeepSeek-V4-Flash-0731", "sglang", "dspark", "dspark-stages"),
    ("DeepSeek-V4-Flash-0731", "vllm", "dspark", "dspark-stages"),
])  # fmt: skip
def test_a_draft_that_was_not_compared_with_stages_is_left_out_or_not_verified(
    model: str, engine: str, draft: str, rule: str
) -> None:
    asked = Request(4, pp=2, gpu="h200", engine=engine)
    plan = make_plan(*inventory_of(model), asked, model)
    assert plan.feasible
    assert [loss.part for loss in plan.losses] == ["DSpark" if draft == "dspark" else "the draft model"]
    served = make_plan(*inventory_of(model), replace(asked, draft=draft), model)
    assert served.verdict == "not verified"
    assert rule in {breach.rule for breach in served.breaches}
