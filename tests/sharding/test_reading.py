"""What a share reads is what it was reckoned to read, byte by byte, for each kind of cut."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from support.checkpoints.small import open_folder
from support.counting_source import CountingSource
from support.schemas import validator
from typer.testing import CliRunner

from dsv4_shard.catalog.rank_ranges import share_of
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, write_checkpoint
from dsv4_shard.cli import app
from dsv4_shard.engines.deployment import Request
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.reading import readings
from dsv4_shard.sharding.run import reshard
from dsv4_shard.text.units import size

REQUESTS = {
    "columns": Request(tp=8),
    "experts": Request(tp=8, ep=8),
    "padded": Request(tp=8, engine="vllm"),
    "reference": Request(tp=8, engine="reference"),
    "cast": Request(tp=8, engine="reference", expert_dtype="fp8"),
    "nodes": Request(tp=16, engine="node", nodes=4),
}
"""The moves of `benchmarks`: MoE TP cuts columns, EP keeps experts whole, vLLM pads, casts decode."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that cuts for every layout. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model", DEMO_CONFIG, 5)


@pytest.mark.parametrize("name", REQUESTS)
def test_each_share_reads_what_the_recipe_of_all_ranks_says(name: str, model: Path, tmp_path: Path) -> None:
    checkpoint, inventory = open_folder(model)
    plan = make_plan(checkpoint, inventory, REQUESTS[name])
    whole = prepare(checkpoint, inventory, plan)
    shares = [share_of(whole.world, 0, 4), (whole.world - 1,), tuple(range(whole.world))]
    for share, reckoned in zip(shares, readings(whole.recipe, shares), strict=True):
        counting = CountingSource(checkpoint.source)
        job = prepare(checkpoint, inventory, plan, share)
        out = tmp_path / str(share[0]) / str(len(share))
        out.parent.mkdir(exist_ok=True)
        outcome = reshard(job, replace(checkpoint, source=cast(Any, counting)), out, workers=1)
        assert counting.nbytes == outcome.bytes_read == reckoned.read
        assert readings(job.recipe, [share]) == [reckoned]
        written = {path.stat().st_ino: path.stat().st_size for path in out.rglob("*.safetensors")}
        assert reckoned.written == sum(written.values())
        assert reckoned.used <= reckoned.read
        if name != "cast":
            assert max(counting.reads.values()) == 1


def test_of_columns_all_rows_are_read_and_of_rows_and_experts_the_own(model: Path) -> None:
    """Half of the ranks need half of the bytes of the experts. With their columns cut, they read more."""
    checkpoint, inventory = open_folder(model)
    found = {}
    for name in ("columns", "experts"):
        recipe = prepare(checkpoint, inventory, make_plan(checkpoint, inventory, REQUESTS[name])).recipe
        found[name] = readings(recipe, [range(4), range(8)])
    for half, whole in found.values():
        assert whole.used == whole.read
        assert half.written < whole.written
    assert found["columns"][0].read > found["columns"][0].used
    assert found["experts"][0].read < found["columns"][0].read


def test_a_dry_run_says_what_each_node_reads_and_writes_and_a_share_does(model: Path, tmp_path: Path) -> None:
    """The nodes of the plan, as if each wrote its ranks by itself."""
    command = ["reshard", str(model), str(tmp_path / "out"), "--tp", "8", "--nodes", "2", "--dry-run"]
    dry = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    validator("dry-run").validate(dry)
    tensors = open_folder(model)[0].tensors.values()
    assert dry["source_bytes"] == sum(tensor.nbytes for tensor in tensors)
    assert [share["ranks"] for share in dry["shares"]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for share in dry["shares"]:
        ranks = ",".join(map(str, share["ranks"]))
        alone = json.loads(CliRunner().invoke(app, [*command, "--ranks", ranks, "--json"]).stdout)
        assert (alone["bytes_read"], alone["shares"]) == (share["bytes_read"], [])
        assert share["bytes"] == sum(alone["files"].values())
        assert share["bytes_used"] < share["bytes_read"] < dry["bytes_read"] <= dry["source_bytes"]
    text = CliRunner().invoke(app, command).stdout
    counts = re.findall(r"^ *(\d+)  \S+\.safetensors ", text, re.MULTILINE)
    assert sum(map(int, counts)) == sum(name.endswith(".safetensors") for name in dry["files"])
    shown = " ".join(text.split())
    assert f"reads {size(dry['bytes_read'])} of the checkpoint's {size(dry['source_bytes'])}" in shown
    first = dry["shares"][0]
    others = size(first["bytes_read"] - first["bytes_used"])
    assert (
        f"ranks 0-3 alone: reads {size(first['bytes_read'])} ({others} for other ranks), writes {size(first['bytes'])}"
    ) in shown
