"""Resume an earlier run: its journal, and whether the files that it left are those of the same job."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import xxhash

from dsv4_shard.sharding import journal
from dsv4_shard.sharding.journal import Finished, Journal, RunIdentity, Unfinished, read_journal, refuse_other
from dsv4_shard.sharding.recipe import OutputFile, Recipe, pieces_of
from dsv4_shard.sources.base import Source
from dsv4_shard.sources.local import LocalFile
from dsv4_shard.storage import DIGEST_BYTES, Staging

_REWRITTEN = ".new"
"""Suffix of a journal that is being written again."""


def unfinished(staging: Staging, run: RunIdentity, recipe: Recipe) -> Unfinished | None:
    """What the journal says about an unfinished run; None if there is none. Raises OtherRun if it is of another job."""
    earlier = read_journal(staging.journal)
    if earlier is not None:
        as_then = run.model_copy(update={"recipe_digest": recipe_digest(recipe, earlier.schema)})
        refuse_other(earlier.run, as_then, staging.path)
    return earlier


def earlier_run(staging: Staging, run: RunIdentity, recipe: Recipe, source: Source, restart: bool) -> Unfinished:
    """The work of an unfinished run of the same job, if it is complete and wanted; else no work, in an empty folder.

    Raises OtherRun if the work belongs to another job.
    """
    earlier = None if restart else unfinished(staging, run, recipe)
    if earlier is not None:
        staging.keep_only({file.name for file in recipe.files})
        there = (staging.holds(file.name, file.nbytes, original_of(file, source)) for file in recipe.files)
        if all(there) and _fits([*earlier.finished, *earlier.unconfirmed], recipe):
            return _confirmed(earlier, recipe, staging.folder)
    staging.begin()
    return Unfinished(run, [], 0)


def _confirmed(earlier: Unfinished, recipe: Recipe, folder: Path) -> Unfinished:
    """The run with those of its unconfirmed steps whose pieces have the digests that the journal recorded.

    If others are there, a later mark must not confirm them: then the journal is written again, as one of schema 0 is.
    """
    sound = [step for step in earlier.unconfirmed if _is_there(step, recipe, folder)]
    schema = earlier.schema if len(sound) == len(earlier.unconfirmed) else 0
    return replace(earlier, finished=earlier.finished + sound, unconfirmed=[], schema=schema)


def _is_there(step: Finished, recipe: Recipe, folder: Path) -> bool:
    """Whether the pieces of a step in the staged files have their digests. Raises ReadFailed."""
    for index, piece in enumerate(pieces_of(recipe.steps[step.number])):
        digest = step.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
        for number in piece.files:
            file = recipe.files[number]
            start = recipe.offset(number, piece.tensor) + piece.at
            stop = start + file.piece_nbytes(piece.tensor, piece.slot)
            if _digest(folder / file.name, start, stop) != digest:
                return False
    return True


def _digest(path: Path, start: int, stop: int) -> bytes:
    """The xxh3-128 of bytes `[start, stop)` of a file. Raises ReadFailed."""
    file, running = LocalFile(path, path.name), xxhash.xxh3_128()
    try:
        for data in file.chunks(start, stop):
            running.update(data)
    finally:
        file.close()
    return running.digest()


def original_of(file: OutputFile, source: Source) -> Path | None:
    """The checkpoint's file with the same bytes as an output file, if there is one."""
    return source.original(file.source) if file.source else None


def _fits(finished: list[Finished], recipe: Recipe) -> bool:
    """Whether the steps of a journal fit this recipe."""
    steps = recipe.steps
    return all(
        step.number < len(steps) and len(step.digests) == DIGEST_BYTES * len(pieces_of(steps[step.number]))
        for step in finished
    )


def recipe_digest(recipe: Recipe, schema: int = journal.SCHEMA_VERSION) -> str:
    """Another one where another recipe finishes other work in its steps; as journals of `schema` have it.

    Schema 1 did not look at the rectangles: there, the version of the tool had to be the same.
    """
    digest = xxhash.xxh3_128()
    for output in recipe.files:
        digest.update(output.header)
    for step in recipe.steps:  # a journal has their numbers
        digest.update(step.source.name.encode())
    if schema > 1:
        for part in _placements(recipe):
            digest.update(part)
    return digest.hexdigest()


def _placements(recipe: Recipe) -> Iterator[bytes]:
    """Where the steps put what. Many share one map of slices, which is written out once."""
    seen: dict[int, bytes] = {}
    for step in recipe.steps:
        for landing in step.landings:
            key = id(landing.spread)
            if key not in seen:
                seen[key] = xxhash.xxh3_128_digest(repr(landing.spread).encode())
            yield f"{step.repeat} {landing.tensor} {landing.at} {landing.slot} ".encode() + step.fill + seen[key]


def journal_of(
    staging: Staging, run: RunIdentity, earlier: Unfinished, flush: Callable[[], None], *, in_background: bool
) -> Journal:
    """The journal of `earlier`, continued. One of an older schema is written again first. Raises WriteFailed."""
    stop = earlier.stop
    if earlier.schema != journal.SCHEMA_VERSION:
        again = staging.journal.with_suffix(_REWRITTEN)
        again.unlink(missing_ok=True)
        with Journal(again, run, 0, staging.settle, flush) as log:
            for step in earlier.finished:
                log.note(step)
            log.mark()
        stop = log.stop
        os.replace(again, staging.journal)
    return Journal(staging.journal, run, stop, staging.settle, flush, in_background)
