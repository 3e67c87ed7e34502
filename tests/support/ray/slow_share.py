"""A share that can be killed midway: its journal is saved often, and then it is held up; nodes import it by name.

    python tests/support/ray/slow_share.py ADDRESS REPO OUT TP

reshards on the cluster as `dsv4-shard reshard --ray` does, and prints what became of each share as a line of JSON.
While there is a file `hold` beside REPO, a share takes long for each write when it has saved something.
"""

import json
import sys
import time
from pathlib import Path

from rich.console import Console

from dsv4_shard.checkpoint.inventory import Inventory
from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.destinations.ray_cluster import reshard_on_cluster
from dsv4_shard.destinations.share_worker import ShareTask
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import ShardError
from dsv4_shard.opening import open_checkpoint
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding import journal
from dsv4_shard.sharding.copy import FileSink
from dsv4_shard.sharding.progress import Reporter
from dsv4_shard.terminal.progress import ProgressBars
from dsv4_shard.terminal.screens.reshard import show_cluster

SAVE_BYTES = 1_000_000
SECONDS_A_WRITE = 0.5

_put = FileSink.put


def open_slowly(repo: str, config: Path | None) -> tuple[Checkpoint, Inventory]:
    """Opens a checkpoint as the command does, for a share that is held up."""
    done, hold = 0, Path(repo).with_name("hold")

    def put(sink: FileSink, file: int, offset: int, data: memoryview) -> None:
        nonlocal done
        if done > 3 * SAVE_BYTES and hold.exists():
            time.sleep(SECONDS_A_WRITE)
        _put(sink, file, offset, data)
        done += len(data)

    journal.SAVE_BYTES = SAVE_BYTES
    FileSink.put = put  # type: ignore[assignment, method-assign]
    return open_checkpoint(repo, config)


def main(address: str, repo: str, out: str, tp: str) -> None:
    checkpoint, inventory = open_checkpoint(repo)
    plan = make_plan(checkpoint, inventory, Request(tp=int(tp), nodes=2))
    order = ShareTask(repo, None, plan.to_json(), Path(out), open_slowly, workers=1)
    try:
        with ProgressBars(Console(file=sys.stderr), quiet=False) as progress:
            found = reshard_on_cluster(address, order, int(tp), 2, Reporter(progress))
    except ShardError as error:
        print(
            json.dumps(
                {"error": type(error).__name__, "says": [str(error), error.hint, *getattr(error, "__notes__", ())]}
            )
        )
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        print(json.dumps({"error": "KeyboardInterrupt", "says": error.__notes__}))
        sys.exit(130)
    shares = [(share.ranks, share.written.bytes_resumed if share.written else None) for share in found.shares]
    show_cluster(Console(file=sys.stderr, width=1000), found, 1.0)
    print(json.dumps({"shares": shares, "ok": found.verification.ok, "one_folder": found.one_folder}))


if __name__ == "__main__":
    main(*sys.argv[1:])
