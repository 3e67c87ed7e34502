"""Recipe ↔ source: every source tensor is whole on every rank, split exactly once, on one rank, or left out."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, pairwise

from dsv4_shard.checkpoint import Inventory
from dsv4_shard.sharding.manifest import Manifest
from dsv4_shard.sharding.recipe import Destination, Recipe, Slice, SliceMap, Step
from dsv4_shard.tensors.geometry import Rectangle, whole_rectangle
from dsv4_shard.verification.documents import Problem

_WHOLE = "whole on every rank"
"""With pipeline stages, on every rank of its stage."""

_ONE_RANK = "whole on one rank, their expert's"

_SPLIT = "split over the ranks"


def account(recipe: Recipe, inventory: Inventory, manifest: Manifest) -> tuple[dict[str, int], list[Problem]]:
    """Count the source tensors by fate: on every rank, split exactly once, on one rank, or left out.

    Tensors that fit none of these are returned as problems.
    """
    complete = len(manifest.ranks) == manifest.world
    readers = [file.ranks for file in recipe.files]
    each = manifest.world // int(manifest.identity.get("pp", "1"))
    stages = [{*ranks} for _, ranks in groupby(sorted(manifest.ranks), lambda rank: rank // each)]
    accounts: Counter[str] = Counter()
    lost: list[str] = []
    for step in _wholes(recipe):
        is_expert = inventory.names[step.source.name].expert >= 0
        fate = _fate(step, is_expert, readers, stages, complete)
        if fate is None:
            lost.append(step.source.name)
        else:
            accounts[fate] += 1
    decoded = {step.scale.name for step in recipe.steps if step.scale is not None}
    moved = {step.source.name for step in recipe.steps if not step.makes_scale}
    accounts["decoded with their weights"] = len(decoded - recipe.left_out.keys())
    accounts["left out"] = len(recipe.left_out)
    rest = sorted(inventory.names.keys() - moved - decoded - recipe.left_out.keys())
    if complete:
        lost += rest
    else:
        accounts["only on ranks that are not here"] = len(rest)
    message = "the ranks do not hold each of its bytes exactly once, or all of them all"
    problems = [Problem(kind="unaccounted", file="", tensor=name, message=message) for name in lost]
    return {fate: count for fate, count in accounts.items() if count}, problems


def _wholes(recipe: Recipe) -> Iterator[Step]:
    """The steps that move weights or scales; the parts of one as a single step with the cuts of all."""
    wholes: list[Step] = []
    for step in recipe.steps:
        if step.part:
            landings = {landing.tensor: landing for landing in wholes[-1].landings}
            for landing in step.landings:
                above = landings.get(landing.tensor, landing._replace(spread=()))
                landings[landing.tensor] = above._replace(spread=_extended(above.spread, landing.spread))
            wholes[-1] = replace(wholes[-1], landings=tuple(landings.values()))
        elif not step.makes_scale:
            wholes.append(step)
    return iter(wholes)


def _extended(spread: SliceMap, more: SliceMap) -> SliceMap:
    """A spread with the cuts of the next rows: each extends the cut of the same columns and files above it, if any."""
    extended = dict(enumerate(spread))
    ends = {(cut.rectangle.row_stop, cut.rectangle.start, files): at for at, (cut, files) in extended.items()}
    for cut, files in more:
        area = cut.rectangle
        at = ends.get((area.row_start, area.start, files), len(extended))
        above = extended[at][0].rectangle if at in extended else area
        extended[at] = (Slice(above._replace(row_stop=area.row_stop), cut.pad_cols, cut.pad_rows), files)
    return tuple(extended.values())


def _fate(
    step: Step, is_expert: bool, readers: list[tuple[int, ...]], stages: list[set[int]], complete: bool
) -> str | None:
    """How the destinations of a step cover its source; None if they do not cover it exactly.

    Args:
        step: The step of one source tensor.
        is_expert: Whether it is a routed expert's tensor.
        readers: The ranks that read each file.
        stages: The ranks of each pipeline stage in this folder; without stages, all ranks there.
        complete: Whether the folder has all ranks.
    """
    shape = tuple(size * step.repeat for size in step.source.shape)
    whole = whole_rectangle(step.source.dtype, shape)
    fates: set[str | None] = set()
    for landing in step.landings:
        areas = {cut.rectangle: files for cut, files in landing.spread if cut.rectangle.nbytes}
        if areas.keys() == {whole}:
            fates.add(_fate_of_whole(landing, areas[whole], is_expert, readers, stages))
        else:
            fates.add(_SPLIT if _is_covered(areas, whole, complete) else None)
    return fates.pop() if len(fates) == 1 else None


def _fate_of_whole(
    landing: Destination,
    files: tuple[int, ...],
    is_expert: bool,
    readers: list[tuple[int, ...]],
    stages: list[set[int]],
) -> str | None:
    """The fate of a tensor that is whole in `files`; None if these are neither on all ranks nor on its expert's.

    Of pipeline stages, those count that hold a part of it.
    """
    empty = [number for cut, numbers in landing.spread if not cut.rectangle.nbytes for number in numbers]
    holders, padded = ({rank for number in numbers for rank in readers[number]} for numbers in (files, empty))
    ranks = set().union(*(stage for stage in stages if stage & (holders | padded)))
    if holders == ranks:
        return _WHOLE
    if len(holders) == 1 and holders | padded == ranks:
        return _SPLIT  # one rank has all of it, the others have padding alone
    return _ONE_RANK if is_expert and len(holders) == 1 else None


def _is_covered(areas: dict[Rectangle, tuple[int, ...]], whole: Rectangle, complete: bool) -> bool:
    """Whether cuts are disjoint and in equally many files each; and, if `complete`, whether they make up the whole."""
    cuts = sorted(areas)
    disjoint = all(a.row_stop <= b.row_start or a.stop <= b.start for a, b in pairwise(cuts))
    covered = not complete or sum(cut.nbytes for cut in cuts) == whole.nbytes
    return disjoint and covered and len({len(files) for files in areas.values()}) == 1
