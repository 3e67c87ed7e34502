"""The small files of a result: those of the release, those that the engine reads, model card, plan and source.zip.

Files of the release keep their names and bytes. README.md is the result's own card, so the release's is called
README.source.md. A file whose name a result needs for itself stays behind. `merge` gives every file its name again.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePath

from dsv4_shard.checkpoint import Checkpoint, some
from dsv4_shard.engines import Context, Layout
from dsv4_shard.planning import read_plan
from dsv4_shard.sharding.header_archive import SKELETON_NAME, write_skeleton
from dsv4_shard.sharding.manifest import PLAN_NAME
from dsv4_shard.sharding.model_card import SOURCE_CARD, model_card
from dsv4_shard.sharding.recipe import OutputFile, Recipe
from dsv4_shard.sharding.statement import is_statement
from dsv4_shard.sources.base import Source
from dsv4_shard.sources.checkpoint_files import CARD_FILE, CONFIG_FILE, INDEX_FILE
from dsv4_shard.sources.release_files import ReleaseFiles, is_legal, is_license, read_release, release_of
from dsv4_shard.storage import MANIFEST_NAME, SIGNATURE_NAME, folders_of

_OWN = (MANIFEST_NAME, SIGNATURE_NAME, PLAN_NAME, SKELETON_NAME, SOURCE_CARD, CONFIG_FILE, INDEX_FILE)
"""Names that a result needs for itself, whatever its layout. CARD_FILE is one too, but has another name to go by."""

_NO_LICENSE = "the checkpoint has no licence file (LICENSE*): none goes into the result"


@dataclass(frozen=True, slots=True)
class Carried:
    """The small files of a checkpoint, read once for all jobs that write them.

    Attributes:
        content: Name in the checkpoint → bytes: config.json and each file that travels.
        left_behind: Name of each other file or folder → the reason.
        notes: Sentences for the user about files that are missing or lie elsewhere.
        skeleton: Content of source.zip.
    """

    content: Mapping[str, bytes]
    left_behind: Mapping[str, str]
    notes: tuple[str, ...]
    skeleton: bytes


def carry(checkpoint: Checkpoint, layout: Layout, context: Context) -> Carried:
    """Read the small files of a checkpoint that a result in `layout` holds. Raises the errors of the source."""
    source = checkpoint.source
    sizes, left = travelling_beside(release_of(source), _engine_names(checkpoint, layout, context))
    notes = [] if any(map(is_license, sizes)) else [_NO_LICENSE]
    if outside := source.links_outside(sorted(sizes)):
        notes.append(f"links to files outside the checkpoint; their content is copied into the result: {some(outside)}")
    with source.open(CONFIG_FILE) as config:
        sizes[CONFIG_FILE] = config.nbytes
    return Carried(read_release(source, sizes), left, tuple(notes), write_skeleton(checkpoint))


def read_beside(source: Source) -> dict[str, bytes]:
    """Read config, index and each file that travels, under the checkpoint's own names: those of a merged checkpoint."""
    sizes, there = travelling_beside(release_of(source), ())[0], source.sizes()
    return read_release(source, {name: there[name] for name in (CONFIG_FILE, INDEX_FILE) if name in there} | sizes)


def travelling_beside(release: ReleaseFiles, taken: Collection[str]) -> tuple[dict[str, int], dict[str, str]]:
    """The sizes of files that travel, and what stays behind, where a result itself has files called `taken`."""
    own = {*_OWN, *taken}
    own_folders = set(folders_of(own))
    sizes, left = dict(release.sizes), dict(release.left_behind)
    for name in release.sizes:
        names = {name, *folders_of([name])}
        if name in own_folders or not own.isdisjoint(names) or any(map(is_statement, names)):
            left[name] = "a result has a file of its own by this name"
            del sizes[name]
    return sizes, left


