"""Plans: what they choose and say, and that no changed plan or checkpoint passes for the one that was planned."""

import ast
import copy
import itertools
import json
import re
import shlex
from dataclasses import asdict, replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from rich.console import Console
from support.checkpoints.full_size import FLASH, PRO, PRO_FP8, in_memory, inventory_of

import dsv4_shard
from dsv4_shard.catalog.gpus import GPUS, Gpu
from dsv4_shard.catalog.options import VERSIONS
from dsv4_shard.checkpoint.inventory import Inventory, take_inventory
from dsv4_shard.checkpoint.reader import Checkpoint, SourceFile
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, tensors_of
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.registry import ENGINES, find_engine
from dsv4_shard.errors import BadPlan, ForeignPlan, IncompleteCheckpoint, InfeasiblePlan, NewerSchema, UsageError
from dsv4_shard.limits import PLAN
from dsv4_shard.models.roles import Stage
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.document import SCHEMA_VERSION, Plan
from dsv4_shard.planning.plan_builder import folder_of, make_plan, refuse_infeasible
from dsv4_shard.planning.plan_file import check_plan, load_plan
from dsv4_shard.planning.weights import rank_nbytes
from dsv4_shard.sharding.recipe_builder import make_recipe
from dsv4_shard.terminal.screens.plan import show_plan
from dsv4_shard.version import __version__

TARGET = (Stage.MODEL, Stage.LAYER)


def plan_of(model: str, **wanted: Any) -> Plan:
    return make_plan(*inventory_of(model), Request(**wanted), model)


@cache
def demo() -> tuple[Checkpoint, Inventory]:
    """The demo's checkpoint in memory, as two files of one revision."""
    checkpoint = in_memory(DEMO_CONFIG, tensors_of(DEMO_CONFIG))
    files = (SourceFile("model-1.safetensors", 1000, "1" * 32), SourceFile("model-2.safetensors", 2000, "2" * 32))
    source = replace(checkpoint.source, revision="a" * 40)  # type: ignore[type-var]
    checkpoint = replace(checkpoint, files=files, source=source)
    return checkpoint, take_inventory(checkpoint)


DEMO_REQUESTS = (
    Request(16),
    Request(16, gpu="h100", nodes=2),
    Request(16, engine="reference"),
    Request(16, engine="vllm"),
    Request(32),
)


@cache
def document_of(request: Request) -> dict[str, Any]:
    """The demo's plan for `request` as JSON; not to be changed."""
    return json.loads(make_plan(*demo(), request).to_json())


# --- V4-Pro on sixteen GPUs ----------------------------------------------------------------------------------------


def test_pro_on_sixteen_gpus_keeps_shared_experts_whole_and_takes_marlin_and_says_why() -> None:
    plan = plan_of(PRO, tp=16)
    assert plan.feasible
    assert plan.breaches == ()
    assert (plan.deployment.shared, plan.deployment.runner) == ("whole", "marlin")
    assert [(change.subject, change.settings, change.reason) for change in plan.changes] == [
        (
            "shared experts whole",
            ("SGLANG_SHARED_EXPERT_TP1=1",),
            "if split, shared intermediate size 3072 / TP 16 = 192, which is 1.5 blocks of 128",
        ),
        (
            "runner marlin",
            ("--moe-runner-backend marlin",),
            "with the default flashinfer_mxfp4, moe_intermediate_size 3072 / MoE TP 16 = 192, which is 1.5 "
            "tiles of 128",
        ),
    ]
    assert (plan.verdict, plan.headline) == ("runs with changes", "Runs with 2 changes from the defaults")


def test_pro_on_sixteen_gpus_holds_66_mb_of_shared_experts_a_layer_and_4_gb_in_all() -> None:
    totals = plan_of(PRO, tp=16).totals
    assert totals is not None
    assert totals.shared_experts_weight_bytes_per_layer == 3 * 3072 * 7168
    assert f"{totals.shared_experts_weight_bytes_per_layer / 1e6:.2f}" == "66.06"
    assert f"{totals.shared_experts_bytes_per_rank / 1e9:.2f}" == "4.03"
    assert totals.ranks == 16
    assert totals.padding_bytes_per_rank == 0


def test_pro_on_sixteen_gpus_adds_the_shared_output_once_and_not_sixteen_times() -> None:
    said = plan_of(PRO, tp=16).shared_expert_addition
    assert "once" in said
    assert "16 times" in said
    assert "after the all-reduce" in said
    assert "or on rank 0 before it" in said
    assert "or on rank 0 before it" in said


def test_pro_on_sixteen_gpus_starts_with_one_command_a_node() -> None:
    launch = plan_of(PRO, tp=16).launch
    assert launch.environment == {"SGLANG_SHARED_EXPERT_TP1": "1"}
    assert len(launch.commands) == 2
    for node, command in enumerate(launch.commands):
        words = shlex.split(command)
        assert words[:2] == ["sglang", "serve"]
        for option, value in {
            "--model-path": f"{PRO}-sglang-tp16",
            "--load-format": "dsv4_shard",
            "--tp": "16",
            "--moe-runner-backend": "marlin",
            "--nnodes": "2",
            "--node-rank": str(node),
        }.items():
            assert words[words.index(option) + 1] == value


