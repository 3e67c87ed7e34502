"""The search: what it finds, how it ranks, and that known deployments are among what it finds."""

import json
import re
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.full_size import FLASH, PRO, PRO_FP8, PRO_NVFP4, V3, V41, inventory_of
from support.command_line import root_of, run
from support.deployments import DEPLOYMENTS, requested
from support.shell import joined

from dsv4_shard.catalog.request import Narrowing
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.registry import engine_for
from dsv4_shard.engines.sglang.runners import RUNNERS
from dsv4_shard.errors import ExitCode, UsageError
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.layouts import RANKINGS, rank_of
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.planning.search import Search, search


@cache
def found(
    model: str, gpus: int, gpu: str | None = None, engines: tuple[str, ...] = ("sglang", "vllm"), **more: Any
) -> Any:
    return search(*inventory_of(model), Request(gpus, gpu=gpu, **more), engines)


def every_option(result: Search) -> set[str]:
    return {options for layout in result.layouts if layout.fits for options in (layout.options, *layout.also)}


# --- deployments that SGLang's cookbook, vLLM's recipes and pull requests give ---------------------------------------


@pytest.mark.parametrize(("model", "gpus", "gpu", "engine", "options", "flags"), DEPLOYMENTS)
def test_a_deployment_that_others_run_is_found_for_its_hardware_with_its_flags(
    model: str, gpus: int, gpu: str, engine: str, options: dict[str, Any], flags: list[str]
) -> None:
    wanted = Request(**{"tp": gpus, "engine": engine, "gpu": gpu} | options)  # type: ignore[arg-type]
    deployment = choose(inventory_of(model)[1], wanted).deployment
    layouts = [requested(choice) for choice in every_option(found(model, gpus, gpu, (engine,)))]
    assert deployment in [choose(inventory_of(model)[1], request).deployment for request in layouts]
    plan = make_plan(*inventory_of(model), wanted, model)
    assert plan.feasible
    command = " ".join(f"{key}={value}" for key, value in plan.launch.environment.items()) + plan.launch.commands[0]
    for flag in flags:
        assert flag in command


@pytest.mark.parametrize(("model", "gpus", "gpu", "why"), [
    (PRO, 8, "mi355x", "not verified on AMD MI355X (gfx950)"),      # vLLM's recipe, TP 8
    (PRO, 16, "ascend-910c", "not verified on Ascend 910C"),  # vllm-ascend, w4a8
])  # fmt: skip
def test_of_deployments_on_gpus_that_are_not_known_the_search_says_so(
    model: str, gpus: int, gpu: str, why: str
) -> None:
    result = found(model, gpus, gpu)
    assert len(result.unknown) == 2
    assert all(why in reason for reason in result.unknown)
    assert (result.best, result.engines, result.layouts, result.elsewhere) == (None, (), (), ())


@pytest.mark.slow
def test_nvfp4_on_eight_b200_has_dynamos_recipe() -> None:
    """TP 8 with EP on vLLM."""
    result = found(PRO_NVFP4, 8, "b200")
    assert result.engines == ("sglang", "vllm")
    assert "--tp 8 --ep 8 --engine vllm --gpu b200" in every_option(result)


# --- what the numbers are -------------------------------------------------------------------------------------------


def plan_of(model: str, result: Search, index: int) -> Plan:
    return make_plan(*inventory_of(model), result.layouts[index].request, model)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "gpus", "gpu"), [(PRO, 16, "h20-96"), (FLASH, 4, "b200"), (V3, 16, "h100")])
