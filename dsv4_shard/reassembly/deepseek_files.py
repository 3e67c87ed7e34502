"""Files of DeepSeek's converter → the headers of the checkpoint that they hold, in native names.

The converter writes `model{rank}-mp{N}.safetensors` and no description of its input. This module computes the full
shape of each tensor from its parts, with the placements of DeepSeek's reference, and assigns the tensors to files as
the releases do: the embedding, one file per layer, the tensors after the layers, the MTP blocks. config.json comes from
the folder or from the user. Decoded and cast tensors keep their dtype, because the converter's input is unknown.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv4_shard.checkpoint import Checkpoint, Inventory, some, take_inventory
from dsv4_shard.engines import (
    DEEPSEEK,
    TOKENIZER_FILES,
    Context,
    ConverterLayout,
    Deployment,
    Engine,
    Expert,
    Pad,
    Request,
    Split,
    engine_for,
)
from dsv4_shard.errors import BadConfig, BadRanks, MissingRanks, MixedRanks
from dsv4_shard.limits import CONFIG
from dsv4_shard.models import ModelConfig, Part, Place, Role, TensorName, family_of, parse_config, release_file
from dsv4_shard.reassembly.detect import find_converted
from dsv4_shard.reassembly.kept_tensors import DtypeShape, config_for, index_of
from dsv4_shard.reassembly.source import RankSource
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE
from dsv4_shard.sources.local import LocalFile, LocalSource
from dsv4_shard.tensors.geometry import ceil_div
from dsv4_shard.tensors.header import Header, Tensor, build_header, read_header

_METADATA = {"format": "pt"}

_SMALL_FILE_LIMIT = 256 << 20


def converted_source(folder: LocalSource, config: Path | None) -> tuple[RankSource, Engine, Deployment]:
    """The headers of the native checkpoint, and the engine and deployment of its files.

    Raises:
        MissingRanks: A rank's file is missing, or there is one too many.
        MixedRanks: The folder has files of two conversions.
        BadConfig: There is no usable config.json.
        BadRanks: The names or shapes are not those of a checkpoint.
    """
    files = _check_ranks(folder)
    raw = _config(folder, config)
    parsed, document = parse_config(raw, f"{folder.label}: {CONFIG_FILE}")
    engine = engine_for(DEEPSEEK, family_of(parsed))
    headers = {}
    for rank, name in sorted(files.items()):
        with folder.open(name) as file:
            headers[rank] = read_header(file, name)
    inventory = _take(folder, parsed, document, parts := _native_names(_union(headers), engine, parsed, folder.label))
    deployment = next(engine.candidates(inventory, Request(tp=len(files), engine=engine.name)))
    context = Context(inventory, deployment)
    whole = {name: _whole(kind, inventory.names[name], engine, context) for name, kind in parts.items()}
    source = _deal(folder, raw, whole, inventory, len(files))
    if parsed.declared_experts is not None:
        source = config_for(source, document, inventory.routed.name)
    return source, engine, deployment


def _check_ranks(folder: LocalSource) -> dict[int, str]:
    """Rank -> file name. Raises MixedRanks and MissingRanks unless there is exactly one complete set of files."""
    sets = find_converted(folder.sizes())
    if len(sets) > 1:
        raise MixedRanks(f"{folder.label}: files of {', '.join(f'mp{mp}' for mp in sorted(sets))} in one folder")
    ((mp, files),) = sets.items()
    missing = [rank for rank in range(mp) if rank not in files]
    if missing or len(files) > mp:
        odd = missing or [max(files)]
        raise MissingRanks(f"{folder.label}: {len(files)} files of {mp} ranks; rank {odd[0]} is "
                           f"{'missing' if missing else 'one too many'}")  # fmt: skip
    return files


def _config(folder: LocalSource, config: Path | None) -> bytes:
    """The content of config.json, from the path `config` if given, else from the folder. Raises BadConfig."""
    path = config or folder.root / CONFIG_FILE
    if not path.is_file():
        raise BadConfig(
            f"{path}: no such file; DeepSeek's converter writes none, and the shards do not tell what is in it",
            hint="Take the checkpoint's config.json (not inference/config.json): --config PATH, or copy it there.",
        )
    file = LocalFile(path, CONFIG_FILE)
    try:
        if file.nbytes > CONFIG.nbytes:
            raise BadConfig(f"{path}: {file.nbytes} bytes, over {CONFIG.nbytes}")
        return file.read(0, file.nbytes)
    finally:
        file.close()


def _union(headers: Mapping[int, Header]) -> dict[str, DtypeShape]:
    """The tensors of all ranks, with the dtypes of checkpoints.

    A tensor that several ranks have is taken from the first one. The ranks are compared later, when its bytes are read.
    """
    parts: dict[str, DtypeShape] = {}
    for header in headers.values():
        for name, info in header.tensors.items():
            parts.setdefault(name, _native(info.dtype, info.shape))
    return parts


def _native(dtype: str, shape: tuple[int, ...]) -> DtypeShape:
    """The dtype and shape in a checkpoint, where one I8 element stores two FP4 values."""
    return ("I8", (*shape[:-1], shape[-1] // 2)) if dtype == "F4" and shape else (dtype, shape)


def _native_names(
    parts: Mapping[str, DtypeShape], engine: Engine, config: ModelConfig, label: str
) -> dict[str, DtypeShape]:
    """The tensors under the checkpoint's names. V3's converter renames them. Raises BadRanks for an unknown name."""
    family = family_of(config)
    native, written = family.names(config), family.names(config)
    if isinstance(engine.layout, ConverterLayout):
        written = engine.layout.names(config)
    found = {name: written.parse(name) for name in parts}
    unknown = [name for name, at in found.items() if at is None]
    if unknown:
        raise BadRanks(f"{label}: {len(unknown):,} tensors have no known role: {some(unknown)}")
    return {native.unparse(at): parts[name] for name, at in found.items() if at is not None}


def _take(
    folder: LocalSource, parsed: ModelConfig, document: dict[str, Any], parts: Mapping[str, DtypeShape]
) -> Inventory:
    """The inventory of the parts. Only its names and formats are valid: the shapes are those of the parts."""
    tensors = {name: Tensor(name, dtype, shape, "", 0, 0) for name, (dtype, shape) in parts.items()}
    inventory = take_inventory(Checkpoint(folder, parsed, document, (), tensors, ()))
    if inventory.format(Role.ROUTED_GATE) is None:
        raise BadRanks(f"{folder.label}: no routed experts in any of the files")
    return inventory


def _whole(kind: DtypeShape, where: TensorName, engine: Engine, context: Context) -> DtypeShape:
    """Dtype and shape of a tensor in the checkpoint, from those of one rank's part."""
    dtype, shape = kind
    placement = engine.place(where.role, context)
    inner = placement.inner if isinstance(placement, Expert) else placement
    if isinstance(inner, Split) and inner.axis < len(shape):
        parts = context.deployment.group(inner.group)
        shape = tuple(size * parts if axis == inner.axis else size for axis, size in enumerate(shape))
    elif isinstance(inner, Pad):
        shape = tuple(_unpadded(where, axis, context) if axis == inner.axis else n for axis, n in enumerate(shape))
    return dtype, shape


