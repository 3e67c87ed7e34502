"""How soon the bytes of a rank are on a GPU, by each loader that is installed: `python -m benchmarks.gpu_loading`.

    python -m benchmarks.gpu_loading --scratch /on/a/local/disk --gb 12 --json gpu_loading.json

A checkpoint with V4-Pro's expert widths is written and resharded for SGLang at TP 2. Then each loader fills parameters
that wait on the GPU with rank 0, as an engine does: from its start, with opening and checking the files, until the last
byte is there. All must put the same bytes there; else it ends with 1. `cold` reads from the disk (as root, with an
empty page cache), `warm` from the page cache. `2 ranks` are two processes at once with one GPU, each with its own rank,
from a cold cache: the bytes from the disk say how often what they share is read.

Loaders that are not installed are left out: fastsafetensors, instanttensor, runai-model-streamer. They are called as
vLLM 0.33.0 calls them for one rank, except that no GPUDirect Storage is used.
"""

import argparse
import gc
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from benchmarks.page_cache import drop, warm
from benchmarks.running import run, tool
from benchmarks.settings import say
from benchmarks.sized import write_sized
from benchmarks.spread import Spread, spread
from dsv4_shard.loading.load import WeightOrigin, load
from dsv4_shard.loading.parameters import meta_tensor
from dsv4_shard.loading.planned_checkpoint import PlannedCheckpoint
from dsv4_shard.loading.rank_files import WrittenFiles

TP = 2
LAYERS: dict[str, Any] = {"num_hidden_layers": 8, "compress_ratios": [4] * 8}
PACKAGES = ("torch", "safetensors", "fastsafetensors", "instanttensor", "runai_model_streamer")

Tensors = dict[str, torch.Tensor]


class Place(NamedTuple):
    """A checkpoint, its plan and its rank files; the rank that is loaded, and the device."""

    checkpoint: Path
    plan: Path
    out: Path
    rank: int
    device: str

    def paths(self) -> list[str]:
        """The files of the rank."""
        return sorted(map(str, self.out.glob(f"model-rank-{self.rank}-part-*.safetensors")))


