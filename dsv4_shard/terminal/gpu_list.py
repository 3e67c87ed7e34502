"""The GPUs that `--gpu` names: the document of the command `gpus`, and its table."""

from typing import Literal

from rich.console import Console

from dsv4_shard.catalog.gpus import GPUS
from dsv4_shard.catalog.options import ENGINES
from dsv4_shard.engines import serving
from dsv4_shard.terminal.tables import Table
from dsv4_shard.terminal.text import item
from dsv4_shard.text.document import Document
from dsv4_shard.version import __version__

_GIB = 1 << 30


class ListedGpu(Document):
    """A GPU that `--gpu` names.

    `memory_bytes` is the total that CUDA reports, and `memory_source` where it was seen. `sm` is the compute capability
    × 10, null for architectures on which no engine is verified. `engines` are those whose rules are verified on it.
    """

    name: str
    title: str
    architecture: str
    sm: int | None
    memory_bytes: int
    memory_source: str
    engines: tuple[str, ...]


class GpuList(Document):
    """The GPUs that `--gpu` names."""

    kind: Literal["gpus"] = "gpus"
    schema_version: Literal[1] = 1
    tool_version: str = __version__
    gpus: tuple[ListedGpu, ...]


def list_gpus() -> GpuList:
    """Return every GPU of the catalog, those on which engines are verified first."""
    listed = (
        ListedGpu(
            name=gpu.name,
            title=gpu.title,
            architecture=gpu.family,
            sm=gpu.sm if gpu.verified else None,
            memory_bytes=gpu.memory,
            memory_source=gpu.source,
            engines=serving() if gpu.verified else (),
        )
        for gpu in sorted(GPUS.values(), key=lambda gpu: not gpu.verified)
    )
    return GpuList(gpus=tuple(listed))


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
