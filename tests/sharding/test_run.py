"""Rank files are the converter's, byte by byte; whatever cannot be right is refused before the first byte."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints.small import (
    contents,
    headers_only,
    job_for,
    least_config,
    load_checkpoint,
    load_tensors,
    open_folder,
    raw,
    reshard_folder,
    rewrite,
    small_config,
    umask,
    with_bf16_o_a,
    write_sparse,
)
from support.oracles import v4 as oracle
from support.paths import DATA

from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.engines.reference.converter import Converter, inference_config
from dsv4_shard.engines.reference.v4 import V4_CONVERTER
from dsv4_shard.engines.reference.v41 import V41_CONVERTER
from dsv4_shard.errors import (
    IncompleteCheckpoint,
    InexactCast,
    InfeasiblePlan,
    NotEnoughDisk,
    OutputError,
    OutputInsideInput,
    OutputNotEmpty,
    ShardError,
    UsageError,
)
from dsv4_shard.models.roles import Draft
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.run import reshard
from dsv4_shard.tensors.geometry import FP4_GROUP
from dsv4_shard.text.units import size


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("small") / "model", small_config(), seed=11)


@pytest.fixture(scope="module")
def source(small: Path) -> dict[str, torch.Tensor]:
    """The small checkpoint's tensors, by the format's own reader."""
    return load_checkpoint(small)


@pytest.fixture
def least(tmp_path: Path) -> Path:
    """The least checkpoint, to be changed."""
    return write_checkpoint(tmp_path / "model", least_config(), seed=12, mtp_blocks=0)


def assert_shards(out: Path, expected: list[dict[str, torch.Tensor]], scratch: Path) -> None:
    """Each rank's file holds these tensors, by a second reader, and is the file that safetensors itself would write."""
    mp = len(expected)
    for rank, tensors in enumerate(expected):
        path = out / f"model{rank}-mp{mp}.safetensors"
        found = load_tensors(path)
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
            assert raw(found[name]) == raw(tensor), name
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch)
        assert path.read_bytes() == scratch.read_bytes()


