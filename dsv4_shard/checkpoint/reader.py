"""Reads a checkpoint's config, index and every header, and checks them against each other and the folder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from dsv4_shard.checkpoint.exports import name_export
from dsv4_shard.checkpoint.findings import Finding, Severity, defect, some
from dsv4_shard.checkpoint.folders import dead_link_hint, drafts_in_folders, no_index, refuse_other_folders
from dsv4_shard.errors import (
    BadConfig,
    BadIndex,
    BadStack,
    CheckpointTooLarge,
    DuplicateTensor,
    IndexMismatch,
    MissingFile,
    MixedDialects,
    UnsafeFileName,
)
from dsv4_shard.limits import CONFIG, HEADERS, INDEX, WEIGHT_FILES
from dsv4_shard.models import (
    NATIVE,
    ModelConfig,
    Stage,
    View,
    family_of,
    is_transformers_config,
    native_view,
    parse_config,
    parse_document,
)
from dsv4_shard.sources.base import Source
from dsv4_shard.sources.checkpoint_files import (
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    is_plain_name,
)
from dsv4_shard.storage import collector_paused
from dsv4_shard.tensors.header import Tensor, read_header
from dsv4_shard.text.sanitize import short, short_name
from dsv4_shard.text.shell import shell_word
from dsv4_shard.text.strict_json import BadJson, is_plain, parse_json
from dsv4_shard.text.units import counted

NESTED_DRAFT = "nested-draft"
"""Code of the note about a draft model in a folder of its own."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A weight file. Size and header digest together identify it.

    Attributes:
        name: Name in the checkpoint's folder.
        nbytes: Size in bytes.
        header_digest: xxh3-128 of the header with its length, in hexadecimal.
        mtime_ns: Modification time at the moment the header was read, in nanoseconds.
    """

    name: str
    nbytes: int
    header_digest: str
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything known about a checkpoint without reading its weights.

    Attributes:
        source: Where its files are.
        config: The checked config.
        document: config.json as parsed.
        files: Its weight files.
        tensors: Native name → tensor.
        findings: What the reader found.
        dialect: Name of the dialect of the names in the files.
        documents: Names of the JSON files beside the weights.
    """

    source: Source
    config: ModelConfig
    document: dict[str, Any]
    files: tuple[SourceFile, ...]
    tensors: dict[str, Tensor]
    findings: tuple[Finding, ...]
    dialect: str = NATIVE
    documents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnknownCheckpoint:
    """A checkpoint of an unknown family: as `Checkpoint`, without checked config and native names."""

    source: Source
    document: dict[str, Any]
    files: tuple[SourceFile, ...]
    tensors: dict[str, Tensor]
    findings: tuple[Finding, ...]
    documents: tuple[str, ...] = ()


def read_checkpoint(source: Source) -> Checkpoint:
    """Read config, index and headers, and check them against each other.

    Raises UnsupportedFamily, before any weight file is opened, if the config is of an unknown family. Raises another
    ShardError with exit code 3 for each other contradiction.
    """
    sizes = source.sizes()
    refuse_other_folders(source, sizes)
    config, document = parse_config(*_read_config(source, sizes))
    files, tensors, findings = _read_weights(source, sizes)
    with collector_paused():
        try:
            view = native_view(config, tensors)
        except (BadStack, DuplicateTensor, MixedDialects):
            parts = family_of(config).grammar.parts.values()
            odd = [name for name in tensors if name.rpartition(".")[2] not in parts]
            if name_export(document, sizes, tensors, odd) is None:
                raise
            view = View(tensors)
    findings = (*findings, *_check_dialect(view, config, document), *_find_drafts(source, config, view))
    dialect = view.dialect.name if view.dialect else NATIVE
    return Checkpoint(source, config, document, files, view.tensors, findings, dialect, _documents(sizes))


def read_unknown(source: Source) -> UnknownCheckpoint:
    """Read a checkpoint of any family, with the checks of `read_checkpoint` that need no family."""
    sizes = source.sizes()
    refuse_other_folders(source, sizes)
    document = parse_document(*_read_config(source, sizes))
    return UnknownCheckpoint(source, document, *_read_weights(source, sizes), _documents(sizes))


