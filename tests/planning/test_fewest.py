"""The fewest GPUs that hold a model: the number is right by brute force, and what was searched is said."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from operator import attrgetter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints.full_size import FLASH, PRO, PRO_FP8, PRO_NVFP4, V3, V41, inventory_of
from support.command_line import root_of, run

import dsv4_shard
from dsv4_shard.catalog.gpus import GPUS, MIB, Gpu, gpu_with
from dsv4_shard.checkpoint import outside_layers
from dsv4_shard.engines import pick_gpu
from dsv4_shard.engines.deployment import GPUS_PER_NODE, Context, Request
from dsv4_shard.engines.registry import engine_for, serving
from dsv4_shard.errors import ExitCode, UsageError
from dsv4_shard.planning.choice import Choice, choose
from dsv4_shard.planning.fewest import Fewest, fewest
from dsv4_shard.planning.layouts import layouts_on
from dsv4_shard.planning.memory_documents import PlanTotals
from dsv4_shard.planning.outcome import memory_of
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.planning.reach import EVERY_COUNT_TO, MOST_GPUS, bound_of, counts_from, say_counts
from dsv4_shard.planning.search import search
from dsv4_shard.planning.weights import beyond_roles, loads, totals_of, weights_of

MODELS = (FLASH, PRO, PRO_FP8, V41, V3)
COUNTS = 13


@cache
def found(model: str, engines: tuple[str, ...] | None = None, **asked: str) -> Fewest:
    return fewest(*inventory_of(model), Request(1, **asked), engines)  # type: ignore[arg-type]


def alike(gpu: Gpu) -> str:
    """The first known GPU of the same architecture and maker, and with as many per host: its rules are the same."""
    kinds = {name: (one.sm, one.unverified_family, one.maker, GPUS_PER_NODE.get(name)) for name, one in GPUS.items()}
    return next(name for name, kind in kinds.items() if kind == kinds[gpu.name])


def choices(model: str, request: Request) -> Iterator[Choice]:
    """What engines make of every combination of options that they have, on so many GPUs."""
    inventory = outside_layers(inventory_of(model)[1])
    for engine in (engine_for(name, inventory.family) for name in serving()):
        if engine.is_for(pick_gpu(request)):
            yield from (choose(inventory, one) for one in engine.requests(request))


@cache
def weighed(model: str, gpus: int, gpu: str) -> list[tuple[PlanTotals, Choice]]:
    """What every combination of options that an engine's rules allow puts on a rank."""
    checkpoint, whole = inventory_of(model)
    inventory = outside_layers(whole)
    found = []
    for choice in choices(model, Request(gpus, gpu=gpu)):
        if choice.feasible:
            engine, context = (
                engine_for(choice.deployment.engine, inventory.family),
                Context(inventory, choice.deployment),
            )
            beyond = beyond_roles(checkpoint, engine, context)
            found.append((totals_of(list(loads(engine, context)), context, beyond), choice))
    return found


def holds(model: str, gpus: int, gpu: Gpu, rules: str) -> bool:
    """Whether any combination of options that an engine has leaves room for KV cache beside its weights."""
    inventory = outside_layers(inventory_of(model)[1])
    for totals, choice in weighed(model, gpus, rules):
        context = Context(inventory, replace(choice.deployment, gpu=gpu))
        memory = memory_of(context, weights_of(totals, choice.deployment), choice)
        if memory is not None and memory.serves:
            return True
    return False


def brute_force(model: str, gpu: Gpu, rules: str) -> int | None:
    """The fewest GPUs by trying every number, up to COUNTS."""
    return next((gpus for gpus in range(1, COUNTS) if holds(model, gpus, gpu, rules)), None)


@pytest.mark.parametrize("gpu", [*(gpu for gpu in GPUS.values() if alike(gpu) != gpu.name), gpu_with("70GiB")],
                         ids=attrgetter("name"))  # fmt: skip
