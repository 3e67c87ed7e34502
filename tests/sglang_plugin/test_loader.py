"""The loader in SGLang's stand-in: it fills a model with SGLang's own bytes, or refuses in one line before it copies.

`python -m conformance loader` tests the same in SGLang itself.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.checkpoints.small import open_folder
from support.planned_cases import plan_case
from support.sglang_process import Model, Process, standin

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

EP = Case("sglang", "fp4", "marlin", 2, ep=2, shared="whole")
TARGETS = (
    EP,
    Case("sglang", "fp4", "flashinfer_mxfp4", 2, shared="split"),
    Case("sglang", "fp8", "triton", 2, ep=2, dp=2, shared="split"),
    Case("sglang", "fp4", "marlin", 4, ep=2, dp=2, shared="whole"),
)
STAGES = Case("sglang", "fp4", "marlin", 2, shared="whole", pp=2, partition="2,1")
STAGED = (
    STAGES,
    Case("sglang", "fp4", "marlin", 2, ep=2, dp=2, shared="whole", pp=3),
    Case("sglang", "fp8", "triton", 2, shared="split", pp=2),
)
PLACED = (
    Case("sglang", "fp4", "marlin", 2, ep=2, shared="whole", redundant=2),
    Case("sglang", "fp4", "marlin", 2, ep=2, shared="whole", redundant=2, locations="strided-ten"),
    Case("sglang", "fp4", "marlin", 2, ep=2, shared="whole", locations="strided"),
)
DRAFT = Case("sglang", "fp4", "marlin", 2, ep=2, shared="whole", draft=True)


@pytest.fixture(autouse=True)
def _sglang() -> Iterator[None]:
    with standin():
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """reshard's output for a case, written once. Only to be read."""
    root = tmp_path_factory.mktemp("written")

    def write(case: Case) -> Path:
        source, out = root / case.variant, root / re.sub("-draft", "", case.name)
        if not source.exists():
            write_variant(source, case.variant)
        if not out.exists():
            checkpoint, inventory = open_folder(source)
            plan = make_plan(checkpoint, inventory, Request(**case.request))
            reshard(prepare(checkpoint, inventory, plan), checkpoint, out, workers=1)
        return out / "draft" if case.draft else out

    return write


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    """Rank 1 of EP 2."""
    return Process(read_oracle(committed_path(EP)), 1, monkeypatch)


@pytest.fixture
def folder(written: Callable[[Case], Path], tmp_path: Path) -> Path:
    """A copy of EP's files, to be damaged."""
    return shutil.copytree(written(EP), tmp_path / "out")


def refused(process: Process, folder: Path, reason: str, extra: Any = None) -> None:
    """The loader refuses in one line, for a reason, and has copied nothing."""
    with pytest.raises(ShardError) as caught:
        process.load(folder, extra)
    assert re.search(reason, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)
    for model in process.built:
        assert model.steps == []
        assert describe(model.state_dict()) == describe(process.build().state_dict())


# --- what it loads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "rank"),
    [(case, rank) for case in (*TARGETS, *STAGED, *PLACED, DRAFT) for rank in case.ranks],
    ids=lambda value: value.name if isinstance(value, Case) else value,
)
@pytest.mark.parametrize("extra", [None, '{"verify": true}'], ids=["plain", "verify"])
def test_every_parameter_is_what_sglang_itself_loads(
    case: Case, rank: int, extra: str | None, written: Callable[[Case], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert case in CASES
    oracle = read_oracle(committed_path(case))
    model = Process(oracle, rank, monkeypatch).load(written(case), extra)
    (first, state), *others = model.steps
    assert {name: param for name, param in state.items() if name not in oracle.unloaded} == oracle.ranks[rank]
    assert [first, *(step for step, _ in others)] == ["post_load", "process"]
    assert not model.training


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], tuple[Path, str]]:
    """A case's checkpoint, and the loader's options with the plan for it."""
    root = tmp_path_factory.mktemp("planned")

    def plan(case: Case) -> tuple[Path, str]:
        source, path = plan_case(root, case)
        return source, json.dumps({"plan": path})

    return plan