@pytest.mark.parametrize(
    ("engine", "part"),
    [
        ("sglang", "after the all-reduce"),
        ("reference", "model.py adds it once"),
        ("trtllm", "8/16 = 0.5 before the all-reduce, so the sum counts it once"),
        ("vllm", "summed by the same all-reduce"),
    ],
)
def test_each_engine_adds_the_shared_output_in_its_own_way(engine: str, part: str) -> None:
    assert part in plan_of(PRO, tp=16, engine=engine).shared_expert_addition


def test_with_an_all_to_all_backend_no_all_reduce_is_spoken_of() -> None:
    said = plan_of(PRO, tp=16, dp=16, a2a="deepep").shared_expert_addition
    assert said.endswith("each adds it once to the routed output that deepep brings back: no all-reduce follows.")


@pytest.mark.parametrize("wanted", [
    {"tp": 16, "dp": 16}, {"tp": 16, "dp": 4, "ep": 4}, {"tp": 1}, {"tp": 16}, {"tp": 4, "dp": 4, "engine": "vllm"},
    {"tp": 1, "dp": 16, "ep": 16, "engine": "vllm"}, {"tp": 8, "engine": "reference"},
    {"tp": 8, "dp": 8, "engine": "trtllm"},
])  # fmt: skip
def test_a_module_is_called_whole_on_every_rank_where_each_rank_has_all_of_it_and_only_there(
    wanted: dict[str, Any],
) -> None:
    plan = plan_of(PRO, **wanted)
    for row in plan.modules:
        assert ("over EP" in row.placement) == (row.module == "routed experts" and plan.deployment.ep > 1)
        if "over EP" not in row.placement:
            assert (row.placement == "whole on every rank") == (row.rank_shape == row.shape), row


def test_sequence_parallel_vllm_adds_whole_shared_experts_once() -> None:
    plan = plan_of(PRO, tp=8, dp=2, ep=16, engine="vllm")
    assert plan.deployment.shared == "whole"
    assert "once" in plan.shared_expert_addition
    assert "8 times" in plan.shared_expert_addition


def test_vllm_with_one_rank_in_each_replica_sums_nothing_of_shared_experts() -> None:
    addition = plan_of(PRO, tp=1, dp=16, ep=16, engine="vllm").shared_expert_addition
    assert addition == (
        "Under data parallelism each rank runs the whole shared expert on its own tokens and adds it once."
    )


def test_vllm_says_what_it_pads_and_which_ranks_hold_only_zeros() -> None:
    plan = plan_of(PRO, tp=16, engine="vllm")
    assert plan.deployment.shared == "pad"
    shared, routed = plan.notes
    assert "24 blocks of 128 / TP 16 = 1.5" in shared
    assert "256 rows" in shared
    assert "ranks 12-15 hold only zeros" in shared
    assert "192" in routed
    assert "256" in routed


@pytest.mark.parametrize("ranks", [4, 5, 7, 11])
def test_vllm_says_how_many_ranks_hold_an_expert_more(ranks: int) -> None:
    said = [note for note in plan_of(PRO, tp=1, dp=ranks, ep=ranks, engine="vllm").notes if "uneven" in note]
    least, more = divmod(384, ranks)
    assert said == (
        [f"routed experts uneven: {more} ranks hold {least + 1}, the others {least} (not with EPLB)"] if more else []
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("model", "tp"), [(PRO, 16), (PRO, 8), (FLASH, 8), (FLASH, 1)])
def test_the_rows_of_a_plan_add_up_to_its_totals(engine: str, model: str, tp: int) -> None:
    plan = plan_of(model, tp=tp, engine=engine)
    assert plan.totals is not None
    parts = {part: [row for row in plan.modules if row.part_of == part] for part in ("target", "draft")}
    rows = {part: sum(row.bytes_per_rank for row in members) for part, members in parts.items()}
    assert rows["target"] + plan.totals.other_target_bytes_per_rank == plan.totals.target_bytes_per_rank_max
    assert rows["draft"] + plan.totals.other_draft_bytes_per_rank == plan.totals.draft_bytes_per_rank
    assert sum(row.padding_per_rank for row in parts["target"]) == plan.totals.padding_bytes_per_rank
    assert plan.totals.target_bytes_per_rank_max <= sum(t.nbytes for t in inventory_of(model)[0].tensors.values()) * 1.2
    assert all(check.holds for check in plan.checks)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_rank_replicates_nothing(engine: str) -> None:
    totals = plan_of(FLASH, tp=1, engine=engine).totals
    assert totals is not None
    assert totals.replicated_bytes_per_rank == 0


