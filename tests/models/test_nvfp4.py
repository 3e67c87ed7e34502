"""NVIDIA's NVFP4 experts: told from their tensors, complete or named, refused or whole in node folders."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.full_size import PRO_NVFP4, V41, Tensors, in_memory, inventory_of
from support.checkpoints.skeletons import to_nvfp4
from support.checkpoints.small import load_checkpoint, open_folder, raw, rewrite, small_config, write_nvfp4
from support.command_line import root_of, run
from typer.testing import CliRunner

from dsv4_shard.checkpoint.findings import Severity
from dsv4_shard.checkpoint.formats import Format
from dsv4_shard.checkpoint.inventory import Inventory, take_inventory
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, tensors_of
from dsv4_shard.cli import app
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import ExitCode, InfeasiblePlan, UnequalScales
from dsv4_shard.inspection.known_family import inspect
from dsv4_shard.models.roles import Part, Role, Stage
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.run import reshard
from dsv4_shard.tensors.geometry import Block
from dsv4_shard.verification.moe_numerics import check_numerics
from dsv4_shard.verification.result_folder import verify

NVFP4 = Format("NVFP4", Block(1, 16), "F8_E4M3")
FP4 = Format("FP4", Block(1, 32), "F8_E8M0")
QUANTIZATION = {"moe_quant_algo": "NVFP4", "group_size": 16, "ignore": ["head", "mtp.*"]}
"""What engines look at of what NVIDIA adds to config.json."""
ADDED = {"quantization_config": DEMO_CONFIG["quantization_config"] | QUANTIZATION}
CONFIG = DEMO_CONFIG | ADDED
ALL = to_nvfp4(tensors_of(DEMO_CONFIG))
STEM = "layers.1.ffn.experts.3.w2"


def take(tensors: Tensors, document: dict[str, Any] = CONFIG) -> Inventory:
    return take_inventory(in_memory(document, tensors))


def message(inventory: Inventory, code: str) -> str:
    (finding,) = [finding for finding in inventory.findings if finding.code == code]
    return finding.message


# --- what it is ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_checkpoint_is_complete_and_its_formats_are_told_from_its_headers() -> None:
    checkpoint, inventory = inventory_of(PRO_NVFP4)
    assert inventory.findings == ()
    assert sum(name.startswith("layers.") and ".ffn.experts." in name for name in checkpoint.tensors) == 281_088
    assert inventory.routed == NVFP4
    assert str(inventory.routed) == "NVFP4 1×16, F8_E4M3 scales"
    assert inventory.format(Role.ROUTED_DOWN, Stage.MTP) == FP4
    assert inventory.shared == Format("FP8", Block(128, 128), "F8_E8M0")
    for group in inventory.groups:
        if group.stage is Stage.LAYER and group.role is Role.ROUTED_DOWN:
            shapes = {Part.WEIGHT: (7168, 3072), Part.GROUP_SCALE: (7168, 192)}
            assert group.shape == shapes.get(group.part, ())


@pytest.mark.slow
def test_its_inspection_shows_the_parts_and_what_divides() -> None:
    checkpoint, inventory = inventory_of(PRO_NVFP4)
    inspection = inspect(checkpoint, inventory, (8, 16))
    rows = {(row.part, row.dtype): row for row in inspection.roles if row.module == "routed experts"}
    assert rows[Part.WEIGHT, "NVFP4 (U8)"].block == "1×16"
    assert rows[Part.WEIGHT, "FP4 (I8)"].block == "1×32"
    assert rows[Part.TENSOR_SCALE, "F32"].tensors == 61 * 384 * 3
    assert rows[Part.TENSOR_SCALE, "F32"].bytes == 61 * 384 * 3 * 4
    (columns,) = [one for one in inspection.dimensions if one.name == "routed w2 columns"]
    assert (columns.unit, columns.units, columns.scale_size) == (16, 192, 192)
    verdicts = {cell.engine: cell.verdict for cell in inspection.matrix if cell.rule == "nvfp4"}
    assert verdicts == {"trtllm": "not verified", "reference": "does not run"}
    runs = {cell.engine for cell in inspection.matrix if cell.verdict in ("runs", "runs with changes")}
    assert runs >= {"sglang", "vllm"}


def test_mtp_experts_may_be_nvfp4_too() -> None:
    document = DEMO_CONFIG | {"quantization_config": QUANTIZATION | {"ignore": ["head"]}}
    inventory = take(to_nvfp4(tensors_of(DEMO_CONFIG), ("layers.", "mtp.")), document)
    assert inventory.findings == ()
    assert inventory.format(Role.ROUTED_UP, Stage.MTP) == NVFP4


def test_nvfp4_only_in_the_mtp_block_is_a_draft_to_be_planned_separately() -> None:
    inventory = take(to_nvfp4(tensors_of(DEMO_CONFIG), ("mtp.",)), DEMO_CONFIG)
    assert [(one.severity, one.code) for one in inventory.findings] == [(Severity.WARNING, "mtp-format")]


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"moe_quant_algo": None}, "expert-dtype", "expert_dtype 'fp4', but the experts are NVFP4 1×16"),
        ({"moe_quant_algo": "MXFP8"}, "expert-dtype", "moe_quant_algo 'MXFP8', but the experts are NVFP4"),
        ({"group_size": 32}, "group-size", "group_size 32, NVFP4 has groups of 16"),
        ({"group_size": "x"}, "group-size", "group_size 'x'"),
        ({"ignore": ["head"]}, "ignored-mtp", "experts are FP4, but config.json's ignore list lacks mtp"),
    ],
)
def test_a_config_that_contradicts_the_headers_is_reported_and_not_fatal(
    changes: dict[str, Any], code: str, said: str
) -> None:
    inventory = take(ALL, DEMO_CONFIG | {"quantization_config": QUANTIZATION | changes})
    (finding,) = inventory.findings
    assert (finding.severity, finding.code) == (Severity.WARNING, code)
    assert said in finding.message


def test_a_config_that_says_nvfp4_of_fp4_experts_is_reported() -> None:
    (finding,) = take(tensors_of(DEMO_CONFIG)).findings
    assert (finding.severity, finding.code) == (Severity.WARNING, "expert-dtype")
    assert "moe_quant_algo 'NVFP4', but the experts are FP4 1×32" in finding.message


# --- what is missing or odd ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["weight_scale_2", "input_scale"])
def test_a_missing_scalar_is_an_error_that_names_it(part: str) -> None:
    inventory = take({name: tensor for name, tensor in ALL.items() if name != f"{STEM}.{part}"})
    assert message(inventory, "missing-scales") == f"1 scales of NVFP4 weights are missing: {STEM}.{part}"
    assert len(inventory.errors) == 1


def test_a_missing_group_scale_is_an_error_that_names_its_weight() -> None:
    inventory = take({name: tensor for name, tensor in ALL.items() if name != f"{STEM}.weight_scale"})
    assert f"{STEM}.weight" in message(inventory, "missing-scales")
    assert f"{STEM}.weight_scale_2" in message(inventory, "needless-scales")


@pytest.mark.parametrize("part", ["weight_scale", "weight_scale_2", "input_scale"])
def test_scales_without_their_weight_are_an_error_that_names_them(part: str) -> None:
    inventory = take({name: tensor for name, tensor in ALL.items() if name != f"{STEM}.weight"})
    assert f"{STEM}.{part}" in message(inventory, "orphan-scales")
    assert f"{STEM}.weight" in message(inventory, "missing-tensors")


def test_a_scale_of_fp4_beside_an_nvfp4_weight_is_an_error_that_names_it() -> None:
    inventory = take(ALL | {f"{STEM}.scale": ("F8_E8M0", (256, 96))})
    assert f"1 scales are of another format than their weight: {STEM}.scale" in message(inventory, "needless-scales")


@pytest.mark.parametrize("part", ["weight_scale_2", "input_scale"])
def test_a_scalar_beside_an_fp4_weight_is_an_error_that_names_it(part: str) -> None:
    name = f"mtp.0.ffn.experts.3.w2.{part}"
    inventory = take(ALL | {name: ("F32", ())})
    assert name in message(inventory, "needless-scales")


def test_nvfp4_scales_beside_a_dense_weight_are_unknown() -> None:
    name = "layers.1.attn.wq_a.weight_scale"
    assert name in message(take(ALL | {name: ("F8_E4M3", (128, 16))}), "unknown-tensors")


@pytest.mark.parametrize(
    ("part", "tensor", "code"),
    [
        ("weight_scale", ("F8_E4M3", (256, 191)), "odd-scales"),
        ("weight_scale", ("F8_E4M3", ()), "odd-scales"),
        ("weight_scale", ("F8_E8M0", (256, 192)), "mixed-formats"),
        ("weight_scale_2", ("F32", (1,)), "odd-scales"),
        ("input_scale", ("F32", (1, 1)), "odd-scales"),
        ("weight_scale_2", ("BF16", ()), "odd-dtypes"),
        ("weight", ("I8", (256, 1536)), "mixed-formats"),
        ("weight", ("U8", (256, 1535)), "odd-shapes"),
    ],
)
def test_a_part_of_another_shape_or_dtype_is_an_error(
    part: str, tensor: tuple[str, tuple[int, ...]], code: str
) -> None:
    inventory = take(ALL | {f"{STEM}.{part}": tensor})
    assert code in {error.code for error in inventory.errors}


# --- plans and node folders ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["reference", "trtllm"])
@pytest.mark.parametrize("experts", [None, "fp8", "fp4"])
def test_engines_without_nvfp4_are_refused_with_the_reason(engine: str, experts: str | None) -> None:
    plan = make_plan(*inventory_of(PRO_NVFP4), Request(8, engine=engine, expert_dtype=experts))
    assert plan.breaches[0].rule == "nvfp4"
    assert ("own classes were not run" in plan.breaches[0].reason) is (engine != "reference")
    assert plan.verdict == ("does not run" if engine == "reference" else "not verified")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "verdict", "said"),
    [
        (Request(8), "runs with changes", "on Hopper, NVFP4 experts need runner marlin"),
        (Request(8, gpu="b200"), "runs", ""),
        (Request(8, engine="vllm"), "runs", ""),
        (Request(16, engine="vllm", gpu="b200"), "runs", ""),
        (Request(8, runner="auto"), "does not run", "Current platform does not support NVFP4 quantization"),
        (Request(8, runner="triton"), "does not run", "use moe_runner_backend=marlin on SM80+"),
        (Request(8, engine="vllm", runner="deep_gemm"), "does not run", "'deep_gemm' is not supported for NvFP4 MoE"),
        (Request(8, engine="vllm", runner="flashinfer_cutlass"), "not verified", "backend flashinfer_cutlass"),
        (Request(8, ep=8, a2a="deepep", gpu="b200"), "not verified", "an all-to-all backend"),
    ],
)
def test_plans_of_nvfp4_say_what_the_engine_does(request_: Request, verdict: str, said: str) -> None:
    plan = make_plan(*inventory_of(PRO_NVFP4), request_)
    assert plan.verdict == verdict
    words = [*map(str, plan.changes), *(f"{one.reason} {one.engine_says}" for one in plan.breaches)]
    assert any(said in text for text in words) or not said
    if not plan.breaches:
        on_hopper = request_.engine == "sglang" and request_.gpu is None
        assert [loss.part for loss in plan.losses] == (["the draft model"] if on_hopper else [])
        assert plan.layout == request_.engine


@pytest.mark.slow
@pytest.mark.parametrize(("gpu", "verdict"), [(None, "runs with changes"), ("b200", "runs with changes")])
def test_the_real_checkpoint_is_planned_as_node_folders(gpu: str | None, verdict: str) -> None:
    plan = make_plan(*inventory_of(PRO_NVFP4), Request(16, engine="node", nodes=2, gpu=gpu))
    assert plan.feasible
    assert (plan.layout, plan.verdict) == ("node", verdict)
    assert ("--moe-runner-backend marlin" in plan.launch.commands[0]) is (gpu is None)
    assert "vLLM 0.33.0 serves the same folders" in plan.notes[-1]
    formats = {(row.part_of, row.rank_dtype) for row in plan.modules if row.module == "routed experts"}
    assert formats == {("target", "NVFP4"), ("draft", "FP4")}


@pytest.mark.slow
def test_one_node_gets_no_folder() -> None:
    plan = make_plan(*inventory_of(PRO_NVFP4), Request(8, engine="node", gpu="b200"))
    assert plan.layout is None
    assert plan.unwritten == "one node needs every expert, which is the checkpoint as it is"


@pytest.mark.slow
@pytest.mark.parametrize("name", [V41])
def test_what_is_not_known_is_called_so_by_inspect_and_plan_alike(name: str) -> None:
    inspected = run("inspect", root_of(name), "--tp", "8").stdout
    assert re.search(r"^SGLang +\? \d+\.\d$", inspected, re.MULTILINE)
    planned = run("plan", root_of(name), "--tp", "8")
    assert planned.exit_code == ExitCode.NOT_VERIFIED
    assert planned.stdout.splitlines().count("? Not verified") == 1
    assert "oes not run" not in planned.stdout
    assert "No layout near it" not in planned.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with NVFP4 experts, FP4 ones in its MTP block. Only to be read."""
    return write_nvfp4(tmp_path_factory.mktemp("nvfp4") / "model", small_config(**ADDED), 47)


