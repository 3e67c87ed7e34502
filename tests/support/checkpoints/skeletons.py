"""Full-size checkpoints without their weights: real headers from an inventory, holes for the data (sparse files)."""

import json
from pathlib import Path

from support.paths import DATA as DATA

from dsv4_shard.checkpoint.synthetic import Tensors, by_file, tensors_of
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE
from dsv4_shard.tensors.header import build_header


def _layers(text: str) -> list[int]:
    numbers: list[int] = []
    for span in text.split(","):
        first, _, last = span.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def expand(model: str) -> Tensors:
    """Every tensor of `model`: name → (dtype, shape).

    DeepSeek-V3's come from the tables, whose sums equal the published ones; NVIDIA's are DeepSeek's own with
    the experts of the layers in NVFP4.
    """
    if model.endswith("-NVFP4"):
        return to_nvfp4(expand(model.removesuffix("-NVFP4")))
    if not (DATA / model / "inventory.json").exists():
        config = json.loads((DATA / model / CONFIG_FILE).read_text())
        return tensors_of(config, scales="F32", optional=True)
    inventory = json.loads((DATA / model / "inventory.json").read_text())
    tensors = {}
    for template in inventory["tensors"]:
        layers = _layers(template["layers"]) if "layers" in template else [0]
        experts = range(template["count"] // len(layers)) if "{E}" in template["name"] else [0]
        for layer in layers:
            for expert in experts:
                name = template["name"].replace("{N}", str(layer)).replace("{E}", str(expert))
                tensors[name] = (template["dtype"], tuple(template["shape"]))
    return tensors


def to_nvfp4(tensors: Tensors, prefixes: tuple[str, ...] = ("layers.",)) -> Tensors:
    """`tensors` with the FP4 experts below `prefixes` as NVIDIA's Model Optimizer writes them."""
    result = {}
    for name, (dtype, shape) in tensors.items():
        stem, _, part = name.rpartition(".")
        if ".ffn.experts." not in name or not name.startswith(prefixes):
            result[name] = (dtype, shape)
        elif part == "weight":
            rows, cols = shape
            result[name] = ("U8", shape)
            result[f"{stem}.weight_scale"] = ("F8_E4M3", (rows, cols * 2 // 16))
            result[f"{stem}.weight_scale_2"] = ("F32", ())
            result[f"{stem}.input_scale"] = ("F32", ())
    return result


def write_skeleton(folder: Path, model: str) -> Path:
    """A folder with the config, index and files of `model`; the files have their full size and take no room."""
    config = json.loads((DATA / model / CONFIG_FILE).read_text())
    folder.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    total = 0
    for file, tensors in by_file(expand(model), config).items():
        header, placed = build_header(tensors)
        nbytes = max(info.stop for info in placed.values())
        with (folder / file).open("wb") as stream:
            stream.write(header)
            stream.truncate(len(header) + nbytes)
        weight_map |= dict.fromkeys(tensors, file)
        total += nbytes
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    return folder