def test_uneven_experts_make_a_heavier_and_a_lighter_rank() -> None:
    totals = plan_of(PRO, tp=1, dp=5, ep=5, engine="vllm").totals
    assert totals is not None
    expert = 61 * (3 * 3072 * 7168 // 2 + 3 * 3072 * 7168 // 32)
    assert totals.target_bytes_per_rank_max - totals.target_bytes_per_rank_min == expert


@pytest.mark.parametrize(("gpu", "nodes"), [(None, 2), ("h200", 2), ("gb200", 4)])
@pytest.mark.parametrize("engine", ENGINES)
def test_nodes_are_as_few_as_hold_the_gpus(engine: str, gpu: str | None, nodes: int) -> None:
    plan = plan_of(PRO, tp=16, engine=engine, gpu=gpu)
    assert plan.deployment.nodes == nodes
    assert len(plan.launch.commands) == (1 if engine == "trtllm" else nodes)


def test_without_a_gpu_the_plan_says_what_it_assumes_and_leaves_memory_out() -> None:
    plan = plan_of(PRO, tp=16)
    assert plan.memory is None
    assert "sm_90" in plan.assumptions[0]
    named = plan_of(PRO, tp=16, gpu="h200")
    assert named.memory is not None
    assert named.memory.fits
    assert named.memory.left == named.memory.capacity - named.memory.weights
    assert named.assumptions == ()


# --- refusals ------------------------------------------------------------------------------------------------------


def test_flash_on_sixteen_ranks_of_one_attention_is_refused_with_a_way_out() -> None:
    plan = plan_of(FLASH, tp=16)
    assert not plan.feasible
    (breach,) = plan.breaches
    assert (breach.rule, breach.engine_says) == ("o_groups", None)
    assert breach.reason == "o_groups 8 / attention TP 16 = 0.5: not whole"
    assert plan.alternatives[0].options == "--tp 16 --dp 2"
    assert plan.totals is None
    assert plan.modules == ()
    with pytest.raises(InfeasiblePlan, match="o_groups 8") as caught:
        refuse_infeasible(plan)
    assert "`--tp 16 --dp 2`" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("model", "wanted", "first", "quote"),
    [
        (PRO, {"tp": 12}, "q_b-blocks", "AssertionError: 65536 is not divisible by 12"),
        (PRO, {"tp": 7}, "q_b-blocks", "AssertionError: 65536 is not divisible by 7"),
        (PRO, {"tp": 32, "shared_experts": "split", "runner": "marlin"}, "shared-blocks",
         "ValueError: Weight output_partition_size = 96 is not divisible by weight quantization block_n = 128."),
        (PRO, {"tp": 5, "engine": "vllm"}, "heads",
         "Value error, Total number of attention heads (128) must be divisible by tensor parallel size (5)."),
    ],
)  # fmt: skip
def test_the_engine_stops_at_the_first_rule_that_is_named_and_does_nothing_at_the_others(
    model: str, wanted: dict[str, Any], first: str, quote: str
) -> None:
    plan = plan_of(model, **wanted)
    assert (plan.breaches[0].rule, plan.breaches[0].engine_says) == (first, quote)
    assert "o_groups" in {breach.rule for breach in plan.breaches[1:]}
    title = "vLLM" if "engine" in wanted else "SGLang"
    assert [breach.is_first_stop for breach in plan.breaches] == [True, *(False for _ in plan.breaches[1:])]
    for breach in plan.breaches[1:]:
        assert breach.engine_says is None
        assert breach.consequence == f"would follow in {breach.stage}: {title} has stopped by then"


@pytest.mark.parametrize("tp", [9, 15, 11])
def test_a_number_of_gpus_that_no_node_of_eight_divides_has_nodes_of_its_own_and_hides_no_rule(tp: int) -> None:
    plan = plan_of(PRO, tp=tp)
    assert {"q_b-blocks", "heads", "o_groups"} <= {breach.rule for breach in plan.breaches}
    assert "nodes" not in {breach.rule for breach in plan.breaches}
    assert plan.deployment.nodes == {9: 3, 15: 3, 11: 11}[tp]


def test_nodes_that_do_not_divide_are_a_matter_of_the_deployment_which_sglang_checks() -> None:
    (breach,) = plan_of(PRO, tp=8, nodes=3).breaches
    assert (str(breach.module), breach.reason) == ("deployment", "GPUs 8 / nodes 3 = 2.67: not whole")
    assert (breach.consequence, breach.remedies) == ("SGLang refuses it", ("leave --nodes out",))
    rules = [breach.rule for breach in plan_of(PRO, tp=12, nodes=5).breaches]
    assert rules[0] == "nodes"
    assert "q_b-blocks" in rules  # which another number of nodes does not mend
    (breach,) = plan_of(PRO, tp=8, dp=3).breaches
    assert (str(breach.module), breach.consequence) == ("deployment", "SGLang refuses it")


def test_an_option_that_the_engine_does_not_have_is_not_said_to_be_refused_by_it() -> None:
    (breach,) = plan_of(PRO, tp=8, shared_experts="pad").breaches
    assert breach.consequence == "SGLang has no such option"
    (breach,) = plan_of(PRO, tp=16, shared_experts="split", a2a="deepep").breaches
    assert (breach.consequence, breach.remedies) == ("SGLang keeps them whole", ("leave --shared-experts out",))


def test_a_feasible_plan_is_not_refused() -> None:
    refuse_infeasible(plan_of(PRO, tp=16))


@pytest.mark.slow
def test_fp8_experts_do_not_fit_an_h20_of_96_gb() -> None:
    plan = plan_of(PRO_FP8, tp=16, ep=16, gpu="h20-96")
    assert not plan.feasible
    (breach,) = plan.breaches
    assert breach.rule == "memory"
    assert "98.6 GiB" in breach.reason
    assert "95.0 GiB" in breach.reason
    assert plan.memory is not None
    assert not plan.memory.fits
    assert plan.memory.left < 0
    assert f"{-plan.memory.left / (1 << 30):.1f} GiB short" in breach.reason
    assert plan_of(PRO_FP8, tp=16, ep=16, gpu="h200").feasible


