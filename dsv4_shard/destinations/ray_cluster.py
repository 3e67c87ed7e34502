"""`reshard --ray`: shares of a result as tasks on a Ray cluster, and the verification of the whole.

Share i goes to node i, in order of address, so the node that will serve these ranks writes them. The output is one
folder on a shared file system, where the shares join, or a folder on each node's disk. The manifests that the nodes
read at the end show which of the two it is. If a node is lost, another node writes its share, and resumes from the
journal if it can see it.
"""

import contextlib
import ipaddress
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from dsv4_shard.catalog.rank_ranges import say_ranks, share_of
from dsv4_shard.destinations.documents import ClusterOutcome, ClusterShare
from dsv4_shard.destinations.ray_connection import Connection, Node, connected
from dsv4_shard.destinations.share_worker import (
    Message,
    ShareAdvanced,
    ShareBegun,
    ShareEnded,
    ShareFailed,
    ShareResumed,
    ShareTask,
    carry_out,
    manifest_of,
)
from dsv4_shard.errors import NodesLost, OutputBusy, ShardError, Unreachable, UsageError
from dsv4_shard.limits import CLUSTER_SHARE
from dsv4_shard.sharding.manifest import Manifest
from dsv4_shard.sharding.progress import Reporter, Task
from dsv4_shard.sharding.statement import is_statement
from dsv4_shard.sources.deadline import Deadline, Overdue, in_time
from dsv4_shard.text.units import size
from dsv4_shard.verification import put_together

_TRIES = 3
"""A share is given up after its node was lost this often: it may be what kills the nodes."""

_BUSY_SECONDS = 150.0
"""Longest time that a lost node may hold its lock. NFS servers release it after 90 seconds of silence."""

_CANCEL_SECONDS = 30.0
"""Time for cancelled tasks to save their work."""

_LOSSES = {
    "NodeDiedError": "its node died",
    "WorkerCrashedError": "its process died",
    "OutOfMemoryError": "Ray ended its process, since the node's memory was full",
}
"""Ray's name of an exception -> how a share was lost."""

T = TypeVar("T")


@dataclass(slots=True)
class _Share:
    """A share on its way.

    Attributes:
        ranks: Its ranks.
        home: The node that should write it.
        node: The node that writes it now.
        tries: Number of times that it was started.
        waits_until: Earliest time (monotonic, seconds) of the next start.
        busy_since: Time of the first OutputBusy after a loss.
        ended: Its result, once there is one.
        task: The task that it reports progress for.
        total: Bytes of this task.
        moved: Bytes of this task that were moved.
        lost_on: Addresses of the nodes that it was lost with.
        heard: The deadline for its next message.
    """

    ranks: tuple[int, ...]
    home: Node
    node: Node
    tries: int = 0
    waits_until: float = 0.0
    busy_since: float | None = None
    ended: ShareEnded | None = None
    task: Task | None = None
    total: int = 0
    moved: int = 0
    lost_on: list[str] = field(default_factory=list)
    heard: Deadline = field(default_factory=lambda: Deadline(CLUSTER_SHARE.seconds))

    @property
    def name(self) -> str:
        return f"{say_ranks(self.ranks)} on {self.node.address}"

    @property
    def kept(self) -> str:
        """The share and how much of it was written; empty if nothing has begun."""
        if self.ended is not None or (self.task is not None and self.task.work == "verify"):
            return f"{self.name} (all)"
        return f"{self.name} ({size(self.moved)} of {size(self.total)} written)" if self.total else ""


def reshard_on_cluster(
    address: str, order: ShareTask, world: int, nodes: int | None, reporter: Reporter
) -> ClusterOutcome:
    """Write all ranks by `order`, in as many shares as there are `nodes` (None: the nodes of the cluster).

    Raises UsageError without Ray, Unreachable without a cluster, NodesLost, and any error of a share.
    """
    with connected(address) as connection:
        there = _nodes(connection)
        count = min(nodes or len(there), world)
        ranks = [share_of(world, number, count) for number in range(count)]
        shares = [_Share(some, there[n % len(there)], there[n % len(there)]) for n, some in enumerate(ranks)]
        return _Driver(connection, order, shares, reporter).run()


def _nodes(connection: Connection) -> list[Node]:
    """The live nodes that accept tasks, sorted by address. Raises NodesLost if there are none."""
    found = [
        Node(node["NodeID"], node["NodeManagerAddress"])
        for node in connection.call(connection.ray.nodes)
        if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
    ]
    if not found:
        raise NodesLost("no node of the Ray cluster takes tasks", hint="`ray status` shows its nodes and their CPUs.")
    return sorted(found, key=lambda node: (_number(node.address), node))


def _number(address: str) -> int:
    try:
        return int(ipaddress.ip_address(address))
    except ValueError:
        return 0


