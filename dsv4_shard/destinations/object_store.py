"""A result into an object store: written into a scratch folder, then uploaded, the manifest last.

A journal beside the scratch result records the objects that were put, so a later run does not send them again. If the
store has a manifest, it has all objects that the manifest names.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress

from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.destinations.documents import Uploaded
from dsv4_shard.destinations.finished import refuse_other_in_store
from dsv4_shard.destinations.scratch_folder import Scratch
from dsv4_shard.destinations.upload_journal import (
    UploadClaimed,
    UploadPut,
)
from dsv4_shard.errors import (
    BadAnswer,
    NewerSchema,
    NotAResult,
    OutputNotEmpty,
    Unreachable,
)
from dsv4_shard.limits import MANIFEST
from dsv4_shard.sharding.job import Job
from dsv4_shard.sharding.manifest import Manifest, read_manifest
from dsv4_shard.sources.deadline import for_each
from dsv4_shard.sources.local import LocalFile
from dsv4_shard.sources.object_store import PART_BYTES, Store
from dsv4_shard.sources.remote import Listed
from dsv4_shard.storage import MANIFEST_NAME
from dsv4_shard.text.sanitize import short_name
from dsv4_shard.text.shell import shell_word
from dsv4_shard.text.units import counted

OBJECTS_AT_ONCE = 4
"""Objects that are uploaded at the same time. Each is sent in several parts at a time."""

COPIED_BYTES = 5 << 30
"""The largest object that stores copy in one request. Larger twins are sent again."""

_SECONDS_TO_END = 2.0
"""Time for threads to abort their uploads after an error."""

_NEVER = threading.Event()


def check_place(store: Store, there: Mapping[str, Listed], overwrite: bool, remains: Collection[str] = ()) -> None:
    """Check that a store's listing has nothing except `remains` of this result, or a result to overwrite.

    Raises OutputNotEmpty and the errors of the store.
    """
    _doomed(store, there, overwrite, remains)


def remains_of(job: Job, store: Store, there: Mapping[str, Listed]) -> frozenset[str]:
    """The names in a listing without manifest, if all are objects that a run of this job left; else nothing.

    Rank files are known by their size and whole header, small files by their content, statements by their size.
    """
    if MANIFEST_NAME in there:
        return frozenset()
    headers = {name: file.header for file in job.recipe.files for name in (file.name, *file.links)}
    sizes = {name: file.nbytes for file in job.recipe.files for name in (file.name, *file.links)} | job.small_files
    for name, listed in there.items():
        expected = headers.get(name, job.companions.get(name, b""))
        if sizes.get(name) != listed.nbytes:
            return frozenset()
        content = bytearray(len(expected))
        if expected:
            store.read(name, listed, 0, memoryview(content), _NEVER)
        if content != expected:
            return frozenset()
    return frozenset(there)


def finished_upload(job: Job, checkpoint: Checkpoint, store: Store, there: Mapping[str, Listed]) -> Uploaded | None:
    """The result of an upload that has nothing to do, since the store has all objects; None if it has no manifest.

    `there` is the store's listing. Raises OutputNotEmpty if it has another result, objects of other sizes than its
    manifest says, or was written before the checkpoint was modified.
    """
    if MANIFEST_NAME not in there or (then_ns := store.modified_ns().get(MANIFEST_NAME)) is None:
        return None
    try:
        manifest = read_manifest(_content(store, there, MANIFEST_NAME), f"{store.url}/{MANIFEST_NAME}")
    except (NotAResult, NewerSchema) as error:
        raise OutputNotEmpty(str(error), hint=_ELSEWHERE) from None
    stop_ns = then_ns + 10**9  # stores give whole seconds
    refuse_other_in_store(job, checkpoint, manifest, lambda name: _content(store, there, name), store.url, stop_ns)
    sizes = _sizes(manifest)
    for name, nbytes in sizes.items():
        if name not in there or there[name].nbytes != nbytes:
            was = f"has {there[name].nbytes:,} bytes" if name in there else "is not there"
            raise OutputNotEmpty(
                f"{store.url}/{name}: {was}, this result has {nbytes:,}", hint="Write it again with --overwrite."
            )
    return _uploaded(store, manifest, 0, 0, sum(sizes.values()), was_complete=True)


def nbytes_of(manifest: Manifest) -> int:
    """Bytes of a result's objects without the manifest. Each twin is an object of its own."""
    return sum(_sizes(manifest).values())


