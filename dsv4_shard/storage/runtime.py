"""How many CPUs this process may use: those it may be scheduled on, and no more than its control groups pay for."""

import gc
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_WORKERS = 8

_GROUPS = Path("/sys/fs/cgroup")

_OWN_GROUP = Path("/proc/self/cgroup")


def default_workers() -> int:
    """One worker thread for each usable CPU, at most MAX_WORKERS: beyond that they only wait for the disk."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)), *_quotas())


def _quotas() -> Iterator[int]:
    """CPUs, rounded up, that each control group (v2) from this process's own to the root may use, where it is limited.

    A container sees its own group as the root.
    """
    for group in _groups():
        try:
            quota, period = map(int, (group / "cpu.max").read_text().split())
        except (OSError, ValueError):
            continue  # no such file, or the quota is "max"
        if quota > 0 and period > 0:
            yield math.ceil(quota / period)


def _groups() -> list[Path]:
    try:
        lines = _OWN_GROUP.read_text().splitlines()
    except OSError:
        lines = []
    inner = next((line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")), "")
    own = _GROUPS / inner
    return [own, *(parent for parent in own.parents if parent.is_relative_to(_GROUPS))]


@contextmanager
def collector_paused() -> Iterator[None]:
    """145,116 new tuples, none of them garbage: looking for cycles among them would double the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
