"""`explain()`: the verb."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dsv4_shard.errors import ReadFailed, UsageError

if TYPE_CHECKING:
    from dsv4_shard.diagnosis.explanation import Explanation


def explain(text: str | Path | BinaryIO, *, repo: str | Path | None = None) -> "Explanation":
    """What an engine's message means: what broke, in numbers, and the way out.

    `text` is the message itself, or a log: the Path of a file, or an open binary file, which may be a pipe. Of a log,
    the first message that ends a run counts. `repo` is the checkpoint to hold it against, by default the releases'
    sizes. `recognised` is False where nothing is known.

    Raises UsageError where there is nothing to explain, ReadFailed, and what `plan` raises for `repo`.

    >>> dsv4_shard.explain("Weight output_partition_size = 192 is not divisible by weight quantization "
    ...                    "block_n = 128.").meaning[0]
    'shared experts: shared intermediate size 3072 / TP 16 = 192, which is 1.5 blocks of 128'
    """
    from dsv4_shard.checkpoint.inventory import refuse_errors
    from dsv4_shard.diagnosis.cases import KnownModel
    from dsv4_shard.diagnosis.explanation import explain as explain_lines
    from dsv4_shard.opening import open_checkpoint

    model = None
    if repo is not None:
        model = KnownModel(str(repo), open_checkpoint(str(repo), exact=False)[1], given=True)
        refuse_errors(model.inventory)
    with _lines(text) as lines:
        explanation = explain_lines(lines, model)
    if not explanation.lines:
        raise _nothing()
    return explanation


@contextmanager
def _lines(text: str | Path | BinaryIO) -> Iterator[Iterator[tuple[int, str]]]:
    """Numbered lines of a message or a log. Raises UsageError, ReadFailed."""
    from dsv4_shard.diagnosis.log_scan import lines_of

    if isinstance(text, Path):
        try:
            with text.open("rb") as file:
                yield lines_of(file)
        except OSError as error:
            raise ReadFailed(f"{text}: {error.strerror}") from None
    elif not isinstance(text, str):
        yield lines_of(text)
    elif text.strip():
        yield lines_of(BytesIO(text.encode(errors="replace")))
    else:
        raise _nothing()


def _nothing() -> UsageError:
    return UsageError("nothing to explain", hint='Give the message or a log: dsv4-shard explain "TEXT", or LOG, or -')