def _documents(sizes: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(name for name in sizes if name.endswith(".json"))


def _read_weights(
    source: Source, sizes: Mapping[str, int]
) -> tuple[tuple[SourceFile, ...], dict[str, Tensor], tuple[Finding, ...]]:
    """Read index and headers; return the weight files, the tensors by their names in the files, and findings."""
    weight_map, total = _read_index(source, sizes)
    findings: list[Finding] = []
    names = sorted(set(weight_map.values())) if weight_map is not None else [SINGLE_FILE]
    with collector_paused():
        files, tensors, warnings = _read_headers(source, names)
    findings += [Finding(Severity.WARNING, "header", line) for line in warnings]
    if weight_map is not None:
        findings += _check_total(total, tensors)
        findings += _check_index(weight_map, tensors)
    findings += _check_folder(source, sizes, names)
    findings += [Finding(Severity.NOTE, "source", line) for line in source.notes]
    return files, tensors, tuple(findings)


def _read_config(source: Source, sizes: Mapping[str, int]) -> tuple[bytes, str]:
    """Return the bytes of config.json, and its name in errors."""
    if CONFIG_FILE not in sizes:
        raise BadConfig(f"{source.label}: no {CONFIG_FILE}", hint="Name the folder that holds the whole checkpoint.")
    if sizes[CONFIG_FILE] > CONFIG.nbytes:
        raise BadConfig(f"{source.label}/{CONFIG_FILE}: {sizes[CONFIG_FILE]} bytes, over {CONFIG.nbytes}")
    with source.open(CONFIG_FILE) as file:
        return file.read(0, file.nbytes), f"{source.label}/{CONFIG_FILE}"


def _read_index(source: Source, sizes: Mapping[str, int]) -> tuple[dict[str, str] | None, int | None]:
    """Return the weight map (tensor → file) and the index's total size; None for both if the checkpoint is one file."""
    if INDEX_FILE not in sizes:
        if SINGLE_FILE in sizes:
            return None, None
        raise no_index(source.label, sizes)
    where = f"{source.label}/{INDEX_FILE}"
    if sizes[INDEX_FILE] > INDEX.nbytes:
        raise BadIndex(f"{where}: {sizes[INDEX_FILE]} bytes, over {INDEX.nbytes}")
    with source.open(INDEX_FILE) as file:
        raw = file.read(0, file.nbytes)
    weight_map, total = _parse_index(raw, where)
    _check_file_names(sorted(set(weight_map.values())), sizes, source, where)
    return weight_map, total


def _check_total(total: int | None, tensors: Mapping[str, Tensor]) -> list[Finding]:
    """Return a warning if the index's total size differs from the tensors' bytes."""
    if total is None:
        return []
    present = sum(tensor.stop for tensor in tensors.values()) - sum(tensor.start for tensor in tensors.values())
    if total == present:
        return []
    return [Finding(Severity.WARNING, "total-size", f"the index says {total:,} bytes, the tensors have {present:,}")]


def _parse_index(raw: bytes, where: str) -> tuple[dict[str, str], int | None]:
    """Return weight map and `metadata.total_size` of an index. Raises BadIndex, also if a tensor is listed twice."""
    try:
        document = parse_json(raw, INDEX)
    except BadJson as error:
        raise BadIndex(f"{where}: {error}") from None
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not {str}.issuperset(map(type, weight_map.values())):
        raise BadIndex(f"{where}: weight_map must map tensor names to file names")
    if not weight_map:
        raise BadIndex(f"{where}: weight_map is empty")
    if not is_plain({key: value for key, value in document.items() if key != "weight_map"}):
        raise BadIndex(f"{where}: nested too deeply, or holds a number beyond every double")
    metadata = document.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return weight_map, total if type(total) is int and 0 <= total < 2**63 else None


def _check_file_names(names: list[str], sizes: Mapping[str, int], source: Source, where: str) -> None:
    """Raise UnsafeFileName or MissingFile for the first problem with the files that an index names."""
    if len(names) > WEIGHT_FILES.count:
        raise BadIndex(f"{where} names {len(names):,} files, too many: at most {WEIGHT_FILES.count:,} are read")
    unsafe = [name for name in names if not is_plain_name(name)]
    if unsafe:
        inside = all(is_plain_name(name.rpartition("/")[2]) and _goes_down(name) for name in unsafe)
        raise UnsafeFileName(
            f"{where}: {some(unsafe)}: not the plain name of a safetensors file in this folder",
            hint=_IN_FOLDERS if inside else None,
        )
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(name.lower(), name)
        if other != name:
            raise UnsafeFileName(f"{where}: {other} and {name} differ only in case")
    missing = [name for name in names if name not in sizes]
    if missing:
        dangling = sorted(set(missing).intersection(source.dangling_links()))
        why = f"; {some(dangling)}: a link whose target is gone" if dangling else ""
        raise MissingFile(
            f"{where} names {counted(len(names), 'file')}, {len(missing)} of them not there: {some(missing)}{why}",
            hint=dead_link_hint(dangling) or (None if source.root is not None else _LACKS),
        )


_LACKS = "The repository or store lacks it: name another revision or place, or tell its owner."

_IN_FOLDERS = "Weights are read beside the index alone: move them there, and take the folder out of the index's names."


def _goes_down(name: str) -> bool:
    """Whether a path leads into folders below, and nowhere else."""
    return {"", ".", ".."}.isdisjoint(name.split("/")) and "\\" not in name


def _read_headers(source: Source, names: list[str]) -> tuple[tuple[SourceFile, ...], dict[str, Tensor], list[str]]:
    files: list[SourceFile] = []
    tensors: dict[str, Tensor] = {}
    warnings: list[str] = []
    nbytes = 0
    for name in names:
        with source.open(name) as file:
            header = read_header(file, name)
            nbytes += header.data_start
            _check_total_headers(nbytes, len(tensors) + len(header.tensors), source.label)
            digest = xxhash.xxh3_128_hexdigest(file.read(0, header.data_start))
            files.append(SourceFile(name, file.nbytes, digest, file.mtime_ns))
        warnings += header.warnings
        base = end = header.data_start
        for key, (dtype, shape, start, stop) in header.tensors.items():
            if key in tensors:
                raise DuplicateTensor(f"{short(key)} is in {tensors[key].file} and in {name}")
            # Most tensors begin where the previous one ends. Sharing the int object saves 5 MB.
            begin = end if base + start == end else base + start
            end = base + stop
            tensors[key] = tuple.__new__(Tensor, (key, dtype, shape, name, begin, end))
    return tuple(files), tensors, warnings


def _check_total_headers(nbytes: int, tensors: int, where: str) -> None:
    """Raise CheckpointTooLarge if all headers so far have more bytes or tensors than are read."""
    for number, most, unit in ((nbytes, HEADERS.nbytes, "bytes"), (tensors, HEADERS.count, "tensors")):
        if number > most:
            raise CheckpointTooLarge(f"{where}: headers of over {most:,} {unit} in all, too many to be read")


def _check_index(weight_map: Mapping[str, str], tensors: Mapping[str, Tensor]) -> list[Finding]:
    """Compare index and headers. Raises IndexMismatch; entries that are known to be stale only give a finding."""
    if len(weight_map) == len(tensors) and all(weight_map.get(name) == tensor[3] for name, tensor in tensors.items()):
        return []
    unindexed = [name for name in tensors if name not in weight_map]
    if unindexed:
        raise IndexMismatch(
            f"{len(unindexed):,} tensors stand in files but not in the index: {some(unindexed)} "
            f"(in {tensors[unindexed[0]].file})"
        )
    absent = [name for name in weight_map if name not in tensors]
    stale = [name for name in absent if _is_stale(name, tensors)]
    lost = sorted(set(absent) - set(stale))
    if lost:
        raise IndexMismatch(
            f"{len(lost):,} tensors of the index stand in none of its files: {some(lost)} "
            f"(due in {weight_map[lost[0]]})"
        )
    for name, tensor in tensors.items():
        if weight_map[name] != tensor.file:
            raise IndexMismatch(f"{short(name)}: the index puts it in {weight_map[name]}, it stands in {tensor.file}")
    if not stale:
        return []
    return [Finding(Severity.NOTE, "stale-index", f"{len(stale)} index entries have no tensor and need none "
                    f"(wo_a is stored in BF16, so it has no scale): {some(stale)}")]  # fmt: skip


def _is_stale(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether an index entry is one of wo_a's scales, which the FP8 re-releases list but do not have.

    They store wo_a in BF16.
    """
    weight = tensors.get(name.removesuffix(".scale") + ".weight")
    return name.endswith(".attn.wo_a.scale") and weight is not None and weight.dtype == "BF16"


def _check_dialect(view: View, config: ModelConfig, document: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield findings about the naming dialect and known export bugs."""
    if view.lost:
        yield defect("missing-scales", "the scales of the experts are lost: Transformers' save_pretrained wrote those "
                     f"of all layers under one name: {some(list(view.lost))}; save again from the original checkpoint, "
                     "with save_original_format=False")  # fmt: skip
    if is_transformers_config(config, document):
        yield defect("config-dialect", "config.json has Transformers' keys (layer_types for compress_ratios), which "
                     "engines do not know: put the original release's config.json in its place")  # fmt: skip
    if view.dialect:
        yield Finding(Severity.NOTE, "dialect", f"tensors are named as by {view.dialect.title}; here they have "
                      "DeepSeek's own names")  # fmt: skip


def _find_drafts(source: Source, config: ModelConfig, view: View) -> Iterator[Finding]:
    """Yield a note if the draft model that the config declares is in a folder of its own, as miles exports it."""
    prefix = family_of(config).grammar.prefixes.get(Stage.MTP)
    if prefix is None or not config.num_nextn_predict_layers or _has(prefix, view.tensors):
        return
    for folder, count in drafts_in_folders(source).items():
        yield Finding(
            Severity.NOTE, NESTED_DRAFT, f"the draft model is in {short_name(folder)}/ ({count:,} tensors): this is "
            f"the target alone; `dsv4-shard inspect {shell_word(f'{source.label}/{folder}')}` shows the draft"
        )  # fmt: skip


def _has(prefix: str, names: dict[str, Tensor]) -> bool:
    """Return whether a name begins with `prefix`, the last first: releases have the MTP blocks in their last file."""
    return any(name.startswith(prefix) for name in reversed(names))


def _check_folder(source: Source, sizes: Mapping[str, int], names: list[str]) -> list[Finding]:
    """Return findings about other weight files, unfinished downloads and links out of the folder."""
    findings = []
    others = sorted({name for name in sizes if name.endswith(".safetensors")}.difference(names))
    if others:
        findings.append(
            Finding(Severity.WARNING, "unindexed-files", f"{counted(len(others), 'safetensors file')} that the index "
                    f"does not name left alone: {some(others)}")
        )  # fmt: skip
    indexes = sorted({name for name in sizes if name.endswith(".safetensors.index.json")} - {INDEX_FILE})
    if indexes:
        message = f"another index is left alone, and {INDEX_FILE} is read: {some(indexes)}"
        findings.append(Finding(Severity.NOTE, "other-index", message))
    partial = source.unfinished_downloads()
    if partial:
        findings.append(Finding(Severity.WARNING, "partial-download", f"a download seems unfinished: {some(partial)}"))
    outside = source.links_outside(names)
    if outside:
        findings.append(
            Finding(Severity.NOTE, "links", f"{len(outside)} weight files are links out of the folder: {some(outside)}")
        )
    small = source.links_outside(sorted(name for name in sizes if not name.endswith(".safetensors")))
    if small:
        message = f"links out of the folder, whose content would be copied into results: {some(small)}"
        findings.append(Finding(Severity.WARNING, "links", message))
    return findings
