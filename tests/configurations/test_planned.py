"""Plans of configurations: those of the same request, with what became of each option and what is lacking."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recipe_table import RECIPES, _plan, _sizes_of
from support.checkpoints.full_size import FLASH, PRO, inventory_of
from support.command_line import root_of, run
from support.paths import DATA
from support.schemas import validator

import dsv4_shard
from dsv4_shard.configurations import PlannedDeployment, planned, read_configuration
from dsv4_shard.errors import ExitCode, UsageError
from dsv4_shard.planning.document import Plan

FOLDER = DATA / "configurations"


def plan_of(command: str, gpu: str = "b200", model: str = PRO) -> PlannedDeployment:
    return planned(read_configuration(command), None, {"gpu": gpu}, lambda _: inventory_of(model))


def layouts() -> Iterator[tuple[dict[str, Any], str, int, int]]:
    """Each layout of public recipes, with a GPU and the sizes."""
    for entry in json.loads(RECIPES.read_text())["layouts"]:
        for tp, dp in itertools.product(entry["tp"], _sizes_of(entry)):
            yield entry, entry["gpus"][0], tp, dp or tp


def sglang_line(entry: dict[str, Any], tp: int, dp: int) -> str:
    words = ["sglang serve --model-path M", f"--tp-size {tp} --dp-size {dp}"]
    words += ["--enable-dp-attention"] if dp > 1 else []
    words += [f"--ep-size {tp}"] if "ep" in entry else []
    words += [f"--moe-a2a-backend {entry['a2a']}"] if "a2a" in entry else []
    words += [f"--moe-runner-backend {entry['runner']}"] if "runner" in entry else []
    words += ["--enable-dp-lm-head"] if entry.get("dp_lm_head") else []
    words += [f"--ep-num-redundant-experts {entry['redundant_experts']}"] if "redundant_experts" in entry else []
    return " ".join(words)


def vllm_line(entry: dict[str, Any], tp: int, dp: int) -> str:
    words = [f"vllm serve M --tensor-parallel-size {tp} --data-parallel-size {dp}"]
    words += ["--enable-expert-parallel"] if "ep" in entry else []
    backend = entry.get("asked", entry.get("runner"))
    return " ".join([*words, *([f"--moe-backend {backend}"] if backend else [])])


def trtllm_recipe(entry: dict[str, Any], tp: int, dp: int, path: Path) -> str:
    config = {"tensor_parallel_size": tp, "moe_expert_parallel_size": tp, "enable_attention_dp": dp > 1}
    backend = {"type": "trtllm", "trtllm_config": {"decode": config}}
    path.write_text(json.dumps({"model": {"path": "M"}, "backend": backend}))
    return str(path)


def what_matters(plan: Plan) -> dict[str, Any]:
    """All of a plan but the request, which names EP where an engine forces it anyway, and commands with its words."""
    return plan.model_dump(mode="json", exclude={"request", "source", "ways", "alternatives", "out"})


@pytest.mark.slow
def test_the_flags_of_every_layout_that_recipes_run_give_the_plan_of_the_layout(tmp_path: Path) -> None:
    """The layouts of 201 roles, each size once, on the first of its GPUs."""
    for entry, gpu, tp, dp in layouts():
        match entry["engine"]:
            case "sglang":
                command = sglang_line(entry, tp, dp)
            case "vllm":
                command = vllm_line(entry, tp, dp)
            case _:
                command = trtllm_recipe(entry, tp, dp, tmp_path / "recipe.yaml")
        [role] = plan_of(command, gpu).roles
        assert role.plan is not None, command
        assert what_matters(role.plan) == what_matters(_plan(entry, gpu, tp, dp)), command
        assert not role.others, command


def test_settings_that_the_plan_needs_and_the_command_has_not_are_named() -> None:
    [role] = plan_of("sglang serve --tp 16", "h20-96").roles
    assert role.lacks == ("SGLANG_SHARED_EXPERT_TP1=1", "--moe-runner-backend marlin")
    assert role.exit_code is ExitCode.NO
    whole = "SGLANG_SHARED_EXPERT_TP1=1 sglang serve --tp 16 --moe-runner-backend marlin"
    [role] = plan_of(whole, "h20-96").roles
    assert (role.lacks, role.exit_code) == ((), ExitCode.DONE)


@pytest.mark.parametrize(("value", "lacks"), [("1", ()), ("true", ()), ("0", ("SGLANG_SHARED_EXPERT_TP1=1",))])
def test_a_switch_that_is_off_is_lacking(value: str, lacks: tuple[str, ...]) -> None:
    command = f"SGLANG_SHARED_EXPERT_TP1={value} sglang serve --tp 16 --moe-runner-backend marlin"
    [role] = plan_of(command, "h20-96").roles
    assert role.lacks == lacks


def test_every_command_that_a_plan_prints_is_read_back_as_the_plan() -> None:
    """With its options for the draft, for each engine; nothing is left over, and nothing lacking."""
    requests: list[dict[str, Any]] = [
        {"tp": 16, "gpu": "h20-96"}, {"tp": 8, "dp": 8, "a2a": "deepep", "gpu": "b200"},
        {"tp": 8, "gpu": "h200", "engine": "vllm"}, {"tp": 4, "dp": 4, "ep": 16, "gpu": "h200", "engine": "vllm"},
        {"tp": 8, "gpu": "h100", "context": 8192},
    ]  # fmt: skip
    for model, request in itertools.product((PRO, FLASH), requests):
        plan = dsv4_shard.plan(root_of(model), **request)
        for way in plan.ways:
            command, _ = way.launch.on_every_node
            found = plan_of(f"{command} {way.launch.draft_options}", request["gpu"], model)
            [role] = found.roles
            assert role.plan is not None, command
            assert role.plan.deployment == plan.deployment, command
            assert (role.others, role.lacks) == ((), ()), command


@pytest.mark.parametrize(("command", "said"), [
    ("sglang serve --tp 8 --moe-runner-backend no-such", "--runner no-such"),
    ("vllm serve M -tp 8 --hf-overrides '{}'", "no plan has another model"),
    ("sglang serve --tp 100000", "--tp 100000"),
])  # fmt: skip
def test_what_cannot_be_planned_has_a_reason_and_no_plan(command: str, said: str) -> None:
    [role] = plan_of(command).roles
    assert role.plan is None
    assert said in str(role.reason)
    assert role.exit_code is ExitCode.NOT_VERIFIED


def test_options_that_are_not_understood_leave_it_open_whether_it_runs() -> None:
    [role] = plan_of("sglang serve --tp 8 --enable-layernorm-sp").roles
    assert role.plan is not None
    assert role.plan.verdict.is_good
    assert role.exit_code is ExitCode.NOT_VERIFIED


def test_given_options_count_in_place_of_the_configurations() -> None:
    found = planned(
        read_configuration(str(FOLDER / "llm-d-recipe.yaml")), "prefill", {"gpu": "gb200"}, lambda _: inventory_of(PRO)
    )
    assert "add it with --dp N" in str(found.roles[0].reason)
    found = dsv4_shard.plan_from(
        FOLDER / "llm-d-recipe.yaml", repo=str(root_of(PRO)), role="prefill", gpu="gb200", dp=8, ep=8
    )
    assert found.roles[0].plan is not None
    assert found.roles[0].plan.deployment.dp == 8


def test_a_value_that_the_configuration_does_not_set_can_be_given() -> None:
    command = "sglang serve --tp $TP --moe-runner-backend flashinfer_mxfp4"
    assert "not a number" in str(plan_of(command).roles[0].reason)
    [role] = planned(read_configuration(command), None, {"gpu": "b200", "tp": 8}, lambda _: inventory_of(PRO)).roles
    assert role.plan is not None
    assert role.plan.deployment.tp == 8


def test_the_command_lists_roles_or_plans_one(tmp_path: Path) -> None:
    recipe = FOLDER / "srt-slurm.yaml"
    listed = run("plan", root_of(PRO), "--from", recipe)
    assert listed.exit_code == ExitCode.NOT_VERIFIED  # --cuda-graph-max-bs is not of this version
    for said in ("prefill · 8 engines", "decode", "no such option: --cuda-graph-max-bs", "--role prefill or decode"):
        assert said in " ".join(listed.stdout.split())
    one = run("plan", root_of(PRO), "--from", recipe, "--role", "prefill", "-o", tmp_path / "plan.json")
    assert one.exit_code == 0, one.stdout
    assert "Write shards" in one.stdout or "Or write shards" in one.stdout
    assert json.loads((tmp_path / "plan.json").read_text())["request"]["dp_lm_head"] is True


def test_the_document_follows_its_schema() -> None:
    result = run("plan", root_of(PRO), "--from", FOLDER / "srt-slurm.yaml", "--json")
    document = json.loads(result.stdout)
    validator("deployment").validate(document)
    uses = {option["option"]: option["use"] for option in document["roles"][1]["options"]}
    assert uses["--cuda-graph-max-bs"] == "no such option"
    assert uses["--tp-size"] == "used"


@pytest.mark.parametrize(("words", "said"), [
    (["--from", FOLDER / "statefulset.yaml"], "names the checkpoint /models/shards, which is not here"),
    (["--from", "sglang serve --tp 8"], "names no checkpoint"),
    (["--from", FOLDER / "srt-slurm.yaml", "--role", "prefil"], "--role prefil"),
    (["--from", "vllm serve M", "--gpus", "8"], "--from and --gpus"),
    (["--tp", "8", "--role", "decode"], "--role without --from"),
])  # fmt: skip
def test_wrong_use_is_refused(words: list[Any], said: str) -> None:
    result = run("plan", *words)
    assert result.exit_code == ExitCode.USAGE
    assert said in result.stderr


def test_a_plan_file_holds_one_role(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="several roles"):
        dsv4_shard.plan_from(FOLDER / "srt-slurm.yaml", repo=str(root_of(PRO)), output=tmp_path / "plan.json")
