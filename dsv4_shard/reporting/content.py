"""The content of a report, as numbers and words."""

from dsv4_shard.catalog.gpus import GPUS
from dsv4_shard.catalog.rank_ranges import span_of
from dsv4_shard.inspection import Inspection, UnknownInspection
from dsv4_shard.planning import BlockGrid, Plan, Search
from dsv4_shard.reporting.rank_contents import LayerBytes, RankBytes
from dsv4_shard.text.document import Document, html_table
from dsv4_shard.text.units import gib


class ReportContent(Document):
    """Content of a page.

    `command` makes the page again, at the same commit; `config_digest` identifies the config.json of a checkpoint that
    has no commit. `layers` and `ranks` describe the plan's deployment: empty without one, or if a rule breaks.
    """

    command: str
    config_digest: str
    inspection: Inspection | UnknownInspection
    plan: Plan | None
    search: Search | None
    grids: tuple[BlockGrid, ...]
    layers: tuple[LayerBytes, ...] = ()
    ranks: tuple[RankBytes, ...] = ()

    @property
    def family_known(self) -> bool:
        """Whether the family of the checkpoint is known, so that it can be planned for."""
        return isinstance(self.inspection, Inspection)

    def in_short(self) -> str:
        """The subject of the report."""
        return (self.plan or self.search or self.inspection).in_short()

    def _repr_html_(self) -> str:
        """HTML for notebooks: the plan, else the search, else the inspection; and the bytes per rank."""
        about = (self.plan or self.search or self.inspection)._repr_html_()
        kinds = list(dict.fromkeys(kind for rank in self.ranks for kind in rank.kinds))
        rows = [_row(rank, kinds) for rank in self.ranks]
        return about + (html_table("What the ranks hold", ("ranks", *kinds, "padding", "free"), rows) if rows else "")


def _row(rank: RankBytes, kinds: list[str]) -> tuple[str, ...]:
    """A row of a notebook's table: the ranks, and their bytes."""
    free = "not known" if rank.free is None else f"{'-' if rank.free < 0 else ''}{gib(abs(rank.free))}"
    held = (*(rank.kinds.get(kind, 0) for kind in kinds), rank.padding)
    return span_of(range(rank.first, rank.last + 1)), *map(gib, held), free


def gpu_in_words(plan: Plan | None, search: Search | None) -> dict[str, str]:
    """The requested GPU, as keywords of `inspect`."""
    if plan is not None:
        named = {"gpu": plan.request.gpu, "gpu_memory": plan.request.gpu_memory}
        return {name: words for name, words in named.items() if words}
    if search is not None and search.gpu:
        return {"gpu" if search.gpu.lower() in GPUS else "gpu_memory": search.gpu}
    return {}
