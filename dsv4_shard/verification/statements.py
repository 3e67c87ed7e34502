"""Statements of provenance ↔ source, plan and manifest: each is derived again and compared, byte by byte."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dsv4_shard.catalog.rank_ranges import say_ranks
from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.errors import ReadFailed
from dsv4_shard.limits import STATEMENT
from dsv4_shard.sharding.job import Job
from dsv4_shard.sharding.manifest import Manifest
from dsv4_shard.sharding.statement import (
    CHECKPOINT,
    RANKS,
    ResourceDescriptor,
    Statement,
    is_statement,
    read_statement,
)
from dsv4_shard.sources.local import file_sha256
from dsv4_shard.storage import MANIFEST_NAME, read_regular
from dsv4_shard.text.sanitize import short, short_name
from dsv4_shard.text.strict_json import BadJson
from dsv4_shard.verification.documents import Problem


def check_statements(
    folder: Path, job: Job, manifest: Manifest, checkpoint: Checkpoint, workers: int
) -> tuple[list[Problem], list[str]]:
    """Derive each statement in `folder` again and compare it. Returns the problems, and what could not be compared.

    `job` is that of all ranks in the folder. A statement may be of some of them. Each rank needs one, unless a version
    wrote it that wrote no statements.
    """
    check = _Check(folder, job, manifest, checkpoint, workers)
    problems = [problem for name in sorted(filter(is_statement, manifest.names)) for problem in check.problems_of(name)]
    if missing := _ranks_with_sha256(manifest) - check.covered:
        message = f"has no statement of provenance of {say_ranks(missing)}"
        problems.append(Problem(kind="wrong-manifest", file=MANIFEST_NAME, message=message))
    return problems, check.notes


def _ranks_with_sha256(manifest: Manifest) -> set[int]:
    """The ranks whose files have their SHA-256 in the manifest: versions that wrote it wrote statements too."""
    return set(manifest.ranks) - {rank for file in manifest.files if file.sha256 is None for rank in file.ranks}


class _Check:
    """The comparison of the statements in one folder.

    Attributes:
        covered: The ranks of the statements so far.
        notes: What statements say and the source does not tell.
    """

    def __init__(self, folder: Path, job: Job, manifest: Manifest, checkpoint: Checkpoint, workers: int) -> None:
        self._folder, self._job, self._manifest = folder, job, manifest
        self._checkpoint, self._workers = checkpoint, workers
        self.covered: set[int] = set()
        self.notes: list[str] = []

    def problems_of(self, name: str) -> Iterator[Problem]:
        """The problem of one statement, if there is one."""

        def problem(message: str) -> Problem:
            return Problem(kind="differs-from-source", file=name, message=message)

        try:
            raw = read_regular(self._folder / name, STATEMENT)
            written = read_statement(raw)
        except ReadFailed:
            return  # `verify` names files that are gone or damaged
        except BadJson as error:
            yield problem(f"is no statement of provenance: {error}")
            return
        job, wrong = self._job_of(name, written)
        if job is None:
            yield problem(wrong)
            return
        self.covered |= set(job.ranks)
        due = self._derived(name, job, written)
        if due.to_bytes() != raw:
            yield problem(f"is not what source, plan and manifest give: {_difference(written, due)}")

    def _job_of(self, name: str, written: Statement) -> tuple[Job | None, str]:
        """The job that a statement is of; None, and why, if no run of this result wrote it."""
        ranks, version = written.ranks, written.version
        wrote = self._manifest.written_by.get(version or "", ())
        if not ranks or not set(ranks) <= _ranks_with_sha256(self._manifest):
            return None, "is of ranks that are not here, or that a version without statements wrote"
        if not set(ranks) <= set(wrote):
            return None, f"says that dsv4-shard {short(version)} wrote its {say_ranks(ranks)}; the manifest does not"
        if self.covered & set(ranks):
            return None, f"is of {say_ranks(self.covered & set(ranks))}, and so is another statement"
        job = self._job
        if ranks != job.ranks:
            if job.of_ranks is None or list(ranks) != sorted(set(ranks)):
                return None, "is of ranks that no run writes"
            job = job.of_ranks(ranks).like(self._manifest, self._folder)
        return (job, "") if job.statement_name == name else (None, f"is that of {job.statement_name} by its ranks")

    def _derived(self, name: str, job: Job, written: Statement) -> Statement:
        """The statement as the source, the plan and the manifest's digests of the files give it."""
        sha256 = {name: file.sha256 for file in self._manifest.files for name in file.names if file.sha256}
        sha256 |= {entry.name: entry.sha256 for entry in self._manifest.companions if entry.sha256}
        known = {**dict.fromkeys([*job.companions, *(file.name for file in job.recipe.files)], ""), **sha256}
        inputs, unknown = self._inputs(job, written)
        if unknown:
            self.notes.append(f"{name}: not compared, because the source does not say it: {', '.join(unknown)}")
        return replace(job, inputs=tuple(inputs)).statement(known, written.version or "")

    def _inputs(self, job: Job, written: Statement) -> tuple[list[ResourceDescriptor], list[str]]:
        """What the source says of itself, with what the statement says and the source cannot know, which is listed too.

        That is the place that another copy of the checkpoint came from, and the rank files that a copy was put together
        from. A SHA-256 that the statement has and the source does not list is computed if the file is on this machine.
        """
        said, unknown = written.definition.resolved_dependencies, []
        places = [entry for entry in said if entry.name == CHECKPOINT]
        if [entry.digest.get("gitCommit") for entry in places] == [job.origin.revision]:
            if places[0] not in job.inputs:
                unknown.append(f"that the checkpoint came from {short(places[0].uri)}")
        elif places:
            places = [entry for entry in job.inputs if entry.name == CHECKPOINT]
        parts = [entry for entry in said if entry.name.startswith(RANKS)]
        own_parts = [entry for entry in job.inputs if entry.name.startswith(RANKS)]
        if parts and own_parts:
            parts = own_parts
        elif parts or own_parts:  # one of the two is a copy that was put together from rank files, the other is not
            unknown.append("the rank files that the checkpoint was put together from, or that there were none")
        claims = {entry.name: entry.digest["sha256"] for entry in said if "sha256" in entry.digest}
        files = [entry for entry in job.inputs if entry.name != CHECKPOINT and not entry.name.startswith(RANKS)]
        with ThreadPoolExecutor(self._workers) as pool:
            files = list(pool.map(lambda entry: self._with_sha256(entry, claims.get(entry.name)), files))
        if any(entry.name in claims and self._is_unknown(entry.name) for entry in files):
            unknown.append("the SHA-256 of its files")
        return [*places, *parts, *files], unknown

    def _is_unknown(self, name: str) -> bool:
        """Whether the source neither lists the SHA-256 of a file nor has the file on this machine."""
        source = self._checkpoint.source
        return name not in source.sha256_listed and source.original(name) is None

    def _with_sha256(self, file: ResourceDescriptor, claimed: str | None) -> ResourceDescriptor:
        """A file of the source with its SHA-256 if the statement claims one, else without. Raises ReadFailed."""
        digest = {algorithm: value for algorithm, value in file.digest.items() if algorithm != "sha256"}
        if claimed is not None:
            listed = file.digest.get("sha256") or (
                claimed if self._is_unknown(file.name) else self._sha256_of(file.name)
            )
            digest = {"sha256": listed, **digest}
        return file.model_copy(update={"digest": digest})

    def _sha256_of(self, name: str) -> str:
        """The SHA-256 of a file of the source that is on this machine. Raises ReadFailed."""
        path = self._checkpoint.source.original(name)
        assert path is not None, "the caller has looked"
        return file_sha256(path, name)


def _difference(written: Statement, due: Statement) -> str:
    """The first place at which two statements differ."""
    one, other = (found.model_dump(mode="json", by_alias=True, exclude_none=True) for found in (written, due))
    return short_name(_first_difference(one, other, "") or "its form")


def _first_difference(one: Any, other: Any, place: str) -> str | None:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        pairs = [(key, one.get(key), other.get(key)) for key in keys]
    elif isinstance(one, list) and isinstance(other, list):
        pairs = [(str(number), *pair) for number, pair in enumerate(zip_longest(one, other))]
    else:
        return None if one == other and type(one) is type(other) else place
    for key, left, right in pairs:
        if (found := _first_difference(left, right, f"{place}.{key}" if place else key)) is not None:
            return found
    return None
