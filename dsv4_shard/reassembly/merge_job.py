"""The job that writes the checkpoint itself: each tensor of the ranks' checkpoint, whole, in native names."""

from pathlib import Path
from typing import Literal

from dsv4_shard.checkpoint import Checkpoint, Inventory, origin_of, refuse_errors
from dsv4_shard.errors import UsageError
from dsv4_shard.reassembly.source import ChangedTensor, RankSource
from dsv4_shard.sharding.companions import read_beside
from dsv4_shard.sharding.job import Job
from dsv4_shard.sharding.manifest import NATIVE
from dsv4_shard.sharding.outcome import WRITTEN, Outcome, ResultDocument, Written
from dsv4_shard.sharding.recipe import Destination, OutputFile, Recipe, Slice, SliceMap, Step
from dsv4_shard.sharding.statement import parts_of
from dsv4_shard.storage import MANIFEST_NAME, collector_paused
from dsv4_shard.tensors.geometry import whole_rectangle
from dsv4_shard.tensors.header import Tensor, header_nbytes, read_header
from dsv4_shard.text.units import counted


class Merged(Written, ResultDocument):
    __doc__ = f"Result of `merge`. `notes` and `changes` list the differences from the original checkpoint.{WRITTEN}"

    kind: Literal["merge"] = "merge"
    notes: tuple[str, ...]
    changes: tuple[ChangedTensor, ...]

    def in_short(self) -> str:
        """Files, bytes, folder and number of changed tensors in one line."""
        return f"{super().in_short()}, {counted(sum(one.tensors for one in self.changes), 'changed tensor')}"

    @classmethod
    def of(cls, outcome: Outcome, source: RankSource) -> "Merged":
        """The result of a run that merged `source`."""
        return cls(**dict(outcome.written), notes=source.notes, changes=source.changes)


def prepare_merge(checkpoint: Checkpoint, inventory: Inventory) -> Job:
    """The job that writes a checkpoint's files as its source gives them. Reads headers and small files only.

    Raises IncompleteCheckpoint.
    """
    refuse_errors(inventory)
    source, companions = checkpoint.source, read_beside(checkpoint.source)
    with collector_paused():
        recipe = whole_files(checkpoint)
    inputs = tuple(parts_of(checkpoint))
    return Job(NATIVE, origin_of(checkpoint, source.label), None, recipe, companions, (0,), 1, {}, inputs)


def source_of_ranks(checkpoint: Checkpoint) -> RankSource:
    """The source of a checkpoint made of rank files. Raises UsageError for any other checkpoint."""
    if isinstance(checkpoint.source, RankSource):
        return checkpoint.source
    root = checkpoint.source.root
    if root is not None and (root.absolute().parent / MANIFEST_NAME).is_file():
        result = Path(checkpoint.source.label).parent
        raise UsageError(f"{checkpoint.source.label}: a part of the result in {result}, and not all of it",
                         hint=f"Name the result: {result}.")  # fmt: skip
    raise UsageError(
        f"{checkpoint.source.label}: a checkpoint, not the shards of ranks",
        hint="Name the folder that reshard wrote, or DeepSeek's converter.",
    )


def whole_files(checkpoint: Checkpoint) -> Recipe:
    """The recipe that copies a checkpoint's files, headers included."""
    numbers = {file.name: number for number, file in enumerate(checkpoint.files)}
    spreads: dict[tuple[str, tuple[int, ...], str], SliceMap] = {}

    def spread(tensor: Tensor) -> SliceMap:
        key = (tensor.dtype, tensor.shape, tensor.file)
        if key not in spreads:
            spreads[key] = ((Slice(whole_rectangle(tensor.dtype, tensor.shape)), (numbers[tensor.file],)),)
        return spreads[key]

    steps = [Step(tensor, (Destination(tensor.name, 0, 0, spread(tensor)),)) for tensor in checkpoint.tensors.values()]
    steps.sort(key=lambda step: (numbers[step.source.file], step.source.start))
    files = tuple(_file(checkpoint, name) for name in numbers)
    return Recipe(files, tuple(steps), (), {})


def _file(checkpoint: Checkpoint, name: str) -> OutputFile:
    with checkpoint.source.open(name) as file:
        head = file.read(0, header_nbytes(file))
        named, known = read_header(file, name).tensors, checkpoint.tensors
        tensors = {known[one].name if one in known else one: info for one, info in named.items()}  # names are shared
        return OutputFile(name, (0,), head, tensors, {})