def upload(
    store: Store,
    scratch: Scratch,
    *,
    overwrite: bool = False,
    remains: Collection[str] = (),
    on_progress: Callable[[int], None] = lambda _: None,
    on_resume: Callable[[int], None] = lambda _: None,
) -> Uploaded:
    """Put a scratch result into a store. Objects that an earlier run put are not sent again.

    All objects are checked against the store's listing before the manifest is put.

    Args:
        store: The destination.
        scratch: The result, entered as a context.
        overwrite: Replace the result at the destination.
        remains: Objects at the destination that an earlier run of the same result left; see `remains_of`.
        on_progress: Receives the bytes put since its last call.
        on_resume: Receives the bytes that an earlier run put.

    Raises:
        OutputNotEmpty: The place holds something else.
        ReadFailed: The scratch result cannot be read.
        WriteFailed: The journal cannot be written.
        Unreachable: The store does not answer, or its listing is wrong.
    """
    manifest, journal = scratch.manifest, scratch.journal
    raw = (scratch.result / MANIFEST_NAME).read_bytes()
    sizes = _sizes(manifest)
    there = _claim(store, scratch, sizes, raw, overwrite, remains)
    left = [name for name in sizes if name not in journal.put or there.get(name) != journal.put[name]]
    resumed = sum(sizes.values()) - sum(sizes[name] for name in left)
    if resumed:
        on_resume(resumed)
    if left and MANIFEST_NAME in there:
        store.delete([MANIFEST_NAME])  # objects that it names have changed
    putting = _Putting(store, scratch, sizes, on_progress)
    putting.all(left)
    if left or MANIFEST_NAME not in there:
        _check_objects(store, store.everything(), journal.put, sizes)
        store.put(MANIFEST_NAME, raw)
    return _uploaded(store, manifest, putting.sent, putting.copied, resumed)


def _uploaded(
    store: Store, manifest: Manifest, sent: int, copied: int, resumed: int, was_complete: bool = False
) -> Uploaded:
    sizes = _sizes(manifest)
    return Uploaded(
        out=store.url,
        ranks=manifest.ranks,
        world=manifest.world,
        objects=len(sizes) + 1,
        bytes=sum(sizes.values()),
        sent=sent,
        copied=copied,
        resumed=resumed,
        written=None,
        was_complete=was_complete,
    )


def _sizes(manifest: Manifest) -> dict[str, int]:
    """Bytes of every object except the manifest. The largest come first because they take longest."""
    sizes = {name: file.nbytes for file in manifest.files for name in file.names}
    sizes |= {entry.name: entry.nbytes for entry in manifest.companions}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _claim(
    store: Store, scratch: Scratch, sizes: Mapping[str, int], raw: bytes, overwrite: bool, remains: Collection[str]
) -> Mapping[str, Listed]:
    """Claim the place for this result, once, and delete the objects to overwrite. Returns the listing after that."""
    journal, there = scratch.journal, store.everything()
    names = list(sizes)
    if journal.claimed is None or (MANIFEST_NAME in there and _content(store, there) != raw):
        journal.note(UploadClaimed(names=names, doomed=_doomed(store, there, overwrite, remains)))
    claimed = journal.claimed
    assert claimed is not None, "just noted"
    if claimed.doomed:
        # The manifest goes first: without it, the place is not a result.
        for doomed in ([MANIFEST_NAME], [name for name in claimed.doomed if name != MANIFEST_NAME]):
            if going := [name for name in doomed if name in there]:
                store.delete(going)
        journal.note(UploadClaimed(names=names, doomed=[]))
        there = store.everything()
    _refuse_strangers(store, there, {*names, MANIFEST_NAME})
    return there


_ELSEWHERE = "Choose another prefix, or remove them yourself."

_REMOVE = {"s3": "aws s3 rm --recursive", "gs": "gcloud storage rm --recursive"}
"""Scheme → the command that removes a prefix."""


def _doomed(store: Store, there: Mapping[str, Listed], overwrite: bool, remains: Collection[str]) -> list[str]:
    """The objects of the result to overwrite. Raises OutputNotEmpty if anything but `remains` is there."""
    if MANIFEST_NAME not in there:
        _refuse_strangers(store, there, remains)
        return []
    if not overwrite:
        raise OutputNotEmpty(
            f"{store.url}: holds a result", hint="Choose another prefix, or replace it with --overwrite."
        )
    try:
        known = {MANIFEST_NAME, *_sizes(read_manifest(_content(store, there), f"{store.url}/{MANIFEST_NAME}"))}
    except (NotAResult, NewerSchema) as error:
        raise OutputNotEmpty(str(error), hint=_ELSEWHERE) from None
    _refuse_strangers(store, there, known)
    return sorted(known & there.keys())


