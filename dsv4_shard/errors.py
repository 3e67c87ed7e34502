"""The errors that users can meet: one class per broken rule, each with its exit code and hint.

A message says what is wrong, where and why, with numbers. `hint` says what to do next. The command line prints both and
nothing else, so both must be written for the person who reads the terminal.

A message about a parameter is a template, and the parameter is data: Python reads `gpu_memory='96'`, the command line
`--gpu-memory '96'`. Hints use the option names of the command line; a traceback shows them with the names of Python.
"""

import re
import reprlib
from collections.abc import Callable, Mapping
from enum import IntEnum
from types import EllipsisType
from typing import Self

_SHORT = reprlib.Repr()

_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


class ExitCode(IntEnum):
    """Exit status of a command."""

    DONE = 0
    NO = 1
    """The result is negative: the layout does not run, or the verification failed."""
    USAGE = 2
    CHECKPOINT = 3
    IO = 4
    NETWORK = 5
    NOT_VERIFIED = 6
    """Unknown whether the layout runs: it is not verified for this engine, model or GPU."""
    INTERRUPTED = 130
    TERMINATED = 143


def _in_python(name: str, value: object) -> str:
    return name if isinstance(value, EllipsisType) else f"{name}={_SHORT.repr(value)}"


class ShardError(Exception):
    """Base class of every error that a user can meet. Any other exception is a bug in dsv4-shard."""

    exit_code: ExitCode = ExitCode.CHECKPOINT
    hint: str | None = None

    def __init__(
        self, message: str, *, hint: str | None = None, parameters: Mapping[str, object] | None = None
    ) -> None:
        """Create the error; `message` has the name of each of `parameters` in braces.

        A parameter whose value is `...` is shown by its name alone.
        """
        self.template, self.parameters = message, dict(parameters or {})
        super().__init__(self.spelled(_in_python))
        if hint is not None:
            self.hint = hint

    @classmethod
    def code(cls) -> str:
        """Return the name of the class for scripts: `OutputNotEmpty` → `output-not-empty`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    @classmethod
    def about(cls, name: str, value: object, message: str, *, hint: str | None = None) -> Self:
        """Return the error for one parameter, which begins its message; braces in `message` are plain text."""
        return cls(f"{{{name}}}: {message.replace('{', '{{').replace('}', '}}')}", hint=hint, parameters={name: value})

    def spelled(self, spell: Callable[[str, object], str]) -> str:
        """Return the message with each parameter and its value formatted by `spell`."""
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
    """The file is a Git-LFS pointer instead of the weights."""

    hint = "The repository was cloned without its weights. Run `git lfs pull` in it, or `hf download` the repository."


class HeaderTooLarge(HeaderError):
    """The length in the first eight bytes exceeds the format's limit or the end of the file."""


class HeaderNotJson(HeaderError):
    """The header is not the JSON object that the format requires."""


class DuplicateKey(HeaderError):
    """The header has a key twice, so readers may disagree about the file's content."""


class BadTensorEntry(HeaderError):
    """A tensor's dtype, shape or offsets are malformed or contradict each other."""


class BadTensorOffsets(HeaderError):
    """Tensors overlap, leave a hole, or do not end where the file ends."""


class TruncatedFile(HeaderError):
    """The file is shorter than its header says: a download or copy was interrupted."""


# --- checkpoints ---------------------------------------------------------------------------------------------------


class BadConfig(ShardError):
    """config.json is missing, not JSON, or lacks a field that the model requires."""

    hint = "Download config.json again; it needs all of its fields."


class UnsupportedFamily(ShardError):
    """dsv4-shard does not support the model family of the checkpoint."""


class BadIndex(ShardError):
    """model.safetensors.index.json is missing, not JSON, or not a weight map."""

    hint = "Download the index again: it says which tensor is in which file."


class UnsafeFileName(BadIndex):
    """A file name in the index is not the plain name of a file in the checkpoint's folder."""

    hint = "Do not trust this checkpoint: an index that names files elsewhere is either damaged or hostile."


class MissingFile(ShardError):
    """The index names a file that is not in the folder."""

    hint = "The download is incomplete: run `hf download` again; it resumes."


class IndexMismatch(ShardError):
    """Index and headers disagree about which file a tensor is in."""

    hint = "Files of two revisions are mixed, or the index is stale: download the repository again at one revision."


class CheckpointTooLarge(ShardError):
    """A checkpoint, or the result that would be made of it, has more or larger tensors than are read.

    The limits leave room for a third more than the largest release has.
    """

    hint = "No release is so large: look at its headers, or ask for a higher limit (docs/reference/limits.md)."


