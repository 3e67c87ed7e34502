"""A run uses no more threads than the CPUs that its process may use, whoever limits them."""

import os
from pathlib import Path

import pytest

from dsv4_shard.storage import runtime as cpus


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 CPUs whose control groups are in the folder that this returns."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(cpus, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpus, "_OWN_GROUP", tmp_path / "own")
    (tmp_path / "cgroup/slice/job").mkdir(parents=True)
    (tmp_path / "own").write_text("0::/slice/job\n")
    return tmp_path / "cgroup"


def test_a_large_machine_gets_the_most_that_is_of_use(machine: Path) -> None:
    assert cpus.default_workers() == cpus.MAX_WORKERS


def test_affinity_limits(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 60})
    assert cpus.default_workers() == 3


@pytest.mark.parametrize("group", [".", "slice", "slice/job"])
@pytest.mark.parametrize(("limit", "workers"), [
    ("400000 100000", 4), ("150000 100000", 2), ("20000 100000", 1), ("6400000 100000", 32), ("max 100000", 32),
])  # fmt: skip
def test_the_quota_of_each_control_group_above_limits(group: str, limit: str, workers: int, machine: Path) -> None:
    (machine / group / "cpu.max").write_text(limit + "\n")
    assert cpus.default_workers() == workers


def test_the_smallest_of_several_quotas_counts(machine: Path) -> None:
    (machine / "cpu.max").write_text("700000 100000\n")
    (machine / "slice/cpu.max").write_text("300000 100000\n")
    (machine / "slice/job/cpu.max").write_text("500000 100000\n")
    assert cpus.default_workers() == 3


@pytest.mark.parametrize("text", ["", "max", "a b", "0 0", "-5 100000", "1 2 3"])
def test_a_quota_that_cannot_be_read_is_none(text: str, machine: Path) -> None:
    (machine / "cpu.max").write_text(text)
    assert cpus.default_workers() == cpus.MAX_WORKERS


@pytest.mark.parametrize("own", [None, "", "12:cpu:/old\n", "0::/../elsewhere\n"])
def test_a_machine_without_control_groups_of_this_kind_has_no_quota(own: str | None, machine: Path) -> None:
    (machine.parent / "own").unlink()
    if own is not None:
        (machine.parent / "own").write_text(own)
    assert cpus.default_workers() == cpus.MAX_WORKERS