@dataclass(frozen=True, slots=True)
class Companions:
    """Makes the small files of a job.

    Attributes:
        carried: Those of the checkpoint.
        checkpoint: The checkpoint.
        layout: The layout.
        context: The deployment.
        folders: Rank → its folder; empty unless ranks are nodes.
        recipe: The weight files, for indexes.
    """

    carried: Carried
    checkpoint: Checkpoint
    layout: Layout
    context: Context
    folders: Mapping[int, str]
    recipe: Recipe

    def of(self, plan: bytes, *, whole: bool = True) -> dict[str, bytes]:
        """Name → content of each small file, for the content of plan.json.

        Without `whole`, the files are those of results before the whole release travelled: no card, and of the release
        only what the engine reads.
        """
        content, own = self.carried.content, {PLAN_NAME: plan, SKELETON_NAME: self.carried.skeleton}
        card = {}
        if whole:
            released = content.keys() - {CONFIG_FILE}
            card = {
                CARD_FILE: model_card(
                    read_plan(plan, PLAN_NAME), content.get(CARD_FILE), released, by_node=self.layout.by_node
                )
            }
        folder = {name: content[original] for name, original in self.layout.copied(self.context).items()
                  if original in content}  # fmt: skip
        folder |= self.layout.companions(self.checkpoint.document, self.context)
        release = {_name_in_result(name): raw for name, raw in content.items() if name != CONFIG_FILE} if whole else {}
        if not self.layout.by_node:
            return release | folder | card | own
        legal = {name: raw for name, raw in release.items() if is_legal(name) and "/" not in name}
        inner = {each + name: raw for each in self.folders.values() for name, raw in (release | folder | card).items()}
        indexes = {
            name: raw for rank, each in self.folders.items() for name, raw in _indexes(self.recipe, rank, each).items()
        }
        return legal | inner | indexes | card | own


def carried_by(names: Iterable[str], checkpoint: Checkpoint, layout: Layout, context: Context) -> dict[str, str]:
    """Name in the checkpoint → name in the result, of each file of the release among the companions of a result."""
    folder = layout.file_name(0, 0, context.deployment) if layout.by_node else ""
    inner = {name.removeprefix(folder) for name in names if name.startswith(folder) and not is_statement(name)}
    copies = {name for name, original in layout.copied(context).items() if name != original and original in inner}
    indexes = {f"{inner_folder}/{INDEX_FILE}" for inner_folder in folders_of(copies)}
    own = {*_OWN, CARD_FILE, *copies, *indexes, *layout.companions(checkpoint.document, context)} - {SOURCE_CARD}
    return {CARD_FILE if name == SOURCE_CARD else name: folder + name for name in sorted(inner - own)}


def _engine_names(checkpoint: Checkpoint, layout: Layout, context: Context) -> set[str]:
    """Names of the files that the engine reads and that a release does not have by this name."""
    there = checkpoint.source.sizes()
    copied = {name for name, original in layout.copied(context).items() if name != original and original in there}
    return copied | layout.companions(checkpoint.document, context).keys()


def _name_in_result(name: str) -> str:
    return SOURCE_CARD if name == CARD_FILE else name


def _indexes(recipe: Recipe, rank: int, folder: str) -> dict[str, bytes]:
    """model.safetensors.index.json for the folder of one rank, and for each folder in it that has weight files."""
    folders: dict[str, list[OutputFile]] = {}
    for file in recipe.files:
        if rank in file.ranks:
            own = next(name for name in (file.name, *file.links) if name.startswith(folder))
            folders.setdefault(own[: own.rindex("/") + 1], []).append(file)
    return {inner + INDEX_FILE: _index(files) for inner, files in folders.items()}


def _index(files: list[OutputFile]) -> bytes:
    """The index of weight files that lie in one folder."""
    plain = [json.dumps(PurePath(file.name).name) for file in files]
    weight_map = {name: where for where, file in zip(plain, files, strict=True) for name in file.tensors}
    total = sum(info.nbytes for file in files for info in file.tensors.values())
    # The same bytes as json.dumps(indent=2), which takes three times as long and 20 MB more.
    text = BytesIO()
    text.write(f'{{\n  "metadata": {{\n    "total_size": {total}\n  }},\n  "weight_map": {{'.encode())
    for number, name in enumerate(sorted(weight_map)):
        text.write(f"{',' if number else ''}\n    {json.dumps(name)}: {weight_map[name]}".encode())
    text.write(b"\n  }\n}\n")
    return text.getvalue()