class DuplicateTensor(ShardError):
    """One tensor is in two files."""

    hint = "Files of two revisions or formats are mixed in this folder: keep those that the index names."


class MixedDialects(ShardError):
    """The tensor names come from two tools, so their roles are ambiguous."""

    hint = "Files of two exports are mixed in this folder: keep those of one of them."


class BadStack(ShardError):
    """A tensor that stacks all experts of a layer does not have the experts' shape."""

    hint = "The export is damaged, or belongs to another model than config.json: export it again."


class IncompleteCheckpoint(ShardError):
    """Tensors are missing, unknown or of the wrong shape, so a plan or shard made from them would be wrong."""

    hint = "`dsv4-shard inspect` lists every finding."


class OtherExport(ShardError):
    """Another tool wrote the checkpoint, in a format that is not read here."""

    hint = "`dsv4-shard inspect` shows what it holds."


class NotACheckpoint(ShardError):
    """The folder holds no checkpoint in safetensors files: other folders, another tool's files, or nothing."""

    hint = "Name the folder that holds config.json, the index and the weights."


# --- rank files as input -------------------------------------------------------------------------------------------


class BadRanks(ShardError):
    """Rank files do not make up a checkpoint: they contradict each other or the rest of the folder."""

    hint = "`dsv4-shard verify FOLDER` says which files are not what was written."


class MissingRanks(BadRanks):
    """The files of some ranks are not in the folder."""

    hint = "Every rank's file is needed: put those of all ranks into one folder, or reshard without --ranks."


class MixedRanks(BadRanks):
    """The folder has files of several sets of ranks."""

    hint = "Move the files of each set into a folder of its own."


class WrongRankHeader(BadRanks):
    """The header of a rank file is not the one that follows from checkpoint and plan."""


class DamagedRanks(BadRanks):
    """The bytes of a rank file differ from those that were written."""


class RanksDisagree(BadRanks):
    """Bytes that must be equal on several ranks differ."""


class BadPadding(BadRanks):
    """Padding in a rank file does not have the value that the engine pads with."""


class NotConverted(BadRanks):
    """A value in a rank file is not the result of a cast from the checkpoint's dtype."""


class BadSkeleton(BadRanks):
    """source.zip is missing or damaged, or its content is not the headers of a checkpoint."""

    hint = "It describes the checkpoint of the shards. Without it, run `dsv4-shard reshard` from the checkpoint."


# --- documents -----------------------------------------------------------------------------------------------------


class NewerSchema(ShardError):
    """A plan, manifest or journal was written by a newer dsv4-shard, in a schema that this one cannot read."""

    hint = "Use the version that wrote it, or a newer one."


# --- plans ---------------------------------------------------------------------------------------------------------


class UsageError(ShardError):
    """A parameter or option asks for something that does not exist or that contradicts another."""

    exit_code = ExitCode.USAGE


class UnknownGpu(UsageError):
    """No GPU is called so, or several are."""


class BadPlan(ShardError):
    """A plan file is not a plan, or was edited."""

    exit_code = ExitCode.USAGE
    hint = "Make the plan again: `dsv4-shard plan REPO --tp N -o plan.json`."


class ForeignPlan(BadPlan):
    """The plan was made for another checkpoint, or the checkpoint has changed since."""


class InfeasiblePlan(ShardError):
    """The layout breaks a rule of the engine, so no shards are written for it."""

    exit_code = ExitCode.NO


class LayoutNotVerified(InfeasiblePlan):
    """Nobody ran the engine's code with this layout, model or GPU, so no shards are written for it."""

    exit_code = ExitCode.NOT_VERIFIED


# --- reading and writing -------------------------------------------------------------------------------------------


class OutputError(ShardError):
    """The output folder cannot be used."""

    exit_code = ExitCode.IO


class OutputInsideInput(OutputError):
    """Output and input are the same folder, or one contains the other."""

    hint = "Choose a folder beside the checkpoint."


class OutputNotEmpty(OutputError):
    """The output already has content that must not be replaced."""


class RanksThere(OutputNotEmpty):
    """The output already has all requested ranks."""

    hint = "Nothing is left to do; --overwrite replaces the whole folder."


class NothingToDo(ShardError):
    """The launcher gives this process no ranks, or they are already written. Other processes may have some.

    Attributes:
        there: The ranks that the output holds.
        world: Number of all ranks.
    """

    exit_code = ExitCode.DONE
    there: tuple[int, ...] = ()
    world: int = 0


