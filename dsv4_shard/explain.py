"""The verb `explain`: from an engine's message or log to the broken rule, in numbers, and its remedies."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, BinaryIO, cast

from dsv4_shard.catalog.option import Option, Options
from dsv4_shard.catalog.verb import Later, verb, wrong_type
from dsv4_shard.errors import ReadFailed, UnsupportedFamily, UsageError

if TYPE_CHECKING:
    from dsv4_shard.diagnosis import KnownModel, OtherFamily
    from dsv4_shard.diagnosis import document as explaining
else:
    explaining = Later("dsv4_shard.diagnosis.document")


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(Options):
    """The options of `explain`."""

    repo: Annotated[
        str | Path | None,
        Option(
            help="The checkpoint to compare with.",
            metavar="REPO", shows="the releases' sizes", completion="repos", typed=str,
        ),
    ] = None  # fmt: skip


@verb(ExplainOptions)
def explain(
    text: str | bytes | Path | IO[str] | IO[bytes] | BaseException, options: ExplainOptions
) -> "explaining.Explanation":
    """Explain an engine's message: the broken rule, in numbers, and the remedies.

    `text` is one of: the message itself, as text or bytes; an exception; a log, as the Path of a file or as an open
    file, which may be a pipe. The first message in a log that ends a run counts. `repo` is the checkpoint that the
    engine loads; by default the sizes of DeepSeek's releases are used.

    Returns an Explanation: `meaning` is the cause, `cases` the layouts with this error, `remedies` the remedies.
    `recognised` is False if no message is known.

    Raises:
        - UsageError: the text is empty, or an option is wrong.
        - ReadFailed: the log cannot be read.
        - The errors of `plan` for `repo`.

    >>> dsv4_shard.explain("Weight output_partition_size = 192 is not divisible by weight quantization "
    ...                    "block_n = 128.").meaning[0]
    'shared experts: shared intermediate size 3072 / TP 16 = 192, which is 1.5 blocks of 128'
    """
    from dsv4_shard.diagnosis import explain as explain_lines

    given = _checkpoint(str(options.repo)) if options.repo is not None else None
    with _lines(text) as lines:
        explanation = explain_lines(lines, given)
    if not explanation.lines:
        raise _nothing()
    return explanation


def _checkpoint(repo: str) -> "KnownModel | OtherFamily":
    """The checkpoint at `repo`, of any family, also with findings: then by its headers alone if the experts are odd.

    Raises:
        ShardError: The checkpoint contradicts itself, or cannot be read.
    """
    from dsv4_shard.checkpoint import read_unknown
    from dsv4_shard.diagnosis import KnownModel, OtherFamily
    from dsv4_shard.inspection import inspect_unknown
    from dsv4_shard.models import Role, Stage
    from dsv4_shard.opening import open_checkpoint, open_source

    errors: tuple[str, ...] = ()
    try:
        inventory = open_checkpoint(repo, exact=False)[1]
        errors = tuple(finding.message for finding in inventory.errors)
        if (
            not errors
            or {(Stage.LAYER, role) for role in (Role.ROUTED_GATE, Role.SHARED_GATE)} <= inventory.formats.keys()
        ):
            return KnownModel(repo, inventory, given=True)
    except UnsupportedFamily:
        pass
    return OtherFamily(repo, inspect_unknown(read_unknown(open_source(repo))), errors)


@contextmanager
def _lines(text: Any) -> Iterator[Iterator[tuple[int, str]]]:
    """Yield the numbered lines of a message or a log.

    Raises:
        UsageError: The text is empty, or `explain` does not accept its type.
        ReadFailed: The log cannot be read.
    """
    from dsv4_shard.diagnosis import lines_of

    if isinstance(text, BaseException):
        text = "".join(traceback.format_exception(text))
    if isinstance(text, str):
        text = text.encode(errors="replace")
    if isinstance(text, Path):
        try:
            with text.open("rb") as file:
                yield lines_of(file)
        except OSError as error:
            raise ReadFailed(f"{text}: {error.strerror}") from None
    elif isinstance(text, bytes | bytearray):
        if not text.strip():
            raise _nothing()
        yield lines_of(BytesIO(text))
    elif hasattr(text, "readline"):
        yield lines_of(cast(BinaryIO, _Bytes(text)))
    else:
        raise wrong_type("text", text, "text, bytes, a Path, an open file or an exception")


class _Bytes:
    """Reads an open file of text or bytes as bytes."""

    def __init__(self, file: IO[str] | IO[bytes]) -> None:
        self._file = file

    def readline(self, limit: int) -> bytes:
        try:
            piece = self._file.readline(limit)
        except UnicodeDecodeError as error:
            raise ReadFailed(f"not text of {error.encoding}", hint="Open the log in binary mode.") from None
        return piece.encode(errors="replace") if isinstance(piece, str) else piece


def _nothing() -> UsageError:
    return UsageError("nothing to explain", hint="Give the message or a log: `dsv4-shard explain TEXT`, or LOG, or -")
