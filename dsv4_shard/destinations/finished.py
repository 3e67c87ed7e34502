"""Is the result at a destination the one that a job would write? Then the job has nothing to do.

Launchers repeat commands: Slurm requeues them, and Kubernetes starts pods again.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from dsv4_shard.catalog.rank_ranges import say_ranks, span_of
from dsv4_shard.checkpoint import Checkpoint, modified_since
from dsv4_shard.errors import NewerSchema, NotAResult, OtherDeployment, OutputNotEmpty, SharesDiffer
from dsv4_shard.sharding.job import Job
from dsv4_shard.sharding.joining import joined_digests
from dsv4_shard.sharding.manifest import PLAN_NAME, Manifest, load_manifest, made_differences
from dsv4_shard.sources.checkpoint_files import CARD_FILE
from dsv4_shard.storage import MANIFEST_NAME, digest_of
from dsv4_shard.text.sanitize import short_name
from dsv4_shard.text.shell import shell_word
from dsv4_shard.text.units import counted
from dsv4_shard.verification import quick_problems
from dsv4_shard.version import __version__


def finished_in_folder(job: Job, checkpoint: Checkpoint, out: Path) -> Manifest | None:
    """Return the manifest of a result in `out` with all that the job would write; None if there is no result.

    Names, sizes, headers and times are compared; tensors are not read.

    Raises:
        OtherDeployment: The result is another one, and the job is no share that could join it.
        OutputNotEmpty: It lacks ranks that only a share can add, a file is not what its manifest says, or the
            checkpoint was modified after the result was written.
    """
    if not (out / MANIFEST_NAME).is_file():
        return None
    try:
        there = load_manifest(out)
    except (NotAResult, NewerSchema) as error:
        if job.is_share:
            return None  # joining says why
        raise OtherDeployment(f"{out}: not empty: {error}", hint="Choose another folder.") from None
    job = job.like(there, out)
    different, lacking = _difference(job, there), set(job.ranks) - set(there.ranks)
    if job.is_share and (different or lacking):
        return None  # it joins, or joining says why not
    if different:
        raise OtherDeployment(f"{out}: not empty: it holds another result: {different}",
                              hint="Choose another folder, or replace it with --overwrite.")  # fmt: skip
    if lacking:
        raise OutputNotEmpty(
            f"{out}: not empty: it holds {say_ranks(there.ranks)} of {there.world}",
            hint=f"Write what is missing (--ranks {span_of(lacking)}), or replace all of it with --overwrite.",
        )
    for problem in quick_problems(out, there):
        raise OutputNotEmpty(
            f"{out}: not empty: it holds this result, but {problem.file}: {problem.message}",
            hint=f"`dsv4-shard verify {shell_word(out)}` names all such files; --overwrite writes all files again.",
        )
    refuse_modified(checkpoint, out)
    return there


def refuse_modified(checkpoint: Checkpoint, out: Path) -> None:
    """Raise OutputNotEmpty if the checkpoint was modified after the result in `out` was written."""
    compare = (
        f"`dsv4-shard verify {shell_word(out)} --against {shell_word(checkpoint.source.label)}` compares the bytes"
    )
    hint = f"{compare}; --overwrite writes the result again. Or choose another folder."
    _refuse_modified(checkpoint, str(out), (out / MANIFEST_NAME).stat().st_mtime_ns, hint)


def _refuse_modified(checkpoint: Checkpoint, out: str, then_ns: int, hint: str) -> None:
    if names := modified_since(checkpoint, then_ns):
        more = f" and {counted(len(names) - 1, 'more file')}" if len(names) > 1 else ""
        raise OutputNotEmpty(
            f"{out}: not empty: it holds this result, written {_moment(then_ns)}, but {checkpoint.source.label} was "
            f"modified later: {short_name(names[0])}{more}",
            hint=hint,
        )


def _moment(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%d %H:%M:%S} UTC"


def refuse_other_in_store(
    job: Job, checkpoint: Checkpoint, there: Manifest, read: Callable[[str], bytes], url: str, then_ns: int
) -> None:
    """Return if a result in a store has all that the job would write.

    `read` returns one of its small files. It was written at `then_ns`.

    Raises:
        OutputNotEmpty: It is another one, lacks ranks, or the checkpoint was modified after it was written.
    """
    job = job.like_with(there, read(PLAN_NAME) if PLAN_NAME in there.names else None)
    different = _difference(job, there)
    if different is not None or not set(job.ranks) <= set(there.ranks):
        raise OutputNotEmpty(
            f"{url}: holds a result, {different or f'of {say_ranks(there.ranks)} of {there.world}'}",
            hint="Choose another prefix, or replace it with --overwrite.",
        )
    _refuse_modified(checkpoint, url, then_ns, "Replace it with --overwrite, or choose another prefix.")


def say_finished(out: str, ranks: tuple[int, ...], world: int) -> str:
    """Return a sentence about a result for which nothing is left to do; `world` is 1 for a merged checkpoint too."""
    if world == 1:
        return f"already complete: {out}; nothing to do"
    held = f"all {world} ranks" if len(ranks) == world else say_ranks(ranks)
    return f"already complete: {out} holds {held} of the same plan and checkpoint; nothing to do"


def _difference(job: Job, there: Manifest) -> str | None:
    """The first thing that the result has and the job would write in another way; None if there is none."""
    return next(_differences(job, there), None)


def _differences(job: Job, there: Manifest) -> Iterator[str]:
    yield from made_differences(there.made, job.made)
    small = {entry.name: entry.digest for entry in there.companions}
    for name, content in job.companions.items():
        is_worded = name == CARD_FILE and there.tool_version != __version__  # releases word the card in their own way
        if not is_worded and small.get(name, digest_of(content)) != digest_of(content):
            yield f"its {name} differs"
    if not set(job.ranks) - set(there.ranks):
        try:
            joined_digests([there], job.recipe.files)
        except SharesDiffer as error:
            yield str(error)
