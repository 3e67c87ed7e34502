"""Run work in forked processes: each has its own interpreter, so that none waits for the Python code of another.

A fork has all that its parent had: recipe, open files and sinks need not be sent, and its memory is shared until it is
written to. As of any fork of a process with threads, a lock that another thread holds stays locked in the child. So
the work must use nothing that locks: it reads, writes, computes with numpy, and hashes with xxh3.
"""

import gc
import multiprocessing
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple, TypeVar, cast

from dsv4_shard.errors import ShardError, WorkerLost
from dsv4_shard.storage import die_with_parent

Task = TypeVar("Task")
Result = TypeVar("Result")

_TASKS_AHEAD = 2
"""Tasks that a process has at a time: it begins the next one without waiting for its parent."""


_NICE = 5
"""How much the processes stand back behind their parent, which hashes what they write and hands out their tasks."""


class _Raised(NamedTuple):
    """An error of a process, on its way to the parent."""

    error: BaseException


class _Done(NamedTuple):
    """Says that a task has given all of its results."""


def in_processes(
    count: int,
    tasks: Iterable[Task],
    prepare: Callable[[], Callable[[Task], Iterable[Result]]],
    on_result: Callable[[Result], None],
) -> None:
    """Run tasks in at most `count` processes, which end before this returns.

    Args:
        count: Number of processes.
        tasks: What is sent to the processes, pickled; taken as they become free.
        prepare: Called once in each process; returns what maps a task to its results, which are sent back pickled.
        on_result: Receives each result in the calling thread, as soon as it arrives.

    Raises:
        WorkerLost: A process was killed.
        The first error of a task.
    """
    left = iter(tasks)
    workers: dict[Connection, BaseProcess] = {}
    busy: dict[Connection, int] = {}
    try:
        for task in left:
            ours, process = _start(prepare, list(workers))
            workers[ours], busy[ours] = process, 0
            _send(ours, task, busy)
            if len(workers) == count:
                break
        for ours in list(workers) * (_TASKS_AHEAD - 1):
            _send_next(ours, left, busy)
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                reply = _receive(ready, workers[ready])
                if isinstance(reply, _Raised):
                    raise reply.error
                if not isinstance(reply, _Done):
                    on_result(cast(Result, reply))
                    continue
                busy[ready] -= 1
                _send_next(ready, left, busy)
                if not busy[ready]:
                    del busy[ready]
    finally:
        for ours, process in workers.items():
            if ours in busy:
                process.kill()
            ours.close()
        for process in workers.values():
            process.join()


def _start(prepare: Callable[[], Callable[[Task], Iterable[Result]]], others: list[Connection]
           ) -> tuple[Connection, BaseProcess]:  # fmt: skip
    """Fork a process. `others` are the parent's ends of earlier ones, which it closes."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, [*others, ours], os.getpid(), prepare))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # see above
        process.start()
    theirs.close()
    return ours, process


def _send_next(ours: Connection, left: Iterator[Task], busy: dict[Connection, int]) -> None:
    with suppress(StopIteration):
        _send(ours, next(left), busy)


def _send(ours: Connection, task: object, busy: dict[Connection, int]) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # the process is gone: _receive says so
        ours.send(task)
    busy[ours] += 1


def _receive(ours: Connection, process: BaseProcess) -> object:
    """The next message of a process. Raises WorkerLost if it is gone."""
    try:
        return ours.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        raise WorkerLost(f"worker process {process.pid} {how}") from None


def _serve(
    theirs: Connection,
    others: list[Connection],
    parent: int,
    prepare: Callable[[], Callable[[Task], Iterable[Result]]],
) -> None:
    """Do tasks until the parent closes its end or ends itself."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its processes
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.nice(_NICE)
    gc.freeze()  # the collector would write to what is shared, and so copy it
    for other in others:
        other.close()
    try:
        do = prepare()
        while True:
            for result in do(theirs.recv()):
                theirs.send(result)
            theirs.send(_Done())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except BaseException as error:
        if not isinstance(error, ShardError):
            error.add_note(f"In a worker process:\n{traceback.format_exc()}")
        _say(theirs, error)


def _say(theirs: Connection, error: BaseException) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):
        try:
            theirs.send(_Raised(error))
        except BrokenPipeError:
            raise
        except Exception:  # what cannot be pickled
            theirs.send(_Raised(RuntimeError(traceback.format_exc())))