def test_a_layouts_numbers_are_those_of_its_plan(model: str, gpus: int, gpu: str) -> None:
    result = found(model, gpus, gpu, ("sglang", "vllm", "reference"))
    assert result.layouts
    for index in {0, 1, len(result.layouts) // 2, len(result.layouts) - 1}:
        layout, plan = result.layouts[index], plan_of(model, result, index)
        assert plan.feasible is layout.fits
        assert plan.memory is not None
        assert plan.totals is not None
        assert (layout.weight_bytes, layout.left_bytes) == (plan.memory.weights, plan.memory.left)
        cache = plan.memory.kv_cache
        assert (layout.tokens, layout.sessions) == ((cache.tokens, cache.sessions) if cache else (None, None))
        assert layout.replicated_bytes == plan.totals.replicated_bytes_per_rank
        assert layout.padding_bytes == plan.totals.padding_bytes_per_rank
        assert layout.deployment.world == plan.deployment.world == gpus


@pytest.mark.parametrize(("model", "gpus", "gpu"), [(PRO, 16, "h20-96"), (PRO, 8, "h100"), (FLASH, 12, None)])
def test_what_fits_comes_first_and_then_the_lightest(model: str, gpus: int, gpu: str | None) -> None:
    layouts = found(model, gpus, gpu).layouts
    assert [(not one.fits, one.weight_bytes) for one in layouts] == sorted(
        (not one.fits, one.weight_bytes) for one in layouts
    )


@pytest.mark.parametrize(("model", "gpus", "gpu"), [(PRO, 16, "h20-96"), (FLASH, 8, "b200"), (PRO_FP8, 16, "h200")])
def test_no_layout_stands_twice_and_all_are_whole_deployments(model: str, gpus: int, gpu: str) -> None:
    inventory = inventory_of(model)[1]
    layouts = found(model, gpus, gpu).layouts
    options = [text for layout in layouts for text in (layout.options, *layout.also)]
    deployments = [choose(inventory, requested(text)) for text in options]
    assert all(choice.feasible for choice in deployments)
    assert len({choice.deployment for choice in deployments}) == len(options)


@pytest.mark.parametrize("wanted", [
    {"dp": 2, "ep": 4}, {"dp": 16, "ep": 16}, {"ep": 2, "runner": "marlin"}, {"a2a": "megamoe", "dp": 4},
    {"engine": "vllm", "tp": 4, "dp": 4}, {"engine": "vllm", "tp": 2, "dp": 8, "ep": 16},
])  # fmt: skip
def test_a_layout_that_the_rules_allow_is_not_missed(wanted: dict[str, Any]) -> None:
    inventory = inventory_of(PRO)[1]
    choice = choose(inventory, Request(**{"tp": 16, "gpu": "h200"} | wanted))  # type: ignore[arg-type]
    assert choice.feasible
    assert choice.deployment in {
        choose(inventory, requested(o)).deployment for o in every_option(found(PRO, 16, "h200"))
    }


@pytest.mark.slow
def test_all_that_the_rules_allow_on_eight_gpus_is_found_and_nothing_else() -> None:
    """Against every number for EP and DP, every runner, way and backend, also those that the search does not try."""
    inventory = inventory_of(FLASH)[1]
    runners, ways = (None, *RUNNERS), ("auto", "whole", "split", "pad")
    allowed = set()
    for ep, dp, runner, way, a2a in product(range(1, 9), range(1, 9), runners, ways, (None, "deepep", "megamoe")):
        if a2a is None or runner is None:
            request = Request(
                8, ep=None if a2a and ep == 8 else ep, dp=dp, runner=runner, shared_experts=way, a2a=a2a, gpu="h200"
            )
            choice = choose(inventory, request)
            allowed |= {choice.deployment} if choice.feasible else set()
    assert allowed == {
        choose(inventory, requested(o)).deployment for o in every_option(found(FLASH, 8, "h200", ("sglang",)))
    }


@pytest.mark.parametrize(("model", "gpus", "gpu"), [(PRO, 16, "h20-96"), (FLASH, 16, "h20-96"), (PRO, 8, "b200")])
def test_no_layout_of_fp4_experts_is_shown_with_the_fp8_method_that_only_an_all_to_all_backend_leaves(
    model: str, gpus: int, gpu: str
) -> None:
    inventory = inventory_of(model)[1]
    layouts = [
        choose(inventory, requested(text)).deployment for text in every_option(found(model, gpus, gpu, ("sglang",)))
    ]
    assert {(at.runner == "auto", at.a2a is not None) for at in layouts} == {(False, False), (True, True)}


def sent(**wanted: Any) -> int | None:
    inventory = inventory_of(PRO)[1]
    deployment = choose(inventory, Request(**wanted)).deployment
    return engine_for(deployment.engine, inventory.family).bytes_sent(Context(inventory, deployment))


def test_bytes_sent_follow_the_formulas() -> None:
    state = 2 * 7168
    assert sent(tp=1) == 0
    assert sent(tp=16) == 2 * 15 * state + 2 * 15 * state
    assert sent(tp=16, dp=4) == 2 * 3 * state + 2 * 15 * state
    assert sent(tp=16, dp=16, a2a="deepep") == 2 * 6 * 15 * state // 16
    assert sent(tp=8, dp=2, engine="vllm") == 2 * 7 * state + 2 * 15 * state
    mega = {"ep": 8, "engine": "vllm", "gpu": "b200", "runner": "deep_gemm_mega_moe"}
    assert sent(tp=8, **mega) == 2 * 7 * state + 2 * 6 * 7 * state // 8
    assert sent(tp=8, engine="reference") == 2 * (2 * 7 * 2 * state)
    assert sent(tp=8, engine="trtllm") is None


# --- where nothing runs ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_where_nothing_fits_more_gpus_and_another_gpu_are_named_and_both_run() -> None:
    result = found(PRO, 8, "h100")
    assert result.best is None
    assert [(way.gpus, way.gpu) for way in result.elsewhere] == [(16, "h100"), (8, "h20-141")]
    for way in result.elsewhere:
        assert make_plan(*inventory_of(PRO), requested(way.options), PRO).feasible


def test_where_no_layout_divides_fewer_or_more_gpus_are_named() -> None:
    result = found(FLASH, 7, "b200", ("reference",))
    assert result.layouts == ()
    assert [way.gpus for way in result.elsewhere] == [8, 4]


@pytest.mark.slow
def test_of_a_family_without_known_engines_nothing_is_verified() -> None:
    result = found(V41, 8, "b300", ("sglang", "vllm"))
    assert (result.engines, result.layouts, result.command, result.elsewhere) == ((), (), None, ())
    assert all("own loader was not run with" in reason for reason in result.unknown)
    assert [one.assumption is not None and one.fits for one in result.unverified] == [True, True]


@pytest.mark.slow
def test_engines_that_are_known_are_searched_beside_those_that_are_not() -> None:
    result = found(V41, 8, "b300", ("sglang", "reference"))
    assert result.engines == ("reference",)
    assert result.best is not None
    assert [reason.split(":")[0] for reason in result.unknown] == ["SGLang"]


@pytest.mark.slow
def test_the_command_says_of_what_nothing_is_known_and_does_not_call_it_unable_to_run() -> None:
    result = run("plan", root_of(PRO), "--gpus", "8", "--gpu", "mi355x", "--engine", "sglang")
    assert result.exit_code == ExitCode.NOT_VERIFIED
    assert "SGLang: not verified on AMD MI355X" in result.stdout
    assert "Nothing" not in result.stdout
    assert "--tp 8 --gpu mi355x: weights 102.4 GiB per GPU, 185.6 GiB free" in " ".join(result.stdout.split())


def test_an_engine_that_runs_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="engine='node': writes folders for one layout"):
        found(PRO, 16, "h200", ("node",))


