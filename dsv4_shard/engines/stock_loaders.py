"""`StockLoader`: options with which an engine's own code loads what it serves in another way."""

from dataclasses import dataclass
from typing import Literal

from dsv4_shard.engines.launch import Options


@dataclass(frozen=True, slots=True)
class StockLoader:
    """Another way of an engine to load a checkpoint or shards, without this package.

    Attributes:
        name: Name in printed text.
        options: Options to set in the command.
        reads: `each file on each rank`: past the page cache, so files that ranks share count for each of them.
            `experts of the node`: all of the checkpoint but the weights of experts that no rank of the node holds.
        note: What the loader does, and what of it was verified.
        package: Python package that the engine's environment needs; None without.
    """

    name: str
    options: Options
    reads: Literal["each file on each rank", "experts of the node"]
    note: str
    package: str | None = None