def _content(store: Store, there: Mapping[str, Listed], name: str = MANIFEST_NAME) -> bytes:
    """The bytes of the manifest in the store, or of a smaller document."""
    listed = there[name]
    if listed.nbytes > MANIFEST.nbytes:
        raise OutputNotEmpty(f"{store.url}/{name}: {listed.nbytes} bytes, too large for this file", hint=_ELSEWHERE)
    content = bytearray(listed.nbytes)
    store.read(name, listed, 0, memoryview(content), _NEVER)
    return bytes(content)


def _refuse_strangers(store: Store, there: Iterable[str], known: Collection[str]) -> None:
    strangers = sorted(set(there).difference(known))
    if strangers:
        remove = _REMOVE.get(store.url.partition(":")[0])
        command = f"Choose another prefix, or remove all of this one: `{remove} {shell_word(store.url)}`."
        which = f"{counted(len(strangers), 'object')} that {'is' if len(strangers) == 1 else 'are'} not this result's"
        raise OutputNotEmpty(
            f"{store.url}: holds {which}: {short_name(strangers[0])}", hint=command if remove else _ELSEWHERE
        )


def _check_objects(
    store: Store, there: Mapping[str, Listed], put: Mapping[str, Listed], sizes: Mapping[str, int]
) -> None:
    """Check the listing against the objects that were put. Raises OutputNotEmpty and BadAnswer."""
    _refuse_strangers(store, there, sizes)
    for name, nbytes in sizes.items():
        found = there.get(name)
        if found is None or found.nbytes != nbytes:
            was = f"has {found.nbytes:,} bytes" if found else "is not there"
            raise BadAnswer(f"{store.url}/{name}: {was}, {nbytes:,} were uploaded", hint=_SENT_AGAIN)
        if found != put[name]:
            raise BadAnswer(f"{store.url}/{name}: is not the object that was uploaded", hint=_SENT_AGAIN)


_SENT_AGAIN = f"There is no {MANIFEST_NAME} yet. Run again to upload it again. Another program may write to this place."


class _Putting:
    """Puts the objects of a result, several at a time.

    Attributes:
        sent: Bytes sent so far.
        copied: Bytes copied within the store so far.
    """

    def __init__(
        self,
        store: Store,
        scratch: Scratch,
        sizes: Mapping[str, int],
        on_progress: Callable[[int], None],
    ) -> None:
        self._store, self._scratch, self._sizes = store, scratch, sizes
        small = [file for file in scratch.manifest.files if file.nbytes <= COPIED_BYTES]
        self._originals = {link: file.name for file in small for link in file.links}
        self._on_progress = on_progress
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.sent = self.copied = 0

    def all(self, names: list[str]) -> None:
        """Put the objects `names`, twins last. The first error stops the others and is raised."""
        for put, group in (
            (self._send, [name for name in names if name not in self._originals]),
            (self._copy, [name for name in names if name in self._originals]),
        ):
            for_each(group, put, OBJECTS_AT_ONCE, stop=self._stopped.set, linger=_SECONDS_TO_END)

    def _send(self, name: str) -> None:
        """Send a file."""
        nbytes = self._sizes[name]
        file = LocalFile(self._scratch.result / name, name)
        try:
            if nbytes <= PART_BYTES:
                made = self._store.put(name, file.read(0, nbytes))
                self._on_progress(nbytes)
            else:
                made = self._store.put_parts(name, self._pieces(file, nbytes), nbytes)
        finally:
            file.close()
        self._note(name, made)
        with self._lock:
            self.sent += nbytes

    def _copy(self, name: str) -> None:
        """Copy an object's twin within the store. If the store cannot, send the file."""
        nbytes = self._sizes[name]
        made = None
        with suppress(Unreachable):
            made = self._store.copy(self._originals[name], name)
        if made is None or made.nbytes != nbytes:
            self._send(name)
            return
        self._on_progress(nbytes)
        self._note(name, made)
        with self._lock:
            self.copied += nbytes

    def _pieces(self, file: LocalFile, nbytes: int) -> Iterator[memoryview]:
        for start in range(0, nbytes, PART_BYTES):
            if self._stopped.is_set():
                raise Unreachable(f"{file.name}: cancelled, because the run ended")
            piece = memoryview(bytearray(min(PART_BYTES, nbytes - start)))
            file.readinto(start, piece, once=True)
            yield piece
            self._on_progress(len(piece))

    def _note(self, name: str, made: Listed) -> None:
        self._scratch.journal.note(UploadPut(name=name, nbytes=made.nbytes, stamp=made.stamp))