def test_an_engine_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="no engine called 'tgi'"):
        found(PRO, 16, "h200", ("sglang", "tgi"))


# --- the order -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("by", "key"), [
    ("weights", lambda one: one.weight_bytes),
    ("tokens", lambda one: -(one.tokens or 0) * one.groups),
    ("sent", lambda one: one.sent_bytes_per_token_and_layer),
])  # fmt: skip
def test_layouts_that_fit_are_ranked_by_what_is_asked_for(by: str, key: Callable[..., Any]) -> None:
    result = search(*inventory_of(PRO), Request(16, gpu="h20-96"), ("sglang", "vllm"), by)
    fitting = [key(one) for one in result.layouts if one.fits]
    assert fitting == sorted(fitting)
    assert len(set(fitting)) > 1
    assert every_option(result) == every_option(found(PRO, 16, "h20-96"))


@pytest.mark.parametrize("by", RANKINGS)
def test_ties_are_broken_by_weights_tokens_copies_then_bytes_sent(by: str) -> None:
    keys = {
        "fits": (True, False),
        "weight_bytes": (1, 2),
        "tokens": (2, 1),
        "replicated_bytes": (1, 2),
        "sent_bytes_per_token_and_layer": (1, 2),
    }
    first = {"weights": "weight_bytes", "tokens": "tokens", "sent": "sent_bytes_per_token_and_layer"}[by]
    order = dict.fromkeys(("fits", first, *keys))
    one = found(PRO, 8, "h200").layouts[0]
    for key in order:
        later = list(order)[list(order).index(key) + 1 :]
        better = {key: keys[key][0]} | {other: keys[other][1] for other in later}
        worse = {key: keys[key][1]} | {other: keys[other][0] for other in later}
        assert rank_of(one.model_copy(update=better), by) < rank_of(one.model_copy(update=worse), by), key


