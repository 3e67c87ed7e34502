"""The journal of an upload: which objects an unfinished one has put."""

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dsv4_shard.errors import OtherRun, WriteFailed
from dsv4_shard.limits import JOURNAL_ENTRY, UPLOAD_JOURNAL
from dsv4_shard.sources.remote import Listed
from dsv4_shard.text.document import Untrusted
from dsv4_shard.text.schema_versions import check_schema
from dsv4_shard.text.strict_json import BadJson, parse_json

SCHEMA_VERSION: Literal[2] = 2
"""Schema 2 added the number itself, and a run digest that does not depend on the tool's version."""


class _Entry(Untrusted):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class UploadBegun(_Entry):
    """Identifies the result: `run` is a digest of everything that decides what is uploaded."""

    schema_version: Literal[1, 2] = 1
    run: str


class UploadClaimed(_Entry):
    """The place is claimed: this result owns objects called `names`, and `doomed` ones will be deleted."""

    names: list[str]
    doomed: list[str]


class UploadPut(_Entry):
    """An object was put."""

    name: str
    nbytes: int
    stamp: str


_ENTRY: TypeAdapter[UploadBegun | UploadClaimed | UploadPut] = TypeAdapter(UploadBegun | UploadClaimed | UploadPut)


class UploadJournal:
    """The journal of an upload, one line of JSON per entry. A torn line and everything after it are ignored.

    Raises NewerSchema if a newer version of the tool wrote it, and OtherRun if it is beyond UPLOAD_JOURNAL.

    Attributes:
        schema: Schema of the journal on disk.
        run: Digest of the run; None if the journal is empty.
        claimed: The claim, if there is one.
        put: Object name -> its listing entry after it was put.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self.schema: int = SCHEMA_VERSION
        self.run: str | None = None
        self.claimed: UploadClaimed | None = None
        self.put: dict[str, Listed] = {}
        self._stop = 0
        with suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as file:
            if (nbytes := os.fstat(file.fileno()).st_size) > UPLOAD_JOURNAL.nbytes:
                raise OtherRun(
                    f"{path}: {nbytes:,} bytes, too large for a journal: at most {UPLOAD_JOURNAL.nbytes:,} are read",
                    hint="Add --restart to discard the unfinished upload.",
                )
            for number, line in enumerate(file):
                if number >= UPLOAD_JOURNAL.count:
                    raise OtherRun(
                        f"{path}: over {UPLOAD_JOURNAL.count:,} entries, too many for a journal",
                        hint="Add --restart to discard the unfinished upload.",
                    )
                try:
                    self._take(_ENTRY.validate_json(line))
                except ValidationError:
                    _refuse_newer(line, path)
                    return
                self._stop += len(line)

    def note(self, entry: _Entry) -> None:
        """Append an entry durably. Thread-safe. Raises WriteFailed."""
        line = entry.model_dump_json().encode() + b"\n"
        with self._lock:
            try:
                with self._path.open("r+b" if self._path.exists() else "xb") as file:
                    file.truncate(self._stop)
                    file.seek(self._stop)
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise WriteFailed(f"{self._path}: {error.strerror}") from error
            self._stop += len(line)
            self._take(entry)

    def _take(self, entry: _Entry) -> None:
        match entry:
            case UploadBegun():
                self.schema, self.run = entry.schema_version, entry.run
            case UploadClaimed():
                self.claimed = entry
            case UploadPut():
                self.put[entry.name] = Listed(entry.nbytes, entry.stamp)


def _refuse_newer(line: bytes, path: Path) -> None:
    """Raise NewerSchema if the line is an entry of a newer schema; any other line counts as torn."""
    with suppress(BadJson):
        entry = parse_json(line, JOURNAL_ENTRY)
        if isinstance(entry, dict):
            check_schema(entry.get("schema_version"), "upload", path.parent, SCHEMA_VERSION)
