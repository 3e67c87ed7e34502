"""A share that is slow enough to be killed midway, and whose journal is saved often; nodes import it by name.

    python tests/slow_share.py ADDRESS REPO OUT TP

reshards on the cluster as `dsv4-shard reshard --ray` does, and prints what became of each share as a line of JSON.
"""

import json
import sys
import time
from pathlib import Path

from rich.console import Console

from dsv4_shard import cli, journal
from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.cluster import reshard_on_cluster
from dsv4_shard.engines.base import Request
from dsv4_shard.inventory import Inventory
from dsv4_shard.plan import make_plan
from dsv4_shard.progress import SharesProgress
from dsv4_shard.sharework import Order
from dsv4_shard.writing import FileSink

SAVE_BYTES = 1_000_000
SECONDS_A_WRITE = 0.004

_put = FileSink.put


def open_slowly(repo: str, config: Path | None) -> tuple[Checkpoint, Inventory]:
    """Opens a checkpoint as the command does, for a slow share."""
    journal.SAVE_BYTES = SAVE_BYTES
    FileSink.put = _put_slowly
    return cli._open(repo, config)


def _put_slowly(sink: FileSink, *place: object) -> None:
    time.sleep(SECONDS_A_WRITE)
    _put(sink, *place)


def main(address: str, repo: str, out: str, tp: str) -> None:
    checkpoint, inventory = cli._open(repo)
    plan = make_plan(checkpoint, inventory, Request(tp=int(tp), nodes=2))
    order = Order(repo, None, plan.to_json(), Path(out), open_slowly, workers=1)
    with SharesProgress(Console(file=sys.stderr), quiet=False) as progress:
        found = reshard_on_cluster(address, order, int(tp), 2, progress)
    shares = [(one.ranks, one.outcome.resumed if one.outcome else None) for one in found.written]
    print(json.dumps({"shares": shares, "ok": found.together.ok, "one_folder": found.is_one_folder}))


if __name__ == "__main__":
    main(*sys.argv[1:])
