"""Run a recipe into memory: the tensors of a rank, without files in between."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from dsv4_shard.sharding.copy import CopyResult, Listeners, copy
from dsv4_shard.sharding.reading import landings_in
from dsv4_shard.sharding.recipe import OutputFile, Recipe
from dsv4_shard.sources.base import Source

Write = Callable[[int, memoryview], None]
"""Puts bytes at an offset of a tensor, in bytes. The buffer is reused after the call."""


class MemorySink:
    """Puts each piece into the memory of its tensor. See `sharding.mover.Sink`."""

    def __init__(self, recipe: Recipe, memory: Mapping[str, Write]) -> None:
        self._memory = memory
        self._places = [_places(file) for file in recipe.files]

    def put(self, file: int, offset: int, data: memoryview) -> None:
        """Write `data`, which stands at byte `offset` of file number `file`, if its one tensor has memory."""
        starts, names = self._places[file]
        index = bisect_right(starts, offset) - 1
        if (write := self._memory.get(names[index])) is not None:
            write(offset - starts[index], data)


def _places(file: OutputFile) -> tuple[list[int], list[str]]:
    """The first byte of each tensor of a file, ascending, and its name. Empty tensors come before their successor."""
    base = len(file.header)
    places = sorted((base + info.start, info.nbytes, name) for name, info in file.tensors.items())
    return [start for start, _, _ in places], [name for _, _, name in places]


def load(
    recipe: Recipe,
    files: Collection[int],
    source: Source,
    memory: Mapping[str, Write],
    workers: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> CopyResult:
    """Fill the tensors of some files of `recipe` that `memory` has, by name, and return what `copy` does.

    Reads nothing for other tensors. The bytes stay in the page cache, because other ranks of the machine need the same
    rows.

    Raises:
        The errors of `copy`. Tensors are then partly filled.
    """
    narrowed = [
        (step, tuple(landing for landing in landings_in(step, files) if landing.tensor in memory))
        for step in recipe.steps
    ]
    recipe = replace(
        recipe,
        steps=tuple(replace(step, landings=landings) for step, landings in narrowed if landings),
        fixed=tuple(fixed for fixed in recipe.fixed if fixed.file in files and fixed.tensor in memory),
    )
    listeners = Listeners(on_progress=on_progress)
    return copy(recipe, source, MemorySink(recipe, memory), workers, listeners, keeps_cached=True)