def _begun(share: _Share) -> Task:
    assert share.task is not None, "bytes move after something has begun"
    return share.task


class _Driver:
    """One run on a cluster: its shares, and the message streams of those that are running."""

    def __init__(self, connection: Connection, order: ShareTask, shares: list[_Share], reporter: Reporter) -> None:
        self._connection, self._ray = connection, connection.ray
        self._order, self._shares, self._reporter = order, shares, reporter
        self._running: dict[Any, _Share] = {}

    def run(self) -> ClusterOutcome:
        """Write all shares, restart lost ones, and combine the results of the nodes."""
        try:
            while True:
                self._write()
                manifests = self._look()
                if manifests is not None:
                    return self._outcome(manifests)
        except BaseException as error:
            self._cancel()
            if kept := [share.kept for share in self._shares if share.kept]:
                error.add_note(f"Kept for {self._order.out}: {'; '.join(kept)}. The same command resumes.")
            raise

    def _call(self, function: Callable[[], T]) -> T:
        """What a call of Ray returns. Raises its errors, and Unreachable once the cluster is lost."""
        return self._connection.call(function)

    def _ready(self, of: Sequence[Any]) -> list[Any]:
        """The first of some streams or results that has something, after at most a second; empty if none has."""
        ready, _ = self._call(lambda: self._ray.wait(list(of), num_returns=1, timeout=1.0))
        return list(ready)

    def _write(self) -> None:
        """Run shares until all have ended."""
        while any(share.ended is None for share in self._shares):
            for share in self._shares:
                if (
                    share.ended is None
                    and share not in self._running.values()
                    and share.waits_until <= time.monotonic()
                ):
                    self._start(share)
            if not self._running:
                time.sleep(1.0)
                continue
            for stream in self._ready(list(self._running)):
                self._take(stream)
            for share in self._running.values():
                self._refuse_silent_share(share)

    def _refuse_silent_share(self, share: _Share) -> None:
        """Raise NodesLost if nothing was heard of a share for too long: it waits for CPUs, or its node hangs."""
        if not share.heard.left:
            raise NodesLost(
                f"{share.name}: no message for {share.heard.seconds:g} s",
                hint="`ray status` shows whether its CPUs are taken. Run again: finished work is kept.",
            )

    def _start(self, share: _Share) -> None:
        there = _nodes(self._connection)
        busy = [other.node for other in self._running.values()]
        share.node = share.home if share.home in there else min(there, key=busy.count)
        share.tries += 1
        share.heard.renew()
        if share.lost_on and share.busy_since is None:
            self._reporter.again(Task("reshard", share.name), share.lost_on[-1])
        order = replace(self._order, ranks=share.ranks, restart=self._order.restart and share.tries == 1)
        task = self._task(carry_out, share.node, num_returns="streaming")
        self._running[self._call(lambda: task.remote(order))] = share

    def _task(self, function: Any, node: Node, **options: Any) -> Any:
        """A task on a node, or on another node if that one is lost. Ray itself never retries it."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        where = NodeAffinitySchedulingStrategy(node.id, soft=True)
        return self._ray.remote(function).options(num_cpus=1, max_retries=0, scheduling_strategy=where, **options)

    def _take(self, stream: Any) -> None:
        """Handle the next message of a share, or the loss of its node."""
        share, errors = self._running[stream], self._ray.exceptions
        try:
            message: Message = self._call(lambda: self._ray.get(next(stream)))
            share.heard.renew()
        except errors.RayTaskError as error:
            raise self._task_error(share, error) from error
        except (errors.RayError, StopIteration) as error:
            del self._running[stream]
            name = type(error).__name__
            self._lose(share, _LOSSES.get(name, name))
            return
        match message:
            case ShareBegun(work, total):
                self._end_task(share)
                share.task, share.total, share.moved = Task(work, share.name), total, 0
                self._reporter.begin(share.task, total)
            case ShareResumed(nbytes):
                share.moved += nbytes
                self._reporter.resume(_begun(share), nbytes)
            case ShareAdvanced(nbytes):
                share.moved += nbytes
                self._reporter.advance(_begun(share), nbytes)
            case ShareEnded():
                del self._running[stream]
                self._end_task(share)
                share.ended = message
            case ShareFailed(raised):
                del self._running[stream]
                self._fail(share, raised)

    def _end_task(self, share: _Share) -> None:
        if share.task is not None:
            self._reporter.end(share.task)
            share.task = None

    def _lose(self, share: _Share, reason: str) -> None:
        """Mark a share to be written again, elsewhere if its node is gone.

        Raises NodesLost after `_TRIES` attempts, and Unreachable if it was the node of this machine.
        """
        self._connection.look()
        self._reporter.lost(share.task or Task("reshard", share.name), reason)
        share.task = None
        share.lost_on.append(share.node.address)
        share.busy_since = None
        if share.tries >= _TRIES:
            raise NodesLost(f"{say_ranks(share.ranks)}: lost {share.tries} times with their node, last {share.name}")
        share.ended = None

    def _fail(self, share: _Share, error: ShardError) -> None:
        """Raise the error of a share, except OutputBusy while a lost node may still hold the lock."""
        now = time.monotonic()
        if isinstance(error, OutputBusy) and share.tries > 1:
            share.busy_since = now if share.busy_since is None else share.busy_since
            if now - share.busy_since < _BUSY_SECONDS:
                share.tries -= 1
                share.task = None
                share.waits_until = now + 1.0
                return
        error.add_note(f"That was {share.name}.")
        if isinstance(error, Unreachable):
            error.add_note("A node's settings come from the environment of its `ray start`, not from this command's.")
        raise error

    def _task_error(self, share: _Share, error: BaseException) -> BaseException:
        """The error for an exception that is not a ShardError: a package that a node lacks, or a bug."""
        cause = getattr(error, "cause", error)
        text = str(cause)
        if "ModuleNotFoundError" in text or isinstance(cause, ImportError):
            lines = [line for line in text.splitlines() if line.strip()]
            return UsageError(
                f"{share.name}: {lines[-1].strip() if lines else text}",
                hint="Install this version of dsv4-shard on every node of the cluster.",
            )
        return error

    def _look(self) -> list[Manifest] | None:
        """The manifest of each share as its node sees it; None if a share was lost together with its node's disk."""
        tasks = [self._task(manifest_of, share.node) for share in self._shares]
        looks = self._call(lambda: [task.remote(self._order.out) for task in tasks])
        found: list[Manifest] = []
        for share, look in zip(self._shares, looks, strict=True):
            share.heard.renew()
            while not self._ready([look]):
                self._refuse_silent_share(share)
            try:
                manifest: Manifest | None = self._call(lambda look=look: self._ray.get(look))  # type: ignore[misc]
            except self._ray.exceptions.RayError:
                manifest = None
            if manifest is None or not set(share.ranks) <= set(manifest.ranks):
                self._lose(share, f"{self._order.out} has disappeared")
            else:
                found.append(manifest)
        return found if len(found) == len(self._shares) else None

    def _outcome(self, manifests: list[Manifest]) -> ClusterOutcome:
        is_one = len({manifest.digest for manifest in manifests}) == 1
        names, found, shares = [], [], []
        for share in self._shares:
            assert share.ended is not None, "all shares have ended"
            outcome, verification = share.ended
            names.append(f"{'' if is_one else f'{share.node.address}:'}{self._order.out}")
            found.append(verification.model_copy(update={"folder": names[-1]}))
            written = outcome.written if outcome is not None else None
            lost_on = tuple(share.lost_on)
            shares.append(ClusterShare(ranks=share.ranks, node=share.node.address, written=written, lost_on=lost_on))
        together = put_together(names, manifests, found)
        files, nbytes = _distinct(shares, manifests[0] if is_one else None)
        return ClusterOutcome(shares=tuple(shares), one_folder=is_one, files=files, bytes=nbytes, verification=together)

    def _cancel(self) -> None:
        """Cancel the running tasks and let them save their work, also those that a lost cluster still reaches."""
        errors, deadline = self._ray.exceptions, Deadline(_CANCEL_SECONDS)

        def cancel() -> None:
            for stream in self._running:
                self._ray.cancel(stream)
            while self._running and deadline.left:
                ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=1.0)
                for stream in ready:
                    try:
                        self._ray.get(next(stream))
                    except (errors.RayError, StopIteration):
                        del self._running[stream]

        with contextlib.suppress(errors.RayError, KeyboardInterrupt, Overdue):
            in_time(cancel, deadline)


def _distinct(shares: Sequence[ClusterShare], manifest: Manifest | None) -> tuple[int, int]:
    """Number and bytes of the files that shares wrote, each counted once.

    In one folder, which has the `manifest`, the files that several shares wrote are kept once.
    """
    written = [(set(share.ranks), share.written) for share in shares if share.written is not None]
    files, nbytes = sum(one.files for _, one in written), sum(one.bytes for _, one in written)
    if manifest is None or len(written) < 2:
        return files, nbytes
    for file in manifest.files:
        twins = max(0, sum(not ranks.isdisjoint(file.ranks) for ranks, _ in written) - 1)
        files, nbytes = files - twins, nbytes - twins * file.nbytes
    small = sum(one.nbytes for one in manifest.companions if not is_statement(one.name))
    return files, nbytes - (len(written) - 1) * small
