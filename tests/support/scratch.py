"""Folders that last as long as the process, for what is made once and read by many tests."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def process_folder() -> Path:
    """One folder for this process, gone when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="dsv4-shard-tests-"))
    atexit.register(remove_process_folder)
    return folder


def remove_process_folder() -> None:
    """For workers that end without running what is registered for the end, as pytest-xdist's do."""
    shutil.rmtree(process_folder(), ignore_errors=True)
