"""Host memory while an engine loads weights, and for as long as it runs.

Every loader here maps files into memory, so what it reads stands in the page cache, which the kernel drops where memory
is short. Not droppable are tensors that the loader still refers to, and memory that is pinned for the GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

from dsv4_shard.engines.deployment import Context
from dsv4_shard.models import Role


def nothing(context: Context) -> int:
    """No bytes."""
    return 0


@dataclass(frozen=True, slots=True)
class HostRules:
    """What an engine holds in host memory.

    Attributes:
        files_at_once: Files of the checkpoint of which a loader holds all tensors at once; 0: a tensor at a time.
        whole_shards: Whether a rank holds all tensors of its own file at once; else a tensor at a time.
        pinned: Bytes of the checkpoint that stay pinned on the node, for as long as the engine runs.
        pinned_note: What is pinned, by which option or default.
        source: Where the numbers for a checkpoint were read.
        shard_source: Where those for shards were read.
    """

    files_at_once: int
    source: str
    shard_source: str
    whole_shards: bool = False
    pinned: Callable[[Context], int] = nothing
    pinned_note: str = ""


def engram_tables(context: Context) -> int:
    """Bytes of V4.1's engram tables on a node: a copy of each of its TP shards, which replicas on the node share."""
    deployment = context.deployment
    tables = sum(
        group.nbytes * count for group, count in context.inventory.groups.items() if group.role is Role.ENGRAM_EMBED
    )
    return tables * min(deployment.world // deployment.nodes, deployment.tp) // deployment.tp


SGLANG_HOST = HostRules(
    8 + 2,
    "model_loader/weight_utils.py, buffered_multi_thread_safetensors_weights_iterator: 8 threads, and 2 more files",
    "model_loader/loader.py, ShardedStateLoader, and this tool's loader: a tensor at a time",
)

VLLM_HOST = HostRules(
    0,
    "model_loader/weight_utils.py, safetensors_weights_iterator: a tensor at a time",
    "model_loader/sharded_state_loader.py: a tensor at a time",
    pinned=engram_tables,
    pinned_note="engram tables, by the default cpu_offload of --engram-config; DP replicas on a node share them if "
    "/dev/shm is large enough, else each has its own",
)

REFERENCE_HOST = HostRules(0, "", "inference/generate.py: safetensors' load_model", whole_shards=True)
