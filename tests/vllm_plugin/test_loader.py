"""The loader in a stand-in for vLLM: it fills a model with vLLM's own bytes, or refuses in one line before it copies.

`python -m conformance files` loads the same files in vLLM itself.
"""

import logging
import re
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints.small import open_folder
from support.planned_cases import plan_case
from support.vllm_process import Process

from conformance.cases import CASES, Case
from conformance.digests import read_oracle
from conformance.oracles import committed_path
from conformance.states import describe
from conformance.tiny import write_variant
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import LoadRefused, ShardError
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.run import reshard

EP = Case("vllm", "fp4", "auto", 2, 4, 2)
TARGETS = (
    EP,
    Case("vllm", "fp4", "auto", 1, 4, 4),
    Case("vllm", "fp4", "auto", 2, 1, 2),
    Case("vllm", "fp4-thirds", "auto", 2, 4, 2),
    Case("vllm", "fp8f32", "auto", 2, 4, 2),
    Case("vllm", "fp4", "auto", 2, 2),
    Case("vllm", "fp4", "auto", 2, 2, pp=3),
    Case("vllm", "fp4", "auto", 2, pp=2, partition="1,2"),
    Case("vllm", "fp8f32", "auto", 2, pp=2),
)
STAGES = TARGETS[-2]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """reshard's output for a case, written once. Only to be read."""
    root = tmp_path_factory.mktemp("written")

    def write(case: Case) -> Path:
        source, out = root / case.variant, root / case.name
        if not source.exists():
            write_variant(source, case.variant)
        if not out.exists():
            checkpoint, inventory = open_folder(source)
            plan = make_plan(checkpoint, inventory, Request(**case.request))
            reshard(prepare(checkpoint, inventory, plan), checkpoint, out, workers=1)
        return out

    return write


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    """The first rank of the second of two replicas."""
    oracle = read_oracle(committed_path(EP))
    return Process(oracle, 3, monkeypatch)


@pytest.mark.parametrize(
    ("case", "rank"),
    [(case, rank) for case in TARGETS for rank in case.ranks],
    ids=lambda value: value.name if isinstance(value, Case) else value,
)
def test_every_parameter_is_what_vllm_itself_loads(
    case: Case, rank: int, written: Callable[[Case], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert case in CASES
    oracle = read_oracle(committed_path(case))
    process = Process(oracle, rank, monkeypatch)
    model = process.build()
    process.load(written(case), model)
    assert describe(model.state_dict()) == oracle.ranks[rank]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], tuple[Path, str]]:
    """A case's checkpoint, and its plan."""
    root = tmp_path_factory.mktemp("planned")

    def plan(case: Case) -> tuple[Path, str]:
        return plan_case(root, case)

    return plan


