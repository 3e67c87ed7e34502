"""The JSON document of an error, which `--json` prints on stdout in place of the result."""

from typing import Literal

from dsv4_shard.text.document import Document
from dsv4_shard.version import __version__


class ErrorDetails(Document):
    """What is wrong, and what to do.

    `code` is the name of the error's class in lower case with hyphens, as docs/reference/errors.md lists it, or
    `interrupted`. It is stable; the sentences are not. `exit_code` is that of the command. `notes` say what a failed
    run left behind.
    """

    code: str
    message: str
    hint: str | None
    exit_code: int
    notes: tuple[str, ...] = ()


class ErrorDocument(Document):
    """An error, in place of the result."""

    kind: Literal["error"] = "error"
    schema_version: Literal[1] = 1
    tool_version: str = __version__
    error: ErrorDetails
