"""The bytes of rank files ↔ manifest: the digest of every tensor and the SHA-256 of every file, or of a sample."""

import hashlib
import re
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from random import Random

from dsv4_shard.errors import UsageError
from dsv4_shard.sharding.manifest import ManifestFile, hash_tensor
from dsv4_shard.sources.local import LocalFile
from dsv4_shard.storage import MANIFEST_NAME
from dsv4_shard.tensors.header import Header, read_header
from dsv4_shard.verification.documents import Problem


def check_contents(
    folder: Path, entries: Sequence[ManifestFile], workers: int, on_progress: Callable[[int], None]
) -> list[Problem]:
    """Hash all bytes of the files, which have sound headers; return the problems.

    SHA-256 takes a file's bytes in order, so each file is read by one of the `workers`.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
        return [problem for found in pool.map(partial(_check_file, folder, on_progress), entries) for problem in found]


def _check_file(folder: Path, on_progress: Callable[[int], None], entry: ManifestFile) -> list[Problem]:
    """Hash a file once, for the digests of its tensors and its own."""
    file = LocalFile(folder / entry.name, entry.name)
    try:
        header = read_header(file, entry.name)
        running = hashlib.sha256(file.read(0, header.data_start))

        def on_data(data: memoryview) -> None:
            running.update(data)
            on_progress(len(data))

        in_order = sorted(entry.tensors, key=lambda name: (header.tensors[name].start, header.tensors[name].stop))
        found = [problem for name in in_order if (problem := _check_tensor(file, header, entry, name, on_data))]
    finally:
        file.close()
    if not found and entry.sha256 not in (None, running.hexdigest()):
        return [wrong_sha256(entry)]
    return _swapped_content(found, entry) or found


def wrong_sha256(entry: ManifestFile) -> Problem:
    """The problem of a manifest whose SHA-256 is not that of the file, though the digests of all tensors are right."""
    message = f"names another SHA-256 of {entry.name} than that of its bytes"
    return Problem(kind="wrong-manifest", file=MANIFEST_NAME, message=message)


def check_sample(
    folder: Path, entries: Sequence[ManifestFile], share: Fraction, workers: int, on_progress: Callable[[int], None]
) -> tuple[list[Problem], int]:
    """Hash tensors of each file, chosen at random: at least one, and about `share` of the bytes.

    Returns the problems, and the number of bytes that were read.
    """
    random = Random()
    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
        checks = [partial(_check_some, folder, entry, share, random, on_progress) for entry in entries]
        found = list(pool.map(lambda check: check(), checks))
    return [problem for problems, _ in found for problem in problems], sum(nbytes for _, nbytes in found)


def _check_some(
    folder: Path, entry: ManifestFile, share: Fraction, random: Random, on_progress: Callable[[int], None]
) -> tuple[list[Problem], int]:
    """Hash tensors of one file as `check_sample` does; return the problems and the bytes read."""
    file = LocalFile(folder / entry.name, entry.name)
    try:
        header = read_header(file, entry.name)
        chosen = _choose({name: header.tensors[name].nbytes for name in entry.tensors}, share, random)
        checked = (_check_tensor(file, header, entry, name, lambda data: on_progress(len(data))) for name in chosen)
        problems = [problem for problem in checked if problem]
        return problems, sum(header.tensors[name].nbytes for name in chosen)
    finally:
        file.close()


def _choose(sizes: dict[str, int], share: Fraction, random: Random) -> Collection[str]:
    """Names in a random order until they have `share` of all bytes."""
    names = random.sample(sorted(sizes), len(sizes))
    chosen: list[str] = []
    left = share * sum(sizes.values())
    while names and (left > 0 or not chosen):
        chosen.append(names.pop())
        left -= sizes[chosen[-1]]
    return chosen


_PERCENTAGE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%?\s*", re.ASCII)


def parse_share(text: str) -> Fraction:
    """The part that `text` means: `5%`, `5` and `5.0 %` are one twentieth.

    Raises UsageError if it is no number, or not above 0 and at most 100.
    """
    number = _PERCENTAGE.fullmatch(text)
    share = Fraction(number[1]) / 100 if number else Fraction(0)
    if not 0 < share <= 1:
        raise UsageError.about("sample", text, "must be a percentage above 0 and at most 100", hint="--sample 5%")
    return share


def _check_tensor(
    file: LocalFile, header: Header, entry: ManifestFile, name: str, on_data: Callable[[memoryview], None]
) -> Problem | None:
    """Hash one tensor; return a problem if its digest differs."""
    found = hash_tensor(file, header, name, entry.pieces.get(name), on_data, once=True)
    if found == entry.tensors[name]:
        return None
    message = "its bytes differ from what was written"
    return Problem(kind="damaged-tensor", file=entry.name, tensor=name, message=message)


def _swapped_content(found: list[Problem], entry: ManifestFile) -> list[Problem]:
    """One problem in place of many, if most tensors of a file differ.

    Two ranks' files may have equal headers. After a swap, most tensors that are not replicated differ at once.
    """
    if len(found) * 2 < len(entry.tensors) or len(found) < 2:
        return []
    message = f"{len(found):,} of {len(entry.tensors):,} tensors differ, {found[0].tensor} first: another rank's file?"
    return [Problem(kind="wrong-content", file=entry.name, message=message)]