class OtherDeployment(OutputNotEmpty):
    """Shares of one result were made for different deployments or from different checkpoints."""

    hint = "Choose another folder, or replace all of it with --overwrite."


class SharesDiffer(OutputError):
    """Files that are common to all ranks differ between shares of one result."""

    hint = "`dsv4-shard verify FOLDER --against REPO` names the damaged share: write that share again."


class OutputBusy(OutputError):
    """Another process of dsv4-shard is writing to the same output."""


class OtherRun(OutputError):
    """Another command left an unfinished run in this run's staging folder."""

    hint = "Run the earlier command again to finish it, or add --restart to discard it."


class NotEnoughDisk(OutputError):
    """The file system has fewer free bytes than the shards require."""


class ReadFailed(ShardError):
    """The system refused a read, or returned fewer bytes than the file has, or the file is no regular or small one."""

    exit_code = ExitCode.IO
    hint = "Check that the file exists, is readable, and has the content that its name says."


class WriteFailed(ShardError):
    """The system refused to write the output."""

    exit_code = ExitCode.IO


class WorkerLost(ShardError):
    """A worker process was killed."""

    exit_code = ExitCode.IO
    hint = "The system kills processes when memory runs out: try fewer (--jobs). The same command resumes the work."


class SourceChanged(ShardError):
    """A file of the source changed while it was read."""

    hint = "The output was not written. Run again when no other program writes to the checkpoint."


class DamagedTransfer(SourceChanged):
    """The bytes from the network do not have the SHA-256 that the repository lists."""

    exit_code = ExitCode.NETWORK
    hint = "The written files are discarded. Run again; if it fails again, something on the way alters data."


class InexactCast(ShardError):
    """An FP4 expert has values that FP8 with one scale per block cannot represent exactly."""

    hint = "Keep FP4 (`--expert-dtype fp4`), or accept rounding as DeepSeek's converter does: `--allow-inexact`."


class UnequalScales(ShardError):
    """Two scales that an engine keeps as one value differ."""

    hint = "Serve the checkpoint itself, or its node folders (`--engine node`)."


# --- results -------------------------------------------------------------------------------------------------------


class NotAResult(ShardError):
    """The folder has no readable manifest, so it is not verified as a result of reshard."""

    exit_code = ExitCode.NO
    hint = "Do not use its files: they cannot be checked. Write the result again."


class NoResultNamed(NotAResult):
    """The folder is a checkpoint, or a part of a result, where a result is wanted."""

    exit_code = ExitCode.USAGE
    hint = "Name the folder that reshard or merge wrote."


class DamagedResult(ShardError):
    """A file of a result is not what its manifest says, or a link, so the result is not signed."""

    exit_code = ExitCode.NO
    hint = "`dsv4-shard verify FOLDER` names every such file: write the result again."


class BadSignature(ShardError):
    """The file is no signature of model_signing, or a damaged one."""

    exit_code = ExitCode.NO


class SignatureRefused(BadSignature):
    """The signature is not by the expected key, certificate or identity, or its certificate has expired."""


class BadKey(UsageError):
    """A key, a certificate or a token cannot be used: damaged, encrypted, expired, of another kind, or no pair."""


class LoadRefused(ShardError):
    """The rank files are for another engine, rank or model than the one that loads them."""

    exit_code = ExitCode.NO


class NodesLost(ShardError):
    """Nodes of a cluster were lost with the shares that they wrote, and no other node could write these."""

    exit_code = ExitCode.IO
    hint = "Finished work is kept where it was written: the same command resumes."


# --- network -------------------------------------------------------------------------------------------------------


class Unreachable(ShardError):
    """The checkpoint is not on this machine and cannot be fetched, or the cluster does not answer."""

    exit_code = ExitCode.NETWORK


class AccessRefused(Unreachable):
    """A repository or store requires another token, or an agreement, for its files."""


class NotFound(Unreachable):
    """The repository, revision, bucket or file does not exist."""


class NoRepository(NotFound):
    """Neither the Hub, with the token that is set, nor this machine's caches have the repository."""


class Throttled(Unreachable):
    """A server limits requests for longer than dsv4-shard waits."""


class ServerFailed(Unreachable):
    """A server failed, stalled or broke the connection at each attempt."""


class BadAnswer(Unreachable):
    """A server answered with other bytes, another size, or no JSON."""

    hint = "Run again. If it fails again, the server is at fault: use another endpoint, or download the files."
