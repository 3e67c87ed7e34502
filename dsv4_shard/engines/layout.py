"""Protocol of an engine's file layout: `Layout`, `TargetTensor`, `LeftOut`, `Constant`."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dsv4_shard.engines.deployment import Context, Deployment
from dsv4_shard.models.family import ModelConfig
from dsv4_shard.models.names import Names
from dsv4_shard.models.roles import TensorName
from dsv4_shard.tensors.header import Tensor

# --- output layouts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A source tensor that no rank gets, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """Where a source tensor goes in the rank files, and what is done to it on the way.

    It becomes (a part of) the tensor `name` in `folder`; empty: its own name, alone. Several tensors of one name are
    joined along their rows, by ascending `order`; with `stacked`, the experts come first, one after the other along a
    new first axis. A `dtype` other than the source's is an elementwise conversion where there is one (`conversions`),
    else the same bytes under another name; `transform` names a decoding together with the scale. `repeat` repeats each
    scale for blocks cut finer. `fill` is one element of the source's dtype, with which padding is filled (empty:
    zeros). `file` is the file that it stands in, for layouts whose ranks have files of many names (empty: as
    `Layout.file_name` says). `names` are those that tensors are called by which go alone (None: their own).
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


Disposition = tuple[TargetTensor, ...] | LeftOut


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that the engine wants in its files and no checkpoint has: of one rank, or of all (`rank` -1)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes
    folder: str = ""
    rank: int = -1


class Layout(Protocol):
    """The files that an engine reads: names, and what becomes of each tensor of the checkpoint."""

    name: str
    shares_files: bool
    """Whether a rank may have several files, so that what all ranks share is written once and linked."""
    by_node: bool
    """Whether the files are those of a node: a rank is then a node and has a folder, and tensors stay whole."""

    def file_name(self, rank: int, part: int, deployment: Deployment) -> str:
        """Name of a rank's file; part 0 is its own, part 1 what it shares with all others. By node: its folder."""
        ...

    def refusal(self, context: Context) -> str | None:
        """Why no files can be written for a deployment that runs; None where they can."""
        ...

    def fate(self, tensor: Tensor, name: TensorName, context: Context) -> Disposition:
        """What becomes of `tensor`: one answer for all that differ only in their expert's number."""
        ...

    def constants(self, context: Context) -> tuple[Constant, ...]:
        """Tensors that are in no checkpoint."""
        ...

    def identity(self, context: Context) -> dict[str, str]:
        """What the files were made for, as far as shapes cannot tell; also in every file's header, if not empty.

        Files that tensors name (`Kept.file`) are ordinary files of a checkpoint, and their headers say nothing of it.
        """
        ...

    def companions(self, document: dict[str, object], context: Context) -> dict[str, bytes]:
        """Files beside the ranks' that the engine reads: name → content. By node: in each node's folder."""
        ...

    def copied(self, context: Context) -> dict[str, str]:
        """Small files that are copied where they exist: name in the output → name in the checkpoint.

        By node: into each node's folder.
        """
        ...


@runtime_checkable
class ConverterLayout(Layout, Protocol):
    """Files that DeepSeek's converter writes as well, so that they can be read without a plan."""

    def names(self, config: ModelConfig) -> Names:
        """What the converter calls the tensors of a model with this config."""
        ...
