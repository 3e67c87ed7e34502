"""The checks before a byte is copied: first everything that shapes do not show, then the shapes.

This module imports nothing of an engine: a plugin's `running` and loader say what runs, and the checks decide whether
the files fit it. Each error is one line that names the file, parameter or property. Shapes do not depend on the rank,
and files for another runner have the right shapes too. Without these checks, a swapped or foreign file would load and
give wrong output.
"""

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path

from dsv4_shard.catalog.rank_ranges import span_of
from dsv4_shard.checkpoint import some
from dsv4_shard.engines import DRAFT_FOLDER
from dsv4_shard.errors import HeaderError, LoadRefused, ReadFailed
from dsv4_shard.sharding.manifest import Manifest, ManifestFile, load_manifest
from dsv4_shard.sharding.recipe import readers_name
from dsv4_shard.sources.local import LocalFile
from dsv4_shard.storage import MANIFEST_NAME, digest_of
from dsv4_shard.tensors.header import Header, read_header
from dsv4_shard.text.sanitize import short_name

_LAYER = re.compile(r"model\.layers\.(\d+)\.")

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Parameter -> (dtype as in a safetensors header, shape)."""


def find_manifest(folder: Path) -> tuple[Manifest, Path, str]:
    """The manifest of a result, the result's folder, and `draft/` if `folder` is its draft model (else empty).

    Raises NotAResult.
    """
    if folder.name == DRAFT_FOLDER.strip("/") and not (folder / MANIFEST_NAME).exists():
        return load_manifest(folder.parent), folder.parent, DRAFT_FOLDER
    return load_manifest(folder), folder, ""


def rank_files(manifest: Manifest, inner: str, rank: int) -> Iterator[tuple[str, ManifestFile]]:
    """The files that `rank` reads, each under the rank's own name for it.

    Raises LoadRefused if the rank is not in the folder.
    """
    if rank not in manifest.ranks:
        held = ", ".join(map(str, manifest.ranks))
        raise LoadRefused(f"the folder holds the ranks {held} of {manifest.world}, not rank {rank}")
    for entry in manifest.files:
        if rank in entry.ranks and entry.name.startswith(inner) and ("/" in entry.name) == bool(inner):
            if len(entry.names) != len(entry.ranks):
                raise LoadRefused(f"{short_name(entry.name)} is of {len(entry.ranks)} ranks and has no name for each")
            yield entry.names[entry.ranks.index(rank)], entry


def readers_of(identity: Mapping[str, str], world: int, rank: int) -> str:
    """Who reads the files that `rank` shares with others, in the words of their headers."""
    stages = int(identity.get("pp", "1"))
    return readers_name(rank * stages // world if stages > 1 else None)


def check_fact(name: str, expected: object, found: object, remedy: str) -> None:
    """Compare a property that the files were made for with the running engine's, as text.

    Raises LoadRefused with both, and what to do.
    """
    if str(expected) != str(found):
        raise LoadRefused(
            f"{name}: the files are for {short_name(str(expected))}, found {short_name(str(found))}: {remedy}"
        )


def check_layers(identity: Mapping[str, str], stage: int, names: Iterable[str], variable: str) -> None:
    """Compare the layers of a model's pipeline stage with those in the stage's files, which `identity` names.

    `names` are those of the model's parameters, `variable` sets the layers of the stages. Raises LoadRefused.
    """
    counts = [int(count) for count in filter(None, identity.get("pp_layers", "").split(","))]
    if counts:
        held = {int(layer[1]) for layer in map(_LAYER.match, names) if layer}
        due = range(sum(counts[:stage]), sum(counts[: stage + 1]))
        remedy = f"set {variable} as in the plan, or unset it if the plan does not have it"
        check_fact(f"layers of stage {stage}", span_of(due), span_of(held), remedy)


def check_file(path: Path, entry: ManifestFile, rank: int, readers: str = "all") -> Header:
    """Check a file against its manifest entry: presence, size, rank, header and the names of its tensors.

    `readers` is who reads a file that the rank shares with others, in the words of the file's header. Returns its
    header. Raises LoadRefused with the file's name.
    """
    try:
        file = LocalFile(path, path.name)
    except ReadFailed as error:
        raise LoadRefused(str(error)) from None
    try:
        header = read_header(file, path.name)
        whose = header.metadata.get("rank")
        if whose not in (str(rank), readers):
            raise LoadRefused(
                f"{path.name} holds the shards of rank {short_name(str(whose))}, this is rank {rank}: swapped?"
            )
        if file.nbytes != entry.nbytes:
            raise LoadRefused(f"{path.name} has {file.nbytes:,} bytes, {entry.nbytes:,} were written")
        if digest_of(file.read(0, header.data_start)) != entry.header_digest:
            raise LoadRefused(f"{path.name}: its header is not the one that was written")
        if entry.tensors.keys() != header.tensors.keys():
            raise LoadRefused(f"{path.name}: the manifest has digests of other tensors than it holds")
        return header
    except HeaderError as error:
        raise LoadRefused(str(error)) from None
    finally:
        file.close()


def check_parameters(held: Shapes, wanted: Shapes, remedy: str, optional: frozenset[str] = frozenset()) -> None:
    """Compare names, dtypes and shapes of the files (`held`) with those of the model (`wanted`).

    Raises LoadRefused with the difference and the remedy. `optional` parameters may be in no file.
    """
    missing = sorted(wanted.keys() - held.keys() - optional)
    unknown = sorted(held.keys() - wanted.keys())
    for what, names in (("of the model are in no file", missing), ("in the files are unknown to the model", unknown)):
        if names:
            raise LoadRefused(f"{len(names)} parameters {what}: {some(names)}: {remedy}")
    for name, (dtype, shape) in held.items():
        if (dtype, shape) != wanted[name]:
            due_dtype, due_shape = wanted[name]
            raise LoadRefused(
                f"{short_name(name)} is {dtype} {list(shape)} in the file, {due_dtype} {list(due_shape)} in the model: "
                f"{remedy}"
            )


def check_apart(storages: Mapping[str, Hashable]) -> None:
    """Refuse two names for one parameter: the later copy would overwrite the earlier.

    `storages` has a key for the memory of each parameter that is in the files. Raises LoadRefused with both names.
    """
    owners: dict[Hashable, str] = {}
    for name, storage in storages.items():
        if owners.setdefault(storage, name) != name:
            raise LoadRefused(
                f"{short_name(owners[storage])} and {short_name(name)} are one parameter in the model and two in the "
                "files: is tie_word_embeddings set?"
            )
