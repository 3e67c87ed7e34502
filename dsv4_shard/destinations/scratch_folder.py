"""The folder in which a result is made before it goes into an object store, and the run that it belongs to."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import xxhash

from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.destinations.upload_journal import SCHEMA_VERSION, UploadBegun, UploadClaimed, UploadJournal
from dsv4_shard.errors import OtherRun, OutputError, WriteFailed
from dsv4_shard.planning import decisions, read_plan
from dsv4_shard.sharding.job import Job
from dsv4_shard.sharding.manifest import PLAN_NAME, Manifest, load_manifest
from dsv4_shard.sources.checkpoint_files import CARD_FILE
from dsv4_shard.storage import MANIFEST_NAME, LockedFolder, fsync_folder, plain

_RESULT, _JOURNAL = "result", "journal"


class Scratch:
    """The folder in `parent` where the result for `url` is made.

    A context manager: it locks the folder on entry. On exit it removes the folder if it is not needed any more.

    Args:
        parent: The folder that contains it.
        url: Destination of the result.
        run: Digest that identifies the result; see `run_digest`.
        run_before: Given the journal's schema and the result folder, the digest that an earlier release recorded.
        restart: Discard what an earlier run left; `upload` then also deletes the objects that it put. By default, that
            run is continued.

    Raises:
        OtherRun: The folder has the result of another run.
        NewerSchema: A newer version of the tool wrote the journal.
        OutputBusy: Another process has locked the folder.
        OutputError: `parent` does not exist, or the folder cannot be used.
        WriteFailed: The folder cannot be written.
    """

    def __init__(
        self,
        parent: Path,
        url: str,
        run: str,
        run_before: Callable[[int, Path], str] = lambda _, __: "",
        *,
        restart: bool = False,
    ) -> None:
        self.path = plain(scratch_path(parent, url))
        self.result = self.path / _RESULT
        self.journal = UploadJournal(self.path / _JOURNAL)
        self.is_done = False
        """Set to True when the folder is not needed any more."""
        self._run, self._run_before, self._restart = run, run_before, restart
        self._own = LockedFolder(self.path, self.path)

    @property
    def is_written(self) -> bool:
        """Whether the result is complete."""
        return (self.result / MANIFEST_NAME).is_file()

    @property
    def manifest(self) -> Manifest:
        return load_manifest(self.result)

    def __enter__(self) -> "Scratch":
        if not self.path.parent.is_dir():
            raise OutputError(f"{self.path.parent}: no such folder", hint="Name one with --scratch.")
        self._own.acquire()
        try:
            self._begin()
        except OSError as error:
            self._own.release()
            raise WriteFailed(f"{error.filename or self.path}: {error.strerror}") from error
        except OutputError:
            self._own.release()
            raise
        return self

    def _begin(self) -> None:
        path = self.path / _JOURNAL
        self.journal = UploadJournal(path)  # read again: now no other process writes it
        claimed = self.journal.claimed
        if self._restart:
            self._clear()
            self.journal = UploadJournal(path)
        if self.journal.run is None:
            self._clear()
            self._note_run()
            if claimed is not None:  # objects of the discarded result are deleted too
                self.journal.note(UploadClaimed(names=[], doomed=sorted({*claimed.names, *claimed.doomed})))
            fsync_folder(self.path)
        elif self.journal.run != self._run:
            if not self._is_this_run_of_before():
                raise OtherRun(f"{self.path}: holds the result of another run that is not uploaded yet")
            self._note_run()

    def _note_run(self) -> None:
        self.journal.note(UploadBegun(schema_version=SCHEMA_VERSION, run=self._run))

    def _is_this_run_of_before(self) -> bool:
        """Whether the journal of an earlier release belongs to this run.

        For an incomplete result of schema 1, its own journal decides that later.
        """
        schema = self.journal.schema
        if schema == 1 and not self.is_written:
            return True
        return self.journal.run == self._run_before(schema, self.result)

    def _clear(self) -> None:
        """Remove the content, the journal last because it identifies the rest."""
        for inner in self.path.iterdir():
            if inner.is_dir():
                shutil.rmtree(inner)
        (self.path / _JOURNAL).unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.is_written:
            error.add_note(f"The result is kept in {self.path}: the same command resumes the upload.")
        with suppress(OSError):
            if self.is_done or not any(inner.is_dir() for inner in self.path.iterdir()):
                self._clear()
                self._own.remove()
        self._own.release()


def scratch_path(parent: Path, url: str) -> Path:
    """The folder in `parent` where the result for `url` is made."""
    name = re.sub(r"[^\w.-]+", "-", url)[:100]
    return parent / f"{name}-{xxhash.xxh3_64_hexdigest(url.encode())[:8]}.upload"


def scratch_result(parent: Path, url: str) -> Path:
    """The folder in which the files for `url` are made."""
    return plain(scratch_path(parent, url)) / _RESULT


def run_digest(job: Job, checkpoint: Checkpoint) -> str:
    """Digest that changes if a run would write anything else, or read another checkpoint.

    It does not depend on the version of the tool: of the plan, only the decisions count, and not the wording. The card
    follows from the plan and from other small files.
    """
    plan = read_plan(job.companions[PLAN_NAME], PLAN_NAME)
    decided = json.dumps(decisions(plan), sort_keys=True).encode()
    card = job.companions.get(CARD_FILE)
    companions = {name: content for name, content in job.companions.items() if content is not card}
    return _run_digest(_asked(job, checkpoint), job, companions | {PLAN_NAME: decided})


def run_digest_before(job: Job, checkpoint: Checkpoint, schema: int, result: Path) -> str:
    """The digest that a release recorded before the whole checkpoint's small files travelled, if it ran this job.

    Schema 1 recorded one that depended on the words of the plan in `result`.
    """
    if schema > 1:
        return run_digest(job.as_before(), checkpoint)
    job = job.like(load_manifest(result), result)
    version = read_plan(job.companions[PLAN_NAME], PLAN_NAME).tool_version
    return _run_digest([version, *_asked(job, checkpoint)], job, job.companions)


def _asked(job: Job, checkpoint: Checkpoint) -> list[object]:
    request = asdict(job.request) if job.request else {}
    return [job.layout, request, job.ranks, [(file.name, file.mtime_ns) for file in checkpoint.files]]


def _run_digest(asked: list[object], job: Job, companions: Mapping[str, bytes]) -> str:
    digest = xxhash.xxh3_128(json.dumps(asked).encode())
    for name, content in sorted(companions.items()):
        digest.update(name.encode())
        digest.update(content)
    for file in job.recipe.files:
        digest.update(file.name.encode())
        digest.update(file.header)
    return digest.hexdigest()
