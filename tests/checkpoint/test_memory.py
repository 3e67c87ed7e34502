"""What a full-size checkpoint takes in memory before its first byte is moved."""

import subprocess
import sys

import pytest
from support.checkpoints.full_size import PRO, inventory_of

LIMIT = 256 << 20

PREPARE = """
import sys
from dsv4_shard.checkpoint.reader import read_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.checkpoint.inventory import take_inventory
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.opening import open_source
folder, engine, nodes = sys.argv[1:]
checkpoint = read_checkpoint(open_source(folder))
inventory = take_inventory(checkpoint)
request = Request(tp=16, engine=engine, nodes=int(nodes))
job = prepare(checkpoint, inventory, make_plan(checkpoint, inventory, request))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(int(peak.split()[1]) * 1024, len(job.recipe.steps))
"""
"""Prints the peak of its own resident memory: ru_maxrss would count that of the process that started it."""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sglang", "reference", "node"])
def test_the_recipe_of_v4_pro_for_16_ranks_fits_into_256_mib(engine: str) -> None:
    folder = str(inventory_of(PRO)[0].source.root)
    call = [sys.executable, "-c", PREPARE, folder, engine, "2"]
    peak, steps = map(int, subprocess.run(call, check=True, capture_output=True, text=True).stdout.split())
    assert steps > 140_000
    assert peak < LIMIT
