"""Sign a result, and verify a signature of one."""

import os
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsv4_shard.errors import BadSignature, DamagedResult, OutputNotEmpty, ReadFailed
from dsv4_shard.limits import SIGNATURE
from dsv4_shard.sharding.manifest import Manifest, load_manifest
from dsv4_shard.sharding.progress import Reporter, Task
from dsv4_shard.signing.bundle import Bundle
from dsv4_shard.signing.documents import Signed
from dsv4_shard.signing.folder_files import (
    GIT_PATHS,
    SHA256_OF_FILES,
    as_manifest,
    as_resources,
    names_in,
    nbytes_of,
    resources_of,
    sha256_of,
)
from dsv4_shard.signing.methods import Expected, Signer
from dsv4_shard.storage import MANIFEST_NAME, SIGNATURE_NAME, default_workers, read_regular, write_new
from dsv4_shard.text.sanitize import short_name
from dsv4_shard.verification import Problem, Verification, quick_problems
from dsv4_shard.verification.documents import SignatureFound

if TYPE_CHECKING:
    from model_signing.manifest import Manifest as LibraryManifest

# --- sign ------------------------------------------------------------------------------------------------------------


def sign_result(
    folder: Path, signer: Signer, signature: Path | None, reporter: Reporter, workers: int | None = None
) -> Signed:
    """Sign every file of a result, and write the signature.

    Rank files are signed with the SHA-256 of the manifest, after their sizes and headers were compared with it. Small
    files are read, and so are rank files for which the manifest has no SHA-256.

    Args:
        folder: The result.
        signer: The key or identity.
        signature: File to write; default: model.sig in the folder.
        reporter: Gets told of the bytes that are read.
        workers: Number of workers (default: see `default_workers`).

    Raises:
        NotAResult: The folder has no sound manifest.
        DamagedResult: A file is not what the manifest says, or a link.
        OutputNotEmpty: The signature is there already.
        BadKey: The key or certificate cannot be used.
        Unreachable: Sigstore does not answer.
        ReadFailed, WriteFailed: Reading or writing failed.
    """
    path = signature if signature is not None else folder / SIGNATURE_NAME
    manifest = load_manifest(folder)
    if os.path.lexists(path):
        raise OutputNotEmpty(
            f"{path}: exists already, not replaced", hint="Move it away, or name another: --signature."
        )
    signer.check()
    for problem in quick_problems(folder, manifest):
        raise DamagedResult(f"{folder / problem.file}: {problem.message}; not signed")
    ignored = _ignored(folder, path)
    names = list(names_in(folder, ignored))
    _refuse_links(folder, names)
    known = _known(folder, manifest)
    left = [name for name in names if name not in known]
    hashed = nbytes_of(folder, left)
    with reporter.task(Task("sign"), hashed) as task:
        digests = known | sha256_of(folder, left, workers or default_workers(), task.advance)
    how = SHA256_OF_FILES.model_copy(update={"ignore_paths": ignored})
    write_new(path, signer.sign(as_manifest(folder.resolve().name, as_resources(digests), how)))
    return Signed(
        out=str(path),
        how=signer.how,
        by=signer.name,
        files=len(names),
        bytes=nbytes_of(folder, names),
        hashed=hashed,
        others=tuple(sorted(set(names) - manifest.names - {MANIFEST_NAME})),
    )


def _ignored(folder: Path, signature: Path) -> tuple[str, ...]:
    """The paths that are not signed: the signature itself, and those of Git."""
    place = _place(folder, signature)
    return (*([place] if place else []), *GIT_PATHS)


def _place(folder: Path, signature: Path) -> str:
    """The signature's path in the folder; empty if it is elsewhere."""
    path, root = (Path(os.path.realpath(one.parent)) / one.name for one in (signature, folder.resolve()))
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else ""


