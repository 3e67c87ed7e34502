"""GPUs: those whose kernels are not known, and those given by their memory alone."""

import json
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from support.checkpoints.full_size import PRO, inventory_of
from support.command_line import run
from support.schemas import validator

from dsv4_shard.catalog.gpus import ALIASES, GPUS, find_gpu, gpu_with
from dsv4_shard.engines.deployment import Request
from dsv4_shard.engines.registry import ENGINES
from dsv4_shard.engines.unverified import UNKNOWN_GPU
from dsv4_shard.errors import InfeasiblePlan, UnknownGpu, UsageError
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.plan_builder import make_plan, refuse_infeasible
from dsv4_shard.planning.plan_file import check_plan
from dsv4_shard.planning.request import options_of
from dsv4_shard.terminal.screens.plan import show_plan

NOT_VERIFIED = sorted(name for name, gpu in GPUS.items() if not gpu.verified)


def plan_of(**wanted: Any) -> Plan:
    return make_plan(*inventory_of(PRO), Request(**wanted), PRO)


def shown(plan: Plan) -> str:
    out = StringIO()
    show_plan(Console(file=out, width=200), plan, "SGLang")
    return out.getvalue()


def test_amd_ascend_gb10_and_gpus_before_hopper_are_those_whose_kernels_are_not_known() -> None:
    assert NOT_VERIFIED == [
        "a100-40", "a100-80", "ascend-910b", "ascend-910c", "gb10", "l20", "l40s", "mi300x", "mi325x", "mi355x",
        "rtx-4090",
    ]  # fmt: skip


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_aliases_are_taken_for_the_gpu(alias: str, name: str) -> None:
    assert find_gpu(alias.upper()) is GPUS[name]
    assert alias not in GPUS


@pytest.mark.parametrize(("asked", "name"), [("NVIDIA H100 NVL", "h100-nvl"), ("AMD MI300X", "mi300x"),
("RTX_PRO_6000", "rtx-pro-6000"), ("Ascend 910B", "ascend-910b"), ("nvidia h20-3e", "h20-141")])  # fmt: skip
def test_a_product_name_is_taken_for_the_gpu(asked: str, name: str) -> None:
    assert find_gpu(asked) is GPUS[name]


