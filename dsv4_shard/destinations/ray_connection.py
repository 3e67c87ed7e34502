"""A connection to a Ray cluster whose calls always end: with an answer, or with an error once the cluster is lost.

After the raylet of this machine has died, Ray's own calls never return. After the head has died, Ray ends this process
within a minute. So calls run in another thread, while both servers are asked for a sign of life.
"""

import atexit
import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TextIO, TypeVar, cast

from dsv4_shard.errors import Unreachable, UsageError
from dsv4_shard.limits import CLUSTER_CALL
from dsv4_shard.sources.deadline import Deadline, Overdue, in_time

_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SCHEDULER_EVENTS": "0"}
"""Settings for Ray in this process: no usage report, no output of the autoscaler."""

_NO_CLUSTER = "`ray start --head` starts one, `ray status` shows it; run this command on one of its nodes."

_LOST = "Start it again with `ray start`. Then the same command resumes."

_CONNECT_SECONDS = 10.0
"""Time for a server to answer when a run begins."""

_LIFE_SECONDS = 3.0
"""Time for a server to answer during a run."""

_SECONDS_BETWEEN_LOOKS = 2.0

_RAYLET_GONE_SECONDS = 0.0
"""Longest time without this machine's raylet: one that refuses connections never comes back as the same node."""

_HEAD_GONE_SECONDS = 40.0
"""Longest time without the head, which may restart. Ray ends this process after 60 seconds."""

_SILENT_SECONDS = 60.0
"""Longest silence of a server that takes connections: the machine may be busy."""

_SHUTDOWN_SECONDS = 20.0

_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client of gRPC begins; a server answers at once (RFC 9113, 3.4)."""

T = TypeVar("T")


class Node(NamedTuple):
    """A node of the cluster."""

    id: str
    address: str


@dataclass(slots=True)
class _Server:
    """A server that the connection needs.

    Attributes:
        name: What it is, for messages.
        host: Its host.
        port: Its port.
        gone_seconds: Longest time in which it refuses connections.
        heard: The deadline for its next sign of life.
    """

    name: str
    host: str
    port: int
    gone_seconds: float
    heard: Deadline = field(default_factory=lambda: Deadline(_SILENT_SECONDS))

    def look(self) -> None:
        """Ask for a sign of life. Raises Unreachable if there was none for too long."""
        try:
            _greet(self.host, self.port, _LIFE_SECONDS)
            self.heard.renew()
        except OSError as error:
            patience = self.heard.seconds if isinstance(error, TimeoutError) else self.gone_seconds
            if self.heard.waited < patience:
                return
            how = f"gave no sign of life for {patience:g} s" if patience else "has ended"
            why = error.strerror or error
            raise Unreachable(f"{self.name} ({self.host}:{self.port}) {how}: {why}", hint=_LOST) from None


class Connection:
    """A connection of this process to a cluster. `ray` is the module."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self._looked = time.monotonic()
        self._servers: list[_Server] = []
        self._servers = list(self._found_servers())

    def _found_servers(self) -> Iterator[_Server]:
        """The raylet of this machine and the head, as far as they answer now."""
        context = self.ray.get_runtime_context()
        head, _, port = context.gcs_address.rpartition(":")
        places = [("the head of the Ray cluster", head.strip("[]"), int(port), _HEAD_GONE_SECONDS)]
        places += [
            ("the Ray node of this machine", node["NodeManagerAddress"], node["NodeManagerPort"], _RAYLET_GONE_SECONDS)
            for node in self.call(self.ray.nodes)
            if node["NodeID"] == context.get_node_id()
        ]
        for name, host, number, gone_seconds in places:
            with contextlib.suppress(OSError):
                _greet(host, number, _CONNECT_SECONDS)
                yield _Server(name, host, number, gone_seconds)

    def call(self, function: Callable[[], T]) -> T:
        """Return what `function` returns, or raise what it raises. Raises Unreachable once the cluster is lost."""
        lost: list[Unreachable] = []

        def is_lost() -> bool:
            try:
                if self._is_due:
                    self.look()
            except Unreachable as error:
                lost.append(error)
            return bool(lost)

        if self._is_due:
            self.look()
        try:
            return in_time(function, Deadline(CLUSTER_CALL.seconds), is_lost)
        except Overdue:
            if lost:
                raise lost[0] from None
            raise Unreachable(
                f"the Ray cluster: no answer within {CLUSTER_CALL.seconds:g} s", hint=_NO_CLUSTER
            ) from None

    @property
    def _is_due(self) -> bool:
        return time.monotonic() - self._looked >= _SECONDS_BETWEEN_LOOKS

    def look(self) -> None:
        """Ask the servers for a sign of life. Raises Unreachable if one is lost."""
        for server in self._servers:
            server.look()
        self._looked = time.monotonic()