def _refuse_links(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if (folder / name).is_symlink():
            raise DamagedResult(f"{folder / name}: a link, which model_signing does not follow; not signed",
                                hint="Sign a copy of the folder that has the files themselves.")  # fmt: skip


def _known(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Name -> SHA-256 of the rank files, from the manifest. A name that is no hard link to its file is left out."""
    known: dict[str, str] = {}
    for file in manifest.files:
        if file.sha256 is not None:
            twins = (name for name in file.names if (folder / name).samefile(folder / file.name))
            known |= dict.fromkeys(twins, file.sha256)
    return known


# --- verify ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checked:
    """A signature by the expected signer.

    Attributes:
        found: Who made it, and of how many files.
        problems: Files that are not as they were signed.
        place: The signature's path in the folder; empty if it is elsewhere.
    """

    found: SignatureFound
    problems: tuple[Problem, ...]
    place: str

    def added_to(self, found: Verification) -> Verification:
        """A verification of the folder with the signature, and its problems with files that have none yet."""
        named = {problem.file for problem in found.problems}
        more = (problem for problem in self.problems if problem.file not in named)
        return found.model_copy(update={"signature": self.found, "problems": (*found.problems, *more)})


def check_signature(
    folder: Path, signature: Path, expected: Expected, reporter: Reporter, workers: int | None = None
) -> Checked:
    """Verify a signature of a result, which may be model_signing's own, and compare every file with it.

    The SHA-256 of rank files are those of the manifest, which the signature covers: `verify` reads the files, once for
    all their names, and compares. All other files are read here. Links are followed, as a Hub cache has them: what
    counts is their content.

    Raises:
        NotAResult: The folder has no sound manifest.
        BadSignature: The signature is damaged.
        SignatureRefused: The signature is another signer's, or expired.
        BadKey: A key or certificate cannot be used.
        Unreachable: Sigstore does not answer.
        ReadFailed: A file cannot be read.
    """
    manifest = load_manifest(folder)
    expected.check()
    bundle = _read(signature)
    how = bundle.serialization
    signed = {how.file_of(one) for one in bundle.resources}
    found = SignatureFound(how=bundle.how, by=expected.verify(bundle, _manifest(bundle, signature), signature),
                           files=len(signed))  # fmt: skip
    place, workers = _place(folder, signature), workers or default_workers()
    if problem := _of_another_folder(folder, bundle):
        return Checked(found, (problem,), place)
    there = set(names_in(folder, {*how.ignore_paths, *([place] if place else [])}))
    readable = {name for name in there & signed if (folder / name).is_file()}
    known = _due(manifest, readable) if how.is_of_whole_files else {}
    left = sorted(readable - known.keys())
    with reporter.task(Task("signature"), nbytes_of(folder, left)) as task:
        read = [*as_resources(known), *resources_of(folder, left, how, workers, task.advance)]
    changed = {how.file_of(one) for one in {*bundle.resources} ^ {*read}} & readable
    return Checked(found, tuple(_problems(manifest, there, signed, readable, changed)), place)


def _due(manifest: Manifest, names: Container[str]) -> dict[str, str]:
    """Name -> SHA-256 that the manifest has of rank files: `verify` compares their bytes with it."""
    files = ((name, file.sha256) for file in manifest.files for name in file.names if name in names)
    return {name: sha256 for name, sha256 in files if sha256 is not None}


def _read(path: Path) -> Bundle:
    try:
        raw = read_regular(path, SIGNATURE)
    except ReadFailed as error:
        hint = f"`dsv4-shard sign` writes {SIGNATURE_NAME} into the result: --signature FOLDER/{SIGNATURE_NAME}."
        raise BadSignature(str(error), hint=hint) from None
    return Bundle(raw, str(path))


def _manifest(bundle: Bundle, path: Path) -> "LibraryManifest":
    try:
        return as_manifest(bundle.signed_as, bundle.resources, bundle.serialization)
    except ValueError as error:
        raise BadSignature(f"{path}: not a signature of model_signing: {short_name(str(error))}") from None


def _of_another_folder(folder: Path, bundle: Bundle) -> Problem | None:
    """The one problem of a folder whose manifest.json is not the signed one: then nearly all else differs too."""
    how = bundle.serialization
    signed = [one for one in bundle.resources if how.file_of(one) == MANIFEST_NAME]
    if not signed:
        message = f"is not signed: the signature is of {short_name(bundle.signed_as)}, which was no result"
    elif {*signed} != {*resources_of(folder, [MANIFEST_NAME], how, 1, lambda _: None)}:
        message = (
            f"is not what was signed as {short_name(bundle.signed_as)}: the signature is of another folder, or ranks "
            "joined since"
        )
    else:
        return None
    return Problem(kind="not-what-was-signed", file=MANIFEST_NAME, message=message)


def _problems(
    manifest: Manifest, there: set[str], signed: set[str], readable: set[str], changed: set[str]
) -> Iterator[Problem]:
    """The files that are not as they were signed.

    Args:
        manifest: The result's manifest.
        there: The files in the folder, without those that the signature ignores.
        signed: The files that it is of.
        readable: Those of them that are there.
        changed: Those of them that have other bytes.
    """
    own = manifest.names
    for name in sorted(there | signed | own):
        if name in changed:
            yield Problem(kind="not-what-was-signed", file=short_name(name), message="is not what was signed")
        elif name in signed and name not in readable:
            yield Problem(kind="lost-file", file=short_name(name), message="was signed, and is gone or no file")
        elif name not in signed:
            part = "is part of the result, and not signed" if name in own else "was not there when it was signed"
            yield Problem(kind="not-signed", file=short_name(name), message=part)
