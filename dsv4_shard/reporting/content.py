"""The content of a report, as numbers and words."""

from dsv4_shard.catalog.gpus import GPUS
from dsv4_shard.catalog.rank_ranges import span_of
from dsv4_shard.inspection import Inspection
from dsv4_shard.planning import BlockGrid, Plan, Search
from dsv4_shard.reporting.rank_contents import LayerMap, RankBytes
from dsv4_shard.text.document import Document, html_table
from dsv4_shard.text.units import gib


class ReportContent(Document):
    """Content of a page. `layers` and `ranks` describe the plan's deployment: None and empty without one."""

    inspection: Inspection
    plan: Plan | None
    search: Search | None
    grids: tuple[BlockGrid, ...]
    layers: LayerMap | None = None
    ranks: tuple[RankBytes, ...] = ()

    def in_short(self) -> str:
        """The subject of the report."""
        return (self.plan or self.search or self.inspection).in_short()

    def _repr_html_(self) -> str:
        """HTML for notebooks: the plan, else the search, else the inspection; and the bytes per rank."""
        about = (self.plan or self.search or self.inspection)._repr_html_()
        head = ("ranks", "experts", "split", "whole", "padding", "other", "free")
        rows = [_row(rank) for rank in self.ranks]
        return about + (html_table("What the ranks hold", head, rows) if rows else "")


def _row(rank: RankBytes) -> tuple[str, ...]:
    """A row of a notebook's table: the ranks, and their bytes."""
    free = "not known" if rank.free is None else f"{'-' if rank.free < 0 else ''}{gib(abs(rank.free))}"
    held = (rank.experts, rank.split, rank.whole, rank.padding, rank.other)
    return span_of(range(rank.first, rank.last + 1)), *map(gib, held), free


def gpu_in_words(plan: Plan | None, search: Search | None) -> dict[str, str]:
    """The requested GPU, as keywords of `inspect`."""
    if plan is not None:
        named = {"gpu": plan.request.gpu, "gpu_memory": plan.request.gpu_memory}
        return {name: words for name, words in named.items() if words}
    if search is not None and search.gpu:
        return {"gpu" if search.gpu.lower() in GPUS else "gpu_memory": search.gpu}
    return {}
