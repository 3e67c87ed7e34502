"""reshard against DeepSeek's own converter on the same checkpoint, time and memory; `against_converter.py` holds bytes.

The converter holds everything in memory and does not wait until its files are on the disk, which ours does.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.against_cp import remove
from benchmarks.generations import command, generation_of
from benchmarks.page_cache import prepare
from benchmarks.running import Run, run, tool
from benchmarks.settings import NotMeasured, Settings, require_room, say
from benchmarks.sized import tensor_bytes, write_sized
from benchmarks.spread import Spread, spread
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE

TP = 16
DTYPES = {"FP4 kept": "fp4", "FP4 cast to FP8": "fp8"}
MEMORY_EACH = 6
"""Bytes of memory that the converter needs for each byte of the checkpoint: about 4 for the cast, and some to spare."""

ROOM_EACH = 7
"""Bytes of disk for each byte of the checkpoint: itself and the cast one, where each rank has all that is no expert."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """Medians over some rounds; the ratios are the converter's divided by ours."""

    case: str
    source_bytes: int
    seconds: float
    converter_seconds: float
    time_ratio: Spread
    peak_memory: int
    converter_peak_memory: int
    memory_ratio: Spread


def measure(settings: Settings) -> list[Conversion]:
    """FP4 kept and cast, in turns. Raises NotMeasured where memory or disk is too small."""
    if settings.converter is None:
        raise NotMeasured("no --converter PATH: take inference/convert.py from any DeepSeek-V4 release")
    _require_memory(MEMORY_EACH * settings.converter_nbytes)
    require_room(settings.scratch, ROOM_EACH * settings.converter_nbytes)
    if generation_of(settings.converter).experts is None:
        raise NotMeasured(f"{settings.converter} is V4.1's: take one from a DeepSeek-V4 release")
    source = write_sized(settings.scratch / "checkpoint", settings.converter_nbytes)
    rows = []
    for case, dtype in DTYPES.items():
        rounds = []
        for number in range(settings.rounds):
            say(f"converter: {case}: round {number + 1} of {settings.rounds}")
            rounds.append(_one_round(settings, settings.converter, source, dtype))
        rows.append(_summarize(case, tensor_bytes(source), rounds))
    remove(source)
    return rows


def _require_memory(nbytes: int) -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    if available < nbytes:
        raise NotMeasured(
            f"the converter holds everything in memory: {nbytes / 1e9:.1f} GB needed, {available / 1e9:.1f} GB "
            "available; take a smaller --converter-gb"
        )


def _one_round(settings: Settings, converter: Path, source: Path, dtype: str) -> tuple[Run, Run]:
    """Ours, then theirs; each result is removed before the other's turn."""
    out, experts = settings.scratch / "out", json.loads((source / CONFIG_FILE).read_text())["n_routed_experts"]
    runs = []
    for one in (
        tool("reshard", str(source), str(out), "--engine", "reference", "--tp", str(TP), "--expert-dtype", dtype),
        command(converter, source, out, TP, dtype, experts),
    ):
        prepare(source, settings.cold)
        runs.append(run(one))
        remove(out)
    return runs[0], runs[1]


def _summarize(case: str, source_bytes: int, rounds: list[tuple[Run, Run]]) -> Conversion:
    return Conversion(
        case=case,
        source_bytes=source_bytes,
        seconds=statistics.median(ours.seconds for ours, _ in rounds),
        converter_seconds=statistics.median(theirs.seconds for _, theirs in rounds),
        time_ratio=spread(theirs.seconds / ours.seconds for ours, theirs in rounds),
        peak_memory=max(ours.peak_memory for ours, _ in rounds),
        converter_peak_memory=max(theirs.peak_memory for _, theirs in rounds),
        memory_ratio=spread(theirs.peak_memory / ours.peak_memory for ours, theirs in rounds),
    )


def table(rows: list[Conversion]) -> Table:
    """For a person."""
    shown = Table("", "source", "seconds", "converter", "time ratio", "peak memory", "converter", "memory ratio",
                  title="DeepSeek's converter / reshard (reference TP16)")  # fmt: skip
    for row in rows:
        shown.add_row(row.case, f"{row.source_bytes / 1e9:.2f} GB", f"{row.seconds:.2f}",
                      f"{row.converter_seconds:.2f}", str(row.time_ratio), f"{row.peak_memory >> 20} MiB",
                      f"{row.converter_peak_memory >> 20} MiB", str(row.memory_ratio))  # fmt: skip
    return shown