def _unpadded(where: TensorName, axis: int, context: Context) -> int:
    """Size of an axis before padding, from the config: the parts do not show it."""
    place = Place(where.stage, where.layer, context.inventory.draft)
    size = context.inventory.family.rows[where.stage, where.role].shape(context.config, place)[axis]
    return ceil_div(size, context.block(where.role)[axis]) if where.part is Part.SCALE else size


def _deal(
    folder: LocalSource, raw: bytes, tensors: Mapping[str, DtypeShape], inventory: Inventory, ranks: int
) -> RankSource:
    """Assign tensors to files as in the releases, and build headers and an index."""
    numbered: dict[int, dict[str, DtypeShape]] = {}
    for name, kind in tensors.items():
        number = release_file(inventory.names[name], inventory.config.num_hidden_layers)
        numbered.setdefault(number, {})[name] = kind
    count = len(numbered)
    dealt = {f"model-{at:05d}-of-{count:05d}.safetensors": numbered[n] for at, n in enumerate(sorted(numbered), 1)}
    headers, nbytes = {}, {}
    for file, members in dealt.items():
        headers[file], placed = build_header(members, _METADATA)
        nbytes[file] = len(headers[file]) + max(info.stop for info in placed.values())
    small = {CONFIG_FILE: raw, INDEX_FILE: index_of(dealt, nbytes, headers)}
    notes = (
        f"merged from {ranks} ranks of DeepSeek's converter, which keep no word of "
        "the checkpoint: its tensors are dealt into files by layer, and what was decoded or cast stays so",
    )
    return RankSource(folder.root, folder.label, None, small | _tokenizer(folder), headers, nbytes, notes)


def _tokenizer(folder: LocalSource) -> dict[str, bytes]:
    """The tokenizer files that the converter copied beside its own."""
    content = {}
    for name, nbytes in folder.sizes().items():
        if name in TOKENIZER_FILES and nbytes < _SMALL_FILE_LIMIT:
            with folder.open(name) as file:
                content[name] = file.read(0, file.nbytes)
    return content