@pytest.mark.parametrize(("wanted", "larger"), [
    ({"tp": 8, "gpu": "h20-96"}, "h20-141"), ({"tp": 8, "gpu_memory": "40GB"}, "h20-141"),
    ({"tp": 8, "gpu": "h100", "engine": "vllm"}, "h20-141"), ({"tp": 4, "gpu": "b200"}, "b300"),
    ({"tp": 2, "gpu": "b200"}, None),
])  # fmt: skip
def test_weights_that_do_not_fit_are_those_of_no_module_and_a_gpu_is_only_named_if_the_plan_runs_on_it(
    wanted: dict[str, Any], larger: str | None
) -> None:
    plan = plan_of(PRO, **wanted)
    (breach,) = plan.breaches
    assert (breach.rule, breach.module) == ("memory", None)
    assert str(breach).split()[1:6] == ["GiB", "of", "weights", "per", "GPU,"]
    assert breach.remedies == ((f"--gpu {larger}, the smallest that holds them",) if larger else ())
    if larger:
        assert plan_of(PRO, **(wanted | {"gpu": larger, "gpu_memory": None})).feasible


@pytest.mark.parametrize(
    ("wanted", "rule"),
    [
        ({"shared_experts": "pad"}, "shared-way"),
        ({"shared_experts": "split"}, "shared-blocks"),
        ({"shared_experts": "whole", "engine": "vllm"}, "shared-whole"),
        ({"shared_experts": "split", "engine": "vllm"}, "shared-blocks"),
        ({"shared_experts": "split", "engine": "reference"}, "shared-way"),
        ({"shared_experts": "pad", "engine": "reference"}, "shared-way"),
        ({"shared_experts": "whole", "engine": "trtllm"}, "shared-way"),
        ({"shared_experts": "split", "engine": "trtllm"}, "shared-way"),
        ({"shared_experts": "pad", "engine": "trtllm"}, "shared-way"),
    ],
)
def test_a_way_of_shared_experts_that_the_engine_does_not_have_is_refused(wanted: dict[str, str], rule: str) -> None:
    plan = plan_of(PRO, tp=16, **wanted)
    assert plan.breaches[0].rule == rule
    assert plan.breaches[0].module == "shared experts"
    assert plan.alternatives


@pytest.mark.parametrize(
    ("wanted", "way"),
    [
        ({"tp": 16, "shared_experts": "whole"}, "whole"),
        ({"tp": 8, "shared_experts": "split"}, "split"),
        ({"tp": 8, "shared_experts": "whole"}, "whole"),
        ({"tp": 16, "shared_experts": "pad", "engine": "vllm"}, "pad"),
        ({"tp": 8, "shared_experts": "split", "engine": "vllm"}, "split"),
        ({"tp": 8, "dp": 2, "ep": 16, "shared_experts": "whole", "engine": "vllm"}, "whole"),
        ({"tp": 16, "shared_experts": "whole", "engine": "reference"}, "whole"),
        ({"tp": 16, "dp": 16, "shared_experts": "whole", "engine": "trtllm"}, "whole"),
    ],
)
def test_a_way_of_shared_experts_that_the_engine_has_is_taken(wanted: dict[str, Any], way: str) -> None:
    plan = plan_of(PRO, **wanted)
    assert plan.feasible
    assert plan.deployment.shared == way


def test_padding_what_divides_anyway_costs_nothing() -> None:
    padded, split = (plan_of(PRO, tp=8, engine="vllm", shared_experts=way).totals for way in ("pad", "split"))
    assert padded == split


def request_of(options: str, request: Request) -> Request:
    """The request that `plan` makes of `options`."""
    words = shlex.split(options)
    fields: dict[str, Any] = {}
    for option, value in zip(words[::2], words[1::2], strict=True):
        name = option.removeprefix("--").replace("-", "_")
        fields[name] = int(value) if value.isdecimal() else value
    return Request(**fields)


INFEASIBLE = [
    (PRO, Request(tp, engine=engine, gpu=gpu)) for engine in ENGINES for tp in (3, 12, 32, 64) for gpu in (None, "h100")
] + [(PRO_FP8, Request(16, ep=16, gpu="h20-96")), (FLASH, Request(16)), (FLASH, Request(2, gpu="h100"))]


@pytest.mark.parametrize(("model", "request_"), INFEASIBLE)
def test_every_alternative_makes_a_feasible_plan_of_the_weight_that_it_says(model: str, request_: Request) -> None:
    checkpoint, inventory = inventory_of(model)
    for alternative in make_plan(checkpoint, inventory, request_).alternatives:
        plan = make_plan(checkpoint, inventory, request_of(alternative.options, request_))
        assert plan.feasible, alternative.options
        assert plan.totals is not None
        weights = plan.totals.target_bytes_per_rank_max - plan.totals.other_target_bytes_per_rank
        assert weights == alternative.bytes_per_rank
        assert plan.deployment.world == alternative.gpus


@pytest.mark.parametrize(("wanted", "nearest"), [
    ({"tp": 9}, ("--tp 8", "--tp 6 --dp 3", "--tp 4")),
    ({"tp": 7}, ("--tp 6 --dp 3", "--tp 4", "--tp 3 --dp 3")),
    ({"tp": 15}, ("--tp 12 --dp 3", "--tp 8", "--tp 6 --dp 3")),
    ({"tp": 8, "dp": 3}, ("--tp 8 --dp 4", "--tp 8 --dp 2", "--tp 6 --dp 3")),
    ({"tp": 100}, ("--tp 96 --dp 6", "--tp 64 --ep 2 --dp 4", "--tp 32 --dp 2")),
    ({"tp": 9, "dp": 9, "a2a": "deepep"}, tuple(f"--tp {n} --dp {n} --a2a deepep" for n in (8, 6, 4))),
    ({"tp": 5, "engine": "vllm"}, tuple(f"--tp {n} --engine vllm" for n in ("1 --ep 5 --dp 5", 4, "1 --dp 3"))),
    ({"tp": 8, "gpu": "h20-96"}, tuple(f"--tp {n} --gpu h20-96" for n in ("12 --dp 3", 16, "32 --dp 2"))),
    ({"tp": 1, "gpu": "h100"}, ("--tp 16 --gpu h100",)),
])  # fmt: skip
def test_the_nearest_layouts_are_on_as_many_gpus_then_on_fewer_then_on_more_with_the_options_asked_for(
    wanted: dict[str, Any], nearest: tuple[str, ...]
) -> None:
    assert tuple(near.options for near in plan_of(PRO, **wanted).alternatives) == nearest


