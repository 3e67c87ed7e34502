"""Folders without a checkpoint in safetensors files: what they hold is said in one line, and what to do next."""

import json
import os
import shutil
from pathlib import Path

import pytest
from support.command_line import run

from dsv4_shard.checkpoint.folders import KINDS
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, write_checkpoint
from dsv4_shard.errors import BadIndex, ExitCode, MissingFile, NotACheckpoint, OtherExport, ShardError
from dsv4_shard.opening import open_checkpoint


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
    assert "name the model" in said
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
    for name in ("B", "A"):
        shutil.copytree(tiny_checkpoint, tmp_path / "models" / name)
    said = refusal(tmp_path / "models", NotACheckpoint)
    assert "folders that hold one: A, B" in said
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


def test_a_page_of_the_hub_and_a_file_are_answered_with_what_to_write(folder: Path) -> None:
    page = run("inspect", "https://huggingface.co/deepseek-ai/DeepSeek-V4-Pro/tree/main")
    assert (page.exit_code, "Write deepseek-ai/DeepSeek-V4-Pro." in page.stderr) == (ExitCode.USAGE, True)
    file = run("inspect", folder / "config.json")
    assert (file.exit_code, f"Name {folder}." in file.stderr) == (ExitCode.USAGE, True)


def test_a_checkpoint_is_no_result_to_verify(folder: Path) -> None:
    verified = run("verify", folder)
    assert verified.exit_code == ExitCode.NO
    assert "a checkpoint, not a result of reshard" in verified.stderr
    assert f"--against {folder}" in verified.stderr


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