def mapped(place: Place, parameters: Tensors) -> None:
    """One thread, mapped files, pageable copies: as `dsv4_shard` did before, and as `sharded_state` does."""
    for path in place.paths():
        with safe_open(path, "pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118
                parameters[name].copy_(file.get_tensor(name))


def safetensors_to_device(place: Place, parameters: Tensors) -> None:
    """safetensors' own way to a device."""
    for path in place.paths():
        with safe_open(path, "pt", device=place.device) as file:
            for name in file.keys():  # noqa: SIM118
                parameters[name].copy_(file.get_tensor(name))


def fastsafetensors(place: Place, parameters: Tensors) -> None:
    from fastsafetensors import SingleGroup
    from fastsafetensors.parallel_loader import ParallelLoader

    loader = ParallelLoader(
        pg=SingleGroup(), hf_weights_files=place.paths(), queue_size=0, use_tqdm_on_load=False, device=place.device,
        nogds=True,
    )  # fmt: skip
    for name, tensor in loader.iterate_weights():
        parameters[name].copy_(tensor)
    loader.close()


def instanttensor(place: Place, parameters: Tensors) -> None:
    import instanttensor as library

    with library.safe_open(place.paths(), "pt", device=torch.device(place.device)) as file:
        for name, tensor in file.tensors():
            parameters[name].copy_(tensor)


def runai(place: Place, parameters: Tensors) -> None:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files(place.paths(), device="cpu", is_distributed=False)
        for name, tensor in streamer.get_tensors():
            parameters[name].copy_(tensor)


def ours(place: Place, parameters: Tensors, *, verify: bool) -> None:
    _load(WrittenFiles(place.out, verify=verify), place, parameters)


def by_plan(place: Place, parameters: Tensors) -> None:
    """From the checkpoint itself; the time has the reading of its headers and the plan."""
    _load(PlannedCheckpoint(str(place.checkpoint), place.plan, "sglang", is_draft=False), place, parameters)


def _load(origin: WeightOrigin, place: Place, parameters: Tensors) -> None:
    origin.open(place.rank)
    load(origin, place.rank, parameters)


WAYS: dict[str, tuple[Callable[[Place, Tensors], None], str | None]] = {
    "mapped, pageable": (mapped, None),
    "dsv4_shard": (partial(ours, verify=False), None),
    "dsv4_shard, verify": (partial(ours, verify=True), None),
    "dsv4_shard, by plan": (by_plan, None),
    "safetensors to cuda": (safetensors_to_device, None),
    "fastsafetensors": (fastsafetensors, "fastsafetensors"),
    "InstantTensor": (instanttensor, "instanttensor"),
    "Run:ai streamer": (runai, "runai_model_streamer"),
}
"""Each way to load, and the package that it needs."""


TOGETHER = ("mapped, pageable", "dsv4_shard", "dsv4_shard, by plan", "InstantTensor")
"""The ways that two ranks load at once."""


@dataclass(frozen=True, slots=True)
class Load:
    """One way and state of the page cache; the spread is that of the rounds, the rest the last round's.

    `gb_per_second` counts the bytes on the GPU, `disk_read` what came from the disk, `memory` the growth of the
    process: its peak, with mapped pages, without pinned memory that torch keeps from the load before.
    """

    way: str
    cache: str
    gb_per_second: Spread
    nbytes: int
    disk_read: int
    memory: int


class Once(NamedTuple):
    """One load: seconds, bytes from the disk, growth of the process in bytes."""

    seconds: float
    disk_read: int
    memory: int


def measure(place: Place, rounds: int) -> Iterator[Load]:
    """Every way, cold and warm, in turns; then two ranks at once. Exits with 1 if bytes differ."""
    ways = [way for way, (_, package) in WAYS.items() if package is None or find_spec(package)]
    wanted = parameters_of(place)
    mapped(place, wanted)
    filled = parameters_of(place)
    nbytes = sum(tensor.nbytes for tensor in wanted.values())
    for way in ways:
        _load_once(place, way, filled)  # so that imports are in nobody's time
    for cache in ("cold", "warm"):
        if cache == "warm":
            warm(place.out)
            warm(place.checkpoint)
        taken: dict[str, list[Once]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                for tensor in filled.values():
                    tensor.view(torch.uint8).fill_(0xA5)
                taken[way].append(_once(place, way, filled, is_cold=cache == "cold"))
                if different := [name for name in wanted if not _same(filled[name], wanted[name])]:
                    sys.exit(f"{way} puts other bytes into {different[0]}")
        for way, some in taken.items():
            yield Load(way, cache, spread(nbytes / one.seconds / 1e9 for one in some), nbytes, *some[-1][1:])
    del wanted, filled
    for way in (way for way in TOGETHER if way in ways):
        some = [_both_ranks(place, way) for _ in range(rounds)]
        yield Load(
            way, "cold, 2 ranks", spread(TP * nbytes / one.seconds / 1e9 for one in some), TP * nbytes, *some[-1][1:]
        )


def parameters_of(place: Place) -> Tensors:
    """Parameters of the rank on the device, as an engine has them before loading."""
    held = WrittenFiles(place.out, verify=False).open(place.rank)
    return {name: torch.empty_like(meta_tensor(*kind), device=place.device) for name, kind in held.items()}


def _once(place: Place, way: str, parameters: Tensors, *, is_cold: bool) -> Once:
    gc.collect()
    if is_cold:
        _empty_cache(place)
    taken = _load_once(place, way, parameters)
    say(f"{way}, {'cold' if is_cold else 'warm'}: {taken.seconds:.2f} s, {taken.disk_read / 1e9:.2f} GB from the disk")
    return taken


def _load_once(place: Place, way: str, parameters: Tensors) -> Once:
    _synchronize(place)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is there
    before, resident, started = _disk_read(), _peak_memory(), time.monotonic()
    WAYS[way][0](place, parameters)
    _synchronize(place)
    return Once(time.monotonic() - started, _disk_read() - before, _peak_memory() - resident)


def _both_ranks(place: Place, way: str) -> Once:
    """Both ranks at once, from a cold cache: the seconds of the slower one, and the sums of the rest."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(TP + 1), context.Queue()
    processes = [
        context.Process(target=_rank, args=(place._replace(rank=rank), way, barrier, results)) for rank in range(TP)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    _empty_cache(place)
    barrier.wait()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    seconds, disk_read, memory = zip(*found, strict=True)
    return Once(max(seconds), sum(disk_read), sum(memory))


def _rank(place: Place, way: str, barrier: Any, results: Any) -> None:
    parameters = parameters_of(place)
    _load_once(place, way, parameters)
    barrier.wait()
    barrier.wait()
    results.put(tuple(_load_once(place, way, parameters)))


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def _synchronize(place: Place) -> None:
    if place.device != "cpu":
        torch.cuda.synchronize()


def _empty_cache(place: Place) -> None:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1\n")
    except OSError:
        drop(place.out)
        drop(place.checkpoint)


def _disk_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def _peak_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def make(folder: Path, nbytes: int, device: str) -> Place:
    """Write the checkpoint and its rank files into the folder."""
    checkpoint = write_sized(folder / "checkpoint", nbytes, **LAYERS)
    run(tool("reshard", str(checkpoint), str(folder / "out"), "--tp", str(TP), "--gpu", "h200"))
    return Place(checkpoint, folder / "out" / "plan.json", folder / "out", 0, device)


def table(rows: list[Load]) -> Table:
    """For a person."""
    shown = Table("", "page cache", "GB/s", "seconds", "on the GPU", "from the disk", "host memory")
    for row in rows:
        seconds = row.nbytes / row.gb_per_second.median / 1e9
        shown.add_row(row.way, row.cache, str(row.gb_per_second), f"{seconds:.2f}", f"{row.nbytes / 1e9:.2f} GB",
                      f"{row.disk_read / 1e9:.2f} GB", f"{row.memory >> 20} MiB")  # fmt: skip
    return shown


def about() -> dict[str, str]:
    """The GPU, and the versions of what was compared."""
    found = {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def main() -> None:
    """Write, load and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where to write")
    parser.add_argument("--gb", type=float, default=12.0, help="size of the checkpoint; default: 12")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--device", default="cuda:0", help="default: cuda:0; cpu tries the loaders that can")
    parser.add_argument("--json", type=Path, dest="json_file", help="keep every number here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        place = make(Path(folder), round(arguments.gb * 1e9), arguments.device)
        rows = list(measure(place, arguments.rounds))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(", ".join(f"{name} {value}" for name, value in about().items()))
    console.print(table(rows))
    if arguments.json_file:
        document = {"about": about(), "loads": [asdict(row) for row in rows]}
        arguments.json_file.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
