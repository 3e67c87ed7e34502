"""The verbs that check a result: `verify` for one folder, `verify_shares` for several."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dsv4_shard.catalog.verb import Later, checked_place, verb, wrong_type
from dsv4_shard.errors import UsageError
from dsv4_shard.sharding.options import VerifyOptions

if TYPE_CHECKING:
    from fractions import Fraction

    from dsv4_shard.checkpoint import Checkpoint, Inventory
    from dsv4_shard.sharding import progress as progressing
    from dsv4_shard.verification import documents
else:
    documents = Later("dsv4_shard.verification.documents")
    progressing = Later("dsv4_shard.sharding.progress")


@verb(VerifyOptions)
def verify(out: str | Path, options: VerifyOptions) -> "documents.Verification":
    """Verify a result against its manifest, or byte by byte against the checkpoint that it was made from.

    `out` is a folder written by reshard or merge. `against` is the checkpoint. `numerics` also computes the sum of the
    experts of a `layer` (default: the last) if all bytes are right. `sample` ("5%") reads only this part of the
    tensors, chosen at random, beside all small files, sizes and headers. `jobs` and `progress` are as in `reshard`.

    Returns a Verification: `ok` is False if anything differs, and `problems` lists the differences.

    Raises:
        - UsageError: options contradict each other.
        - NotAResult: the folder has no valid manifest.
        - ForeignPlan: `against` is another checkpoint.
        - The errors of `inspect` for `against`.

    >>> found = dsv4_shard.verify("shards", against="model", numerics=True)
    >>> found.ok, found.problems, found.numerics is not None
    (True, (), True)
    """
    from dsv4_shard.sharding.progress import Reporter, Task
    from dsv4_shard.verification import bytes_to_verify, check_numerics
    from dsv4_shard.verification import verify as verify_folder

    folder = Path(out)
    source, sample = _source([folder], options), _sample(options)
    with Reporter(options.progress).task(Task("verify"), int(bytes_to_verify(folder) * (sample or 1))) as task:
        found = verify_folder(folder, source, workers=options.jobs, on_progress=task.advance, sample=sample)
    if not (options.numerics and source is not None and found.ok):
        return found
    return found.model_copy(update={"numerics": check_numerics([folder], *source, options.layer)})


@verb(VerifyOptions)
def verify_shares(folders: Sequence[str | Path], options: VerifyOptions) -> "documents.SharesVerification":
    """Verify each of the `folders` that hold the shares of one result, and that the shares fit together.

    The other parameters are as in `verify`.

    Returns a SharesVerification: a Verification per folder, and the `missing` ranks.

    Raises:
        - The errors of `verify`.

    >>> together = dsv4_shard.verify_shares(["shards"])
    >>> together.ok, together.missing
    (True, ())
    """
    from dsv4_shard.sharding.progress import Reporter, Task
    from dsv4_shard.verification import bytes_to_verify, check_numerics, verify_together

    if isinstance(folders, str | Path):
        raise UsageError.about("folders", ..., "one folder, not a sequence", hint="`dsv4_shard.verify` takes one.")
    if not isinstance(folders, Iterable):
        raise wrong_type("folders", folders, "a sequence of folders")
    paths = [Path(checked_place("folders", folder)) for folder in folders]
    if not paths:
        raise UsageError("no folder to verify")
    source, sample = _source(paths, options), _sample(options)
    total = sum(map(bytes_to_verify, paths))
    with Reporter(options.progress).task(Task("verify"), int(total * (sample or 1))) as task:
        found = verify_together(paths, source, workers=options.jobs, on_progress=task.advance, sample=sample)
    if not (options.numerics and source is not None and found.ok):
        return found
    return found.model_copy(update={"numerics": check_numerics(paths, *source, options.layer)})


def _sample(options: VerifyOptions) -> "Fraction | None":
    """The part of the tensors to read; None for all. Raises UsageError if it is no percentage, or makes no sense."""
    from dsv4_shard.verification import parse_share

    if options.sample is None:
        return None
    if options.against is not None:
        raise UsageError("{sample} is of a result without {against}, which compares every byte", hint="Leave one out.",
                         parameters={"sample": ..., "against": ...})  # fmt: skip
    return parse_share(options.sample)


def _source(folders: Sequence[Path], options: VerifyOptions) -> "tuple[Checkpoint, Inventory] | None":
    """Open the checkpoint to verify against; None if none is given.

    Raises:
        UsageError: Options contradict each other.
    """
    from dsv4_shard.opening import open_checkpoint, refuse_url

    for folder in folders:
        refuse_url(
            folder, "Copy it into a folder, and verify that; `reshard` compared the uploaded sizes with the store's."
        )
    if options.numerics and options.against is None:
        raise UsageError("{numerics} needs {against}: the unsharded layer is in the checkpoint",
                         parameters={"numerics": ..., "against": ...})  # fmt: skip
    if options.layer is not None and not options.numerics:
        raise UsageError("{layer} is of {numerics}", hint="Add --numerics, or leave out --layer.",
                         parameters={"layer": ..., "numerics": ...})  # fmt: skip
    return open_checkpoint(str(options.against)) if options.against is not None else None
