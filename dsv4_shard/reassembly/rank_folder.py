"""Result folder of reshard → the checkpoint that it was made from, without writing it.

source.zip, plan.json and manifest.json name the checkpoint and the plan. Files of DeepSeek's converter have none of
these; `deepseek_files` handles them. In both cases the recipe is built again, and each file's header must equal the
recipe's, byte for byte. Read backwards, the recipe gives the place of each tensor's pieces.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dsv4_shard.checkpoint import (
    Checkpoint,
    Inventory,
    differences,
    origin_of,
    read_checkpoint,
    refuse_errors,
    take_inventory,
)
from dsv4_shard.engines import Context, Engine, Layout
from dsv4_shard.errors import BadRanks, BadSkeleton, HeaderError, MissingRanks, UsageError, WrongRankHeader
from dsv4_shard.limits import ARCHIVE, COMPANION, MANIFEST, PLAN, Limit
from dsv4_shard.planning import check_plan, load_plan
from dsv4_shard.reassembly.deepseek_files import converted_source
from dsv4_shard.reassembly.gather import Gatherer
from dsv4_shard.reassembly.kept_tensors import config_for, held_source
from dsv4_shard.reassembly.open_files import FileState, RankFiles
from dsv4_shard.reassembly.source import RankSource
from dsv4_shard.sharding.companions import carried_by
from dsv4_shard.sharding.header_archive import SKELETON_NAME, read_skeleton
from dsv4_shard.sharding.job import deploy
from dsv4_shard.sharding.manifest import NATIVE, PLAN_NAME, Manifest, has_pieces_of, load_manifest
from dsv4_shard.sharding.recipe import OutputFile, Recipe
from dsv4_shard.sharding.recipe_builder import make_recipe
from dsv4_shard.sources.base import OpenFile, SourcePart
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.sources.release_files import travelling
from dsv4_shard.storage import MANIFEST_NAME, digest_of, read_regular
from dsv4_shard.tensors.header import Tensor, read_header
from dsv4_shard.text.sanitize import short_name

_NAMED_AT_ONCE = 8


def open_ranks(source: LocalSource, config: Path | None = None) -> tuple[Checkpoint, Inventory]:
    """The checkpoint that the ranks in a folder form; its source is a `RankSource`. Reads headers and small files only.

    `config` is the checkpoint's config.json, needed only for files of DeepSeek's converter. Raises a BadRanks if ranks
    are missing, contradict each other, or differ from their manifest.
    """
    if MANIFEST_NAME not in source.sizes():
        return _open_converted(source, config)
    if config is not None:
        reason = f"the shards in {source.label} have a {SKELETON_NAME}, which holds it already"
        raise UsageError.about("config", ..., reason)
    return _open_result(source)


def _open_result(folder: LocalSource) -> tuple[Checkpoint, Inventory]:
    manifest = load_manifest(folder.root)
    _check_world(manifest, folder.label)
    source = _original_source(folder, manifest)
    original = read_checkpoint(source)
    for difference in differences(manifest.source, origin_of(original, folder.label)):
        raise BadSkeleton(f"{folder.root / SKELETON_NAME}: not of the checkpoint that the manifest names: {difference}")
    inventory = take_inventory(original)
    _companion(folder.root, manifest, PLAN_NAME, PLAN)
    plan = check_plan(load_plan(folder.root / PLAN_NAME), original, inventory)
    engine, layout, context = deploy(plan, inventory)
    released = _released(folder.root, manifest, carried_by(manifest.names, original, layout, context))
    source = replace(source, small=dict(source.small) | released)
    world = context.deployment.readers(layout.by_node)
    notes = (f"merged from {world} {'nodes' if layout.by_node else 'ranks'} of {layout.name} shards",)
    made = _Rebuilt(engine, context, tuple(range(world)), plan.request.part_nbytes)
    checkpoint, found, recipe = made.held(original, inventory, replace(source, notes=notes))
    if not has_pieces_of(manifest, recipe):  # written from rank files
        del checkpoint, found, recipe
        checkpoint, found, recipe = replace(made, in_parts=False).held(
            original, inventory, replace(source, notes=notes)
        )
    _check_manifest(manifest, recipe, layout, context, folder.label)
    written = {entry.name: entry.tensors for entry in manifest.files}
    digests = [{name: written[file.name][name] for name in file.tensors} for file in recipe.files]  # names are shared
    del manifest, written
    return _with_ranks(checkpoint, recipe, folder, digests, (_manifest_part(folder.root),)), found


def _check_world(manifest: Manifest, label: str) -> None:
    if manifest.layout == NATIVE:
        raise BadRanks(f"{label}: a merged checkpoint that has lost its index")
    missing = sorted(set(range(manifest.world)) - set(manifest.ranks))
    if missing:
        raise MissingRanks(f"{label}: {len(manifest.ranks)} of {manifest.world} ranks; missing: {_numbers(missing)}")


def _original_source(folder: LocalSource, manifest: Manifest) -> RankSource:
    """The headers of the original checkpoint, from source.zip. Raises BadSkeleton."""
    raw = _companion(folder.root, manifest, SKELETON_NAME, ARCHIVE)
    content = read_skeleton(raw, str(folder.root / SKELETON_NAME))
    nbytes = {file.name: file.nbytes for file in manifest.source.files}
    digests = {file.name: file.header_digest for file in manifest.source.files}
    headers = {name: header for name, header in content.items() if name not in (CONFIG_FILE, INDEX_FILE)}
    if {name: digest_of(header) for name, header in headers.items()} != digests:
        raise BadSkeleton(f"{folder.root / SKELETON_NAME}: not the headers of the checkpoint that the manifest names")
    small = {name: raw for name, raw in content.items() if name not in headers}
    return RankSource(folder.root, _label_of(folder), manifest.source.revision, small, headers, nbytes)


def _label_of(folder: LocalSource) -> str:
    """The folder's name, told apart from that of a Hub repository: plans keep it beside the original's commit."""
    return f"./{folder.label}" if re.fullmatch(r"[\w.-]+/[\w.-]+", folder.label) else folder.label


def _companion(root: Path, manifest: Manifest, name: str, limit: Limit) -> bytes:
    """A small file of a result, checked against the manifest. Raises BadSkeleton."""
    entry = next((entry for entry in manifest.companions if entry.name == name), None)
    if entry is None or not (root / name).is_file():
        raise BadSkeleton(f"{root / name}: is gone, or was never written")
    with LocalSource(root, str(root)).open(name) as file:
        if file.nbytes != entry.nbytes or file.nbytes > limit.nbytes:
            raise BadSkeleton(f"{root / name}: {file.nbytes:,} bytes, not the {entry.nbytes:,} that were written")
        raw = file.read(0, file.nbytes)
    if digest_of(raw) != entry.digest:
        raise BadSkeleton(f"{root / name}: differs from what was written")
    return raw


def _released(root: Path, manifest: Manifest, names: Mapping[str, str]) -> dict[str, bytes]:
    """The files of the release in a result, under the checkpoint's names; `names` maps these to the result's.

    Raises BadRanks for one that no result has.
    """
    nbytes = {entry.name: entry.nbytes for entry in manifest.companions}
    release = travelling({original: nbytes[name] for original, name in names.items() if name in nbytes})
    for name, reason in release.left_behind.items():
        raise BadRanks(f"{root / MANIFEST_NAME}: names {name}, which no result holds: {reason}")
    return {name: _companion(root, manifest, names[name], COMPANION) for name in sorted(release.sizes)}


def _check_manifest(manifest: Manifest, recipe: Recipe, layout: Layout, context: Context, label: str) -> None:
    """Raise BadRanks unless the manifest has the files and tensors that the plan gives."""
    written = {entry.name: (entry.ranks, entry.links, set(entry.tensors)) for entry in manifest.files}
    due = {file.name: (file.ranks, file.links, set(file.tensors)) for file in recipe.files}
    made_for = (manifest.layout, manifest.identity)
    if written != due or made_for != (layout.name, layout.identity(context)):
        raise BadRanks(f"{label}/{MANIFEST_NAME}: has other files, ranks or tensors than the plan gives")


def _open_converted(folder: LocalSource, config: Path | None) -> tuple[Checkpoint, Inventory]:
    """The checkpoint that files of DeepSeek's converter hold, in native tensors."""
    source, engine, deployment = converted_source(folder, config)
    original = read_checkpoint(source)
    inventory = take_inventory(original)
    refuse_errors(inventory)
    made = _Rebuilt(engine, Context(inventory, deployment), tuple(range(deployment.world)))
    checkpoint, inventory, recipe = made.held(original, inventory, source)
    digests = [(file, digest_of(file.header)) for file in recipe.files]
    parts = [SourcePart(name, file.nbytes, digest) for file, digest in digests for name in (file.name, *file.links)]
    return _with_ranks(checkpoint, recipe, folder, None, parts), inventory


