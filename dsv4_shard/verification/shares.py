"""Several folders verified as one result. Each folder holds the shares of a node."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path, PurePath

from dsv4_shard.checkpoint import Checkpoint, Inventory
from dsv4_shard.sharding.manifest import PLAN_NAME, Manifest, ManifestFile, load_manifest, made_differences
from dsv4_shard.sources.checkpoint_files import CARD_FILE
from dsv4_shard.storage import MANIFEST_NAME
from dsv4_shard.verification.documents import Problem, SharesVerification, Verification
from dsv4_shard.verification.result_folder import missing_of, verify


def verify_together(
    folders: Sequence[Path],
    source: tuple[Checkpoint, Inventory] | None = None,
    *,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
    sample: Fraction | None = None,
) -> SharesVerification:
    """Verify each folder, and check that they are shares of one result. Raises the errors of `verify`."""
    manifests = [load_manifest(folder) for folder in folders]
    found = [verify(folder, source, workers=workers, on_progress=on_progress, sample=sample) for folder in folders]
    return put_together(list(map(str, folders)), manifests, found)


def put_together(
    names: Sequence[str], manifests: Sequence[Manifest], found: Sequence[Verification]
) -> SharesVerification:
    """Combine the verifications of several folders, local or remote.

    `names` are the names of the folders in messages.
    """
    first = manifests[0]
    ranks = {rank for manifest in manifests for rank in manifest.ranks}
    return SharesVerification(
        layout=first.layout,
        world=first.world,
        ranks=tuple(sorted(ranks)),
        missing=missing_of(first.world, ranks),
        folders=tuple(found),
        problems=tuple(_problems(list(zip(names, manifests, strict=True)))),
    )


def _problems(shares: list[tuple[str, Manifest]]) -> Iterator[Problem]:
    """Contradictions between shares, each named with the first share that it contradicts."""
    first_name, first = shares[0]
    files: dict[str, tuple[str, ManifestFile]] = {}
    companions: dict[str, tuple[str, str]] = {}
    for folder, manifest in shares:
        made, is_of_one_version = manifest.made, _is_of_one_version(first, manifest)
        if not is_of_one_version:
            made = made._replace(plan_digest=first.plan_digest)
        differences = list(made_differences(first.made, made))
        for difference in differences:
            message = f"is not of the deployment that {first_name} is of: {difference}"
            yield Problem(kind="other-deployment", file=f"{folder}/{MANIFEST_NAME}", message=message)
        if differences:
            continue
        for entry in manifest.files:
            yield from _differs_from_twin(folder, entry, bool(manifest.identity), files)
        for small in manifest.companions:
            if PurePath(small.name).name in (PLAN_NAME, CARD_FILE) and not is_of_one_version:
                continue
            where, digest = companions.setdefault(small.name, (folder, small.digest))
            if digest != small.digest:
                yield Problem(kind="shares-differ", file=f"{folder}/{small.name}", message=f"is another one in {where}")


def _is_of_one_version(*shares: Manifest) -> bool:
    """Whether one version of the tool wrote all shares. Only then are plan.json and the card equal in all of them."""
    return len({version for share in shares for version in share.written_by}) == 1


def _differs_from_twin(
    folder: str, entry: ManifestFile, says_rank: bool, seen: dict[str, tuple[str, ManifestFile]]
) -> Iterator[Problem]:
    """A problem if a file differs from its twin in an earlier folder, with the first such tensor. Records the file in
    `seen`.

    Twins have the same name. If headers name their rank, or tensors are whole, files with the same header are twins
    too.
    """
    for key in (*entry.names, *((entry.header_digest,) if says_rank else ())):
        where, twin = seen.setdefault(key, (folder, entry))
        if twin.tensors != entry.tensors or twin.header_digest != entry.header_digest:
            tensor = next((name for name in entry.tensors if twin.tensors.get(name) != entry.tensors[name]), None)
            message = f"is not what {where}/{twin.name} holds, and should be"
            yield Problem(kind="shares-differ", file=f"{folder}/{entry.name}", tensor=tensor, message=message)
            return
