"""vLLM's own other loaders: the Run:ai streamer for shards, and the filter of experts for a checkpoint.

The filter (`model_loader/ep_weight_filter.py`) skips `.weight` of experts that a rank does not hold, by their names,
and keeps all scales. `DefaultModelLoader` applies it under expert parallelism, unless EPLB is on or several threads
load. Without `lazy`, vLLM reads whole files ahead on NFS and Lustre.
"""

from dsv4_shard.catalog.options import VLLM_LOADER_VERSIONS
from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.stock_loaders import StockLoader
from dsv4_shard.engines.vllm.launch import STOCK_FORMAT, load_format
from dsv4_shard.models import V4

RUNAI = StockLoader(
    "the Run:ai streamer",
    {"--load-format": "runai_streamer_sharded"},
    reads="each file on each rank",
    note="it reads past the page cache, with several threads; on a CPU, runai-model-streamer 0.17.1 filled the same "
    "parameters",
    package="runai-model-streamer",
)

_FILTER = {"--enable-ep-weight-filter": None, "--safetensors-load-strategy": "lazy"}

_BYTES = "the bytes follow from the tensors' names, and were not measured"


def stock_loaders(context: Context, sharded: bool) -> tuple[StockLoader, ...]:
    """Return the loaders that take the deployment's shards, or its checkpoint, as vLLM's usual loader does.

    On one node the filter saves a node nothing: its ranks hold all experts.
    """
    deployment = context.deployment
    if deployment.version not in VLLM_LOADER_VERSIONS:
        return ()
    if sharded:
        return (RUNAI,) if load_format(context) == STOCK_FORMAT else ()
    if deployment.ep == 1 or deployment.nodes == 1:
        return ()
    compared = "on a CPU, it filled the same parameters" if context.inventory.family == V4 else "it was not run"
    note = f"it skips weights of experts that a rank does not hold, and no scales; {compared}; {_BYTES}"
    return (StockLoader("vLLM's filter of experts", dict(_FILTER), reads="experts of the node", note=note),)
