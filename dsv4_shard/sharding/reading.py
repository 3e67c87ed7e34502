"""What a run, or each share of its ranks, reads from the checkpoint, known before it starts.

A share reads the rows that its ranks need. Of what is cut into columns these are all rows, whole: such a row of V4-Pro
has at most 16 KiB, and to read parts of it saves nothing.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from dsv4_shard.sharding.recipe import Destination, Recipe, Step, spans


class Reading(NamedTuple):
    """Bytes of the checkpoint that a share needs.

    Attributes:
        read: Bytes that it reads.
        used: Bytes of these that go into its files. The others are columns of other ranks.
        written: Bytes of its rank files. A file with several names counts once.
    """

    read: int
    used: int
    written: int


def readings(recipe: Recipe, shares: Sequence[Collection[int]]) -> list[Reading]:
    """What runs of these `shares` of the ranks of `recipe` read, each by itself."""
    files = [
        {number for number, file in enumerate(recipe.files) if not wanted.isdisjoint(file.ranks)}
        for wanted in map(set, shares)
    ]
    known: dict[object, list[tuple[int, int]]] = {}
    totals = [[0, 0] for _ in shares]
    for step in recipe.steps:
        # Tensors of one kind share their cuts, so a kind is looked at once.
        cuts = tuple(id(landing.spread) for landing in step.landings)
        key = (step.source.dtype, step.source.shape, step.repeat, step.transform, step.scale is None, cuts)
        if key not in known:
            known[key] = [_of_step(step, some) for some in files]
        for total, (read, used) in zip(totals, known[key], strict=True):
            total[0] += read
            total[1] += used
    written = [sum(recipe.files[number].nbytes for number in some) for some in files]
    return [Reading(read, used, nbytes) for (read, used), nbytes in zip(totals, written, strict=True)]


def _of_step(step: Step, files: Collection[int]) -> tuple[int, int]:
    """Bytes that a step reads and uses for some of its files."""
    landings = tuple(landings_in(step, files))
    if not landings:
        return 0, 0
    read = sum(span.stop - span.start for some in spans([replace(step, landings=landings)]) for span in some)
    areas = {cut.rectangle for landing in landings for cut, _ in landing.spread}
    used = sum((area.row_stop - area.row_start) * (area.stop - area.start) for area in areas)
    return read, read if step.transform is not None or step.repeat > 1 else min(read, used)


def landings_in(step: Step, files: Collection[int]) -> Iterator[Destination]:
    """Yield the destinations of a step in some of its files, without the other files."""
    for landing in step.landings:
        spread = tuple((cut, some) for cut, some in landing.spread if not set(some).isdisjoint(files))
        if spread:
            yield landing._replace(spread=spread)
