"""A Ray cluster of several node processes on this machine, for the tests, started by a process of its own.

    python tests/ray_nodes.py FOLDER [FOLDER…]

starts a head that takes no tasks, and a node in each folder, which is its tasks' current folder. Prints the address and
the process numbers of the nodes as a line of JSON, and stops all of it when stdin ends.
"""

import json
import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

MEMORY = 80 << 20
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""A node that is killed is known to be dead within seconds."""


def main(folders: list[str]) -> None:
    """Start, say so, wait, stop."""
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        pids = []
        for folder in folders:
            os.chdir(folder)
            node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY, include_dashboard=False)
            pids.append(node.all_processes["raylet"][0].process.pid)
        print(json.dumps({"address": cluster.address, "raylets": pids}), flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(sys.argv[1:])
