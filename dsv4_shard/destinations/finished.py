"""Is the result at a destination the one that a job would write? Then the job has nothing to do.

Launchers repeat commands: Slurm requeues them, and Kubernetes starts pods again.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from dsv4_shard.catalog.rank_ranges import say_ranks, span_of
from dsv4_shard.errors import NewerSchema, NotAResult, OtherDeployment, OutputNotEmpty, SharesDiffer
from dsv4_shard.sharding.job import Job
from dsv4_shard.sharding.joining import joined_digests
from dsv4_shard.sharding.manifest import PLAN_NAME, Manifest, load_manifest, made_differences
from dsv4_shard.sources.checkpoint_files import CARD_FILE
from dsv4_shard.storage import MANIFEST_NAME, digest_of
from dsv4_shard.text.shell import shell_word
from dsv4_shard.verification import quick_problems
from dsv4_shard.version import __version__


def finished_in_folder(job: Job, out: Path) -> Manifest | None:
    """Return the manifest of a result in `out` with all that the job would write; None if there is no result.

    Files are looked at, and their tensors are not read.

    Raises:
        OtherDeployment: The result is another one, and the job is no share that could join it.
        OutputNotEmpty: It lacks ranks that only a share can add, or a file is not what its manifest says.
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
            hint=f"Write what is missing (--ranks {span_of(lacking)}), or replace the whole with --overwrite.",
        )
    for problem in quick_problems(out, there):
        raise OutputNotEmpty(
            f"{out}: not empty: it holds this result, but {problem.file}: {problem.message}",
            hint=f"`dsv4-shard verify {shell_word(out)}` names all such files; --overwrite writes the whole again.",
        )
    return there


def refuse_other_in_store(job: Job, there: Manifest, read: Callable[[str], bytes], url: str) -> None:
    """Return if a result in a store has all that the job would write; `read` returns one of its small files.

    Raises:
        OutputNotEmpty: It is another one, or lacks ranks.
    """
    with TemporaryDirectory() as folder:
        if PLAN_NAME in there.names:
            (Path(folder) / PLAN_NAME).write_bytes(read(PLAN_NAME))
        job = job.like(there, Path(folder))
    different = _difference(job, there)
    if different is None and set(job.ranks) <= set(there.ranks):
        return
    raise OutputNotEmpty(
        f"{url}: holds a result, {different or f'of {say_ranks(there.ranks)} of {there.world}'}",
        hint="Choose another prefix, or replace it with --overwrite.",
    )


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
            yield f"its {name} is another"
    if not set(job.ranks) - set(there.ranks):
        try:
            joined_digests([there], job.recipe.files)
        except SharesDiffer as error:
            yield str(error)
