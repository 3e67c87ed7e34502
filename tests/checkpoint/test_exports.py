"""What other tools export is named once: by the tool, by what shows it, and by what reads it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints.full_size import REAL_MODELS, Tensors, in_memory, inventory_of
from support.checkpoints.other_exports import EXPORTS, NVFP4, Export, exported
from support.checkpoints.other_names import renamed
from support.checkpoints.skeletons import to_nvfp4
from support.checkpoints.small import small_v3
from support.command_line import run

from dsv4_shard.checkpoint import OTHER_EXPORT, Inventory, Severity, take_inventory
from dsv4_shard.checkpoint.exports import NEXT
from dsv4_shard.checkpoint.reader import read_checkpoint
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, tensors_of
from dsv4_shard.errors import ExitCode, OtherExport
from dsv4_shard.opening import open_source
from dsv4_shard.tensors.header import build_header, nbytes_of

ALL = tensors_of(DEMO_CONFIG)
NATIVE = {key: value for key, value in DEMO_CONFIG.items() if key != "quantization_config"}


def write(folder: Path, document: dict[str, Any], tensors: Tensors, files: tuple[str, ...] = ()) -> Path:
    """Write a checkpoint of one file whose data is a hole."""
    folder.mkdir(parents=True)
    header, _ = build_header(tensors)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(nbytes_of(*tensor) for tensor in tensors.values()))
    (folder / "config.json").write_text(json.dumps(document))
    for name in files:
        (folder / name).write_text("{}")
    return folder


def take(tensors: Tensors, document: dict[str, Any] = DEMO_CONFIG, files: tuple[str, ...] = ()) -> Inventory:
    return take_inventory(replace(in_memory(document, tensors), documents=files))


def tool(title: str) -> str:
    return title.partition(" without")[0].partition(" INT8")[0].partition(" FP8")[0].partition(" W4A8")[0].strip(", ")


@pytest.mark.parametrize("title", EXPORTS)
@pytest.mark.parametrize("names", ["native", "transformers"])
def test_another_tools_export_gets_one_finding_that_names_it(title: str, names: str, tmp_path: Path) -> None:
    export = EXPORTS[title]
    own = ALL if names == "native" else renamed(ALL, "sglang", DEMO_CONFIG["num_hidden_layers"])
    tensors = exported(own, export)
    folder = write(tmp_path / "model", NATIVE | export.config, tensors, export.files)
    inventory = take_inventory(read_checkpoint(open_source(str(folder))))
    (error,) = [finding for finding in inventory.findings if finding.severity is not Severity.NOTE]
    assert (error.severity, error.code) == (Severity.ERROR, OTHER_EXPORT)
    assert error.message.startswith(f"an export of {tool(title)}")
    assert error.message.endswith(NEXT)
    for word in ("damaged", "incomplete", "remove", "delete", "keep those"):
        assert word not in error.message


@pytest.mark.parametrize("title", EXPORTS)
def test_commands_name_the_tool_in_one_line_and_exit_with_3(title: str, tmp_path: Path) -> None:
    export = EXPORTS[title]
    folder = write(tmp_path / "model", NATIVE | export.config, exported(ALL, export), export.files)
    for command in (("plan", folder, "--tp", 2), ("reshard", folder, tmp_path / "out", "--tp", 2)):
        result = run(*command)
        assert result.exit_code == ExitCode.CHECKPOINT
        assert result.stderr.startswith(f"error: an export of {tool(title)}")
    inspected = run("inspect", folder, "--json")
    assert inspected.exit_code == ExitCode.CHECKPOINT
    assert [one["code"] for one in json.loads(inspected.stdout)["findings"]] == [OTHER_EXPORT]


@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("MLX", ("8 bits", "groups of 64", "weight U32, biases BF16, scales BF16", "mlx-lm reads it")),
        ("ModelSlim", ("weight I8, weight_offset BF16, weight_scale BF16", "vLLM-Ascend", "Ascend NPUs")),
        ("compressed-tensors", ("pack-quantized", "4 bits", "groups of 32", "weight_packed I32")),
        ("AMD Quark", ("fp4", "groups of 32", "AMD GPUs")),
        ("bitsandbytes", ("nf4", "--load-format bitsandbytes")),
        ("NVIDIA ModelOpt, without a word in config.json", ("hf_quant_config.json describes it", "weight F8_E4M3")),
    ],
)
def test_the_finding_says_how_it_is_stored_and_what_reads_it(title: str, said: tuple[str, ...]) -> None:
    export = EXPORTS[title]
    (error,) = take(exported(ALL, export), NATIVE | export.config, export.files).errors
    for words in said:
        assert words in error.message


def test_stacked_and_renamed_experts_of_mlx_are_no_mixture_of_exports(tmp_path: Path) -> None:
    """Names as in mlx-community's V4 exports: some native, some in a `model.` of its own, experts stacked."""
    tensors: Tensors = {}
    for name, tensor in exported(ALL, EXPORTS["MLX"]).items():
        if ".experts." in name:
            before, _, rest = name.partition(".experts.")
            number, _, word = rest.partition(".")
            if number == "0":
                tensors[f"model.{before}.experts.{word}"] = (tensor[0], (16, *tensor[1]))
        else:
            tensors[f"model.{name}" if name.startswith("layers.") else name] = tensor
    folder = write(tmp_path / "model", NATIVE | EXPORTS["MLX"].config, tensors)
    (error,) = take_inventory(read_checkpoint(open_source(str(folder)))).errors
    assert error.message.startswith("an export of MLX (8 bits, groups of 64)")