def test_alternatives_of_the_reference_fit_with_the_mtp_block_that_it_loads_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint, inventory = inventory_of(FLASH)
    deployment = choose(inventory, Request(4, engine="reference")).deployment
    monkeypatch.setitem(
        GPUS, "tight", Gpu("tight", "a GPU for this test", 90, rank_nbytes(inventory, deployment, TARGET) + 1, "")
    )
    request = Request(2, engine="reference", gpu="tight")
    for alternative in make_plan(checkpoint, inventory, request).alternatives:
        assert make_plan(checkpoint, inventory, request_of(alternative.options, request)).feasible


@pytest.mark.parametrize(("engine", "gpus"), [
    ("sglang", (None, "h100", "b200", "rtx-pro-6000")), ("node", ("gb200", None)), ("vllm", (None, "b200")),
    ("reference", (None, "b200")),
])  # fmt: skip
def test_shards_that_are_not_the_same_have_folders_of_different_names(
    engine: str, gpus: tuple[str | None, ...]
) -> None:
    names, inventory = {}, inventory_of(PRO)[1]  # type: ignore[var-annotated]
    options = itertools.product((8, 16), (None, 2, 16), (1, 2), (None, "marlin", "triton_unfused"), (None, "deepep"),
                                ("auto", "whole"), gpus, (None, "fp8"))  # fmt: skip
    for tp, ep, dp, runner, a2a, shared, gpu, experts in options:
        request = Request(tp, ep=ep, dp=dp, engine=engine, runner=runner, a2a=a2a, shared_experts=shared, gpu=gpu,
                          expert_dtype=experts)  # fmt: skip
        choice, layout = choose(inventory, request), find_engine(engine).layout
        if choice.feasible and layout and layout.refusal(Context(inventory, choice.deployment)) is None:
            made_for = (
                choice.deployment.tp,
                choice.deployment.ep,
                choice.deployment.experts,
                layout.identity(Context(inventory, choice.deployment)),
            )
            name = folder_of(inventory, request, choice.deployment, "where/Pro")
            assert names.setdefault(name, made_for) == made_for
            assert re.fullmatch(r"Pro-[\w-]+", name)
    assert len(names) > 2
    assert f"Pro-{engine}-tp16" in names


@pytest.mark.parametrize(("engine", "wanted", "part"), [
    ("sglang", {"ep": 8}, "ep8"), ("sglang", {"dp": 2}, "dp2"), ("sglang", {"dp": 2, "dp_lm_head": True}, "dp2-dphead"),
    ("sglang", {"a2a": "deepep"}, "deepep"),
    ("sglang", {"runner": "marlin"}, "marlin"), ("sglang", {"shared_experts": "whole"}, "whole"),
    ("sglang", {"gpu": "b200"}, "sm100"), ("vllm", {"engine_version": "0.25.0"}, "0.25.0"),
    ("reference", {"expert_dtype": "fp8"}, "fp8"), ("node", {"nodes": 4}, "4nodes"),
    ("node", {"gpu": "gb200"}, "gb200"), ("node", {"gpu": "gb200", "nodes": 4}, "4nodes"),
])  # fmt: skip
def test_each_departure_from_an_engines_choice_names_the_folder(engine: str, wanted: dict[str, Any], part: str) -> None:
    inventory = inventory_of(PRO)[1]
    request = Request(8, engine=engine, **wanted)
    assert (
        folder_of(inventory, request, choose(inventory, request).deployment, "where/Pro") == f"Pro-{engine}-tp8-{part}"
    )


def test_the_shards_that_a_plan_writes_are_those_that_it_launches() -> None:
    plan = plan_of(PRO, tp=16, ep=16, dp=2)
    assert plan.reshard == f"dsv4-shard reshard {PRO} {PRO}-sglang-tp16-ep16-dp2 --tp 16 --ep 16 --dp 2"
    assert all(f"--model-path {PRO}-sglang-tp16-ep16-dp2 " in command for command in plan.launch.commands)


@pytest.mark.parametrize("wanted", [{"tp": 32}, {"tp": 8, "gpu": "h20-96"}, {"tp": 16, "engine": "vllm", "ep": 3}])
def test_what_does_not_run_has_no_commands(wanted: dict[str, Any]) -> None:
    plan = plan_of(PRO, **wanted)
    assert not plan.feasible
    assert (plan.launch.environment, plan.launch.commands, plan.launch.draft_options) == ({}, (), "")
    assert (plan.layout, plan.reshard) == (None, None)


def test_no_plan_is_made_of_a_checkpoint_with_errors() -> None:
    tensors = tensors_of(DEMO_CONFIG)
    del tensors["embed.weight"], tensors["layers.1.attn.wq_b.scale"]
    checkpoint = in_memory(DEMO_CONFIG, tensors)
    inventory = take_inventory(checkpoint)
    more = len(inventory.errors) - 1
    with pytest.raises(IncompleteCheckpoint, match=rf"embed\.weight \({more} more findings\)"):
        make_plan(checkpoint, inventory, Request(2))