def test_rules_do_not_depend_on_the_memory_of_a_gpu(gpu: Gpu) -> None:
    """So that brute force need try no combination again for each amount of memory."""
    asked = Request(4, gpu=gpu.name) if gpu.name in GPUS else Request(4, gpu_memory=gpu.name)
    others = choices(PRO, Request(4, gpu=alike(gpu) if gpu.name in GPUS else "h200"))
    for choice, other in zip(choices(PRO, asked), others, strict=True):
        assert choice.deployment.gpu == gpu
        assert replace(choice.deployment, gpu=other.deployment.gpu) == other.deployment
        assert choice.feasible == other.feasible


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=10)
@given(st.data())
def test_the_number_is_the_smallest_of_all_numbers(model: str, data: st.DataObject) -> None:
    """Memory is drawn around the weights of some layout, where one byte decides."""
    layouts = [
        [weights_of(totals, one.deployment) for totals, one in weighed(model, gpus, "h200")]
        for gpus in range(1, COUNTS)
    ]
    near = [min(nbytes) for nbytes in layouts if nbytes]
    mib = data.draw(st.sampled_from(near)) // MIB + data.draw(st.integers(-1, 2))
    (kind,) = found(model, gpu_memory=f"{mib}MiB").kinds
    expected = brute_force(model, gpu_with(f"{mib}MiB"), "h200")
    assert kind.gpus == expected or (expected is None and (kind.gpus or MOST_GPUS) >= COUNTS)


@pytest.mark.parametrize("model", [PRO, V41])
@pytest.mark.parametrize("gpu", GPUS)
def test_each_known_gpu_has_the_smallest_number_and_a_command_that_plans_it(model: str, gpu: str) -> None:
    (kind,) = [kind for kind in found(model).kinds if kind.gpu == gpu]
    expected = brute_force(model, GPUS[gpu], alike(GPUS[gpu]))
    assert kind.gpus == expected or expected is None
    if kind.layout is not None:
        plan = make_plan(*inventory_of(model), kind.layout.request)
        assert plan.deployment.world == kind.gpus
        assert plan.memory is not None
        assert plan.memory.serves
        assert plan.memory.weights == kind.layout.weight_bytes
        assert (plan.verdict != "not verified") is kind.verified
        assert kind.command is not None
        assert kind.command.endswith(kind.layout.options)
        assert str(kind.gpus) in kind.reach


@pytest.mark.parametrize("model", MODELS)
def test_no_layout_weighs_less_than_the_bound(model: str) -> None:
    checkpoint, whole = inventory_of(model)
    inventory = outside_layers(whole)
    for name in serving():
        bound = bound_of(inventory, Request(1, gpu="h200"), engine_for(name, inventory.family))
        for gpus in (1, 2, 3, 6, 8, 12, 16, 24, 64):
            for found in layouts_on(checkpoint, inventory, Request(gpus, gpu="h200"), (name,))[0]:
                assert found.layout.weight_bytes >= bound.whole + bound.shared_out // gpus
                assert bound.least_gpus(found.layout.weight_bytes + 1) <= gpus


def test_all_engines_and_numbers_that_were_searched_are_said() -> None:
    result = found(PRO)
    assert result.engines == ("sglang", "vllm", "reference", "trtllm")
    assert result.counts == "1 to 128, then 192, 256, 384, 512"
    assert result.tried > 1000
    shown = run("plan", root_of(PRO)).stdout
    assert f"{result.tried:,} layouts of SGLang, vLLM, DeepSeek reference, TensorRT-LLM" in " ".join(shown.split())


def test_numbers_are_every_one_and_then_few() -> None:
    numbers = list(counts_from(1))
    assert numbers == [*range(1, EVERY_COUNT_TO + 1), 192, 256, 384, 512]
    assert list(counts_from(100, nodes=3)) == [*range(102, 129, 3), 192, 384]
    assert list(counts_from(MOST_GPUS + 1)) == []
    assert (say_counts(3, 4), say_counts(100, 192), say_counts(200, 512)) == ("3 to 4", "100 to 128, then 192",
                                                                              "256, 384, 512")  # fmt: skip


@pytest.mark.parametrize("gpus", [1, 2, 4, 5, 7, 8, 9, 11, 13])
def test_more_gpus_that_would_do_are_found_from_any_number(gpus: int) -> None:
    """Sixteen H100 hold V4-Pro with its KV cache; 12 to 14 hold the weights alone. No search may say that none do."""
    result = search(*inventory_of(PRO), Request(gpus, gpu="h100"))
    assert (result.elsewhere[0].gpus, result.elsewhere[0].gpu) == (16, "h100")
    assert "16 are the fewest that do" in result.reach


def test_a_gpu_that_is_too_small_in_any_number_is_said_to_be() -> None:
    result = search(*inventory_of(PRO), Request(8, gpu_memory="2GiB"))
    assert result.elsewhere == ()
    assert result.reach.startswith("no number does: every GPU holds ")
    (kind,) = found(PRO, gpu_memory="2GiB").kinds
    assert (kind.gpus, kind.reach) == (None, result.reach)