@pytest.mark.slow
def test_node_folders_have_all_parts_of_their_experts_bit_by_bit(model: Path, tmp_path: Path) -> None:
    checkpoint, inventory = open_folder(model)
    assert inventory.findings == ()
    out = tmp_path / "out"
    plan = make_plan(checkpoint, inventory, Request(4, engine="node", nodes=2))
    reshard(prepare(checkpoint, inventory, plan), checkpoint, out)
    assert verify(out).ok
    assert verify(out, (checkpoint, inventory)).ok
    source = load_checkpoint(model)
    for node in range(2):
        there = load_checkpoint(out / f"node-{node}")
        due = {
            name
            for name in source
            if ".ffn.experts." not in name or int(name.split(".")[4]) // 4 == node or name.endswith("input_scale")
        }
        assert there.keys() == due
        for name, tensor in there.items():
            assert (tensor.dtype, tensor.shape) == (source[name].dtype, source[name].shape), name
            assert raw(tensor) == raw(source[name]), name
        assert there[f"layers.1.ffn.experts.{node * 4}.w1.weight_scale_2"].shape == ()
        assert f"mtp.0.ffn.experts.{node * 4}.w1.scale" in there


def test_one_flipped_scalar_is_found(model: Path, tmp_path: Path) -> None:
    checkpoint, inventory = open_folder(model)
    out = tmp_path / "out"
    plan = make_plan(checkpoint, inventory, Request(4, engine="node", nodes=2))
    reshard(prepare(checkpoint, inventory, plan), checkpoint, out)
    (file,) = (out / "node-1").glob("*.safetensors")
    header_nbytes = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    name = "layers.0.ffn.experts.6.w3.input_scale"
    start = json.loads(file.read_bytes()[8:header_nbytes])[name]["data_offsets"][0]
    with file.open("r+b") as stream:
        stream.seek(header_nbytes + start)
        byte = stream.read(1)[0]
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 1]))
    for found in (verify(out), verify(out, (checkpoint, inventory))):
        (problem,) = found.problems
        assert problem.tensor == name