@dataclass(frozen=True, slots=True)
class _Rebuilt:
    """The engine, context and ranks that the files were made with."""

    engine: Engine
    context: Context
    ranks: tuple[int, ...]
    part_nbytes: int | None = None
    in_parts: bool = True

    def held(
        self, original: Checkpoint, inventory: Inventory, source: RankSource
    ) -> tuple[Checkpoint, Inventory, Recipe]:
        """The checkpoint that the ranks hold (headers only), its inventory, and the recipe that makes the files."""
        recipe = self._recipe(original, self.context)
        held = held_source(original, source, recipe)
        if held is not source:
            del recipe  # two would take 200 MB for 200,000 tensors
        checkpoint = read_checkpoint(held)
        found = take_inventory(checkpoint)
        refuse_errors(found)
        if found.routed != inventory.routed:
            checkpoint = read_checkpoint(config_for(held, checkpoint.document, found.routed.name))
            found = take_inventory(checkpoint)
        if held is not source:
            recipe = self._recipe(checkpoint, Context(found, self.context.deployment))
        return checkpoint, found, recipe

    def _recipe(self, checkpoint: Checkpoint, context: Context) -> Recipe:
        return make_recipe(
            checkpoint, self.engine, context, self.ranks, in_parts=self.in_parts, part_nbytes=self.part_nbytes
        )


