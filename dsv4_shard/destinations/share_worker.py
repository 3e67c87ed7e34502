"""The work of one node on its share: write it, verify it, report progress.

A `ShareTask` has all that the node needs, and messages carry all that it reports. The driver needs no knowledge of
checkpoints, and this module has no knowledge of clusters.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

from dsv4_shard.checkpoint import Checkpoint, Inventory
from dsv4_shard.destinations.finished import refuse_modified
from dsv4_shard.errors import OutputNotEmpty, RanksThere, ShardError, UsageError
from dsv4_shard.planning import Plan, check_plan
from dsv4_shard.sharding.claims import claimed
from dsv4_shard.sharding.job import Job, prepare
from dsv4_shard.sharding.joining import refuse_unjoinable
from dsv4_shard.sharding.manifest import Manifest, load_manifest
from dsv4_shard.sharding.outcome import Outcome
from dsv4_shard.sharding.run import reshard
from dsv4_shard.verification import Verification, bytes_to_verify, verify
from dsv4_shard.version import __version__

_SECONDS_BETWEEN_MESSAGES = 0.5

Opener = Callable[[str, Path | None], tuple[Checkpoint, Inventory]]
"""Opens a checkpoint by its name and, for files of DeepSeek's converter, a config.json."""


@dataclass(frozen=True, slots=True)
class ShareTask:
    """A share to write.

    Attributes:
        repo: The checkpoint.
        config: config.json for files of DeepSeek's converter.
        plan: The plan as JSON.
        out: The output folder.
        opener: Opens the checkpoint.
        ranks: The ranks of the share.
        workers: Number of workers (default: see `default_workers`).
        allow_inexact: Let an FP8 cast round.
        restart: Discard the work of an unfinished run.
        version: Version of the tool on the driver.
    """

    repo: str
    config: Path | None
    plan: str
    out: Path
    opener: Opener
    ranks: tuple[int, ...] = ()
    workers: int | None = None
    allow_inexact: bool = False
    restart: bool = False
    version: str = __version__


class ShareBegun(NamedTuple):
    """`work` ("reshard" or "verify") begins and will move `total` bytes."""

    work: str
    total: int


class ShareResumed(NamedTuple):
    """An earlier run moved `nbytes`."""

    nbytes: int


class ShareAdvanced(NamedTuple):
    """`nbytes` more were moved."""

    nbytes: int


class ShareEnded(NamedTuple):
    """The share is written and verified. `outcome` is None if it was there already."""

    outcome: Outcome | None
    verification: Verification


class ShareFailed(NamedTuple):
    """The share failed with `error`."""

    error: ShardError


Message = ShareBegun | ShareResumed | ShareAdvanced | ShareEnded | ShareFailed


class _Stopped(BaseException):
    """The driver takes no more messages. The work stops and is saved."""


def carry_out(order: ShareTask) -> Iterator[Message]:
    """Carry out an order; the last message is ShareEnded or ShareFailed. Closing the iterator cancels the work."""
    work = _Work(order)
    thread = threading.Thread(target=work.run, name="share")
    thread.start()
    try:
        yield from work.messages()
    finally:
        work.stop()
        thread.join()


class _Work:
    """An order that runs in its own thread."""

    def __init__(self, order: ShareTask) -> None:
        self._order = order
        self._told: SimpleQueue[Message | BaseException] = SimpleQueue()
        self._lock = threading.Lock()
        self._advanced = 0
        self._stops = False

    def stop(self) -> None:
        self._stops = True

    def messages(self) -> Iterator[Message]:
        """The messages of `run` as they come. Raises any exception that is not a ShardError."""
        while True:
            try:
                message = self._told.get(timeout=_SECONDS_BETWEEN_MESSAGES)
            except Empty:
                advanced = self._take_advanced()
                if advanced is not None:
                    yield advanced
                continue
            if isinstance(message, BaseException):
                raise message
            yield message
            if isinstance(message, ShareEnded | ShareFailed):
                return

    def _take_advanced(self) -> ShareAdvanced | None:
        """The bytes since the last message; None if there are none, or another message waits."""
        with self._lock:
            if not self._told.empty() or not self._advanced:
                return None
            nbytes, self._advanced = self._advanced, 0
            return ShareAdvanced(nbytes)

    def _tell(self, message: Message | BaseException) -> None:
        """Queue a message between the bytes moved before it and those moved after it."""
        with self._lock:
            if self._advanced:
                self._told.put(ShareAdvanced(self._advanced))
                self._advanced = 0
            self._told.put(message)

    def run(self) -> None:
        """Write, verify, and queue the messages."""
        try:
            self._tell(self._written_and_verified())
        except ShardError as error:
            self._tell(ShareFailed(error))
        except BaseException as error:
            self._tell(error)

    def _written_and_verified(self) -> ShareEnded:
        order = self._order
        if order.version != __version__:
            raise UsageError(
                f"this node has dsv4-shard {__version__}, the driver has {order.version}",
                hint="Install the same version on every node.",
            )
        checkpoint, inventory = order.opener(order.repo, order.config)
        plan = check_plan(Plan.model_validate_json(order.plan, strict=True), checkpoint, inventory)
        job = prepare(checkpoint, inventory, plan, order.ranks)
        outcome = self._write(job, checkpoint)
        self._tell(ShareBegun("verify", bytes_to_verify(order.out, order.ranks)))
        found = verify(order.out, workers=order.workers, on_progress=self._advance, ranks=order.ranks)
        return ShareEnded(outcome, found)

    def _write(self, job: Job, checkpoint: Checkpoint) -> Outcome | None:
        """Write the share; None if it is there already."""
        order = self._order
        total = sum(file.payload for file in job.recipe.files)
        self._tell(ShareBegun("reshard", total))
        try:
            with claimed(order.out, job.ranks, is_share=job.is_share):
                return reshard(
                    job,
                    checkpoint,
                    order.out,
                    workers=order.workers,
                    allow_inexact=order.allow_inexact,
                    restart=order.restart,
                    on_progress=self._advance,
                    on_resume=lambda nbytes: self._tell(ShareResumed(nbytes)),
                )
        except OutputNotEmpty:
            if not _is_there(job, order.out):
                raise
            refuse_modified(checkpoint, order.out)
            return None

    def _advance(self, nbytes: int) -> None:
        if self._stops:
            raise _Stopped
        with self._lock:
            self._advanced += nbytes


def _is_there(job: Job, out: Path) -> bool:
    """Whether a result in `out` has all ranks of the job, with the same provenance."""
    try:
        there = load_manifest(out)
        refuse_unjoinable(str(out), there, job.like(there, out).made, job.ranks)
    except RanksThere:
        return True
    except ShardError:
        return False
    return False


def manifest_of(out: Path) -> Manifest | None:
    """The manifest of the result in `out` as this node sees it; None if there is no sound one."""
    try:
        return load_manifest(out)
    except ShardError:
        return None