@contextmanager
def connected(address: str) -> Iterator[Connection]:
    """The connection of this process to the cluster at `address`, or a new one, which is closed after the block.

    Raises UsageError if Ray is not installed or this process is connected to another cluster, and Unreachable if no
    cluster answers.
    """
    if address.startswith("ray://"):
        raise _refused_client(address)
    ray = _library()
    if ray.is_initialized():
        _refuse_other(ray, address)
        yield Connection(ray)
        return
    _refuse_silent(address)
    with _without_output_of_ray():
        _connect(ray, address)
        try:
            yield Connection(ray)
        finally:
            _disconnect(ray)


def _library() -> Any:
    os.environ |= _QUIET | dict(os.environ)
    try:
        import ray
    except ImportError:
        raise UsageError.about(
            "ray", ..., "Ray is not installed here", hint="pip install 'dsv4-shard[ray]', here and on every node."
        ) from None
    return ray


def _refused_client(address: str) -> UsageError:
    hint = "Run the command on a node of the cluster, with --ray auto."
    return UsageError.about("ray", address, "Ray's client cannot do this", hint=hint)


def _refuse_other(ray: Any, address: str) -> None:
    """Raise UsageError if this process is connected to another cluster than that at `address`, or by Ray's client."""
    from ray.util.client import ray as client

    if client.is_connected():  # type: ignore[no-untyped-call]
        raise _refused_client(address)
    there = ray.get_runtime_context().gcs_address
    if ":" in address and _resolved(address) != _resolved(there):
        raise UsageError.about(
            "ray", address, f"this process is connected to another cluster, at {there}",
            hint="Name that one, or --ray auto; or call ray.shutdown() first.",
        )  # fmt: skip


def _resolved(address: str) -> set[tuple[Any, ...]]:
    """The places that an address stands for; the address itself if its name is not known."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return {(address,)}
    return {place[:2] for *_, place in found}


def _connect(ray: Any, address: str) -> None:
    def init() -> None:
        _become_quiet()
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)

    try:
        in_time(init, Deadline(CLUSTER_CALL.seconds))
    except Overdue:
        atexit.unregister(ray.shutdown)
        raise _no_cluster(address, f"no answer within {CLUSTER_CALL.seconds:g} s") from None
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise _no_cluster(address, str(error).splitlines()[0]) from None


def _disconnect(ray: Any) -> None:
    """Close the connection. If the cluster is lost, Ray may wait for it for ever, also when this process exits."""

    def shutdown() -> None:
        _become_quiet()
        ray.shutdown()

    try:
        in_time(shutdown, Deadline(_SHUTDOWN_SECONDS))
    except Overdue:
        atexit.unregister(ray.shutdown)


def _no_cluster(address: str, reason: object) -> Unreachable:
    return Unreachable.about("ray", address, f"no Ray cluster can be reached: {reason}", hint=_NO_CLUSTER)


def _refuse_silent(address: str) -> None:
    """Raise Unreachable if nothing answers at an address. Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return
    try:
        _greet(host.strip("[]"), int(port), _CONNECT_SECONDS)
    except TimeoutError:
        raise _no_cluster(address, f"no answer within {_CONNECT_SECONDS:g} s") from None
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, error) from None


def _greet(host: str, port: int, seconds: float) -> None:
    """Have a server of gRPC answer within `seconds`. Raises OSError, or TimeoutError, which is one."""
    with socket.create_connection((host, port), seconds) as server:
        server.sendall(_GREETING)
        server.recv(1)


_RAYS_THREADS = "ray_"
"""Ray's names of the threads in which it prints begin with this."""


def _become_quiet() -> None:
    """Make this thread one of Ray's, whose output is discarded."""
    threading.current_thread().name = f"{_RAYS_THREADS}call"


class _WithoutRay:
    """A stream that discards the output of Ray's own threads, and of no others."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        is_rays = threading.current_thread().name.startswith(_RAYS_THREADS)
        return len(text) if is_rays else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _without_output_of_ray() -> Iterator[None]:
    """Discard what Ray's threads print: the last output of dying nodes, which no setting turns off."""
    quiet = [cast(TextIO, _WithoutRay(stream)) for stream in (sys.stdout, sys.stderr)]
    with contextlib.redirect_stdout(quiet[0]), contextlib.redirect_stderr(quiet[1]):
        yield
