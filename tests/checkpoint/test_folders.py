"""Folders without a checkpoint in safetensors files: what they hold is said in one line, and what to do next."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from support.command_line import run

from dsv4_shard.checkpoint.folders import KINDS
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, write_checkpoint
from dsv4_shard.errors import BadIndex, ExitCode, MissingFile, NotACheckpoint, OtherExport, ShardError
from dsv4_shard.opening import open_checkpoint
from dsv4_shard.sources.hub_names import hub_id


def refusal(folder: Path | str, error: type[ShardError]) -> str:
    """The message and the hint of the error."""
    with pytest.raises(error) as caught:
        open_checkpoint(str(folder))
    assert type(caught.value) is error
    return f"{caught.value} | {caught.value.hint}"


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


FILES = {
    "GGUF files": ("DeepSeek-V4-Pro-Q4_K_M-00001-of-00009.gguf",),
    "SGLang's presharded dump": ("model-00000-common.safetensor", "model-00001-rank-000,001.safetensor", "READY"),
    "an export of ModelSlim": ("quant_model_weights-00001-of-00004.safetensors",
                               "quant_model_weights.safetensors.index.json", "quant_model_description.json"),
    "Mistral's layout": ("consolidated-00001-of-00002.safetensors", "params.json"),
    "a TensorRT-LLM engine": ("rank0.engine", "rank1.engine"),
    "a TensorRT-LLM checkpoint": ("rank0.safetensors", "rank1.safetensors"),
    "MLC-LLM": ("mlc-chat-config.json", "params_shard_0.bin"),
    "OpenVINO": ("openvino_model.xml", "openvino_model.bin"),
    "ONNX": ("model.onnx", "model.onnx_data"),
    "Tensorizer": ("model.tensors",),
    "torch.distributed.checkpoint": (".metadata", "__0_0.distcp"),
    "Megatron": ("latest_checkpointed_iteration.txt", "iter_0000100/mp_rank_00/model_optim_rng.pt"),
    "DeepSpeed": ("zero_to_fp32.py", "latest", "global_step100/mp_rank_00_model_states.pt"),
    "NeMo": ("model.nemo",),
    "PyTorch": ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
    "JAX": ("flax_model.msgpack",),
    "NumPy": ("weights.npz",),
    "llamafile": ("deepseek.llamafile",),
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("has_config", [False, True])
def test_files_of_other_tools_are_named(what: str, has_config: bool, tmp_path: Path) -> None:
    folder = touched(tmp_path / "model", *FILES[what])
    if has_config:
        (folder / "config.json").write_text('{"model_type": "deepseek_v4"}')
    said = refusal(folder, OtherExport)
    assert what in said
    assert FILES[what][0].rpartition("/")[2][:10] in said or len(FILES[what]) > 1
    assert "name the checkpoint that it was made from" in said


def test_every_kind_of_the_table_is_tried() -> None:
    assert len(KINDS) == len(FILES)


def test_files_of_other_tools_in_folders_are_named_too(tmp_path: Path) -> None:
    said = refusal(touched(tmp_path / "model", "README.md", "Q4_K_M/DeepSeek-V4-00001-of-00002.gguf"), OtherExport)
    assert "GGUF files (Q4_K_M/DeepSeek-V4-00001-of-00002.gguf)" in said


def test_an_adapter_names_the_model_that_it_is_for(tmp_path: Path) -> None:
    folder = touched(tmp_path / "lora", "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "deepseek-ai/DeepSeek-V4-Pro"}))
    said = refusal(folder, OtherExport)
    assert "a LoRA adapter for deepseek-ai/DeepSeek-V4-Pro" in said
    assert "name the model, `dsv4-shard inspect deepseek-ai/DeepSeek-V4-Pro`" in said
    for damaged in (b"", b"[]", b'{"base_model_name_or_path": 3}', b"\xff"):
        (folder / "adapter_config.json").write_bytes(damaged)
        assert "a LoRA adapter, and no checkpoint" in refusal(folder, OtherExport)


def test_rank_files_of_an_engines_saver_are_counted(tmp_path: Path) -> None:
    names = [f"model-rank-{rank}-part-{part}.safetensors" for rank in (0, 1, 3) for part in (0, 1)]
    folder = touched(tmp_path / "saver", "config.json", *names)
    said = refusal(folder, OtherExport)
    assert "rank files of 4 ranks, of which 2 are missing, as the sharded_state savers of SGLang and vLLM write" in said
    verified = run("verify", folder)
    assert verified.exit_code == ExitCode.NO
    assert "an engine's own saver wrote them" in verified.stderr


def test_a_parent_names_the_checkpoints_in_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "models" / "B")
    (tmp_path / "models" / "A").symlink_to(tiny_checkpoint)
    said = refusal(tmp_path / "models", NotACheckpoint)
    assert "folders that hold a checkpoint: A, B" in said
    assert f"`dsv4-shard inspect {tmp_path}/models/A`" in said


@pytest.mark.parametrize("below", ["", "hub", "hub/models--org--name", "hub/models--org--name/snapshots"])
def test_a_folder_of_the_hub_cache_names_the_repository(below: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "cache/hub/models--org--name/snapshots/abc")
    said = refusal(tmp_path / "cache" / below, NotACheckpoint)
    assert "the Hub's cache, with org/name" in said
    assert "`dsv4-shard inspect org/name`" in said


def test_an_empty_folder_and_one_of_other_files_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in refusal(tmp_path / "empty", NotACheckpoint)
    assert "no checkpoint, but notes.txt" in refusal(touched(tmp_path / "notes", "notes.txt"), NotACheckpoint)


def test_a_config_without_weights_says_so(tmp_path: Path) -> None:
    assert "config.json and no weights" in refusal(touched(tmp_path / "a", "config.json", "tokenizer.json"), BadIndex)


def test_weights_without_the_index_say_so(folder: Path) -> None:
    (folder / "model.safetensors.index.json").rename(folder / "model.fp8.index.json")
    said = refusal(folder, BadIndex)
    assert "but neither model.safetensors.index.json nor model.safetensors" in said
    assert "its index is called model.fp8.index.json" in said


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_link_that_leads_nowhere_is_told_from_a_missing_file(name: str, folder: Path) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("../../blobs/0123")
    said = refusal(folder, MissingFile)
    assert f"{name} is a link to ../../blobs/0123, which is not there" in said
    assert "cp -aL" in said


def test_weights_whose_links_lead_nowhere_have_the_same_hint(folder: Path) -> None:
    weights = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))[0]
    (folder / weights).unlink()
    (folder / weights).symlink_to("../../blobs/0123")
    assert "cp -aL" in refusal(folder, MissingFile)


def test_a_cache_without_a_snapshot_and_a_parent_of_dead_links_are_named(tmp_path: Path) -> None:
    cache = touched(
        tmp_path / "cache", "hub/models--org--name/refs/main", "hub/models--org--name/blobs/0123.incomplete"
    )
    assert "the Hub's cache, with org/name" in refusal(cache, NotACheckpoint)
    snapshot = tmp_path / "copied" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors.index.json").symlink_to("../../blobs/0123")
    assert "is a link to ../../blobs/0123, which is not there" in refusal(tmp_path / "copied", MissingFile)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model-00001-of-00007.safetensors"])
def test_a_file_of_a_checkpoint_is_answered_with_its_folder(name: str, folder: Path) -> None:
    (folder / name).touch()
    for command in (("inspect",), ("plan", "--tp", "2"), ("report",)):
        said = run(command[0], folder / name, *command[1:])
        assert said.exit_code == ExitCode.USAGE
        assert re.search(f"[Nn]ame (its folder: )?{folder}\\.", said.stderr)


def test_a_file_of_another_tool_is_named_too(tmp_path: Path) -> None:
    said = run("inspect", touched(tmp_path, "model-Q4_K_M.gguf") / "model-Q4_K_M.gguf")
    assert (said.exit_code, "GGUF files" in said.stderr) == (ExitCode.CHECKPOINT, True)


@pytest.mark.parametrize("with_config", [False, True])
def test_a_download_that_did_not_finish_is_told_from_an_empty_folder(with_config: bool, tmp_path: Path) -> None:
    """As `hf download --local-dir` leaves it."""
    folder = touched(tmp_path / "model", ".cache/huggingface/download/abc.0123.incomplete")
    if with_config:
        (folder / "config.json").write_text('{"model_type": "deepseek_v4"}')
    said = refusal(folder, BadIndex if with_config else MissingFile)
    assert "run `hf download` again" in said


@pytest.mark.parametrize("page", [
    "https://huggingface.co/org/name", "https://huggingface.co/org/name/tree/main", "http://hf.co/org/name/",
    "https://huggingface.co/org/name/blob/main/config.json", "huggingface.co/org/name?library=sglang", "hf://org/name",
    "https://huggingface.co/org/name/discussions/7", "https://hf-mirror.com/org/name/resolve/main/config.json",
])  # fmt: skip
def test_the_address_of_a_page_names_its_repository(page: str) -> None:
    assert str(hub_id(page)) == "org/name"


def test_the_address_of_a_page_keeps_its_revision_and_refuses_what_is_no_model() -> None:
    assert str(hub_id("https://huggingface.co/org/name/tree/refs%2Fpr%2F3")) == "org/name@refs/pr/3"
    assert str(hub_id(f"https://huggingface.co/org/name/commit/{'a' * 40}")) == f"org/name@{'a' * 40}"
    assert str(hub_id("hf://org/name@v1")) == "org/name@v1"
    for other in ("https://huggingface.co/datasets/org/name", "hf://spaces/org/name"):
        assert run("inspect", other).exit_code == ExitCode.USAGE
    inner = run("inspect", "https://huggingface.co/org/name/tree/v1/fp8")
    assert inner.exit_code == ExitCode.USAGE
    assert "`hf download org/name --revision v1 --include 'fp8/*' --local-dir name`; then name name/fp8" in inner.stderr


@pytest.mark.parametrize("command", ["inspect", "plan", "reshard", "merge", "verify", "sign", "report"])
def test_an_empty_name_is_refused_by_every_command(command: str) -> None:
    more = {"plan": ("--tp", 2), "reshard": ("out", "--tp", 2), "merge": ("out",), "sign": ("--key", "k")}
    result = run(command, "", *more.get(command, ()))
    assert (result.exit_code, "the name is empty" in result.stderr) == (ExitCode.USAGE, True)


# --- where a result is wanted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("verify",), ("sign", "--key", "none.pem")])
def test_a_checkpoint_is_no_result(command: tuple[str, ...], folder: Path) -> None:
    said = run(command[0], folder, *command[1:])
    assert said.exit_code == ExitCode.USAGE
    assert "a checkpoint, not a result of reshard" in said.stderr
    assert f"--against {folder}" in said.stderr
    file = run(command[0], folder / "config.json", *command[1:])
    assert (file.exit_code, "not a result of reshard" in file.stderr) == (ExitCode.USAGE, True)


def test_verify_says_what_a_folder_holds_in_place_of_a_result(tmp_path: Path) -> None:
    held = {"GGUF files (a.gguf)": touched(tmp_path / "gguf", "a.gguf"), "the folder is empty": touched(tmp_path / "e")}
    (tmp_path / "e").mkdir()
    for what, path in held.items():
        said = run("verify", path)
        assert said.exit_code == ExitCode.NO
        assert f"{what}; and not a result of reshard: manifest.json is missing" in said.stderr
        assert "Name the folder that reshard or merge wrote." in said.stderr


def test_parts_and_parents_of_results_name_the_result(tiny_checkpoint: Path, tmp_path: Path) -> None:
    nodes = tmp_path / "results" / "nodes"
    nodes.parent.mkdir()
    made = run("reshard", tiny_checkpoint, nodes, "--tp", 2, "--engine", "node", "--nodes", 2)
    assert made.exit_code == ExitCode.DONE, made.stderr
    for command in (("verify", nodes / "node-0"), ("merge", nodes / "node-1", tmp_path / "merged")):
        said = run(*command)
        assert said.exit_code == ExitCode.USAGE
        assert f"Name the result: {nodes}." in said.stderr
    assert f"Name {nodes}." in run("verify", nodes / "plan.json").stderr
    for command in (("verify", nodes.parent), ("inspect", nodes.parent)):
        assert f"{nodes}`" in run(*command).stderr
    assert "a plan, not a checkpoint" in run("inspect", nodes / "plan.json").stderr


# --- drafts in folders ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose MTP block is in a folder of its own, with its own index."""
    root = tmp_path_factory.mktemp("nested")
    whole = write_checkpoint(root / "whole", DEMO_CONFIG, seed=3)
    target = write_checkpoint(root / "target", DEMO_CONFIG, seed=3, mtp_blocks=0)
    index = json.loads((whole / "model.safetensors.index.json").read_text())["weight_map"]
    drafts = {name: file for name, file in index.items() if name.startswith("mtp.")}
    (target / "dspark").mkdir()
    for file in set(drafts.values()):
        shutil.copy(whole / file, target / "dspark" / file)
    (target / "dspark" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": drafts}))
    shutil.copy(whole / "config.json", target / "dspark")
    return target


def test_a_draft_in_a_folder_of_its_own_is_named_and_the_target_planned(nested: Path) -> None:
    _, inventory = open_checkpoint(str(nested))
    assert [finding.code for finding in inventory.findings] == ["nested-draft"]
    assert "the draft model is in dspark/" in inventory.findings[0].message
    assert run("plan", nested, "--tp", 2).exit_code == ExitCode.DONE


def test_a_folder_with_a_draft_alone_says_so_once(nested: Path) -> None:
    _, inventory = open_checkpoint(str(nested / "dspark"))
    assert [finding.code for finding in inventory.findings] == ["draft-alone"]
    message = inventory.findings[0].message
    assert "a draft model alone: 1 MTP block" in message
    assert message.endswith(f"name the folder of the target: {nested}.")
    assert run("plan", nested / "dspark", "--tp", 2).exit_code == ExitCode.CHECKPOINT
