"""Rank files that the tests of the loader read."""

import shutil
from pathlib import Path

import pytest
from support.checkpoints.small import open_folder

from dsv4_shard.engines import Request
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.run import reshard


@pytest.fixture(scope="session")
def result(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rank files for SGLang, TP 2: for each rank a file of its own, and one of both. Only to be read."""
    checkpoint, inventory = open_folder(tiny_checkpoint)
    plan = make_plan(checkpoint, inventory, Request(2, runner="marlin", shared_experts="whole", gpu="h200"))
    out = tmp_path_factory.mktemp("results") / "out"
    reshard(prepare(checkpoint, inventory, plan), checkpoint, out)
    return out


@pytest.fixture
def folder(result: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(result, tmp_path / "out")
