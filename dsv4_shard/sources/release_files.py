"""The files that travel with the weights: licence, notices, README, tokenizer, the release's own folders.

Every file of a checkpoint travels, unchanged and never run, unless a rule here says why it stays behind. The rules look
at names and sizes alone, so that no file is read before it is known to travel.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from posixpath import basename, dirname
from typing import NamedTuple

from dsv4_shard.errors import SourceChanged
from dsv4_shard.limits import COMPANION, COMPANIONS
from dsv4_shard.sources.base import Source
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE, is_plain_name
from dsv4_shard.text.sanitize import short_name

_LARGE_BYTES = 16 << 20
"""A larger file is more often a video or an archive than a tokenizer, so it comes after all others."""

MAX_RELEASE_NAME_BYTES = 200
"""A result puts a node's folder before the name; file systems allow 255 bytes."""

_READERS = 8

_NAME = re.compile(r"\w[\w.+ ()\[\]@=,~-]*(?<! )")
"""A file or folder that travels: not hidden, not an option on a command line, the same on every file system."""

_LEGAL = re.compile(r"(licen[cs]e|notice|copying|copyright|patents|readme|third.?party)", re.IGNORECASE)

_FOREIGN_WEIGHTS = (".safetensors", ".gguf", ".index.json")
"""A folder with one of these is a checkpoint of its own."""

_WEIGHTS = (
    *_FOREIGN_WEIGHTS,
    ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".dill", ".joblib", ".distcp", ".ggml", ".onnx", ".h5", ".hdf5",
    ".keras", ".msgpack", ".npy", ".npz", ".pb", ".tflite", ".nemo", ".pyc",
)  # fmt: skip
"""Ends of names of weights, and of files whose reader runs code."""

_RESULT = {"manifest.json", "source.zip"}
"""A folder with both is a result of reshard."""


class ReleaseFiles(NamedTuple):
    """The files that travel, and those that do not.

    Attributes:
        sizes: Name → bytes of each file that travels: in the order in which limits are used up.
        left_behind: Name of every other file or folder, for messages → the reason. Config, index and the checkpoint's
            weights are in neither.
    """

    sizes: dict[str, int]
    left_behind: dict[str, str]


def release_of(source: Source) -> ReleaseFiles:
    """Return which files of a source travel with its weights. Raises ReadFailed."""
    return travelling(source.tree())


def travelling(tree: Mapping[str, int | str]) -> ReleaseFiles:
    """Return which files travel of a `Source.tree`."""
    left = {short_name(name): size for name, size in tree.items() if isinstance(size, str)}
    files = {name: size for name, size in tree.items() if not isinstance(size, str) and not _has_its_own_way(name)}
    for folder in {folder for name in files for folder in _folders_of(name)}:
        if files.get(folder) == 0:
            del files[folder]  # some tools put an empty object into a store for each folder
    foreign = _checkpoints_in(files)
    sizes: dict[str, int] = {}
    total = 0
    for name in sorted(files, key=lambda name: _order(name, files[name])):
        stays = _stays(name, files[name], foreign)
        if stays is None and any(folder in sizes for folder in _folders_of(name)):
            stays = name, "in a folder that is also a file"
        if stays is None and (len(sizes) >= COMPANIONS.count or total + files[name] > COMPANIONS.nbytes):
            stays = name, f"beyond {COMPANIONS.count:,} files or {COMPANIONS.nbytes >> 20} MiB in all"
        if stays is None:
            sizes[name] = files[name]
            total += files[name]
        else:
            left[short_name(stays[0])] = stays[1]
    return ReleaseFiles(sizes, dict(sorted(left.items())))


def is_legal(name: str) -> bool:
    """Whether a file is a licence, a notice or a README, by the beginning of its name."""
    return _LEGAL.match(basename(name)) is not None


def is_license(name: str) -> bool:
    """Whether a file directly in the checkpoint is its licence."""
    return "/" not in name and re.match(r"licen[cs]e|copying", name, re.IGNORECASE) is not None


def hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or a cache of compiled code."""
    return name.startswith(".") or name == "__pycache__"


def read_release(source: Source, sizes: Mapping[str, int]) -> dict[str, bytes]:
    """Return name → content of files that travel, several fetched at a time.

    Raises SourceChanged if a file has another size than was listed, and the errors of the source.
    """

    def read(name: str) -> bytes:
        with source.open(name) as file:
            if file.nbytes != sizes[name]:
                raise SourceChanged(f"{source.label}/{name}: {sizes[name]:,} bytes when listed, {file.nbytes:,} now")
            return file.read(0, file.nbytes)

    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(sizes, pool.map(read, sizes), strict=True))


def _order(name: str, nbytes: int) -> tuple[bool, bool, int, int, str]:
    """The order in which limits are used up: what the law asks for, then files that are not large, in fewer folders."""
    return not is_legal(name), nbytes > _LARGE_BYTES, name.count("/"), nbytes, name


def _has_its_own_way(name: str) -> bool:
    """Whether a result has a file in its own way: config, index and weights of the checkpoint itself."""
    return name in (CONFIG_FILE, INDEX_FILE) or is_plain_name(name)


def _stays(name: str, nbytes: int, foreign: Collection[str]) -> tuple[str, str] | None:
    """The file or the folder around it that stays behind, and why; None if the file travels."""
    parts = name.split("/")
    for depth, part in enumerate(parts, 1):
        within = "/".join(parts[:depth]) + "/" * (depth < len(parts))
        if hidden(part):
            return within, "hidden"
        if within.rstrip("/") in foreign and depth < len(parts):
            return within, "another checkpoint"
    if name.lower().endswith(_WEIGHTS):
        return name, "weights, or a format that runs code"
    if len(parts) > COMPANION.depth + 1:
        return name, f"deeper than {COMPANION.depth} folders"
    if len(name.encode(errors="replace")) > MAX_RELEASE_NAME_BYTES or not all(map(_NAME.fullmatch, parts)):
        return name, "a name that some file systems refuse"
    if nbytes > COMPANION.nbytes:
        return name, f"{nbytes:,} bytes, over {COMPANION.nbytes >> 20} MiB"
    return None


def _folders_of(name: str) -> list[str]:
    """The folders that a name lies in, the outermost first."""
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _checkpoints_in(files: Iterable[str]) -> set[str]:
    """The folders that are checkpoints or results of their own."""
    members: dict[str, set[str]] = {}
    for name in files:
        members.setdefault(dirname(name), set()).add(basename(name).lower())
    return {
        folder
        for folder, names in members.items()
        if folder and (names >= _RESULT or any(name.endswith(_FOREIGN_WEIGHTS) for name in names))
    }