def test_nvfp4_of_a_family_without_such_a_release_is_nvidias_export(tmp_path: Path) -> None:
    folder = small_v3(tmp_path / "v3")
    checkpoint = read_checkpoint(open_source(str(folder)))
    tensors = {name: (tensor.dtype, tensor.shape) for name, tensor in checkpoint.tensors.items()}
    (error,) = take(exported(tensors, NVFP4), checkpoint.document | NVFP4.config).errors
    assert error.message.startswith("an export of NVIDIA ModelOpt (NVFP4, groups of 16)")


def test_an_export_that_no_table_knows_is_named_by_what_it_shows() -> None:
    def store(name: str, rows: int, cols: int) -> Tensors:
        return {f"{name}.codes": ("I16", (rows, cols // 8)), f"{name}.lut": ("F16", (256,))}

    unheard = Export(store, {"quantization_config": {"quant_method": "newquant"}})
    (error,) = take(exported(ALL, unheard), NATIVE | unheard.config).errors
    assert "a format that is not known here" in error.message
    assert "quant_method 'newquant'" in error.message
    assert ".codes" in error.message


def test_other_errors_of_an_export_are_not_listed() -> None:
    export = EXPORTS["ModelSlim"]
    incomplete = {name: tensor for name, tensor in exported(ALL, export).items() if not name.startswith("layers.1.")}
    assert [error.code for error in take(incomplete, NATIVE, export.files).errors] == [OTHER_EXPORT]


# --- what is no export ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", REAL_MODELS)
def test_no_release_is_another_tools_export(model: str) -> None:
    assert OTHER_EXPORT not in {finding.code for finding in inventory_of(model)[1].findings}


@pytest.mark.parametrize("tensors", [ALL, to_nvfp4(ALL)], ids=["fp4", "nvfp4"])
@given(st.data())
def test_damage_to_one_tensor_stays_damage(tensors: Tensors, data: st.DataObject) -> None:
    """hf_quant_config.json is beside NVIDIA's releases too."""
    name = data.draw(st.sampled_from(sorted(tensors)))
    dtype, shape = tensors[name]
    kept = {key: tensor for key, tensor in tensors.items() if key != name}
    changed = data.draw(st.sampled_from([{}, {f"{name}_2": (dtype, shape)}, {name: ("I16", shape)}]))
    inventory = take(kept | changed, DEMO_CONFIG, ("hf_quant_config.json", "quant_model_description.json"))
    assert OTHER_EXPORT not in {error.code for error in inventory.errors}


def test_refusing_an_export_raises_its_own_class(tmp_path: Path) -> None:
    from dsv4_shard import plan

    export = EXPORTS["GPTQ"]
    folder = write(tmp_path / "model", NATIVE | export.config, exported(ALL, export))
    with pytest.raises(OtherExport, match="an export of GPTQ"):
        plan(folder, tp=2)
