"""One class for each broken promise, with the exit code it ends the command with.

A message says what, where and why, in numbers; `hint` says what to do next. The CLI prints both and nothing else, so
whoever raises one of these writes for the person who reads the terminal.

A message about a parameter is a template, and the parameter is data: Python reads `gpu_memory='96'`, the command line
`--gpu-memory '96'`. Hints name options as the command line does; a traceback shows them with the names of Python.
"""

import reprlib
from collections.abc import Callable, Mapping
from enum import IntEnum
from types import EllipsisType
from typing import Self

_SHORT = reprlib.Repr()

_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


class ExitCode(IntEnum):
    """What a command's exit status means."""

    DONE = 0
    NO = 1
    """A result that says no: the layout is infeasible, the verification failed."""
    USAGE = 2
    CHECKPOINT = 3
    IO = 4
    NETWORK = 5
    INTERRUPTED = 130


def _in_python(name: str, value: object) -> str:
    return name if isinstance(value, EllipsisType) else f"{name}={_SHORT.repr(value)}"


class ShardError(Exception):
    """Base of every error that a user can meet; anything else is a bug in dsv4-shard."""

    exit_code: ExitCode = ExitCode.CHECKPOINT
    hint: str | None = None

    def __init__(
        self, message: str, *, hint: str | None = None, parameters: Mapping[str, object] | None = None
    ) -> None:
        """With `parameters`, `message` has each of them in braces; `...` as the value names a parameter alone."""
        self.template, self.parameters = message, dict(parameters or {})
        super().__init__(self.spelled(_in_python))
        if hint is not None:
            self.hint = hint

    @classmethod
    def about(cls, name: str, value: object, message: str, *, hint: str | None = None) -> Self:
        """The error for one parameter, with which the message begins; braces in `message` are text."""
        return cls(f"{{{name}}}: {message.replace('{', '{{').replace('}', '}}')}", hint=hint, parameters={name: value})

    def spelled(self, spell: Callable[[str, object], str]) -> str:
        """The message, with each parameter and its value as `spell` writes them."""
        if not self.parameters:
            return self.template
        return self.template.format_map({name: spell(name, value) for name, value in self.parameters.items()})


# --- safetensors headers -------------------------------------------------------------------------------------------


class HeaderError(ShardError):
    """A file is not a well-formed safetensors file."""

    hint = "The file is damaged or not safetensors: download it again and compare its size with the repository's."


class NotSafetensors(HeaderError):
    """The first bytes cannot be a safetensors header: too short, or the JSON does not start with '{'."""


class GitLfsPointer(HeaderError):
    """A Git-LFS pointer stands where the weights should be."""

    hint = "The repository was cloned without its weights. Run `git lfs pull` in it, or `hf download` the repository."


class HeaderTooLarge(HeaderError):
    """The length in the first eight bytes is beyond the format's limit or beyond the end of the file."""


class HeaderNotJson(HeaderError):
    """The header is not the JSON object that the format asks for."""


class DuplicateKey(HeaderError):
    """A key stands twice in the header, so readers may disagree on what the file holds."""


class BadTensorEntry(HeaderError):
    """A tensor's dtype, shape or offsets are malformed or contradict each other."""


class BadTensorOffsets(HeaderError):
    """Tensors overlap, leave a hole, or do not end where the file ends."""


class TruncatedFile(HeaderError):
    """The file is shorter than its header says: an interrupted download or copy."""


# --- checkpoints ---------------------------------------------------------------------------------------------------


class BadConfig(ShardError):
    """config.json is missing, not JSON, or lacks what the model needs."""

    hint = "Download config.json again; no field of it may be left out or made up."


class UnsupportedFamily(ShardError):
    """A checkpoint of a model family whose tensors dsv4-shard does not know."""


class BadIndex(ShardError):
    """model.safetensors.index.json is missing, not JSON, or not a weight map."""

    hint = "Download the index again: it says which tensor is in which file."


class UnsafeFileName(BadIndex):
    """A file name in the index is not the plain name of a file in the checkpoint's folder."""

    hint = "Do not trust this checkpoint: an index that names files elsewhere is either damaged or hostile."


class MissingFile(ShardError):
    """The index names a file that is not in the folder."""

    hint = "The download is incomplete: run `hf download` again, it continues where it stopped."


class IndexMismatch(ShardError):
    """Index and headers disagree on which tensor is in which file."""

    hint = "Files of two revisions are mixed, or the index is stale: download the repository again at one revision."


class DuplicateTensor(ShardError):
    """One tensor is in two files."""

    hint = "Files of two revisions or formats are mixed in this folder: keep those that the index names."


class MixedDialects(ShardError):
    """Names of two tools stand beside each other, so it is not known which tensor is which."""

    hint = "Files of two exports are mixed in this folder: keep those of one of them."


class BadStack(ShardError):
    """A tensor that holds all experts of a layer does not have their shape."""

    hint = "The export is damaged, or of another model than config.json says: make it again."


class IncompleteCheckpoint(ShardError):
    """Tensors are missing, unknown or of the wrong shape, so no plan or shard made from them could be right."""

    hint = "`dsv4-shard inspect` lists every finding."


# --- rank shards as a source ---------------------------------------------------------------------------------------


class BadRanks(ShardError):
    """Rank shards do not make up a checkpoint: with what else is in the folder, or with each other."""

    hint = "`dsv4-shard verify FOLDER` says which files are not what was written."