def test_a_request_that_means_nothing_is_no_plan() -> None:
    with pytest.raises(UsageError, match="tp=0: must be from 1 to 4096"):
        make_plan(*demo(), Request(0))


# --- plan files ----------------------------------------------------------------------------------------------------


def save(folder: Path, document: Any) -> Path:
    path = folder / "plan.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


@pytest.mark.parametrize("request_", DEMO_REQUESTS)
def test_a_plan_comes_back_from_its_file_and_passes(request_: Request, tmp_path: Path) -> None:
    plan = make_plan(*demo(), request_)
    loaded = load_plan(save(tmp_path, plan.to_json()))
    assert loaded.to_json() == plan.to_json()
    assert check_plan(loaded, *demo()) == plan


def test_a_plan_passes_where_the_checkpoint_has_another_path(tmp_path: Path) -> None:
    plan = make_plan(*demo(), Request(16, engine="reference"), "/models/DeepSeek V4 Pro")
    assert check_plan(load_plan(save(tmp_path, plan.to_json())), *demo()).source.label == "/models/DeepSeek V4 Pro"
    assert plan.reshard is not None
    assert shlex.split(plan.reshard)[2:4] == ["/models/DeepSeek V4 Pro", "DeepSeek V4 Pro-reference-tp16"]


def test_a_plan_passes_where_no_revision_is_known(tmp_path: Path) -> None:
    plan = make_plan(*demo(), Request(16))
    checkpoint, inventory = demo()
    moved = replace(checkpoint, source=replace(checkpoint.source, revision=None))  # type: ignore[type-var]
    check_plan(load_plan(save(tmp_path, plan.to_json())), moved, inventory)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 40_000, "not JSON"),
        ('{"schema_version": 1' + "0" * 5000 + "}", "not JSON"),
        ("[]", "not a plan"),
        ("null", "not a plan"),
        ('"plan"', "not a plan"),
        ("{}", "not a plan"),
        ('{"metadata": {}, "weight_map": {}}', "not a plan"),
        ('{"schema_version": 0}', "plan schema 0: there is no such version"),
        ('{"schema_version": null}', "plan schema None"),
        ('{"schema_version": "1"}', "plan schema '1'"),
        ('{"schema_version": true}', "plan schema True"),
        ('{"schema_version": 1}', "tool_version"),
        ('{"schema_version": 1, "tool_version": "0.0.1", "launch": []}', "source"),
        ('{"schema_version": 1, "launch": {"commands": [5]}, "reshard": "\\""}', "tool_version"),
        (json.dumps({"kind": "plan", "schema_version": SCHEMA_VERSION, "tool_version": __version__}), "source"),
    ],
)
def test_a_file_that_is_no_plan_of_this_version_is_refused(content: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(BadPlan, match=r"plan\.json") as caught:
        load_plan(save(tmp_path, content))
    assert part in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"\x80\x81")
    with pytest.raises(BadPlan, match="not JSON"):
        load_plan(path)


