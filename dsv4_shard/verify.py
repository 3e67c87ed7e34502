"""The verbs that check a result: `verify` in one folder, `verify_shares` in several."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dsv4_shard.errors import UsageError

if TYPE_CHECKING:
    from dsv4_shard.checkpoint.inventory import Inventory
    from dsv4_shard.checkpoint.reader import Checkpoint
    from dsv4_shard.sharding.progress import Progress
    from dsv4_shard.verification.documents import SharesVerification, Verification


def verify(
    out: str | Path,
    *,
    against: str | Path | None = None,
    numerics: bool = False,
    layer: int | None = None,
    jobs: int | None = None,
    progress: "Progress | None" = None,
) -> "Verification":
    """Prove a result against its manifest, or byte by byte against the checkpoint that it was made from.

    `out` is a folder that reshard or merge made, and `against` the checkpoint. `numerics` also adds up the experts of a
    `layer` (default: the last), where all bytes are right. `ok` is False where anything differs, and `problems` say
    what. `jobs` and `progress` are as in `reshard`.

    Raises UsageError for options that contradict each other, NotAResult where a folder has no sound manifest,
    ForeignPlan where `against` is another checkpoint, and what `inspect` raises for it.

    >>> found = dsv4_shard.verify("shards", against="model", numerics=True)
    >>> found.ok, found.problems, found.numerics.ok
    (True, (), True)
    """
    from dsv4_shard.sharding.progress import Reporter, Task
    from dsv4_shard.verification.moe_numerics import check_numerics
    from dsv4_shard.verification.result_folder import bytes_to_verify
    from dsv4_shard.verification.result_folder import verify as verify_folder

    folder = Path(out)
    source = _source(jobs, [folder], against, numerics, layer)
    with Reporter(progress).task(Task("verify"), bytes_to_verify(folder)) as task:
        found = verify_folder(folder, source, workers=jobs, on_progress=task.advance)
    if not (numerics and source is not None and found.ok):
        return found
    return found.model_copy(update={"numerics": check_numerics([folder], *source, layer)})


def verify_shares(
    folders: Sequence[str | Path],
    *,
    against: str | Path | None = None,
    numerics: bool = False,
    layer: int | None = None,
    jobs: int | None = None,
    progress: "Progress | None" = None,
) -> "SharesVerification":
    """Verify each of the `folders` that hold the shares of one result, and that they fit together.

    Other parameters, and errors, are as in `verify`.

    >>> together = dsv4_shard.verify_shares(["shards"])
    >>> together.ok, together.missing
    (True, ())
    """
    from dsv4_shard.sharding.progress import Reporter, Task
    from dsv4_shard.verification.moe_numerics import check_numerics
    from dsv4_shard.verification.result_folder import bytes_to_verify
    from dsv4_shard.verification.shares import verify_together

    if isinstance(folders, str | Path):
        raise UsageError("folders: one folder, not a sequence", hint="`dsv4_shard.verify` takes one.")
    paths = list(map(Path, folders))
    if not paths:
        raise UsageError("no folder to verify")
    source = _source(jobs, paths, against, numerics, layer)
    with Reporter(progress).task(Task("verify"), sum(map(bytes_to_verify, paths))) as task:
        found = verify_together(paths, source, workers=jobs, on_progress=task.advance)
    if not (numerics and source is not None and found.ok):
        return found
    return found.model_copy(update={"numerics": check_numerics(paths, *source, layer)})


def _source(
    jobs: int | None, folders: Sequence[Path], against: str | Path | None, numerics: bool, layer: int | None
) -> "tuple[Checkpoint, Inventory] | None":
    """The checkpoint to verify against, if one is named. Raises UsageError for options that contradict each other."""
    from dsv4_shard.opening import open_checkpoint, refuse_url
    from dsv4_shard.storage.runtime import check_jobs

    check_jobs(jobs)
    for folder in folders:
        refuse_url(
            folder, "Copy it into a folder, and verify that; what `reshard` put was held against the store's sizes."
        )
    if numerics and against is None:
        raise UsageError("--numerics needs --against: the unsharded layer is in the checkpoint")
    if layer is not None and not numerics:
        raise UsageError("--layer is of --numerics", hint="Add --numerics, or leave out --layer.")
    return open_checkpoint(str(against)) if against is not None else None
