"""What a report shows, as numbers and words."""

from dataclasses import dataclass

from dsv4_shard.catalog.gpus import GPUS
from dsv4_shard.inspection.known_family import Inspection
from dsv4_shard.planning.block_grid import BlockGrid
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.search import Search
from dsv4_shard.reporting.rank_contents import LayerMap, RankBytes


@dataclass(frozen=True, slots=True)
class ReportContent:
    """What a page shows. `layers` and `ranks` are of the plan's deployment: None and empty where it has none."""

    inspection: Inspection
    plan: Plan | None
    search: Search | None
    grids: tuple[BlockGrid, ...]
    layers: LayerMap | None
    ranks: tuple[RankBytes, ...]


def gpu_in_words(plan: Plan | None, search: Search | None) -> dict[str, str]:
    """The GPU that was asked for, as `inspect` takes it."""
    if plan is not None:
        named = {"gpu": plan.request.gpu, "gpu_memory": plan.request.gpu_memory}
        return {name: words for name, words in named.items() if words}
    if search is not None and search.gpu:
        return {"gpu" if search.gpu.lower() in GPUS else "gpu_memory": search.gpu}
    return {}