@pytest.mark.slow
def test_the_experts_of_all_nodes_add_up(model: Path, tmp_path: Path) -> None:
    checkpoint, inventory = open_folder(model)
    plan = make_plan(checkpoint, inventory, Request(4, engine="node", nodes=2))
    reshard(prepare(checkpoint, inventory, plan), checkpoint, tmp_path / "out")
    sums = check_numerics([tmp_path / "out"], checkpoint, inventory)
    assert sums.ok
    assert sums.error_on_every_rank > 1e-3


def test_reshard_for_an_engine_that_is_not_known_writes_nothing(model: Path, tmp_path: Path) -> None:
    checkpoint, inventory = open_folder(model)
    with pytest.raises(InfeasiblePlan, match="NVFP4"):
        prepare(checkpoint, inventory, make_plan(checkpoint, inventory, Request(2, engine="reference")))


def test_inspect_shows_it(model: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(model), "--details"])
    assert result.exit_code == 0
    assert "NVFP4 (U8)" in result.stdout
    assert "tensor scale" in result.stdout


def test_unequal_input_scales_of_gate_and_up_are_refused_for_sglang(tmp_path: Path) -> None:
    """SGLang keeps one value for both, the one that it reads last; vLLM keeps two."""
    folder = write_nvfp4(tmp_path / "model", small_config(**ADDED), 47)
    tensors = load_checkpoint(folder)
    tensors["layers.1.ffn.experts.3.w3.input_scale"] = tensors["layers.1.ffn.experts.3.w3.input_scale"] * 2
    checkpoint, inventory = open_folder(rewrite(folder, tensors))
    sglang, vllm = (make_plan(checkpoint, inventory, Request(2, engine=engine)) for engine in ("sglang", "vllm"))
    with pytest.raises(UnequalScales, match=r"layers\.1\.mlp\.experts\.w13_input_scale: .* first for expert 3"):
        reshard(prepare(checkpoint, inventory, sglang), checkpoint, tmp_path / "sglang")
    assert not (tmp_path / "sglang").exists()
    reshard(prepare(checkpoint, inventory, vllm), checkpoint, tmp_path / "vllm")
    assert verify(tmp_path / "vllm", (checkpoint, inventory)).ok
