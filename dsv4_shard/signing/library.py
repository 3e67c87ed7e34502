"""The library model_signing: whether it is there, how it gets what is known already, and what its errors become."""

import contextlib
import importlib
import importlib.util
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dsv4_shard.errors import ShardError, Unreachable, UsageError
from dsv4_shard.limits import SIGSTORE
from dsv4_shard.sources.deadline import Deadline, Overdue, in_time
from dsv4_shard.text.sanitize import short_name

if TYPE_CHECKING:
    from model_signing import hashing
    from model_signing.manifest import Manifest


T = TypeVar("T")

_KEYLESS = "Keyless signatures need the network: Sigstore, or that of --trust-config."


def refuse_without_library() -> None:
    """Raise UsageError if model_signing, or a library that it needs, is not installed."""
    hint = "pip install 'dsv4-shard[sign]'"
    if importlib.util.find_spec("model_signing") is None:
        raise UsageError("model_signing, which signs and verifies, is not installed here", hint=hint)
    try:
        importlib.import_module("model_signing")
    except ImportError as error:
        raise UsageError(f"model_signing, which signs and verifies, cannot be loaded: {error}", hint=hint) from None


def already_hashed(manifest: "Manifest") -> "hashing.Config":
    """Return a configuration of the library whose hashing has been done already."""
    from model_signing import hashing

    class Known(hashing.Config):
        def hash(self, model_path: object, *, files_to_hash: object = None) -> "Manifest":
            return manifest

    return Known()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def as_file(raw: bytes) -> Iterator[Path]:
    """The library reads signatures from files: it gets the bytes that were parsed, not what the file holds by then."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.sig"
        path.write_bytes(raw)
        yield path


@contextlib.contextmanager
def library_errors(kind: type[ShardError], what: str) -> Iterator[None]:
    """Raise any exception of the library as one of this package. What the library prints goes to stderr."""
    logging.getLogger("model_signing").addHandler(logging.NullHandler())
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except ShardError:
        raise
    except Exception as error:
        if _is_of_network(error):
            raise Unreachable(f"Sigstore cannot be asked: {first_line(error)}", hint=_KEYLESS) from error
        raise kind(f"{what}: {first_line(error)}") from error


def ask_sigstore(call: Callable[[], T]) -> T:
    """Return what `call` returns. Raises Unreachable if it takes too long: the library's requests have no timeouts."""
    try:
        return in_time(call, Deadline(SIGSTORE.seconds))
    except Overdue:
        raise Unreachable(f"Sigstore gave no answer within {SIGSTORE.seconds:g} s", hint=_KEYLESS) from None


def _is_of_network(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, is of a connection."""
    import requests
    from sigstore.errors import NetworkError, TUFError
    from tuf.api.exceptions import DownloadError

    while error is not None:
        if isinstance(error, requests.RequestException | NetworkError | TUFError | DownloadError | ConnectionError):
            return True
        error = error.__cause__ or error.__context__
    return False


def first_line(error: BaseException) -> str:
    cause = error.__cause__ or error.__context__
    lines = str(error).strip().splitlines()
    if not lines and cause is not None:
        return first_line(cause)
    return short_name(lines[0]) if lines else type(error).__name__