@pytest.mark.slow
def test_the_command_says_by_what_it_ranks_and_plans_the_first_of_that() -> None:
    result = run("plan", root_of(PRO), "--gpus", "16", "--gpu", "h20-96", "--engine", "vllm", "--rank-by", "tokens")
    best = search(*inventory_of(PRO), Request(16, gpu="h20-96"), ("vllm",), "tokens").best
    assert best.options in joined(result.stdout).rsplit("Plan the first, or another with --pick N\n", 1)[1]
    assert "? not known, by which rows are ranked" in " ".join(result.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(("command", "options", "why"), [
    ("plan", ("--gpus", "16", "--rank-by", "speed"), "--rank-by 'speed': must be weights, tokens or sent"),
    ("plan", ("--gpus", "16", "--rank-by", "tokens"), "room is not known without --gpu or --gpu-memory"),
    ("plan", ("--tp", "16", "--rank-by", "sent"), "--rank-by without --gpus"),
    ("report", ("--tp", "16", "--rank-by", "sent"), "--rank-by without --gpus"),
])  # fmt: skip
def test_an_order_that_means_nothing_is_refused(
    command: str, options: tuple[str, ...], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(command, root_of(PRO), *options)
    assert (result.exit_code, why in result.stderr) == (ExitCode.USAGE, True)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_prints_a_table_of_eighty_columns_and_the_best_plan() -> None:
    result = run("plan", root_of(PRO), "--gpus", "16", "--gpu", "h20-96", "--engine", "sglang,vllm")
    assert result.exit_code == 0
    assert "Layouts that run" in result.stdout
    table, command = result.stdout.rsplit("Plan the first, or another with --pick N\n", 1)
    assert max(map(len, table.splitlines())) <= 80
    assert "These numbers do not predict speed" in " ".join(table.split())
    assert run(*joined(command).split()[1:]).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize(
    ("model", "options"), [(PRO, {"", "triton_unfused", "deepep"}), (FLASH, {"", "whole", "deepep"})]
)
def test_each_row_tells_what_has_to_be_asked_for_since_the_plan_does_not_take_it_by_itself(
    model: str, options: set[str], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    layouts = found(model, 16, "h20-96").layouts
    asked = [[one.request.runner, one.request.a2a, one.request.shared_experts] for one in layouts]
    wanted = [", ".join(word for word in words if word not in (None, "auto")) for words in asked[:12]]
    assert set(wanted) == options
    result = run("plan", root_of(model), "--gpus", "16", "--gpu", "h20-96", "--engine", "sglang,vllm")
    table = result.stdout.split("Layouts that run\n")[1].split("  and ")[0]
    rows = table.splitlines()[1:] if columns == 80 else re.split(r"^(?=\d+$)", table, flags=re.MULTILINE)[1:]
    told = [(re.findall(r"(?:\d  |options: )(triton_unfused|deepep|whole)$", row.rstrip()) or [""])[0] for row in rows]
    assert told == wanted


@pytest.mark.slow
def test_the_command_gives_json_and_writes_the_best_plan(tmp_path: Path) -> None:
    result = run("plan", root_of(FLASH), "--gpus", "8", "--gpu", "h100", "--json", "-o", tmp_path / "plan.json")
    document = json.loads(result.stdout)
    assert document["engines"] == ["sglang", "vllm", "reference", "trtllm"]
    assert Search.model_validate(document).best is not None
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["request"] == document["layouts"][0]["request"]
    assert plan["verdict"] == "runs"


@pytest.mark.slow
def test_the_command_ends_with_one_where_nothing_fits(tmp_path: Path) -> None:
    result = run("plan", root_of(PRO), "--gpus", "8", "--gpu", "h100", "--engine", "sglang", "-o", tmp_path / "plan")
    assert result.exit_code == ExitCode.NO
    assert "Nothing fits" in result.stdout
    assert "16 × NVIDIA H100 80 GB would do\n  dsv4-shard plan " in result.stdout
    assert not (tmp_path / "plan").exists()


def test_tp_is_refused_beside_gpus() -> None:
    result = run("plan", root_of(FLASH), "--gpus", "8", "--tp", "8")
    assert result.exit_code == ExitCode.USAGE
    assert "--gpus and --tp: the search tries them all" in result.stderr


def test_without_a_gpu_memory_is_not_looked_at() -> None:
    result = found(PRO, 16)
    assert all(one.fits and one.left_bytes is None and one.tokens is None for one in result.layouts)


def test_nodes_that_do_not_divide_the_gpus_are_refused() -> None:
    with pytest.raises(UsageError, match="nodes=3: 16 GPUs do not fall into so many equal nodes"):
        found(PRO, 16, "h200", nodes=3)


def test_the_reference_weighs_its_mtp_block_with_and_without_a_gpu() -> None:
    with_gpu, without = found(PRO, 16, "h200", ("reference",)), found(PRO, 16, None, ("reference",))
    assert with_gpu.layouts[0].weight_bytes == without.layouts[0].weight_bytes


@pytest.mark.slow
def test_memory_given_is_looked_at() -> None:
    assert found(PRO, 16, None, gpu_memory="95GiB").best is not None
    assert found(PRO, 16, None, gpu_memory="40GB").best is None


# --- a narrowed search ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [{"dp": 8}, {"ep": 8}, {"a2a": "deepep"}, {"runner": "marlin"}, {"shared_experts": "whole"}, {"dp": 2, "ep": 8}],
)
def test_a_narrowed_search_finds_what_the_whole_one_finds_with_these_options(given: dict[str, Any]) -> None:
    checkpoint, inventory = inventory_of(PRO)
    asked = Request(8, gpu="h200")

    def key(layout: Any) -> tuple[Any, ...]:
        return layout.deployment.engine, layout.deployment.tp, layout.weight_bytes, layout.deployment.dp

    names = {"shared_experts": "shared"}
    narrowed = search(checkpoint, inventory, asked, narrowing=Narrowing(**given))
    assert narrowed.layouts
    for layout in narrowed.layouts:
        assert {name: getattr(layout.deployment, names.get(name, name)) for name in given} == given
    everything = {key(layout) for layout in search(checkpoint, inventory, asked).layouts}
    assert {key(layout) for layout in narrowed.layouts} <= everything
    assert narrowed.tried <= 2000


@pytest.mark.slow
def test_options_beside_gpus_narrow_the_search_and_are_named() -> None:
    result = run("plan", root_of(PRO), "--gpus", "8", "--gpu", "b200", "--a2a", "deepep", "--dp", "4")
    assert result.exit_code == 0
    assert " ".join(result.stdout.split()).startswith(
        "8 × NVIDIA B200: SGLang, vLLM, DeepSeek reference, TensorRT-LLM, with --dp 4 --a2a deepep "
    )
    assert "--tp 8 --dp 4 --a2a deepep --gpu b200" in joined(result.stdout)
