"""Folders that last as long as the process or the run, for what is made once and read by many tests."""

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

_SHARED = "DSV4_SHARD_TEST_FOLDER"


@cache
def process_folder() -> Path:
    """One folder for this process, gone when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="dsv4-shard-tests-"))
    atexit.register(remove_process_folder)
    return folder


def share_process_folder() -> None:
    """Make this process's folder the one that its children share, such as the workers of a run."""
    os.environ[_SHARED] = str(process_folder())


def shared_folder() -> Path:
    """The folder of the run, or of this process if it is no part of a run."""
    return Path(os.environ.get(_SHARED) or process_folder())


def remove_process_folder() -> None:
    """For workers that end without running what is registered for the end, as pytest-xdist's do."""
    shutil.rmtree(process_folder(), ignore_errors=True)
