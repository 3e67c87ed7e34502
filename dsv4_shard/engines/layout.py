"""Protocol of an engine's file layout: `Layout`, `TargetTensor`, `LeftOut`, `Constant`."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dsv4_shard.engines.deployment import Context, Deployment
from dsv4_shard.models import ModelConfig, Names, TensorName
from dsv4_shard.tensors.header import Tensor


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A source tensor that no rank gets, and the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """Where a source tensor goes in the rank files, and how it is transformed.

    Attributes:
        name: Name of the tensor in the rank file; empty for the source's own name. Source tensors with the same target
            name are joined along their rows.
        dtype: Dtype in the rank file. If it differs from the source's, an elementwise conversion is used if there is
            one (`tensors.dtype_casts`), else the same bytes are stored under the new dtype.
        folder: Folder of the file, such as that of the draft model; empty without one.
        order: Position among the tensors that are joined, ascending.
        stacked: Whether experts are stacked one after the other along a new first axis.
        transform: Name of a decoding that also reads the scale; None without.
        repeat: How often each scale is repeated on both axes, for blocks that are cut finer.
        fill: One element of the source's dtype that padding is filled with; empty for zeros.
        file: File that holds the tensor, for layouts whose ranks have several named files; empty for the name that
            `Layout.file_name` gives.
        names: Grammar of the target names of tensors that are not joined; None for the source's own.
        everywhere: Whether every rank has it, also of an expert that another rank holds.
        paired: Whether the two pieces of each expert must be equal, byte for byte.
    """

    name: str
    dtype: str
    folder: str = ""
    order: int = 0
    stacked: bool = False
    transform: str | None = None
    repeat: int = 1
    fill: bytes = b""
    file: str = ""
    names: Names | None = None
    everywhere: bool = False
    paired: bool = False


Disposition = tuple[TargetTensor, ...] | LeftOut


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that the engine expects in its files and that no checkpoint has.

    `rank` is the rank that gets it; -1 for all ranks. `data` has the bytes, `shape` the size in elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes
    folder: str = ""
    rank: int = -1


class Layout(Protocol):
    """The files that an engine reads: their names, and what each tensor of the checkpoint becomes."""

    name: str
    shares_files: bool
    """Whether a rank may have several files, so that tensors common to all ranks are written once and linked."""
    has_parts: bool
    """Whether a file may be in several parts, whose tensors are ordered and aligned for direct reads."""
    by_node: bool
    """Whether a rank is a node, which has a folder and whole tensors."""

    def file_name(self, rank: int, part: int, deployment: Deployment) -> str:
        """Name of a rank's file number `part`: its own first, then those common to all. By node: the node's folder."""
        ...

    def refusal(self, context: Context) -> str | None:
        """Reason why no files can be written for a deployment that runs; None if they can."""
        ...

    def fate(self, tensor: Tensor, name: TensorName, context: Context) -> Disposition:
        """What `tensor` becomes; the same for tensors that differ only in the number of the expert."""
        ...

    def constants(self, context: Context) -> tuple[Constant, ...]:
        """Tensors that are in no checkpoint."""
        ...

    def identity(self, context: Context) -> dict[str, str]:
        """Properties that the files depend on and that shapes do not show.

        They go into the manifest and, if not empty, into every file's header. Files that tensors name
        (`TargetTensor.file`) are ordinary checkpoint files, whose headers do not have them.
        """
        ...

    def companions(self, document: dict[str, object], context: Context) -> dict[str, bytes]:
        """Additional files that the engine reads: name → content. By node: in each node's folder."""
        ...

    def copied(self, context: Context) -> dict[str, str]:
        """Small files to copy if they exist: name in the output → name in the checkpoint.

        By node: into each node's folder.
        """
        ...


@runtime_checkable
class ConverterLayout(Layout, Protocol):
    """Layout of the files that DeepSeek's converter also writes, so that they can be read without a plan."""

    def names(self, config: ModelConfig) -> Names:
        """The converter's tensor names for a model with this config."""
        ...
