"""Prints the result of `gpus`: the GPUs that `--gpu` names."""

from rich.console import Console

from dsv4_shard.catalog.options import ENGINES
from dsv4_shard.terminal.gpu_list import GpuList
from dsv4_shard.terminal.tables import Table
from dsv4_shard.terminal.text import item

_GIB = 1 << 30


def show_gpus(console: Console, found: GpuList) -> None:
    """Show a row for each GPU."""
    table = Table("--gpu", "GPU", "GiB", "architecture", "engines", right=(2,))
    named = next((gpu.engines for gpu in found.gpus if gpu.engines), ())
    for gpu in found.gpus:
        architecture = gpu.architecture if gpu.sm is None else f"{gpu.architecture} sm_{gpu.sm}"
        verified = "verified" if gpu.engines else "not verified"
        table.add(gpu.name, gpu.title, f"{gpu.memory_bytes / _GIB:.1f}", architecture, verified)
    table.show(console)
    console.print()
    item(console, "GiB: the memory that CUDA reports, less than the product's name says", "dim")
    engines = ", ".join(ENGINES[name].partition(":")[0] for name in named)
    item(console, f"verified: the rules of {engines} are verified on this architecture; elsewhere plans show the "
         "weights per GPU and whether they fit", "dim")  # fmt: skip
    item(console, "Another GPU: `--gpu-memory 96GB`, with the rules of Hopper", "dim")
