"""The verb `inspect`: content, findings and possible layouts of a checkpoint."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dsv4_shard.catalog.option import Option
from dsv4_shard.catalog.rank_ranges import MAX_RANKS
from dsv4_shard.catalog.request import REFRESH, Hardware
from dsv4_shard.catalog.verb import Later, verb
from dsv4_shard.errors import UnsupportedFamily

if TYPE_CHECKING:
    from dsv4_shard.inspection import known_family, unknown_family
else:
    known_family = Later("dsv4_shard.inspection.known_family")
    unknown_family = Later("dsv4_shard.inspection.unknown_family")


@dataclass(frozen=True, kw_only=True)
class InspectOptions(Hardware):
    """The options of `inspect`."""

    tp: Annotated[
        int | Iterable[int] | None,
        Option(help="TP sizes to try.", metavar="N,N,...", shows="1,2,4,8,16,32,64", least=1, most=MAX_RANKS),
    ] = None
    refresh: Annotated[bool, REFRESH] = False


@verb(InspectOptions)
def inspect(repo: str | Path, options: InspectOptions) -> "known_family.Inspection | unknown_family.UnknownInspection":
    """Describe a checkpoint: its identity and content, its findings, and the TP at which each engine can run it.

    `repo` is a folder (of a checkpoint, or of all its rank shards), `org/name[@revision]` on the Hub, or the URL of an
    object store. Only headers are read. `tp` is one size or several (default: the powers of two up to 64). They are
    checked for the GPU that `gpu` or `gpu_memory` names, with its memory; by default for Hopper. `refresh` asks the Hub
    for the branch's commit even if it was asked for within the last hour.

    Returns an Inspection: `findings` lists what is wrong with the checkpoint, `matrix` has a cell per engine and TP.
    For an unknown family, returns an UnknownInspection with the content and the axes that divide into whole blocks.

    Raises:
        - UsageError: `repo` or an option is malformed.
        - Unreachable or one of its subclasses: `repo` cannot be fetched.
        - Another ShardError: the checkpoint contradicts itself.

    >>> from dsv4_shard.inspection.known_family import Inspection
    >>> found = dsv4_shard.inspect("model", tp=[8, 16])
    >>> assert isinstance(found, Inspection)
    >>> found.identity.family, found.has_errors
    ('DeepSeek-V4', False)
    >>> [str(cell.verdict) for cell in found.matrix if cell.engine == "sglang"]
    ['runs', 'runs with changes']
    """
    from dsv4_shard.checkpoint import read_unknown
    from dsv4_shard.inspection import DEFAULT_TPS, inspect_unknown
    from dsv4_shard.inspection import inspect as inspect_checkpoint
    from dsv4_shard.opening import open_checkpoint, open_source
    from dsv4_shard.storage import collector_paused

    tp = options.tp
    tps = DEFAULT_TPS if tp is None else (tp,) if isinstance(tp, int) else tuple(tp)
    with collector_paused():
        try:
            checkpoint, inventory = open_checkpoint(str(repo), refresh=options.refresh, exact=False)
        except UnsupportedFamily:
            return inspect_unknown(read_unknown(open_source(str(repo))), tps)
        return inspect_checkpoint(checkpoint, inventory, tps, options.gpu, options.gpu_memory)