@pytest.mark.parametrize(
    ("case", "rank"),
    [(case, rank) for case in (*TARGETS, DRAFT) for rank in case.ranks],
    ids=lambda value: value.name if isinstance(value, Case) else value,
)
def test_the_checkpoint_itself_gives_every_parameter_what_sglang_loads(
    case: Case, rank: int, planned: Callable[[Case], tuple[Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = read_oracle(committed_path(case))
    model = Process(oracle, rank, monkeypatch).load(*planned(case))
    (first, state), *others = model.steps
    assert {name: param for name, param in state.items() if name not in oracle.unloaded} == oracle.ranks[rank]
    assert [first, *(step for step, _ in others)] == ["post_load", "process"]


def test_a_direct_load_reads_less_than_the_checkpoint_and_says_how_much(
    process: Process, planned: Callable[[Case], tuple[Path, str]], caplog: pytest.LogCaptureFixture
) -> None:
    folder, options = planned(EP)
    with caplog.at_level(logging.INFO):
        process.load(folder, options)
    [line] = [record.getMessage() for record in caplog.records if record.name.startswith("dsv4_shard")]
    found = re.fullmatch(
        r"dsv4_shard: rank 1: \d+ parameters, .*/s\), from ([\d.]+) MB of the checkpoint, plan and headers verified",
        line,
    )
    assert found is not None, line
    whole = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert float(found[1]) * 1e6 < 0.8 * whole


def test_a_parameter_that_is_not_contiguous_is_filled_too(
    process: Process, planned: Callable[[Case], tuple[Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = process.build

    def turned() -> Any:
        model = build()
        parameter = model.get_parameter("model.embed_tokens.weight")
        parameter.data = parameter.data.t().contiguous().t()
        return model

    monkeypatch.setattr(process, "build", turned)
    model = process.load(*planned(EP))
    assert not model.get_parameter("model.embed_tokens.weight").is_contiguous()
    state = describe(model.state_dict())
    assert state["model.embed_tokens.weight"] == process.oracle.ranks[1]["model.embed_tokens.weight"]


def test_a_plan_for_another_deployment_engine_or_checkpoint_is_refused_before_a_byte_is_copied(
    process: Process, planned: Callable[[Case], tuple[Path, str]], tmp_path: Path
) -> None:
    folder, _ = planned(EP)
    checkpoint, inventory = open_folder(folder)
    for request, reason in (
        (EP.request | {"tp": 4}, "^tp: the files are for 4, found 2"),
        ({"tp": 2, "engine": "reference"}, "a plan for reference, and this is SGLang"),
    ):
        (tmp_path / "plan.json").write_text(make_plan(checkpoint, inventory, Request(**request)).to_json())
        refused(process, folder, reason, {"plan": str(tmp_path / "plan.json")})
        process.built.clear()
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 1}))
    refused(process, other, "made for another checkpoint", planned(EP)[1])
    process.built.clear()
    refused(process, folder, "plan.json", {"plan": str(tmp_path / "nowhere" / "plan.json")})
    process.built.clear()
    refused(process, folder, "are known", {"plan": "plan.json", "verify": True})


@pytest.mark.parametrize(("extra", "what"), [(None, "headers"), ({"verify": True}, "bytes")])
def test_the_log_says_what_was_loaded_and_verified(
    extra: Any, what: str, process: Process, written: Callable[[Case], Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        process.load(written(EP), extra)
    loaded = len(process.oracle.ranks[1])
    [line] = [record.getMessage() for record in caplog.records if record.name.startswith("dsv4_shard")]
    assert re.fullmatch(
        rf"dsv4_shard: rank 1: {loaded} parameters, \S+ MB in \S+ s \(\S+ .B/s\), from 2 files, {what} verified",
        line,
    )
    page = (Path(__file__).parent.parent.parent / "docs" / "how-to" / "serve.md").read_text()
    assert f"`... {what} verified`" in page


def test_a_node_loads_from_a_folder_of_its_own_ranks_and_refuses_that_of_another(
    process: Process, tmp_path: Path
) -> None:
    write_variant(tmp_path / "source", EP.variant)
    checkpoint, inventory = open_folder(tmp_path / "source")
    plan = make_plan(checkpoint, inventory, Request(**EP.request))
    for rank in (0, 1):
        reshard(prepare(checkpoint, inventory, plan, (rank,)), checkpoint, tmp_path / str(rank), workers=1)
    assert process.load(tmp_path / "1").steps
    process.built.clear()
    refused(process, tmp_path / "0", "^the folder holds the ranks 0 of 2, not rank 1$")


def test_what_is_in_no_file_keeps_its_value(process: Process, written: Callable[[Case], Path]) -> None:
    before, after = describe(process.build().state_dict()), describe(process.load(written(EP)).state_dict())
    assert process.oracle.unloaded
    assert {name for name in after if before[name] == after[name]} == set(process.oracle.unloaded)


@pytest.mark.parametrize("locations", [None, "identity"])
def test_experts_in_their_own_slots_are_loaded(
    locations: str | None, process: Process, written: Callable[[Case], Path]
) -> None:
    if locations is None:
        process.place_nothing()
    else:
        process.moe.init_expert_location = '{"physical_to_logical_map": ...}'
    assert process.load(written(EP)).steps


def test_a_draft_does_not_depend_on_the_slots_of_its_target(
    written: Callable[[Case], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(read_oracle(committed_path(DRAFT)), 0, monkeypatch)
    process.place([list(reversed(range(10)))] * 3)
    process.moe.ep_num_redundant_experts = 2
    assert process.load(written(DRAFT)).steps


# --- what SGLang runs with -------------------------------------------------------------------------------------------

AS_PLANNED = "start SGLang as `launch` in plan.json says, or reshard for this deployment"

OTHER_FACTS = {
    "tp_size": (4, f"tp: the files are for 2, found 4: {AS_PLANNED}"),
    "moe_ep_size": (1, "ep: the files are for 2, found 1: start"),
    "attn_dp_size": (2, "attention_dp: the files are for 1, found 2: start"),
    "enable_dp_lm_head": (True, "lm_head: the files are for TP, found attention TP: start"),
    "pp_size": (2, "pp: the files are for 1, found 2: start SGLang with the plan's --pp-size, none if it has none"),
    "moe_dp_size": (2, "MoE DP: the files are for 1, found 2: start SGLang without --moe-dp-size"),
    "attn_cp_size": (2, "attention CP: the files are for 1, found 2: start SGLang without --attn-cp-size"),
    "elastic_ep_backend": ("nixl", "elastic EP: the files are for none, found nixl: start SGLang without --elastic"),
    "ep_num_redundant_experts": (
        16, "redundant experts: the files are for 0, found 16: start SGLang with the plan's --ep-num-redundant-experts",
    ),
    "moe_ep_rank": (0, "moe_ep_rank of rank 1: the files are for 1, found 0: start"),
    "moe_tp_rank": (1, "moe_tp_rank of rank 1: the files are for 0, found 1: start"),
    "attn_tp_rank": (0, "attn_tp_rank of rank 1: the files are for 1, found 0: start"),
    "tp_rank": (0, "moe_ep_rank of rank 0: the files are for 0, found 1"),
}  # fmt: skip


def namespace_of(process: Process, name: str) -> SimpleNamespace:
    return process.parallel if hasattr(process.parallel, name) else process.moe


@pytest.mark.parametrize("name", OTHER_FACTS)
def test_another_deployment_is_refused_with_both_values(
    name: str, process: Process, written: Callable[[Case], Path]
) -> None:
    value, reason = OTHER_FACTS[name]
    setattr(namespace_of(process, name), name, value)
    refused(process, written(EP), f"^{reason}")
    assert process.built == []


@pytest.mark.parametrize("name", [*OTHER_FACTS, "init_expert_location", "pp_rank"])
def test_a_fact_that_sglang_does_not_tell_is_a_refusal(
    name: str, process: Process, written: Callable[[Case], Path]
) -> None:
    delattr(namespace_of(process, name), name)
    refused(process, written(EP), f"SGLang 0.5.23 does not tell it .AttributeError: .*'{name}'.*: install it as it was")
    assert process.built == []


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        ([[1, 0, 2, 3, 4, 5, 6, 7]] * 3, "expert 1 in slot 0 of layer 0"),
        ([list(range(8))] * 2 + [[0, 1, 2, 3, 4, 5, 7, 6]], "expert 7 in slot 6 of layer 2"),
    ],
    ids=["first-layer", "last-layer"],
)
def test_experts_in_other_slots_are_refused(
    rows: list[list[int]], where: str, process: Process, written: Callable[[Case], Path]
) -> None:
    process.place(rows)
    found = rf"{where}, SHA-256 [0-9a-f]{{32}}"
    refused(
        process, written(EP), f"^expert locations: the files are for identity, found {found}: start SGLang with the"
    )


def test_more_slots_than_the_option_says_are_refused(process: Process, written: Callable[[Case], Path]) -> None:
    process.place([[*range(8), 0, 1]] * 3)
    refused(process, written(EP), "^redundant experts: the files are for 0, found 2: start SGLang with the plan's")


# --- pipeline stages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_files_of_swapped_stages_are_refused_by_name(
    shared: bool, written: Callable[[Case], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(written(STAGES), tmp_path / "out")
    first, last = (folder / f"model-pp-{stage}-tp-0-part-{int(shared)}.safetensors" for stage in (0, 1))
    first.rename(tmp_path / "first")
    last.rename(first)
    (tmp_path / "first").rename(last)
    whose = "all of stage 0" if shared else "0"
    reason = f"{last.name} holds the shards of rank {whose}, this is rank 2: swapped"
    refused(Process(read_oracle(committed_path(STAGES)), 2, monkeypatch), folder, f"^{reason}")


def test_files_for_other_layers_of_a_stage_are_refused(
    written: Callable[[Case], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = Case("sglang", "fp4", "marlin", 2, shared="split", pp=2)
    process = Process(read_oracle(committed_path(halves)), 3, monkeypatch)
    refused(
        process, written(STAGES),
        "^layers of stage 1: the files are for 2, found 1-2: set SGLANG_PP_LAYER_PARTITION as in the plan",
    )  # fmt: skip


def test_files_of_stages_do_not_load_without_stages(process: Process, written: Callable[[Case], Path]) -> None:
    process.parallel.moe_ep_size = 1
    refused(process, written(STAGES), "^pp: the files are for 2, found 1: start SGLang with the plan's --pp-size")


@pytest.mark.parametrize("case", PLACED, ids=lambda case: case.name)
def test_files_for_other_slots_are_refused_in_order(
    case: Case, written: Callable[[Case], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(read_oracle(committed_path(case)), 1, monkeypatch)
    process.place([list(range(8))] * 3)
    process.moe.ep_num_redundant_experts = 0
    refused(
        process, written(case), "^(redundant experts: the files are for 2, found 0|expert locations: .* found identity)"
    )


def test_locations_that_come_after_the_loader_are_refused(process: Process, written: Callable[[Case], Path]) -> None:
    process.place_nothing()
    process.moe.init_expert_location = "locations.json"
    refused(
        process, written(EP), "^expert locations: .* found an --init-expert-location that is not applied yet: start"
    )


def test_locations_without_a_table_are_refused(process: Process, written: Callable[[Case], Path]) -> None:
    process.put(object())
    refused(process, written(EP), "^redundant experts: SGLang 0.5.23 does not tell it .AttributeError")


@pytest.mark.parametrize(
    ("capability", "found"), [((10, 0), "Blackwell"), ((12, 0), "Blackwell"), ((8, 9), "sm_89"), ((12, 1), "sm_121")]
)
def test_another_gpu_is_refused(
    capability: tuple[int, int], found: str, process: Process, written: Callable[[Case], Path]
) -> None:
    process.capability = capability
    refused(process, written(EP), f"^gpu_family: the files are for Hopper, found {found}: reshard with --gpu of this")


def test_a_gpu_of_amd_is_not_taken_for_hopper(
    process: Process, written: Callable[[Case], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    process.capability = (9, 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    refused(process, written(EP), "^gpu_family: the files are for Hopper, found no CUDA")


def test_the_page_lists_every_fact() -> None:
    from dsv4_shard.sglang_plugin.running import FACTS

    page = (Path(__file__).parent.parent.parent / "docs" / "how-to" / "serve.md").read_text()
    refusals = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    listed = {name.strip() for cell in refusals for name in cell.split(",")}
    assert {fact.name for fact in FACTS} <= listed


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.5.24", "0.5.22", "0.5.23.post1", "0.5.24.dev3+gacee17e", "0.0.0.dev0"])
def test_another_version_is_refused(
    version: str, process: Process, written: Callable[[Case], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglang.__version__", version)
    reason = f"engine: this loader is verified with SGLang 0.5.23, found {version}: install SGLang 0.5.23, or a release"
    refused(process, written(EP), f"^{re.escape(reason)}")


def test_an_sglang_without_a_version_is_refused(
    process: Process, written: Callable[[Case], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("sglang.__version__")
    refused(process, written(EP), "^engine: this loader is verified with SGLang 0.5.23, found no version: install")


def test_a_packagers_build_of_the_version_is_taken(
    process: Process, written: Callable[[Case], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglang.__version__", "0.5.23+cu130")
    assert process.load(written(EP)).steps


def test_files_for_another_version_are_refused(
    process: Process, written: Callable[[Case], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv4_shard.sglang_plugin.SGLANG_VERSIONS", ("0.5.23", "0.5.24"))
    monkeypatch.setattr("sglang.__version__", "0.5.24")
    refused(process, written(EP), "^engine: the files are for sglang 0.5.23, found sglang 0.5.24: install that version")


def test_an_sglang_that_lacks_a_name_is_refused(
    process: Process, written: Callable[[Case], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("sglang.srt.runtime_context.get_exec")
    reason = (
        r"^engine: the loader does not import in SGLang 0.5.23 \(cannot import name 'get_exec' .*\): install SGLang"
    )
    refused(process, written(EP), reason)


def test_an_sglang_without_extension_points_gets_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from dsv4_shard.sglang_plugin import register

    monkeypatch.delattr("sglang.srt.arg_groups.choices.add_load_format_choices")
    with caplog.at_level(logging.WARNING):
        register()
    (record,) = caplog.records
    assert re.match("no load format dsv4_shard: cannot import name .* Install SGLang 0.5.23", record.getMessage())


def test_other_load_formats_stay_with_sglang(process: Process) -> None:
    from sglang.srt.configs.load_config import LoadConfig, LoadFormat
    from sglang.srt.plugins.hook_registry import HookRegistry

    from dsv4_shard.sglang_plugin import register

    register()
    HookRegistry.apply_hooks()
    assert LoadConfig("auto").load_format is LoadFormat.AUTO
    assert isinstance(LoadConfig("DSV4_shard").load_format, type)
    with pytest.raises(ValueError, match="is not a valid LoadFormat"):
        LoadConfig("dsv4")


# --- the model -------------------------------------------------------------------------------------------------------


def change_experts(process: Process, change: Callable[[Any], None], layer: int = 1) -> None:
    """Have one layer's routed experts built in another way."""

    def build() -> Model:
        model = Model(process.oracle, process.rank)
        change(model.get_submodule(f"model.layers.{layer}.mlp.experts"))
        return model

    process.build = build  # type: ignore[method-assign]


OTHER_EXPERTS: dict[str, tuple[Callable[[Any], None], str]] = {
    "method": (
        lambda experts: setattr(experts, "quant_method", type("Fp8MoEMethod", (), {})()),
        r"moe_runner: the files are for marlin, found Fp8MoEMethod with marlin in model\.layers\.1\.mlp\.experts: ",
    ),
    "backend": (
        lambda experts: setattr(experts, "runner_backend", SimpleNamespace(value="flashinfer_trtllm")),
        "moe_runner: the files are for marlin, found Mxfp4MarlinMoEMethod with flashinfer_trtllm in",
    ),
    "order": (
        lambda experts: setattr(type(experts.quant_method), "load_up_proj_weight_first", True),
        "w13_order: the files are for gate, up, found up, gate: start",
    ),
    "no-method": (
        lambda experts: delattr(experts, "quant_method"), "moe_runner: SGLang 0.5.23 does not tell it .AttributeError",
    ),
    "no-backend": (
        lambda experts: delattr(experts, "runner_backend"), "moe_runner: SGLang 0.5.23 does not tell it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_EXPERTS)
def test_experts_that_another_kernel_runs_are_refused_in_any_layer(
    name: str, process: Process, written: Callable[[Case], Path]
) -> None:
    change, reason = OTHER_EXPERTS[name]
    change_experts(process, change)
    refused(process, written(EP), f"^{reason}")


def test_a_model_without_routed_experts_is_refused(process: Process, written: Callable[[Case], Path]) -> None:
    process.build = lambda: torch.nn.Linear(2, 2)  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(LoadRefused, match=r"^moe_runner: no module of the model has routed experts \(w13_weight\)"):
        process.load(written(EP))


def test_a_parameter_of_another_shape_is_refused(process: Process, written: Callable[[Case], Path]) -> None:
    """As under `SGLANG_ENABLE_EMBED_REPLICATION`, which gives a table more rows."""

    def build() -> Model:
        model = Model(process.oracle, process.rank)
        head = model.get_submodule("lm_head")
        head.weight = torch.nn.Parameter(head.weight.repeat(2, 1), requires_grad=False)
        return model

    process.build = build  # type: ignore[method-assign]
    refused(process, written(EP), r"^lm_head\.weight is BF16 \[256, 256\] in the file, BF16 \[512, 256\] in the model")


def test_two_names_for_one_parameter_are_refused(process: Process, written: Callable[[Case], Path]) -> None:
    def build() -> Model:
        model = Model(process.oracle, process.rank)
        model.get_submodule("lm_head").weight = model.get_submodule("model.embed_tokens").weight
        return model

    process.build = build  # type: ignore[method-assign]
    refused(process, written(EP), r"lm_head\.weight and model\.embed_tokens\.weight are one parameter in the model")


# --- the files -------------------------------------------------------------------------------------------------------


def test_a_flipped_byte_is_refused_only_with_verify(process: Process, folder: Path) -> None:
    path = folder / "model-rank-1-part-0.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert process.load(folder, {"verify": False}).steps
    process.built.clear()
    with pytest.raises(LoadRefused, match=r"^model-rank-1-part-0\S* \S+: its bytes differ from what was written$"):
        process.load(folder, {"verify": True})
    assert process.built[-1].steps == [], "it is not used"


@pytest.mark.parametrize("extra", ['{"verfy": true}', '{"verify": "no"}', "[1]", '{"verify": true, "path": "x"}'])
def test_unknown_options_of_the_loader_are_refused(extra: str, process: Process, folder: Path) -> None:
    refused(
        process,
        folder,
        r'^--model-loader-extra-config is .*: \{\}, \{"verify": true\} and \{"plan": "plan.json"\} are known$',
        extra,
    )


def test_swapped_files_are_refused(process: Process, folder: Path) -> None:
    one, other = (folder / f"model-rank-{rank}-part-0.safetensors" for rank in (0, 1))
    one.rename(folder / "x"), other.rename(one), (folder / "x").rename(other)
    refused(process, folder, "^model-rank-1-part-0.* holds the shards of rank 0, this is rank 1: swapped")


def test_the_targets_files_are_not_loaded_as_a_draft(
    written: Callable[[Case], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(read_oracle(committed_path(DRAFT)), 0, monkeypatch)
    refused(process, written(EP), r"^\d+ parameters of the model are in no file: model\.decoder\.")


@pytest.mark.parametrize("engine", ["vllm", "reference"])
def test_files_for_another_engine_are_refused(
    engine: str, process: Process, written: Callable[[Case], Path], tmp_path: Path
) -> None:
    written(EP)
    checkpoint, inventory = open_folder(written(EP).parent / "fp4")
    plan = make_plan(checkpoint, inventory, Request(2, engine=engine, gpu="h200"))
    reshard(prepare(checkpoint, inventory, plan), checkpoint, tmp_path / "other", workers=1)
    identity = json.loads((tmp_path / "other" / "manifest.json").read_text())["identity"]
    layout = identity.get("layout", "no layout")
    reason = f"^layout: the files are for {layout}, found dsv4-shard sglang 1: reshard with --engine sglang"
    refused(process, tmp_path / "other", reason)
