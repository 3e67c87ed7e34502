"""The GPUs that `--gpu` names: the document of the command `gpus`."""

from typing import Literal

from dsv4_shard.catalog.gpus import GPUS
from dsv4_shard.engines import serving
from dsv4_shard.text.document import Document
from dsv4_shard.version import __version__


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