def test_a_file_too_large_for_a_plan_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with path.open("wb") as file:
        file.truncate(PLAN.nbytes + 1)
    with pytest.raises(BadPlan, match="too large"):
        load_plan(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(BadPlan):
            load_plan(path)


@pytest.mark.parametrize("key", sorted(document_of(Request(16))))
def test_a_plan_that_lacks_a_field_is_refused(key: str, tmp_path: Path) -> None:
    document = {name: value for name, value in document_of(Request(16)).items() if name != key}
    with pytest.raises(BadPlan):
        load_plan(save(tmp_path, document))


def test_a_field_that_no_plan_has_is_refused_by_name(tmp_path: Path) -> None:
    document = copy.deepcopy(document_of(Request(16)))
    document["totals"]["bonus"] = 1
    with pytest.raises(BadPlan, match=r"totals\.bonus"):
        load_plan(save(tmp_path, document))


# --- edits ---------------------------------------------------------------------------------------------------------

Path_ = tuple[str | int, ...]


def leaves(value: Any, path: Path_ = ()) -> list[Path_]:
    """The path of every scalar in a JSON document."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for index, item in enumerate(value) for leaf in leaves(item, (*path, index))]
    return [path]


def get(document: Any, path: Path_) -> Any:
    for step in path:
        document = document[step]
    return document


def with_edit(document: dict[str, Any], path: Path_, value: Any) -> dict[str, Any]:
    edited = copy.deepcopy(document)
    get(edited, path[:-1])[path[-1]] = value
    return edited


WORDS = st.text(max_size=12).filter(lambda text: not text.strip().lstrip("+-").replace(".", "").isnumeric())
"""No numbers in quotes: they mean the number."""

VALUES = st.integers(-(2**63), 2**63) | WORDS | st.none() | st.sampled_from([*ENGINES, *GPUS, "fp4", "whole", "marlin"])


@st.composite
def edits(draw: DrawFn) -> Any:
    """The request of a demo plan, the path of a scalar in that plan, and another value for it."""
    request = draw(st.sampled_from(DEMO_REQUESTS))
    document = document_of(request)
    section = draw(st.sampled_from(sorted(document)))
    path = draw(st.sampled_from([path for path in leaves(document) if path[0] == section] or [("verdict",)]))
    before = get(document, path)
    if isinstance(before, bool):
        return request, path, not before
    near = st.integers(0, 64) if isinstance(before, int) else st.just(f"{before}x")
    return request, path, draw((near | VALUES).filter(lambda value: value != before))


def is_the_same_plan(document: dict[str, Any], request: dict[str, Any]) -> bool:
    """Whether an edited request comes to the same plan: then it is no other plan, only asked for in other words."""
    try:
        again = json.loads(make_plan(*demo(), Request(**request), document["source"]["label"]).to_json())
    except (UsageError, TypeError, AttributeError):
        return False
    return {**again, "request": None} == {**document, "request": None}


@pytest.mark.slow
@given(edits())
@example((Request(16), ("request", "engine"), 5))
@example((Request(16), ("request", "gpu"), 5))
@example((Request(16), ("request", "dp"), None))
@example((Request(16), ("source", "label"), ""))
@example((Request(16), ("deployment", "attention_tp"), 8))
def test_an_edited_plan_is_refused_by_the_name_of_what_was_edited(
    tmp_path_factory: pytest.TempPathFactory, edit: tuple[Request, tuple[str | int, ...], int | str | None]
) -> None:
    request, path, value = edit
    if path in {("source", "revision"), ("tool_version",)}:
        return  # have their own tests
    document = document_of(request)
    if (path == ("schema_version",) and value in (1, 2, 3)) or (
        path in {("source", "label"), ("context",)} and document["breaches"]
    ):
        return  # the same plan: no command of an infeasible one has the label or the context
    edited = with_edit(document, path, value)
    if path[0] == "request" and is_the_same_plan(document, edited["request"]):
        return
    with pytest.raises((BadPlan, NewerSchema)) as caught:
        check_plan(load_plan(save(tmp_path_factory.getbasetemp(), edited)), *demo())
    assert any(name in str(caught.value) for name in names_of(path, document))


def names_of(path: Path_, document: dict[str, Any]) -> tuple[str, ...]:
    """What a refusal must say of the edit at `path`: one of these."""
    match path:
        case ("schema_version",):
            return ("schema",)
        case ("ways", *_):
            return ("ways", "launch")
        case ("context",):
            return ("context", "launch")
        case ("source", "config_digest"):
            return ("config",)
        case ("source", "files", int(index), "name"):
            return ("weight files", f"files.{index}.name")
        case ("source", "files", int(index), str(field)):
            return (document["source"]["files"][index]["name"], f"files.{index}.{field}")
        case ("source", *_) | ("request", *_):
            return ("",)  # the plan is another one then: which field says so is not to be told
    return (str([step for step in path if isinstance(step, str)][-1]),)


@pytest.mark.parametrize("value", ["b" * 40, "main"])
def test_a_plan_for_another_revision_is_foreign(value: str, tmp_path: Path) -> None:
    edited = with_edit(document_of(Request(16)), ("source", "revision"), value)
    with pytest.raises(ForeignPlan, match=value):
        check_plan(load_plan(save(tmp_path, edited)), *demo())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tp", "sixteen"), ("tp", None), ("tp", -1), ("ep", "x"), ("dp", None), ("dp", "x"), ("engine", None),
        ("engine", 5), ("engine", "tgi"), ("runner", 5), ("a2a", 5), ("shared_experts", None), ("shared_experts", 5),
        ("gpu", 5),
        ("gpu_memory", 5), ("gpu_memory", "x"),
        ("gpu", "tpu"), ("nodes", "x"), ("nodes", 0), ("expert_dtype", 5), ("expert_dtype", "fp6"),
    ],
)  # fmt: skip
def test_a_request_edited_to_nonsense_is_a_bad_plan(field: str, value: str | int | None, tmp_path: Path) -> None:
    edited = with_edit(document_of(Request(16)), ("request", field), value)
    with pytest.raises(BadPlan):
        check_plan(load_plan(save(tmp_path, edited)), *demo())


def test_a_request_without_an_option_has_its_default(tmp_path: Path) -> None:
    document = document_of(Request(16))
    request = {key: value for key, value in document["request"].items() if key != "dp"}
    assert load_plan(save(tmp_path, document | {"request": request})).request == Request(16)


def test_a_request_with_a_field_too_many_or_without_tp_is_a_bad_plan(tmp_path: Path) -> None:
    document = document_of(Request(16))
    for request in (document["request"] | {"cp": 2}, {}):  # type: ignore[var-annotated]
        with pytest.raises(BadPlan):
            check_plan(load_plan(save(tmp_path, document | {"request": request})), *demo())


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", ["breaches", "checks", "changes", "notes", "ways", "assumptions", "modules", "alternatives"]
)
def test_a_row_taken_out_or_put_in_twice_is_a_bad_plan(key: str, tmp_path: Path) -> None:
    for request in DEMO_REQUESTS:
        rows = document_of(request)[key]
        for changed in (rows[1:], rows + rows[-1:]):
            if changed != rows:
                with pytest.raises(BadPlan, match=key):
                    check_plan(load_plan(save(tmp_path, document_of(request) | {key: changed})), *demo())


def changed(**fields: Any) -> Checkpoint:
    checkpoint, _ = demo()
    first, second = checkpoint.files
    return replace(checkpoint, files=(replace(first, **fields), second))


@pytest.mark.parametrize(
    ("checkpoint", "part"),
    [
        (changed(nbytes=1001), "model-1.safetensors: 1000 bytes then, 1001 now"),
        (changed(header_digest="3" * 32), "model-1.safetensors: its header differs"),
        (changed(name="model-3.safetensors"), "model-1.safetensors differs"),
        (replace(demo()[0], files=demo()[0].files[:1]), "2 weight files, this has 1: model-2.safetensors differs"),
        (replace(demo()[0], files=()), "2 weight files, this has 0"),
        (replace(demo()[0], document=DEMO_CONFIG | {"rope_theta": 1}), "config.json differs"),
        (replace(demo()[0], document=DEMO_CONFIG | {"note": "new"}), "config.json differs"),
    ],
)
def test_a_plan_for_a_checkpoint_that_has_changed_is_foreign(checkpoint: Checkpoint, part: str) -> None:
    plan = make_plan(*demo(), Request(16))
    with pytest.raises(ForeignPlan) as caught:
        check_plan(plan, checkpoint, demo()[1])
    assert part in str(caught.value)


def test_a_plan_for_another_model_is_foreign() -> None:
    with pytest.raises(ForeignPlan):
        check_plan(plan_of(PRO, tp=8), *inventory_of(FLASH))


def test_the_order_of_keys_in_config_json_is_no_change() -> None:
    checkpoint, inventory = demo()
    turned = replace(checkpoint, document=dict(reversed(checkpoint.document.items())))
    check_plan(make_plan(checkpoint, inventory, Request(16)), turned, inventory)


@pytest.mark.slow
def test_a_plan_is_the_same_whenever_it_is_made() -> None:
    for request in DEMO_REQUESTS:
        assert make_plan(*demo(), request).to_json() == make_plan(*demo(), Request(**asdict(request))).to_json()


PAYLOADS = [
    {"tp": 16},
    {"tp": 16, "gpu": "b200"},
    {"tp": 8, "ep": 4, "dp": 2, "shared_experts": "whole"},
    {"tp": 8, "ep": 8, "a2a": "deepep", "dp": 8},
    {"tp": 16, "engine": "vllm"},
    {"tp": 8, "ep": 8, "engine": "vllm"},
    {"tp": 8, "ep": 8, "engine": "vllm", "engine_version": "0.25.0"},
    {"tp": 16, "engine": "reference"},
    {"tp": 16, "engine": "reference", "expert_dtype": "fp8"},
]


@pytest.mark.parametrize("wanted", PAYLOADS, ids=str)
@pytest.mark.parametrize("experts", ["FP4", "FP8"])
def test_the_bytes_of_a_rank_are_exactly_those_of_its_files(experts: str, wanted: dict[str, Any]) -> None:
    """Target and draft apart; the reference's files hold both."""
    document = DEMO_CONFIG | {"expert_dtype": experts.lower()}
    o_a, scales = ("BF16", "F8_E8M0") if wanted.get("engine", "sglang") == "sglang" else ("FP8", "F32")
    variant = {"experts": experts, "o_a": o_a, "scales": scales} if experts == "FP8" else {}
    checkpoint = in_memory(document, tensors_of(document, **variant))  # type: ignore[arg-type]
    inventory = take_inventory(checkpoint)
    request = Request(**wanted)
    made = make_plan(checkpoint, inventory, request)
    if not made.feasible:
        assert (experts, made.breaches[0].module) == ("FP8", "routed experts")
        return
    choice = choose(inventory, request)
    recipe = make_recipe(checkpoint, find_engine(request.engine), Context(inventory, choice.deployment), (3,))
    draft = sum(file.payload for file in recipe.files if file.name.startswith("draft/"))
    target = sum(file.payload for file in recipe.files) - draft
    if request.engine == "reference":
        draft = made.totals.draft_bytes_per_rank
        target -= draft
    assert (target, draft) == (made.totals.target_bytes_per_rank_max, made.totals.draft_bytes_per_rank)


@pytest.mark.parametrize(("gpu", "nodes", "told"), [
    ("h200", None, False), ("gb200", None, False), ("gb300", None, False), ("gb200", 4, False), ("gb200", 8, True),
    ("h200", 4, True),
])  # fmt: skip
def test_a_folder_name_tells_nodes_only_where_they_are_not_the_usual_ones(
    gpu: str, nodes: int | None, told: bool
) -> None:
    plan = make_plan(*inventory_of(PRO), Request(16, engine="node", gpu=gpu, nodes=nodes), PRO)
    assert plan.feasible
    assert plan.out is not None
    assert plan.out.endswith("nodes") is told


def test_titles_name_the_version_that_was_asked_for() -> None:
    plan = make_plan(*inventory_of(PRO), Request(8, engine="vllm", engine_version="0.25.0"), PRO)
    out = StringIO()
    show_plan(Console(file=out, width=120), plan, "vLLM")
    assert "vLLM 0.25.0" in out.getvalue().splitlines()[0]
    assert "on vllm 0.25.0 " in plan.in_short()


def test_no_version_stands_beside_the_table_of_versions() -> None:
    newest = {names[0] for names in VERSIONS.values()} - {"V4"}
    literals = [
        (path.name, node.value)
        for path in (Path(dsv4_shard.__file__).parent / "engines").rglob("*.py")
        for node in _texts(ast.parse(path.read_text()))
        if any(version in node.value for version in newest)
    ]
    assert literals == []


def _texts(module: ast.Module) -> list[ast.Constant]:
    """The texts of a module, without docstrings and the like."""
    said = {node.value for node in ast.walk(module) if isinstance(node, ast.Expr)}
    texts = (node for node in ast.walk(module) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [node for node in texts if node not in said]