@pytest.mark.parametrize("expert_dtype", ["fp4", "fp8"])
@pytest.mark.parametrize("mp", [1, 2, 4, 8])
def test_rank_files_are_the_oracles_byte_by_byte(
    mp: int, expert_dtype: str, small: Path, source: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    outcome = reshard_folder(small, tmp_path / "out", mp, expert_dtype)
    assert_shards(tmp_path / "out", oracle.shards(source, mp, expert_dtype), tmp_path / "twin")
    twice = {name for name in source if expert_dtype == "fp8" and ".experts." in name and name.endswith(".scale")}
    assert outcome.bytes_read == sum(tensor.nbytes * (1 + (name in twice)) for name, tensor in source.items())
    assert (outcome.files, outcome.inexact) == (mp, {})
    assert outcome.bytes == sum(p.stat().st_size for p in Path(outcome.out).iterdir() if p.name != "manifest.json")


def test_each_kind_of_layer_is_among_those_compared(source: dict[str, torch.Tensor]) -> None:
    kinds = ("tid2eid", "gate.bias", "indexer.weights_proj", "compressor.ape", "mtp.0.e_proj.scale", "hc_head_fn")
    assert all(any(kind in name for name in source) for kind in kinds)
    dtypes = {tensor.dtype for tensor in source.values()}
    assert dtypes == {torch.int8, torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.bfloat16, torch.float32, torch.int64}


def test_an_mtp_blocks_own_embedding_and_head_are_dropped_as_the_converter_does(
    small: Path, source: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    folder = shutil.copytree(small, tmp_path / "model")
    own = {name: source["embed.weight"].clone() for name in ("mtp.0.emb.tok_emb.weight", "mtp.0.head.weight")}
    rewrite(folder, source | own)
    reshard_folder(folder, tmp_path / "out", 2)
    assert_shards(tmp_path / "out", oracle.shards(source | own, 2, "fp4"), tmp_path / "twin")


def test_f32_scales_are_the_oracles_too(small: Path, source: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = shutil.copytree(small, tmp_path / "model")
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator)
        if name.endswith(".scale") and ".experts." not in name
        else tensor
        for name, tensor in source.items()
    }
    rewrite(folder, tensors)
    reshard_folder(folder, tmp_path / "out", 4)
    assert_shards(tmp_path / "out", oracle.shards(tensors, 4, "fp4"), tmp_path / "twin")


def test_fp8_experts_and_bf16_o_a_are_moved_as_they_are(
    small: Path, source: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    folder = shutil.copytree(small, tmp_path / "model")
    tensors = dict(source)
    for name in source:
        if ".experts." in name and name.endswith("weight"):
            scale = name.removesuffix("weight") + "scale"
            tensors[name], tensors[scale] = oracle.fp4_to_fp8(source[name], source[scale])
    rewrite(folder, tensors)
    config = small_config(expert_dtype="fp8")
    (folder / "config.json").write_text(json.dumps(config))
    with_bf16_o_a(folder)
    tensors = load_checkpoint(folder)
    reshard_folder(folder, tmp_path / "out", 2)
    assert_shards(tmp_path / "out", oracle.shards(tensors, 2, "fp8"), tmp_path / "twin")
    assert "expert_dtype" not in json.loads((tmp_path / "out/inference_config.json").read_text())


@pytest.mark.parametrize("expert_dtype", [None, "fp8"])
@pytest.mark.parametrize("what", ["experts", "wo_a"])
def test_an_mtp_block_in_another_format_is_the_oracles_or_refused(
    what: str, expert_dtype: str | None, small: Path, source: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    folder = shutil.copytree(small, tmp_path / "model")
    tensors = dict(source)
    for name in [name for name in source if name.startswith("mtp.") and name.endswith("weight")]:
        scale = name.removesuffix("weight") + "scale"
        if what == "experts" and ".experts." in name:
            tensors[name], tensors[scale] = oracle.fp4_to_fp8(source[name], source[scale])
        elif what == "wo_a" and ".wo_a." in name:
            tensors[name] = source[name].bfloat16()
            del tensors[scale]
    rewrite(folder, tensors)
    try:
        reshard_folder(folder, tmp_path / "out", 2, expert_dtype)
    except (IncompleteCheckpoint, InfeasiblePlan):
        return
    assert_shards(tmp_path / "out", oracle.shards(tensors, 2, expert_dtype or "fp4"), tmp_path / "twin")


@pytest.mark.parametrize("expert_dtype", ["fp4", "fp8"])
def test_experts_cannot_be_cast_up_or_in_broken_blocks(expert_dtype: str) -> None:
    config = small_config(hidden_size=192, moe_intermediate_size=192)
    if expert_dtype == "fp4":
        config |= {"expert_dtype": "fp8"}
    _, inventory = headers_only(config)
    assert not choose(inventory, Request(tp=2, engine="reference", expert_dtype=expert_dtype)).feasible
    assert choose(inventory, Request(tp=2, engine="reference")).feasible


def test_fp8_blocks_that_are_not_128_are_decoded_right_or_refused(
    small: Path, source: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    folder = shutil.copytree(small, tmp_path / "model")
    tensors = dict(source)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in source.items():
        if name.endswith(".scale") and ".experts." not in name:
            rows, cols = tensor.shape
            finer = torch.randint(117, 124, (rows * 2, cols * 2), generator=generator, dtype=torch.uint8)
            tensors[name] = finer.view(torch.float8_e8m0fnu)
    rewrite(folder, tensors)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [64, 64]
    (folder / "config.json").write_text(json.dumps(config))
    try:
        reshard_folder(folder, tmp_path / "out", 2)
    except InfeasiblePlan:
        return
    name = "layers.0.attn.wo_a.weight"
    factors = tensors["layers.0.attn.wo_a.scale"].float().repeat_interleave(64, 0).repeat_interleave(64, 1)
    expected = (tensors[name].float() * factors).bfloat16().chunk(2)
    for rank, part in enumerate(expected):
        found = load_tensors(tmp_path / f"out/model{rank}-mp2.safetensors")
        assert raw(found[name]) == raw(part)


@pytest.mark.parametrize("expert_dtype", ["fp4", "fp8"])
def test_any_number_of_workers_writes_the_same_bytes(expert_dtype: str, small: Path, tmp_path: Path) -> None:
    results = []
    for workers in (1, 2, 7):
        reshard_folder(small, tmp_path / str(workers), 4, expert_dtype, workers=workers)
        results.append(contents(tmp_path / str(workers)))
    assert results[0] == results[1] == results[2]
    assert len(results[0]) == 4 + 8


def test_some_ranks_are_written_as_in_the_full_run(small: Path, tmp_path: Path) -> None:
    reshard_folder(small, tmp_path / "all", 4)
    outcome = reshard_folder(small, tmp_path / "some", 4, ranks=(1, 3))
    whole, some = contents(tmp_path / "all"), contents(tmp_path / "some")
    weights = {name for name in some if name.endswith(".safetensors")}
    assert weights == {"model1-mp4.safetensors", "model3-mp4.safetensors"}
    own = {"manifest.json", "provenance.ranks-1+3.json"}
    assert all(some[name] == whole[name] for name in some.keys() - own)
    assert some.keys() >= own
    assert outcome.files == 2


def test_small_files_are_copied_where_they_are(small: Path, least: Path, tmp_path: Path) -> None:
    reshard_folder(small, tmp_path / "out", 2)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (small / name).read_bytes()
        (least / name).unlink()
    (least / "generation_config.json").write_text("{}")
    reshard_folder(least, tmp_path / "bare", 2)
    names = {path.name for path in (tmp_path / "bare").iterdir()}
    assert names == {
        "model0-mp2.safetensors",
        "model1-mp2.safetensors",
        "inference_config.json",
        "generation_config.json",
        "README.md",
        "plan.json",
        "provenance.json",
        "source.zip",
        "manifest.json",
    }


def test_progress_adds_up_to_the_payload(small: Path, tmp_path: Path) -> None:
    job, checkpoint = job_for(small, 4, "fp8")
    seen: list[int] = []
    reshard(job, checkpoint, tmp_path / "out", on_progress=seen.append)
    assert sum(seen) == sum(file.payload for file in job.recipe.files)


def test_the_source_is_left_as_it_was(least: Path, tmp_path: Path) -> None:
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in least.iterdir()}
    reshard_folder(least, tmp_path / "out", 2, "fp8")
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in least.iterdir()} == before


@pytest.mark.parametrize(("model", "generation", "draft"), [
    ("DeepSeek-V4-Pro", V4_CONVERTER, Draft(1)),
    ("DeepSeek-V4-Flash", V4_CONVERTER, Draft(1)),
    ("DeepSeek-V4-Flash-0731", V4_CONVERTER, Draft(3, dspark=True)),
    ("DeepSeek-V4-Pro-0813", V4_CONVERTER, Draft(3, dspark=True)),
    ("DeepSeek-V4.1-Flash", V41_CONVERTER, Draft(3, dspark=True)),
])  # fmt: skip
def test_inference_config_is_the_one_that_deepseek_released(model: str, generation: Converter, draft: Draft) -> None:
    config = json.loads((DATA / model / "config.json").read_text())
    released = json.loads((DATA / model / "inference_config.json").read_text())
    experts = released.get("expert_dtype", "fp8").upper()
    made = inference_config(generation, config, experts, draft)
    assert made == released
    assert list(made) == list(released)


@pytest.mark.parametrize(("expert_dtype", "expected"), [("fp4", "fp4"), (None, "fp4"), ("fp8", None)])
def test_inference_config_names_the_dtype_that_the_experts_have(
    expert_dtype: str | None, expected: str | None, least: Path, tmp_path: Path
) -> None:
    reshard_folder(least, tmp_path / "out", 2, expert_dtype)
    written = json.loads((tmp_path / "out/inference_config.json").read_text())
    assert written.get("expert_dtype") == expected
    assert (written["dim"], written["n_layers"], written["scale_fmt"]) == (128, 1, "ue8m0")


# --- refusals ------------------------------------------------------------------------------------------------------


def assert_refused(
    error: type[ShardError], match: str, least: Path, out: Path, watched: Path, **options: Any
) -> ShardError:
    """Resharding raises, and nothing in `watched` is made, changed or removed."""

    def look() -> dict[str, bytes | None]:
        return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(watched.rglob("*"))}

    before = look()
    with pytest.raises(error, match=match) as caught:
        reshard_folder(least, out, 2, **options)
    assert look() == before
    return caught.value


@pytest.mark.parametrize(("place", "relation"), [
    (lambda model: model, "is"),
    (lambda model: model / "out", "lies in"),
    (lambda model: model.parent, "holds"),
    (lambda model: model / ".." / model.name, "is"),
    (lambda model: model.parent / "link" / "out", "lies in"),
])  # fmt: skip
def test_an_output_that_is_in_or_around_the_checkpoint_is_refused(
    place: Callable[[Path], Path], relation: str, least: Path
) -> None:
    (least.parent / "link").symlink_to(least)
    for overwrite in (False, True):
        assert_refused(OutputInsideInput, f"the output {relation} the checkpoint", least, place(least), least.parent,
                       overwrite=overwrite)  # fmt: skip


def test_a_folder_that_holds_something_is_refused(least: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    assert_refused(OutputNotEmpty, "not empty", least, tmp_path / "out", tmp_path)
    error = assert_refused(OutputNotEmpty, "did not make it", least, tmp_path / "out", tmp_path, overwrite=True)
    assert error.exit_code == 4


def test_an_earlier_result_is_refused_without_overwrite_and_replaced_with_it(least: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reshard_folder(least, out, 2)
    assert_refused(OutputNotEmpty, "not empty", least, out, tmp_path)
    reshard_folder(least, out, 1, "fp8", overwrite=True)
    reshard_folder(least, tmp_path / "fresh", 1, "fp8")
    assert contents(out) == contents(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "model", "out"]


def test_an_empty_folder_may_be_the_output(least: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    reshard_folder(least, tmp_path / "out", 2)
    assert (tmp_path / "out/manifest.json").is_file()


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_what_is_no_folder_cannot_be_the_output(kind: str, least: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("")
    else:
        (tmp_path / "elsewhere").mkdir()
        out.symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))
    assert_refused(OutputError, "not a folder", least, out, tmp_path)


def test_a_missing_parent_is_refused_with_the_command_that_makes_it(least: Path, tmp_path: Path) -> None:
    error = assert_refused(OutputError, "no such folder", least, tmp_path / "a/b", tmp_path)
    assert f"mkdir -p {tmp_path / 'a'}" in str(error.hint)


@pytest.mark.parametrize("name", [".", "../here"])
def test_the_current_folder_can_be_the_output_or_is_refused_before_the_first_byte(
    name: str, least: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    seen: list[int] = []
    try:
        reshard_folder(least, Path(name), 2, on_progress=seen.append)
    except OutputError:
        assert seen == []
    else:
        assert (here / "manifest.json").is_file()


def test_too_little_room_is_refused_in_numbers(least: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = job_for(least, 2)[0].nbytes
    room = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    match = rf"needs {size(needed)}; {size(needed - 1)} are free on the file system of .*: 1 B short"
    assert_refused(NotEnoughDisk, match, least, tmp_path / "out", tmp_path)
    room.free = needed
    reshard_folder(least, tmp_path / "out", 2)


def test_an_infeasible_plan_is_refused_with_a_way_out(least: Path) -> None:
    with pytest.raises(InfeasiblePlan, match="not whole") as caught:
        job_for(least, 4)
    assert caught.value.exit_code == 1
    assert "--tp 2" in str(caught.value.hint)


def test_unknown_tensors_are_refused_by_name(least: Path) -> None:
    checkpoint, inventory = open_folder(least)
    plan = make_plan(checkpoint, inventory, Request(tp=2, engine="reference"))
    rewrite(least, load_checkpoint(least) | {"layers.0.attn.novelty.weight": torch.zeros(4, 4)})
    with pytest.raises(IncompleteCheckpoint, match=r"layers\.0\.attn\.novelty\.weight"):
        job_for(least, 2)
    with pytest.raises(IncompleteCheckpoint, match=r"layers\.0\.attn\.novelty\.weight"):
        prepare(*open_folder(least), plan)


def test_missing_tensors_are_refused_by_name(least: Path) -> None:
    tensors = load_checkpoint(least)
    del tensors["layers.0.ffn.experts.1.w2.scale"]
    rewrite(least, tensors)
    with pytest.raises(IncompleteCheckpoint, match=r"layers\.0\.ffn\.experts\.1\.w2"):
        job_for(least, 2)


def test_an_engine_without_a_file_format_is_refused(least: Path) -> None:
    checkpoint, inventory = open_folder(least)
    plan = make_plan(checkpoint, inventory, Request(tp=1, engine="trtllm"))
    assert plan.feasible
    assert plan.layout is None
    with pytest.raises(UsageError, match="writes no rank files of"):
        prepare(checkpoint, inventory, plan)


@pytest.mark.parametrize(("engine", "why"), [("vllm", "hidden_size 128 would")])
def test_what_runs_but_cannot_be_written_is_refused_with_the_reason(engine: str, why: str, least: Path) -> None:
    """Paddings for which no layout is verified for an engine."""
    checkpoint, inventory = open_folder(least)
    plan = make_plan(checkpoint, inventory, Request(tp=1, engine=engine))
    assert plan.feasible
    assert plan.unwritten is not None
    with pytest.raises(UsageError, match=why):
        prepare(checkpoint, inventory, plan)


@pytest.mark.parametrize("ranks", [(2,), (0, 1, 2), (4096,), (-1,)])
def test_a_rank_out_of_range_is_refused(ranks: tuple[int, ...], least: Path) -> None:
    with pytest.raises(UsageError, match=r"the last one is 1|rank -1"):
        job_for(least, 2, ranks=ranks)


# --- casts that round ----------------------------------------------------------------------------------------------


@pytest.fixture
def inexact(least: Path) -> tuple[Path, str, int]:
    """A checkpoint with one expert whose values FP8 cannot hold, that expert's name, and how many values."""
    tensors = load_checkpoint(least)
    name = "layers.0.ffn.experts.1.w3"
    scale = tensors[f"{name}.scale"].view(torch.uint8).clone()
    scale[:64] = 124
    scale[64:] = 106
    tensors[f"{name}.scale"] = scale.view(torch.float8_e8m0fnu)
    before = oracle.unpack_fp4(tensors[f"{name}.weight"]).double()
    before *= tensors[f"{name}.scale"].double().repeat_interleave(FP4_GROUP, 1)
    cast, new = oracle.fp4_to_fp8(tensors[f"{name}.weight"], tensors[f"{name}.scale"])
    after = cast.double() * new.double().repeat_interleave(128, 0).repeat_interleave(128, 1)
    return rewrite(least, tensors), f"{name}.weight", int((before != after).sum())


@pytest.mark.parametrize("workers", [1, 3])
def test_a_cast_that_rounds_is_refused_and_leaves_what_was_done(
    workers: int, inexact: tuple[Path, str, int], tmp_path: Path
) -> None:
    folder, name, count = inexact
    assert count > 1000
    match = rf"^{name}: {count:,} of its values do not fit"
    with pytest.raises(InexactCast, match=match):
        reshard_folder(folder, tmp_path / "out", 2, "fp8", workers=workers)
    assert not (tmp_path / "out").exists()
    reshard_folder(folder, tmp_path / "out", 2, "fp4", restart=True)


def test_a_cast_that_rounds_is_the_oracles_where_it_is_allowed(inexact: tuple[Path, str, int], tmp_path: Path) -> None:
    folder, name, count = inexact
    outcome = reshard_folder(folder, tmp_path / "out", 2, "fp8", allow_inexact=True)
    assert outcome.inexact == {name: count}
    assert_shards(tmp_path / "out", oracle.shards(load_checkpoint(folder), 2, "fp8"), tmp_path / "twin")


# --- as a citizen of its machine -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mask", "folder_mode", "file_mode"), [
    (0o022, 0o755, 0o644), (0o077, 0o700, 0o600), (0o002, 0o775, 0o664), (0, 0o777, 0o666),
])  # fmt: skip
def test_umask_is_respected(mask: int, folder_mode: int, file_mode: int, least: Path, tmp_path: Path) -> None:
    with umask(mask):
        reshard_folder(least, tmp_path / "out", 2)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == folder_mode
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {file_mode}


def test_no_descriptor_stays_open(least: Path, tmp_path: Path) -> None:
    reshard_folder(least, tmp_path / "first", 2)
    before = len(os.listdir("/proc/self/fd"))
    reshard_folder(least, tmp_path / "out", 2)
    assert len(os.listdir("/proc/self/fd")) == before


CHILD = """
import sys
from pathlib import Path
from dsv4_shard.sharding import copy as copying
from dsv4_shard.checkpoint.reader import read_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.checkpoint.inventory import take_inventory
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare; from dsv4_shard.sharding.run import reshard
from dsv4_shard.opening import open_source
folder, out, expert_dtype, chunk = sys.argv[1:]
copying.CHUNK_BYTES = int(chunk)
checkpoint = read_checkpoint(open_source(folder))
inventory = take_inventory(checkpoint)
plan = make_plan(checkpoint, inventory, Request(tp=4, engine="reference", expert_dtype=expert_dtype))
reshard(prepare(checkpoint, inventory, plan), checkpoint, Path(out), workers=2)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(int(peak.split()[1]) * 1024, "torch" in sys.modules)
"""
"""Prints the peak of its own resident memory: ru_maxrss would count that of the process that started it."""


def child(folder: Path, out: Path, expert_dtype: str, chunk: int = 8 << 20) -> tuple[int, bool]:
    """Reshard in a process of its own: its peak memory, and whether it imported torch."""
    call = [sys.executable, "-c", CHILD, str(folder), str(out), expert_dtype, str(chunk)]
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    shutil.rmtree(out)
    peak, torch_imported = done.stdout.split()
    return int(peak), torch_imported == "True"


@pytest.mark.slow
@pytest.mark.parametrize(("expert_dtype", "chunk"), [("fp4", 8 << 20), ("fp8", 1 << 20)])
def test_memory_does_not_grow_with_the_checkpoint(expert_dtype: str, chunk: int, tmp_path: Path) -> None:
    wide = {"n_routed_experts": 4, "num_attention_heads": 16}
    sizes, peaks = [], []
    for number, more in enumerate((
        {"hidden_size": 512, "moe_intermediate_size": 2048, "vocab_size": 4096},
        {"hidden_size": 2048, "moe_intermediate_size": 4096, "vocab_size": 16384},
    )):  # fmt: skip
        folder = write_sparse(tmp_path / f"model{number}", small_config(**wide, **more))
        sizes.append((folder / "model.safetensors").stat().st_size)
        peaks.append(child(folder, tmp_path / "out", expert_dtype, chunk)[0])
    assert sizes[1] - sizes[0] > 200 << 20
    assert peaks[1] - peaks[0] < 0.25 * (sizes[1] - sizes[0])


@pytest.mark.slow
@pytest.mark.parametrize("expert_dtype", ["fp4", "fp8"])
def test_resharding_needs_no_torch(expert_dtype: str, tmp_path: Path) -> None:
    folder = write_sparse(tmp_path / "model", small_config())
    assert child(folder, tmp_path / "out", expert_dtype)[1] is False