@pytest.mark.parametrize(
    ("case", "rank"),
    [(case, rank) for case in TARGETS for rank in case.ranks],
    ids=lambda value: value.name if isinstance(value, Case) else value,
)
def test_the_checkpoint_itself_gives_every_parameter_what_vllm_loads(
    case: Case, rank: int, planned: Callable[[Case], tuple[Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert case in CASES
    oracle = read_oracle(committed_path(case))
    process = Process(oracle, rank, monkeypatch)
    model = process.build()
    folder, plan = planned(case)
    process.load(folder, model, {"plan": plan})
    assert describe(model.state_dict()) == oracle.ranks[rank]


def test_a_draft_is_not_loaded_by_a_plan(process: Process, planned: Callable[[Case], tuple[Path, str]]) -> None:
    folder, plan = planned(EP)
    process.oracle = replace(process.oracle, case=replace(EP, draft=True))
    with pytest.raises(LoadRefused, match=r'^draft model: .*"draft_load_config": \{"load_format": "auto"\}'):
        process.load(folder, process.build(), {"plan": plan})


def test_a_plan_for_sglang_is_refused(
    process: Process, planned: Callable[[Case], tuple[Path, str]], tmp_path: Path
) -> None:
    folder, _ = planned(EP)
    checkpoint, inventory = open_folder(folder)
    plan = tmp_path / "plan.json"
    plan.write_text(make_plan(checkpoint, inventory, Request(tp=2, engine="sglang")).to_json())
    with pytest.raises(LoadRefused, match="a plan for sglang, and this is vLLM"):
        process.load(folder, process.build(), {"plan": str(plan)})


@pytest.mark.parametrize(("extra", "what"), [(None, "headers"), ({"verify": True}, "bytes")])
def test_the_log_says_what_was_loaded_and_verified(
    extra: Any, what: str, process: Process, written: Callable[[Case], Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        process.load(written(EP), process.build(), extra)
    [line] = [record.getMessage() for record in caplog.records if record.name.startswith("dsv4_shard")]
    loaded = len(process.oracle.ranks[3])
    assert re.fullmatch(
        rf"dsv4_shard: rank 3: {loaded} parameters, \S+ MB in \S+ s \(\S+ .B/s\), from 2 files, {what} verified",
        line,
    )


def refused(process: Process, folder: Path, reason: str, change: Callable[[Any], None] = lambda _: None) -> None:
    """The loader refuses in one line, for a reason, and has copied nothing into a model with `change`."""
    model = process.build()
    change(model)
    before = describe(model.state_dict())
    with pytest.raises(ShardError) as caught:
        process.load(folder, model)
    assert re.search(reason, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)
    assert describe(model.state_dict()) == before


def test_files_of_swapped_stages_are_refused_by_name(
    written: Callable[[Case], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(written(STAGES), tmp_path / "out")
    first, last = (folder / f"model-pp-{stage}-tp-1-part-0.safetensors" for stage in (0, 1))
    first.rename(tmp_path / "first")
    last.rename(first)
    (tmp_path / "first").rename(last)
    process = Process(read_oracle(committed_path(STAGES)), 3, monkeypatch)
    refused(process, folder, f"^{last.name} holds the shards of rank 1, this is rank 3: swapped")


def test_files_for_other_layers_of_a_stage_are_refused(
    written: Callable[[Case], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = Case("vllm", "fp4", "auto", 2, pp=2)
    process = Process(read_oracle(committed_path(halves)), 0, monkeypatch)
    reason = "^layers of stage 0: the files are for 0, found 0-1: set VLLM_PP_LAYER_PARTITION as in the plan"
    refused(process, written(STAGES), reason)


AS_PLANNED = "start vLLM as `launch` in plan.json says, or reshard for this deployment"


@pytest.mark.parametrize(
    ("group", "size", "reason"),
    [
        ("tp", 4, f"^tp: the files are for 2, found 4: {AS_PLANNED}"),
        ("dp", 1, "^dp: the files are for 2, found 1: start"),
        ("pp", 2, "^pp: the files are for 1, found 2: start vLLM with the plan's --pipeline-parallel-size, none if"),
        ("pcp", 2, "^prefill CP: the files are for 1, found 2: start vLLM without --prefill-context-parallel-size"),
    ],
)
def test_another_deployment_is_refused_with_both_values(
    group: str, size: int, reason: str, process: Process, written: Callable[[Case], Path]
) -> None:
    process.groups[group].world_size = size
    refused(process, written(EP), reason)


def test_expert_parallelism_that_is_off_is_refused(process: Process, written: Callable[[Case], Path]) -> None:
    process.parallel.enable_expert_parallel = False
    refused(process, written(EP), "^ep: the files are for 4, found 1: start")


def test_redundant_experts_are_refused(process: Process, written: Callable[[Case], Path]) -> None:
    process.parallel.eplb_config.num_redundant_experts = 16
    refused(process, written(EP), "^redundant experts: the files are for 0, found 16: start vLLM without num_redundant")


def test_files_without_a_group_of_data_parallelism_are_for_one_replica(
    process: Process, written: Callable[[Case], Path]
) -> None:
    refused(process, written(TARGETS[-1]), "^dp: the files are for 1, found 2: start")


def _other_rank(model: torch.nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "expert_map_manager"):
            module.expert_map_manager.ep_rank = 2


def _round_robin(model: torch.nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "expert_map_manager"):
            placed = torch.full((8,), -1, dtype=torch.int32)
            placed[3::4] = torch.arange(2, dtype=torch.int32)
            module.expert_map_manager.expert_map = placed


def _no_experts(model: torch.nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "expert_map_manager"):
            del module.expert_map_manager


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_other_rank, r"EP rank, .*: the files are for \(4, 3, 1, 0\), found \(4, 2, 1, 0\)"),
        (_round_robin, "^experts: rank 3 has experts 6 to 7 in its files, and vLLM has others in .*: start vLLM with"),
        (_no_experts, "^experts: no module of the model has routed experts"),
    ],
)
def test_a_model_with_other_experts_is_refused(
    change: Callable[[Any], None], reason: str, process: Process, written: Callable[[Case], Path]
) -> None:
    refused(process, written(EP), reason, change)


def test_files_for_sglang_are_refused(process: Process, written: Callable[[Case], Path]) -> None:
    sglang = Case("sglang", "fp4", "marlin", 2, ep=2, shared="whole")
    refused(
        process, written(sglang), "^layout: the files are for dsv4-shard sglang 1, found dsv4-shard vllm 1: reshard"
    )


def test_an_unknown_option_is_refused(process: Process, written: Callable[[Case], Path]) -> None:
    with pytest.raises(LoadRefused, match=r'^--model-loader-extra-config is .*\{"plan": "plan.json"\} are known$'):
        process.load(written(EP), process.build(), {"pattern": "x"})


@pytest.mark.parametrize(("version", "registered"), [("0.33.0+cu129", True), ("0.34.0", False), ("0.33.1.dev3", False)])
def test_only_a_vllm_that_the_loader_was_run_with_gets_the_format(
    version: str, registered: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from dsv4_shard.vllm_plugin import register

    process = Process(read_oracle(committed_path(EP)), 0, monkeypatch, version)
    register()
    assert ("dsv4_shard" in process.formats) == registered
    warned = [record.getMessage() for record in caplog.records]
    assert warned == (
        [] if registered else [f"no load format dsv4_shard: it is verified with vLLM 0.33.0, found {version}"]
    )


def test_the_wheel_names_the_entry_point_that_vllm_looks_for() -> None:
    project = tomllib.loads((Path(__file__).parent.parent.parent / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {"dsv4_shard": "dsv4_shard.vllm_plugin:register"}
