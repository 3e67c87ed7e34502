"""Shares that become one result: the checks before they join, and the digests of the joined files.

A joined result equals the one that a single run of all its ranks writes: the recipe of all ranks gives the files and
the manifest, and the shares give the digests.
"""

from collections.abc import Collection, Iterable, Sequence

from dsv4_shard.catalog.rank_ranges import say_ranks, span_of
from dsv4_shard.errors import OtherDeployment, OutputNotEmpty, RanksThere, SharesDiffer
from dsv4_shard.sharding.manifest import Manifest, ManifestCompanion, Provenance, made_differences
from dsv4_shard.sharding.recipe import OutputFile
from dsv4_shard.storage import digest_of


def refuse_unjoinable(where: str, there: Manifest, made: Provenance, ranks: Iterable[int]) -> None:
    """Raise OtherDeployment, RanksThere or OutputNotEmpty if a share of `ranks` cannot join the result `there`.

    `where` names the output folder in errors; `made` is the provenance of the share.
    """
    for difference in made_differences(there.made, made):
        raise OtherDeployment(f"{where}: holds {say_ranks(there.ranks)} of another deployment: {difference}")
    wanted = set(ranks)
    twice = wanted & set(there.ranks)
    if twice == wanted:
        raise RanksThere(f"{where}: {are_there(twice)}")
    if twice:
        rest = span_of(wanted - twice)
        raise OutputNotEmpty(
            f"{where}: {are_there(twice)}",
            hint=f"Write what is missing (--ranks {rest}), or replace the folder with --overwrite.",
        )


def are_there(ranks: Collection[int]) -> str:
    """Say that these ranks are in the output."""
    return f"{say_ranks(ranks)} {'is' if len(ranks) == 1 else 'are'} there already"


def joined_digests(parts: Sequence[Manifest], files: Sequence[OutputFile]) -> dict[tuple[int, str], str]:
    """The digests of the tensors of `files`, by (file number, tensor name), as recorded by the shares.

    Raises SharesDiffer if two shares recorded different digests for one tensor, or a header differs from the recipe's.
    """
    entries = {name: entry for part in parts for entry in part.files for name in entry.names}
    digests: dict[tuple[int, str], str] = {}
    for number, file in enumerate(files):
        expected = (digest_of(file.header), file.nbytes, set(file.tensors))
        for name in (file.name, *file.links):
            entry = entries.get(name)
            if entry is None or (entry.header_digest, entry.nbytes, set(entry.tensors)) != expected:
                raise SharesDiffer(f"{name}: its share wrote another header than this checkpoint gives")
            for tensor, digest in entry.tensors.items():
                if digests.setdefault((number, tensor), digest) != digest:
                    raise SharesDiffer(f"{name}: {tensor} differs from {file.name}, but all ranks share it")
    return digests


def joined_sha256(parts: Sequence[Manifest], files: Sequence[OutputFile]) -> list[str | None]:
    """The SHA-256 of each of `files` as recorded by the shares; None if only earlier versions wrote the file.

    Raises SharesDiffer if two shares recorded different ones for one file.
    """
    entries = {name: entry.sha256 for part in parts for entry in part.files for name in entry.names}
    joined: list[str | None] = []
    for file in files:
        known = {entries[name] for name in (file.name, *file.links)} - {None}
        if len(known) > 1:
            raise SharesDiffer(f"{file.name}: its shares recorded different SHA-256 for this shared file")
        joined.append(next(iter(known), None))
    return joined


def refuse_other_companions(where: str, there: Iterable[ManifestCompanion], now: Iterable[ManifestCompanion]) -> None:
    """Raise OtherDeployment if a small file in the result `there` differs from the one that the checkpoint gives."""
    written = {entry.name: entry.digest for entry in there}
    for entry in now:
        if written.get(entry.name, entry.digest) != entry.digest:
            raise OtherDeployment(f"{where}: its {entry.name} differs from what the checkpoint gives now")


def new_files(there: Manifest, own: Manifest, joined: Manifest) -> dict[str, str]:
    """The names that a share adds to the result `there`. Each maps to a name of the same file in it, or to ``""``.

    Files that a share of an earlier release's result has and the `joined` one has not are left out.
    """
    held = there.names
    twins = {
        name: next((twin for twin in file.names if twin in held), "") for file in joined.files for name in file.names
    }
    return {name: twins.get(name, "") for name in sorted((own.names & joined.names) - held)}


_SPAN_IN_NAME = 40


def share_name(ranks: Iterable[int]) -> str:
    """`span_of(ranks)` for a folder's name: unique for each set of ranks, and short enough for any file system."""
    span = span_of(ranks)
    return span if len(span) <= _SPAN_IN_NAME else f"{span[:_SPAN_IN_NAME]}-{digest_of(span.encode())}"
