"""`verify()`: the verb that checks a result."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, overload

from dsv4_shard.errors import UsageError
from dsv4_shard.sharding.callbacks import MovingOptions, check_jobs, ignore

if TYPE_CHECKING:
    from dsv4_shard.verification.documents import SharesVerification, Verification


class VerifyOptions(MovingOptions, total=False):
    against: str | Path | None
    numerics: bool
    layer: int | None


# A str is a sequence of str: the first of these counts.
@overload
def verify(out: str | Path, **options: Unpack[VerifyOptions]) -> "Verification": ...  # type: ignore[overload-overlap]


@overload
def verify(out: Sequence[str | Path], **options: Unpack[VerifyOptions]) -> "SharesVerification": ...


def verify(
    out: str | Path | Sequence[str | Path],
    *,
    against: str | Path | None = None,
    numerics: bool = False,
    layer: int | None = None,
    jobs: int | None = None,
    on_begin: Callable[[str, int], None] = ignore,
    on_progress: Callable[[int], None] = ignore,
) -> "Verification | SharesVerification":
    """Prove a result against its manifest, or byte by byte against the checkpoint that it was made from.

    `out` is a folder that reshard or merge made, or a sequence of those that hold the shares of one result. `against`
    is the checkpoint. `numerics` also adds up the experts of a `layer` (default: the last), where all bytes are right.
    `ok` is False where anything differs, and `problems` say what. Callbacks and `jobs` are as in `reshard`.

    Raises UsageError for options that mean nothing together, NotAResult where a folder has no sound manifest,
    ForeignPlan where `against` is another checkpoint, and what `inspect` raises for it.

    >>> found = dsv4_shard.verify("shards", against="model", numerics=True)
    >>> found.ok, found.problems, found.numerics.ok
    (True, (), True)
    """
    from dsv4_shard.opening import open_checkpoint, refuse_url
    from dsv4_shard.verification.moe_numerics import check_numerics
    from dsv4_shard.verification.result_folder import bytes_to_verify
    from dsv4_shard.verification.result_folder import verify as verify_folder
    from dsv4_shard.verification.shares import verify_together

    check_jobs(jobs)
    folders = [Path(out)] if isinstance(out, str | Path) else list(map(Path, out))
    if not folders:
        raise UsageError("no folder to verify")
    for folder in folders:
        refuse_url(
            folder, "Copy it into a folder, and verify that; what `reshard` put was held against the store's sizes."
        )
    if numerics and against is None:
        raise UsageError("--numerics needs --against: the unsharded layer is in the checkpoint")
    if layer is not None and not numerics:
        raise UsageError("--layer is of --numerics", hint="Add --numerics, or leave out --layer.")
    source = open_checkpoint(str(against)) if against is not None else None
    on_begin("verify", sum(map(bytes_to_verify, folders)))
    found: Verification | SharesVerification
    if isinstance(out, str | Path):
        found = verify_folder(folders[0], source, workers=jobs, on_progress=on_progress)
    else:
        found = verify_together(folders, source, workers=jobs, on_progress=on_progress)
    if not (numerics and source is not None and found.ok):
        return found
    return found.model_copy(update={"numerics": check_numerics(folders, *source, layer)})