class MissingRanks(BadRanks):
    """The shards of some ranks are not in the folder."""

    hint = "Every rank's file is needed: put those of all ranks into one folder, or reshard without --ranks."


class MixedRanks(BadRanks):
    """Files of several sets of ranks are in one folder."""

    hint = "Move the files of each set into a folder of its own."


class WrongRankHeader(BadRanks):
    """A rank file's header is not the one that the checkpoint and the plan give."""


class DamagedRanks(BadRanks):
    """The bytes of a rank file are not those that were written."""


class RanksDisagree(BadRanks):
    """What several ranks must hold alike differs between them."""


class BadPadding(BadRanks):
    """Padding in a rank file holds something."""


class NotConverted(BadRanks):
    """A value in a rank file cannot have come from the dtype that the checkpoint has."""


class BadSkeleton(BadRanks):
    """source.zip is missing, damaged, or holds more than a checkpoint's headers."""

    hint = "It says what the shards were made of. Without it, only `dsv4-shard reshard` from the checkpoint helps."


# --- plans ---------------------------------------------------------------------------------------------------------


class UsageError(ShardError):
    """A parameter or option asks for something that does not exist or that contradicts another."""

    exit_code = ExitCode.USAGE


class BadPlan(ShardError):
    """A plan file is not one, was edited, or was made by another version."""

    exit_code = ExitCode.USAGE
    hint = "Make the plan again: `dsv4-shard plan REPO --tp N -o plan.json`."


class ForeignPlan(BadPlan):
    """A plan was made for another checkpoint, or the checkpoint changed since."""


class InfeasiblePlan(ShardError):
    """The layout breaks a rule of the engine, so no shards are written for it."""

    exit_code = ExitCode.NO


# --- moving bytes --------------------------------------------------------------------------------------------------


class OutputError(ShardError):
    """The output folder cannot be used."""

    exit_code = ExitCode.IO


class OutputInsideInput(OutputError):
    """Output and input are the same folder, or one holds the other."""

    hint = "Choose a folder beside the checkpoint."


class OutputNotEmpty(OutputError):
    """Something is already there."""


class RanksThere(OutputNotEmpty):
    """All ranks that were to be written are in the output already."""

    hint = "Nothing is left to do; --overwrite replaces the whole folder."


class NothingToDo(ShardError):
    """A launcher left no ranks to this process, or they are there already; others of its may have more to do."""

    exit_code = ExitCode.DONE


class OtherDeployment(OutputNotEmpty):
    """Shares that are to be one result were not made for the same deployment, or from the same checkpoint."""

    hint = "Choose another folder, or replace the whole of it with --overwrite."


class SharesDiffer(OutputError):
    """What all ranks hold alike differs between shares of one result."""

    hint = "`dsv4-shard verify FOLDER --against REPO` says which of them is damaged: write that one again."


class OutputBusy(OutputError):
    """Another dsv4-shard is writing the same output."""


class OtherRun(OutputError):
    """An unfinished run of something else left its work where this one's would go."""

    hint = "Give the earlier command again to finish that run, or add --restart to throw its work away."


class NotEnoughDisk(OutputError):
    """The file system has less room than the shards need."""


class ReadFailed(ShardError):
    """The system refused to read the source or the output, or gave fewer bytes than the file has."""

    exit_code = ExitCode.IO


class WriteFailed(ShardError):
    """The system refused to write the output."""

    exit_code = ExitCode.IO


class SourceChanged(ShardError):
    """A source file changed while it was read."""

    hint = "Nothing was written under the output's name. Run again when nobody writes to the checkpoint."


class DamagedTransfer(SourceChanged):
    """The bytes that came over the network are not those that the repository has."""

    exit_code = ExitCode.NETWORK
    hint = "What was written is thrown away. Run again; if it stays, something between here and the server alters data."


class InexactCast(ShardError):
    """An FP4 expert holds values that FP8 with one scale per block cannot hold exactly."""

    hint = "Keep FP4 (`--expert-dtype fp4`), or accept rounding as DeepSeek's converter does: `--allow-inexact`."


# --- results -------------------------------------------------------------------------------------------------------


class NotAResult(ShardError):
    """A folder has no readable manifest, so nothing in it is to be trusted as a result of reshard."""

    exit_code = ExitCode.NO


class LoadRefused(ShardError):
    """Rank files are not for the engine, the rank or the model that wants to load them."""

    exit_code = ExitCode.NO


class NodesLost(ShardError):
    """Nodes of a cluster were lost with the shares that they wrote, and no other could write them."""

    exit_code = ExitCode.IO
    hint = "What is done is kept where it was written: the same command goes on from there."


class Unreachable(ShardError):
    """The checkpoint is not on this machine and cannot be fetched, or no cluster answers."""

    exit_code = ExitCode.NETWORK


class AccessRefused(Unreachable):
    """A repository or store wants another token, or an agreement, before it gives its files."""


class NotFound(Unreachable):
    """There is no such repository, revision, bucket or file where it was looked for."""


class Throttled(Unreachable):
    """A server refused further requests for longer than is waited."""


class ServerFailed(Unreachable):
    """A server failed, stalled or broke connections, each time that it was tried."""


class BadAnswer(Unreachable):
    """A server gave something else than what it was asked for: other bytes, another size, no JSON."""
