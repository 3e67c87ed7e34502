"""The checkpoint that the ranks kept: with decoded, cast and dropped tensors.

Some layouts decode a weight with its scale, cast it, or drop tensors. Rank files of such a layout give a checkpoint
with the new tensors, or without the dropped ones. All other tensors are unchanged, and a file without any change keeps
its exact header.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.models import NATIVE
from dsv4_shard.reassembly.source import ChangedTensor, RankSource
from dsv4_shard.sharding.recipe import Recipe, Step
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE
from dsv4_shard.tensors.header import build_header, read_header

DtypeShape = tuple[str, tuple[int, ...]]
"""(dtype, shape)."""


def held_source(original: Checkpoint, source: RankSource, recipe: Recipe) -> RankSource:
    """The checkpoint that the files of `recipe` hold of `original`; `source` itself if nothing changed.

    It uses the family's native names, even if `original` has another dialect. Its config.json is that of `original`;
    see `config_for`. `recipe` must have all ranks.
    """
    made = {name: kind for step in recipe.steps for name, kind in _decoded(step)}
    gone = {name: reason for name, reason in recipe.left_out.items() if name not in made}
    is_native = original.dialect == NATIVE
    if not made and not gone and is_native:
        return source
    members: dict[str, dict[str, DtypeShape]] = {file.name: {} for file in original.files}
    touched = set() if is_native else set(members)
    for name, tensor in original.tensors.items():
        if name not in gone:
            members[tensor.file][name] = made.get(name, (tensor.dtype, tensor.shape))
        if name in gone or name in made:
            touched.add(tensor.file)
    headers, nbytes = dict(source.headers), dict(source.nbytes)
    for file in touched:
        if not members[file]:
            del headers[file], nbytes[file]
            continue
        with source.open(file) as opened:
            metadata = read_header(opened, file).metadata
        headers[file], placed = build_header(members[file], metadata)
        nbytes[file] = len(headers[file]) + max(info.stop for info in placed.values())
    small = dict(source.small)
    if INDEX_FILE in small:
        small[INDEX_FILE] = index_of({file: kinds for file, kinds in members.items() if kinds}, nbytes, headers)
    changes = tuple(_changes(original, made, gone))
    notes = (*source.notes, *map(str, changes))
    return replace(source, revision=None, small=small, headers=headers, nbytes=nbytes, notes=notes, changes=changes)


def _decoded(step: Step) -> Iterator[tuple[str, DtypeShape]]:
    """The name, dtype and shape of the tensor that a step with a transform makes."""
    transform, shape = step.transform, step.source.shape
    if transform is not None and transform.scale_dtype is not None and step.makes_scale:
        yield step.source.name, (transform.scale_dtype, transform.scale_shape(shape))
    elif transform is not None:
        yield step.source.name, (transform.weight_dtype, transform.weight_shape(shape))


def index_of(
    files: Mapping[str, Mapping[str, DtypeShape]], nbytes: Mapping[str, int], headers: Mapping[str, bytes]
) -> bytes:
    """The bytes of model.safetensors.index.json for the weight files."""
    total = sum(nbytes[file] - len(headers[file]) for file in files)
    weight_map = {name: file for file, members in files.items() for name in members}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2).encode() + b"\n"


def config_for(source: RankSource, document: dict[str, Any], experts: str) -> RankSource:
    """`source` with a config.json that states the format of its routed experts (FP4, FP8), in V4's or V4.1's field."""
    said: dict[str, Any] = {"expert_dtype": experts.lower()}
    quantization = document.get("quantization_config")
    if isinstance(quantization, dict) and "expert_dtype" in quantization:
        said = {"quantization_config": quantization | said}
    if document | said == document:
        return source
    content = json.dumps(document | said, indent=2).encode() + b"\n"
    return replace(source, small=dict(source.small) | {CONFIG_FILE: content})


def _changes(original: Checkpoint, made: Mapping[str, DtypeShape], gone: Mapping[str, str]) -> Iterator[ChangedTensor]:
    """The tensors that changed or were dropped, one entry for all tensors with the same change."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for name, (dtype, _) in made.items():
        alike.setdefault((original.tensors[name].dtype, dtype, "decoded or cast"), []).append(name)
    for name, reason in gone.items():
        alike.setdefault((original.tensors[name].dtype, "", reason), []).append(name)
    for (was, held, reason), names in alike.items():
        yield ChangedTensor(len(names), names[0], was, held, reason)
