"""Signals, exit codes, and the limit on open files."""

import errno
import functools
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn, ParamSpec, TypeVar

import typer

from dsv4_shard.errors import ExitCode, ReadFailed, ShardError, WriteFailed
from dsv4_shard.sources.client_environment import variable_of
from dsv4_shard.terminal.show_error import show_end, show_error

_OPEN_FILES = 1 << 16

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Error numbers of a failed write to standard output. Failed writes to the tool's own files raise WriteFailed."""

P = ParamSpec("P")

R = TypeVar("R")


def reported(function: Callable[P, R]) -> Callable[P, R]:
    """Turn a ShardError, or an error of the system that names a path, into one message and an exit code.

    Other exceptions are bugs and keep their traceback.

    Under `main`, signals raise an exception only in here, since a command may have something to save.
    """

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> R:
        as_json = bool(kwargs.get("as_json"))
        outermost = any(signal.getsignal(number) is handler for number, handler in OUTSIDE.items())
        try:
            try:
                if outermost:
                    handle_signals(_INSIDE)
                try:
                    return function(*args, **kwargs)
                finally:
                    sys.stdout.flush()  # a failed print is an error of the command, not of Python's exit
            except Exception as error:
                signalled = _signalled(error)
                if signalled is None or isinstance(error, typer.Exit):
                    raise
                raise signalled from None
            finally:
                if outermost:
                    handle_signals(OUTSIDE)
        except ShardError as error:
            _fail(error, as_json)
        except KeyboardInterrupt as error:
            if outermost:
                handle_signals(_SAID)
            print("interrupted", file=sys.stderr)
            show_end(error, "interrupted", ExitCode.INTERRUPTED, as_json=as_json)
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except SystemExit as error:
            show_end(error, "terminated", ExitCode.TERMINATED, as_json=as_json and error.code == ExitCode.TERMINATED)
            raise
        except OSError as error:
            if error.filename is None and error.errno in _FULL:
                _turn_away_stdout()
                _fail(WriteFailed(f"standard output: {error.strerror}"), False)
            if error.errno is None or (error.filename is None and not _current_folder_is_gone()):
                raise
            _fail(_of_system(error), as_json)

    return command


def _of_system(error: OSError) -> ReadFailed:
    """Return the error of a system call as the tool's own, with the environment variable that named its path."""
    if error.filename is None:
        return ReadFailed(f"the current folder: {error.strerror}")
    where = os.fsdecode(error.filename)
    variable = variable_of(where)
    hint = f"{variable} names it, or the folder that it is in: correct or unset it." if variable else None
    return ReadFailed(f"{where}: {error.strerror}", hint=hint)


def _current_folder_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _signalled(error: Exception) -> BaseException | None:
    """Return the exception that a signal raised, with the error's notes, if it caused the error.

    Objects that are closed in mid-work may raise errors of their own (zipfile does). Up to Python 3.11, so does a class
    that is being created.
    """
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, KeyboardInterrupt | SystemExit):
        behind = behind.__cause__ or behind.__context__
    if behind is not None:
        for note in getattr(error, "__notes__", ()):
            behind.add_note(note)
    return behind


def _turn_away_stdout() -> None:
    """Redirect stdout, since Python would report the error again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: ShardError, as_json: bool) -> NoReturn:
    try:
        show_error(error, as_json=as_json)
    except OSError:  # nobody reads the document, or the disk below it is full
        _turn_away_stdout()
    raise typer.Exit(error.exit_code)


# --- the process ---------------------------------------------------------------------------------------------------


def _on_sigterm(*_: object) -> NoReturn:
    """Exit as after an error, so that finished work is saved."""
    sys.exit(ExitCode.TERMINATED)


def _on_interrupt(number: int, frame: object) -> NoReturn:
    """Report the interrupt, and exit without a traceback."""
    os.write(2, b"interrupted\n")
    _leave(number, frame)


def _leave(number: int, _: object) -> NoReturn:
    os._exit(128 + number)


_INSIDE = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _on_sigterm}

OUTSIDE = {signal.SIGINT: _on_interrupt, signal.SIGTERM: _leave}
"""Handlers outside of commands: nothing has begun, or everything has ended."""

_SAID = {signal.SIGINT: _leave}


def handle_signals(handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], Any]]) -> None:
    """Set signal handlers, except for ignored signals: the process is then in the background."""
    for number, handler in handlers.items():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def allow_open_files() -> None:
    """Raise the soft limit on open files: a run may keep hundreds of files of checkpoint and ranks open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