def _with_ranks(
    checkpoint: Checkpoint,
    recipe: Recipe,
    folder: LocalSource,
    written: Sequence[Mapping[str, str]] | None,
    parts: Sequence[SourcePart],
) -> Checkpoint:
    """The checkpoint with its bytes, after the header of each rank file was checked against the recipe."""
    files = RankFiles(folder.root, _check_files(recipe, folder))
    gatherer = Gatherer(recipe, files, written)
    gatherer.check_fixed()
    tensors: dict[str, list[Tensor]] = {file.name: [] for file in checkpoint.files}
    for tensor in checkpoint.tensors.values():
        tensors[tensor.file].append(tensor)
    for members in tensors.values():
        members.sort(key=lambda tensor: (tensor.start, tensor.stop))
    assert isinstance(checkpoint.source, RankSource), "it was read from one"
    source = replace(checkpoint.source, tensors=tensors, gatherer=gatherer, parts=parts)
    dated = tuple(replace(file, mtime_ns=files.stamp) for file in checkpoint.files)
    return replace(checkpoint, source=source, files=dated)


def _manifest_part(root: Path) -> SourcePart:
    raw = read_regular(root / MANIFEST_NAME, MANIFEST)
    return SourcePart(MANIFEST_NAME, len(raw), sha256=hashlib.sha256(raw).hexdigest())


def _check_files(recipe: Recipe, folder: LocalSource) -> list[tuple[FileState, ...]]:
    """The state of each file and its copies. Raises MissingRanks, and WrongRankHeader for a wrong header."""
    lost = [(file, name) for file in recipe.files for name in (file.name, *file.links)
            if not (folder.root / name).is_file()]  # fmt: skip
    if lost:
        ranks = sorted({rank for file, name in lost for rank in _readers(file, name)})
        names = ", ".join(name for _, name in lost[:_NAMED_AT_ONCE]) + (" ..." if len(lost) > _NAMED_AT_ONCE else "")
        files = "1 file is" if len(lost) == 1 else f"{len(lost)} files are"
        whose = f"rank{'s' if len(ranks) > 1 else ''} {_numbers(ranks)}"
        raise MissingRanks(f"{folder.label}: {files} not there ({names}), of {whose}")
    return [tuple(_check_file(file, name, folder) for name in _distinct(file, folder.root)) for file in recipe.files]


def _readers(file: OutputFile, name: str) -> tuple[int, ...]:
    """The ranks that read a file under one of its names."""
    return (file.ranks[(file.name, *file.links).index(name)],) if file.links else file.ranks


def _distinct(file: OutputFile, root: Path) -> list[str]:
    """The names of a file that lead to different inodes: one name for each."""
    found: dict[tuple[int, int], str] = {}
    for name in (file.name, *file.links):
        there = (root / name).stat()
        found.setdefault((there.st_dev, there.st_ino), name)
    return list(found.values())


def _check_file(due: OutputFile, name: str, folder: LocalSource) -> FileState:
    with folder.open(name) as file:
        if file.nbytes != due.nbytes or file.read(0, len(due.header)) != due.header:
            ranks = _numbers(_readers(due, name))
            raise WrongRankHeader(f"{folder.label}/{name}: not the file of rank {ranks}: {_difference(file, due)}")
        return FileState(name, file.nbytes, file.mtime_ns)


def _difference(file: OpenFile, due: OutputFile) -> str:
    """The first difference between a file's header and the expected one, in words."""
    try:
        header = read_header(file, "its header")
    except HeaderError as error:
        return str(error)
    if odd := sorted(header.tensors.keys() ^ due.tensors.keys()):
        return f"it {'has' if odd[0] in header.tensors else 'lacks'} {short_name(odd[0])}"
    for name, info in due.tensors.items():
        found = header.tensors[name]
        if (found.dtype, found.shape) != (info.dtype, info.shape):
            there = f"{name} is {found.dtype} {list(found.shape)}"
            return f"{there}, due is {info.dtype} {list(info.shape)}"
    return "its header has the same tensors in another order, or other metadata"


def _numbers(ranks: Sequence[int]) -> str:
    """Ranks as text, with runs as `first-last`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], rank]
        else:
            runs.append([rank])
    return ", ".join("-".join(map(str, run)) for run in runs)