def test_a_context_that_does_not_fit_takes_more_gpus() -> None:
    opened = inventory_of(FLASH)
    (short,) = fewest(*opened, Request(1, gpu="h20-96"), ("sglang",), 1024).kinds
    (long,) = fewest(*opened, Request(1, gpu="h20-96"), ("sglang",), 1_048_576).kinds
    assert short.gpus is not None
    assert long.gpus is not None
    assert short.gpus <= long.gpus
    assert long.layout is not None
    assert long.layout.sessions != 0


def test_of_a_model_without_verified_engines_the_bytes_alone_are_said() -> None:
    result = found(V41, ("sglang", "vllm"))
    assert result.engines == ()
    assert len(result.unknown) == 2
    assert all(kind.gpus is None and "for the bytes alone" in kind.reach for kind in result.kinds)


@pytest.mark.slow
def test_nvfp4_has_layouts_on_hopper_and_blackwell() -> None:
    gpus = {kind.layout.request.gpu for kind in found(PRO_NVFP4).kinds if kind.layout is not None}
    assert {"h200", "b200"} <= gpus


# --- the command -----------------------------------------------------------------------------------------------------


def test_plan_without_a_layout_lists_rows_and_picks_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shown = run("plan", tiny_checkpoint)
    assert shown.exit_code == ExitCode.DONE
    assert "Plan the first, or another with --pick N" in shown.stdout
    printed = json.loads(run("plan", tiny_checkpoint, "--json").stdout)
    assert printed == json.loads(dsv4_shard.fewest(tiny_checkpoint).to_json())
    row = printed["kinds"][1]
    picked = json.loads(run("plan", tiny_checkpoint, "--pick", 2, "--json", "-o", tmp_path / "plan.json").stdout)
    assert picked["request"]["gpu"] == row["gpu"]
    assert picked["deployment"]["world"] == row["gpus"]
    assert json.loads((tmp_path / "plan.json").read_text())["request"] == picked["request"]


def test_gpus_that_are_not_verified_have_a_line_and_rows_with_details(tiny_checkpoint: Path) -> None:
    kinds = json.loads(run("plan", tiny_checkpoint, "--json").stdout)["kinds"]
    others = [f"{kind['gpus']} {kind['gpu']}" for kind in kinds if not kind["verified"] and kind["gpus"]]
    short, long = run("plan", tiny_checkpoint).stdout, run("plan", tiny_checkpoint, "--details").stdout
    assert f"Not verified, by bytes alone (--details): {', '.join(others)}" in " ".join(short.split())
    assert "Not verified, by bytes alone" not in long
    for number, kind in enumerate(kinds, 1):
        row = re.compile(rf"^ *{number}  {kind['gpu']} ", re.MULTILINE)
        assert row.search(long), "rows have the numbers of --pick"
        assert bool(row.search(short)) is kind["verified"]


def test_an_engine_without_code_for_the_gpu_is_not_searched(tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="has no code for GPUs of AMD"):
        dsv4_shard.search(tiny_checkpoint, gpus=2, gpu="mi355x", engine="trtllm")
    found = dsv4_shard.search(tiny_checkpoint, gpus=2, gpu="mi355x")
    assert not any("TensorRT" in reason for reason in found.unknown)
    assert {layout.deployment.engine for layout in found.unverified} == {"sglang", "vllm", "reference"}


def test_a_row_of_a_search_is_picked_too(tiny_checkpoint: Path) -> None:
    layouts = json.loads(run("plan", tiny_checkpoint, "--gpus", 2, "--gpu", "h200", "--json").stdout)["layouts"]
    picked = json.loads(run("plan", tiny_checkpoint, "--gpus", 2, "--gpu", "h200", "--pick", 3, "--json").stdout)
    assert picked["request"] == layouts[2]["request"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--pick", 1000), "there are "),
        (("--tp", 2, "--pick", 1), "--pick and --tp"),
        (("--rank-by", "sent"), "--rank-by without --gpus"),
        (("-o", "plan.json"), "--output without a layout"),
    ],
)
def test_options_that_mean_nothing_without_a_layout_are_refused(
    arguments: tuple[object, ...], said: str, tiny_checkpoint: Path
) -> None:
    refused = run("plan", tiny_checkpoint, *arguments)
    assert refused.exit_code == ExitCode.USAGE
    assert said in refused.stderr


def test_an_engine_that_runs_nothing_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="writes folders for one layout"):
        dsv4_shard.fewest(tiny_checkpoint, engine="node")
