"""How soon a rank's tensors are in memory: from its own files, or from the whole checkpoint narrowed to that rank.

All through the safetensors library into ordinary memory, from a cold page cache. `slices` asks for what the rank needs
and no more (`get_slice`); `all tensors` takes every tensor and narrows it, as engines load by default.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table

from benchmarks.against_cp import remove
from benchmarks.page_cache import drop
from benchmarks.running import run, tool
from benchmarks.settings import Settings, require_room, say
from benchmarks.sized import write_sized
from benchmarks.spread import Spread, spread
from dsv4_shard.checkpoint.inventory import take_inventory
from dsv4_shard.checkpoint.reader import read_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.opening import open_source
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.recipe import Recipe, Step
from dsv4_shard.tensors.header import DTYPE_BITS

if TYPE_CHECKING:
    import torch

TP, RANK = 16, 3
ENGINES = ("reference", "sglang")
FOLDERS = 3
"""Room for this many times the checkpoint: the reference engine gives each rank all that is not an expert."""


class Part(NamedTuple):
    """A rectangle of a source tensor, in elements of the matrix that it is stored as, and where the rank has it.

    It lands `at` bytes into the output tensor `tensor`, unless it is decoded on the way (`tensor` is then empty).
    """

    file: Path
    name: str
    rows: slice
    cols: slice
    tensor: str = ""
    at: int = 0


@dataclass(frozen=True, slots=True)
class RankFiles:
    """Where a rank's tensors come from."""

    own: tuple[Path, ...]
    whole: tuple[Path, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """One way; `ratio` is its time divided by that of the rank's own files, round by round."""

    case: str
    engine: str
    seconds: float
    ratio: Spread
    bytes_in_memory: int
    disk_read: int


def rank_files(source: Path, out: Path, engine: str, tp: int, rank: int) -> RankFiles:
    """What `rank` reads, and what of the checkpoint that is, from the recipe by which `out` was written."""
    checkpoint = read_checkpoint(open_source(str(source)))
    inventory = take_inventory(checkpoint)
    recipe = prepare(checkpoint, inventory, make_plan(checkpoint, inventory, Request(tp=tp, engine=engine))).recipe
    numbers = {number for number, file in enumerate(recipe.files) if rank in file.ranks}
    own = tuple(out / recipe.files[number].name for number in sorted(numbers))
    whole = tuple(source / file.name for file in checkpoint.files)
    return RankFiles(own, whole, tuple(_parts(source, recipe, numbers)))


def _parts(source: Path, recipe: Recipe, numbers: set[int]) -> Iterator[Part]:
    for step in recipe.steps:
        for landing in step.landings:
            for cut, files in landing.spread:
                if numbers.intersection(files):
                    yield from _parts_of(source, step, cut.rectangle, landing.tensor, landing.at)


def _parts_of(source: Path, step: Step, area: Any, tensor: str, at: int) -> Iterator[Part]:
    """A rectangle, with the rows of the scale that it is decoded with."""
    width = DTYPE_BITS[step.source.dtype] // 8
    rows, cols = slice(area.row_start, area.row_stop), slice(area.start // width, area.stop // width)
    decoded = step.scale is not None or step.conversion is not None
    yield Part(source / step.source.file, step.source.name, rows, cols, "" if decoded else tensor, at)
    if step.scale is not None:
        rows_each = step.source.shape[0] // step.scale.shape[0]
        scale_rows = slice(rows.start // rows_each, -(-rows.stop // rows_each))
        yield Part(source / step.scale.file, step.scale.name, scale_rows, slice(0, step.scale.shape[1]))


def load_own(files: RankFiles) -> "list[torch.Tensor]":
    """Every tensor of the rank's own files."""
    tensors = []
    for path in files.own:
        with _open(path) as file:
            tensors += [file.get_tensor(name).clone() for name in file.keys()]  # noqa: SIM118
    return tensors


def load_slices(files: RankFiles) -> "list[torch.Tensor]":
    """What the rank needs of the checkpoint, and no more."""
    with ExitStack() as stack:
        opened = {path: stack.enter_context(_open(path)) for path in files.whole}
        return [_sliced(opened[part.file].get_slice(part.name), part) for part in files.parts]


def load_all(files: RankFiles) -> "list[torch.Tensor]":
    """Every tensor of the checkpoint, narrowed to what the rank needs, if anything."""
    wanted: dict[str, list[Part]] = {}
    for part in files.parts:
        wanted.setdefault(part.name, []).append(part)
    tensors = []
    for path in files.whole:
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                matrix = tensor.reshape(tensor.shape[0], -1)
                tensors += [matrix[part.rows, part.cols].clone() for part in wanted.get(name, ())]
    return tensors


WAYS: "dict[str, Callable[[RankFiles], list[torch.Tensor]]]" = {
    "own files": load_own,
    "whole checkpoint, slices": load_slices,
    "whole checkpoint, all tensors": load_all,
}
BASE = next(iter(WAYS))


def _open(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, "pt", device="cpu")


def _sliced(stored: Any, part: Part) -> "torch.Tensor":
    """A rectangle of a tensor in a file. Of one with several axes, all columns count as one axis."""
    is_matrix = len(stored.get_shape()) == 2
    rectangle: torch.Tensor = stored[part.rows, part.cols] if is_matrix else stored[part.rows]
    return rectangle.clone()


class _Once(NamedTuple):
    """One load: seconds, bytes that are in memory then, bytes that came from the disk."""

    seconds: float
    nbytes: int
    disk_read: int


def _load_once(files: RankFiles, way: str) -> _Once:
    gc.collect()
    for folder in {path.parent for path in files.own + files.whole}:
        drop(folder)
    before, started = _disk_read(), time.monotonic()
    tensors = WAYS[way](files)
    seconds = time.monotonic() - started
    return _Once(seconds, sum(tensor.nbytes for tensor in tensors), _disk_read() - before)


def _disk_read() -> int:
    """Bytes that this process has had fetched from the disk so far, those of mapped files included."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def measure(settings: Settings) -> list[Load]:
    """Every way for every engine."""
    import torch  # noqa: F401 - its import must not be in the first load

    require_room(settings.scratch, FOLDERS * settings.nbytes)
    source, out = settings.scratch / "checkpoint", settings.scratch / "out"
    write_sized(source, settings.nbytes)
    rows = []
    for engine in ENGINES:
        run(tool("reshard", str(source), str(out), "--engine", engine, "--tp", str(TP)))
        files = rank_files(source, out, engine, TP, RANK)
        rounds = []
        for number in range(settings.rounds):
            say(f"loading: {engine}: round {number + 1} of {settings.rounds}")
            rounds.append({way: _load_once(files, way) for way in WAYS})
        rows += [_summarize(engine, way, rounds) for way in WAYS]
        remove(out)
    remove(source)
    return rows


def _summarize(engine: str, way: str, rounds: list[dict[str, _Once]]) -> Load:
    last = rounds[-1][way]
    seconds = spread(one[way].seconds for one in rounds).median
    ratio = spread(one[way].seconds / one[BASE].seconds for one in rounds)
    return Load(f"{engine}, {way}", engine, seconds, ratio, last.nbytes, last.disk_read)


def table(rows: list[Load]) -> Table:
    """For a person."""
    shown = Table("", "seconds", "time / own files", "in memory", "from disk",
                  title=f"One rank of TP {TP} into memory, cold")  # fmt: skip
    for row in rows:
        sizes = [f"{n / 1e9:.2f} GB" for n in (row.bytes_in_memory, row.disk_read)]
        shown.add_row(row.case, f"{row.seconds:.2f}", str(row.ratio), *sizes)
    return shown