@pytest.mark.parametrize(("asked", "hints"), [("a100", ("a100-80", "a100-40")), ("h20", ("h20-96", "h20-141"))])
def test_a_name_of_several_gpus_gets_them_as_hints(asked: str, hints: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        find_gpu(asked)
    assert all(hint in str(caught.value.hint) for hint in hints)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sglang", "vllm", "trtllm", "reference", "node"])
@pytest.mark.parametrize("gpu", NOT_VERIFIED)
def test_of_a_gpu_whose_kernels_are_not_known_nothing_is_verified(engine: str, gpu: str) -> None:
    assert engine in ENGINES
    if not ENGINES[engine].is_for(GPUS[gpu]):
        pytest.skip("the engine has no code for it at all")
    plan = plan_of(tp=16, engine=engine, gpu=gpu)
    assert not plan.feasible
    assert {breach.rule for breach in plan.breaches} <= {UNKNOWN_GPU, "memory"}
    assert plan.breaches[0].rule == UNKNOWN_GPU
    assert (plan.checks, plan.changes, plan.alternatives, plan.launch.commands) == ((), (), (), ())
    assert (plan.layout, plan.reshard, plan.deployment.runner) == (None, None, "?")
    with pytest.raises(InfeasiblePlan, match="own classes were not run for"):
        refuse_infeasible(plan)


@pytest.mark.slow
@pytest.mark.parametrize("gpu", NOT_VERIFIED)
def test_no_rule_of_other_kernels_is_quoted_for_a_gpu_whose_kernels_are_not_known(gpu: str) -> None:
    """TP 16 with FP4 experts breaks the tiles of Hopper's CUTLASS runner; AMD's and Ascend's are others."""
    plan = plan_of(tp=16, runner="flashinfer_mxfp4", gpu=gpu)
    assert {breach.rule for breach in plan.breaches} <= {UNKNOWN_GPU, "memory"}
    assert plan.breaches[0].rule == UNKNOWN_GPU
    assert plan.totals is not None


@pytest.mark.slow
def test_whether_the_weights_fit_is_told_of_a_gpu_whose_kernels_are_not_known_and_as_on_what() -> None:
    plan, hopper = plan_of(tp=16, gpu="mi300x"), plan_of(tp=16, gpu="h200")
    assert plan.memory is not None
    assert hopper.memory is not None
    assert plan.memory.weights == hopper.memory.weights
    assert plan.memory.left == (196_588 << 20) - hopper.memory.weights
    text = shown(plan)
    assert "Not verified" in text
    assert "Does not run" not in text
    assert "bytes are those on Hopper (sm_90); on AMD MI300X the engine may hold weights in other formats" in text
    assert "of 192.0 GiB per GPU" in text
    assert "own classes were not run for AMD MI300X (gfx942)" in text
    assert "SGLang does not say so" not in text


@pytest.mark.slow
def test_weights_of_gb10_are_reckoned_as_on_blackwell() -> None:
    plan, blackwell = plan_of(tp=16, gpu="gb10"), plan_of(tp=16, gpu="rtx-pro-6000")
    assert plan.totals == blackwell.totals
    assert "bytes are those on Blackwell (sm_121)" in shown(plan)


@pytest.mark.slow
def test_weights_that_do_not_fit_break_the_memory_rule_also_where_kernels_are_not_known() -> None:
    plan = plan_of(tp=8, gpu="ascend-910b")
    assert [breach.rule for breach in plan.breaches] == [UNKNOWN_GPU, "memory"]
    assert "weights 102.4 of 61.0 GiB per GPU, 41.4 GiB short" in shown(plan)
    assert "own classes were not run for Ascend 910B 64 GB" in shown(plan)  # the family once


@pytest.mark.slow
@pytest.mark.parametrize(("gpu", "nodes"), [("gb10", 16), ("ascend-910c", 1), ("mi300x", 2), ("ascend-910b", 2)])
def test_a_host_has_the_gpus_of_its_kind(gpu: str, nodes: int) -> None:
    assert plan_of(tp=16, gpu=gpu).deployment.nodes == nodes


@pytest.mark.parametrize(("text", "nbytes"), [
    ("96GB", 96 * 10**9), ("95GiB", 95 << 30), ("97285MiB", 97285 << 20), ("94.5 gib", 189 << 29),
    ("0.5GB", 5 * 10**8),
])  # fmt: skip
def test_memory_is_given_in_gb_gib_or_mib(text: str, nbytes: int) -> None:
    assert gpu_with(text).memory == nbytes


@pytest.mark.parametrize(
    "text",
    ["96 ", "0", "GB", "96TB", "-1GB", "0GB", "1e3GB", "96GB ", "nanGB", "96  GB", "٩٦GB", "9" * 9 + "GB", "96GB\n"],
)
def test_what_is_not_an_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not an amount of memory"):
        plan_of(tp=16, gpu_memory=text)


@pytest.mark.parametrize("value", [5, ["96GB"], True, 96.0, "9" * 101])
def test_an_amount_of_memory_that_is_no_text_is_refused(value: list[str] | float | str) -> None:
    with pytest.raises(UsageError, match="gpu_memory="):
        plan_of(tp=16, gpu_memory=value)


def test_a_gpu_given_by_its_memory_is_hoppers_and_says_so() -> None:
    plan, hopper = plan_of(tp=16, gpu_memory="95GiB"), plan_of(tp=16, gpu="h20-96")
    assert plan.feasible
    assert plan.totals == hopper.totals
    assert plan.memory is not None
    assert plan.memory.capacity == 95 << 30
    assert plan.deployment.gpu == "95GiB"
    assert plan.assumptions == (
        "Hopper (sm_90) is assumed for a GPU of 95.00 GiB (--gpu-memory): name the GPU with --gpu",
    )


@pytest.mark.slow
def test_weights_that_do_not_fit_into_the_memory_given_are_refused() -> None:
    assert [breach.rule for breach in plan_of(tp=16, gpu_memory="40GB").breaches] == ["memory"]


@pytest.mark.parametrize("engine", ["sglang", "vllm", "trtllm", "reference", "node"])
def test_memory_is_looked_at_for_every_engine(engine: str) -> None:
    assert plan_of(tp=16, engine=engine, gpu_memory="95GiB", nodes=2).memory is not None


def test_a_gpu_named_and_given_by_its_memory_is_refused() -> None:
    with pytest.raises(UsageError, match="gpu='h200' and gpu_memory"):
        plan_of(tp=16, gpu="h200", gpu_memory="96GB")


@pytest.mark.parametrize("text", ["95GiB", "95 GiB"])
def test_a_plan_with_memory_given_is_made_again_and_its_command_says_it(text: str) -> None:
    checkpoint, inventory = inventory_of(PRO)
    plan = plan_of(tp=16, gpu_memory=text)
    assert check_plan(plan, checkpoint, inventory) == plan
    assert f"--gpu-memory {text}" in options_of(Request(16, gpu_memory=text)).replace("'", "")


@pytest.mark.parametrize(("text", "nbytes"), [
    ("96", 96 * 10**9), ("96G", 96 * 10**9), ("96g", 96 * 10**9), ("96GB", 96 * 10**9), ("96GiB", 96 << 30),
    ("96 gib", 96 << 30), ("97285MiB", 97285 << 20),
])  # fmt: skip
def test_memory_is_read_as_users_write_it(text: str, nbytes: int) -> None:
    assert gpu_with(text).memory == nbytes


@pytest.mark.parametrize(("typed", "name"), [
    ("H20-96", "h20-96"), ("h20-96gb", "h20-96"), ("H20 96 GB", "h20-96"), ("H20-3e", "h20-141"),
    ("NVIDIA H20-3e 141GB", "h20-141"), ("NVIDIA H100 80GB HBM3", "h100"), ("H100-SXM5-80GB", "h100"),
    ("NVIDIA H200", "h200"), ("h200 141GB", "h200"), ("B200", "b200"), ("NVIDIA B200 192GB", "b200"),
    ("NVIDIA A100-SXM4-80GB", "a100-80"), ("NVIDIA A100-SXM4-40GB", "a100-40"), ("910c", "ascend-910c"),
    ("Ascend910B", "ascend-910b"), ("ASCEND 910C", "ascend-910c"), ("RTX4090", "rtx-4090"),
    ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
    ("AMD Instinct MI300X", "mi300x"), ("MI355X 288GB", "mi355x"), ("NVIDIA DGX Spark", "gb10"),
])  # fmt: skip
def test_a_gpu_is_found_by_the_names_that_users_and_drivers_write(typed: str, name: str) -> None:
    assert find_gpu(typed).name == name


def test_every_title_is_a_name() -> None:
    assert [find_gpu(gpu.title).name for gpu in GPUS.values()] == list(GPUS)


@pytest.mark.parametrize(("typed", "said"), [
    ("NVIDIA H20", "Did you mean h20-96 (NVIDIA H20 96 GB) or h20-141 (NVIDIA H20-3e 141 GB)?"),
    ("A100", "Did you mean a100-80 (NVIDIA A100 80 GB) or a100-40 (NVIDIA A100 40 GB)?"),
    ("8xH20-96", "Write --gpu h20-96, and --tp 8 for a layout or --gpus 8 to search them."),
    ("8 x H200", "Write --gpu h200, and --tp 8"), ("H200x8", "Write --gpu h200, and --tp 8"),
    ("h20-97", "Did you mean h20-96"), ("H900 XL", "`dsv4-shard gpus` lists them"), ("", "Known: h20-96"),
])  # fmt: skip
def test_a_gpu_that_is_not_clear_is_answered_with_what_to_write(typed: str, said: str) -> None:
    with pytest.raises(UnknownGpu) as caught:
        find_gpu(typed)
    assert said in str(caught.value.hint)
    assert repr(typed) in str(caught.value)


def test_the_command_gpus_lists_what_the_catalog_has() -> None:
    listed = json.loads(run("gpus", "--json").stdout)
    validator("gpus").validate(listed)
    assert {gpu["name"]: gpu["memory_bytes"] for gpu in listed["gpus"]} == {
        gpu.name: gpu.memory for gpu in GPUS.values()
    }
    assert {gpu["name"] for gpu in listed["gpus"] if gpu["engines"]} == {
        gpu.name for gpu in GPUS.values() if gpu.verified
    }
    rows = [line.split()[0] for line in run("gpus").stdout.splitlines()[1 : len(GPUS) + 2] if line[:1].strip()]
    assert sorted(rows) == sorted(GPUS)
