"""Shared fixtures, and how hypothesis runs: the same examples every time, without a clock."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from support.checkpoints.full_size import real_checkpoints_read_once
from support.checkpoints.tiny import TINY_CONFIG
from support.scratch import remove_process_folder, share_process_folder
from support.servers.hub import HubServer
from support.workers import SLOW_MODELS, Scheduling, place_of

from dsv4_shard.checkpoint.synthetic import write_checkpoint

if TYPE_CHECKING:
    from support.servers.store import StoreServer

settings.register_profile("seeded", deadline=None, derandomize=True)
settings.load_profile("seeded")


def pytest_configure(config: pytest.Config) -> None:
    """The workers of a run inherit the environment, and with it the folder of the process that starts them."""
    if not hasattr(config, "workerinput"):
        share_process_folder()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long tests last, and mark as slow what `make test-fast` leaves out.

    That is a third real checkpoint, and later cases of a test.
    """
    items.sort(key=lambda item: place_of(item.nodeid))
    begun: set[str] = set()
    for item in items:
        callspec = getattr(item, "callspec", None)
        given = [value for value in callspec.params.values() if isinstance(value, str)] if callspec else []
        if not SLOW_MODELS.isdisjoint(given):
            item.add_marker(pytest.mark.slow)
        function = item.nodeid.partition("[")[0]
        if function in begun:
            item.add_marker(pytest.mark.slow)
        begun.add(function)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than CPUs: every fourth second of a worker it waits for a disk, a server, or a time to pass."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """See `Scheduling`."""
    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    """The collector of garbage need not look at 10,000 tests and all modules again and again: a tenth of the time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """A run of all tests writes some 15 GB: none of it stays behind."""
    remove_process_folder()


@pytest.fixture(scope="session", autouse=True)
def _real_checkpoints_read_once() -> Iterator[None]:
    """Each process reads the headers of a real checkpoint once, whatever number of commands open it."""
    with real_checkpoints_read_once():
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete small checkpoint. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", TINY_CONFIG, seed=7)


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the small checkpoint, to be damaged."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Processes that the test starts take SIGINT, as from a terminal: background jobs of a shell inherit it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub on loopback that holds nothing yet.

    Its client is not to ask it for a list of agents, once per process: a server that answers nonsense in one test would
    break those that follow.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    with HubServer() as server:
        yield server


@pytest.fixture
def store_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreServer]:
    """An S3 server on loopback with one empty bucket, which obstore finds by the environment."""
    from support.servers.store import StoreServer  # takes a second to import

    with StoreServer() as server:
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        yield server
