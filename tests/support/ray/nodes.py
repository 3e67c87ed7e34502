"""A Ray cluster of several node processes on this machine, for the tests, started by a process of its own.

    python tests/support/ray/nodes.py [--head] FOLDER [FOLDER…]

starts a head and a node in each folder, which is its tasks' current folder. The head takes no tasks, or with `--head`
is the node in the first folder. Drivers on this machine belong to the head. Prints the address and the process numbers
of the servers as a line of JSON, and stops all of it when stdin ends.
"""

import json
import os
import select
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

MEMORY = 80 << 20
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""A node that is killed is known to be dead within seconds."""


def main(folders: list[str], head_works: bool) -> None:
    """Start, say so, wait, stop."""
    if head_works:
        os.chdir(folders.pop(0))
    head = {"num_cpus": int(head_works), "include_dashboard": False, "object_store_memory": MEMORY,
            "_system_config": QUICK}  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        first = cluster.head_node
        assert first is not None
        nodes = [first] if head_works else []
        for folder in folders:
            os.chdir(folder)
            nodes.append(cluster.add_node(num_cpus=1, object_store_memory=MEMORY, include_dashboard=False))
        of_head = {name: found[0].process.pid for name, found in first.all_processes.items()}
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        print(json.dumps({"address": cluster.address, "raylets": raylets, "head": of_head}), flush=True)
        while not select.select([sys.stdin], [], [], 0.2)[0]:
            for node in (first, *nodes):
                for server in node.all_processes.values():
                    server[0].process.poll()  # one that was killed is no zombie, for which Ray's workers would take it
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main([name for name in sys.argv[1:] if name != "--head"], "--head" in sys.argv)
