"""The verbs that check a result: `verify` for one folder, `verify_shares` for several."""

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dsv4_shard.catalog.verb import Later, checked_place, verb, wrong_type
from dsv4_shard.errors import UsageError
from dsv4_shard.sharding.options import Against, Sample, VerifyOptions, VerifySharesOptions
from dsv4_shard.text.suggest import as_option

if TYPE_CHECKING:
    from fractions import Fraction

    from dsv4_shard.checkpoint import Checkpoint, Inventory
    from dsv4_shard.sharding import progress as progressing
    from dsv4_shard.sharding.progress import Reporter
    from dsv4_shard.signing import Checked
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

    `signature` is a signature of the folder, by `sign` or by model_signing. It must be by `public_key`, by a
    certificate that those of `certificate_chain` vouch for, or by `identity`, for whom `identity_provider` vouched to
    Sigstore. All files are then compared with it.

    Returns a Verification: `ok` is False if anything differs, and `problems` lists the differences.

    Raises:
        - UsageError: options contradict each other.
        - NotAResult: the folder has no valid manifest.
        - ForeignPlan: `against` is another checkpoint.
        - BadSignature, SignatureRefused: the signature is damaged, or not by the expected signer.
        - BadKey: a key or certificate cannot be used.
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
    reporter = Reporter(options.progress)
    checked = _signature(folder, options, reporter)
    place = checked.place if checked is not None else None
    with reporter.task(Task("verify"), int(bytes_to_verify(folder) * (sample or 1))) as task:
        found = verify_folder(
            folder, source, workers=options.jobs, on_progress=task.advance, sample=sample, signature=place
        )
    found = checked.added_to(found) if checked is not None else found
    if not (options.numerics and source is not None and found.ok):
        return found
    return found.model_copy(update={"numerics": check_numerics([folder], *source, options.layer)})


@verb(VerifySharesOptions)
def verify_shares(folders: Sequence[str | Path], options: VerifySharesOptions) -> "documents.SharesVerification":
    """Verify each of the `folders` that hold the shares of one result, and that the shares fit together.

    The other parameters are as in `verify`.

    Returns a SharesVerification: a Verification per folder, and the `missing` ranks.

    Raises:
        - UsageError: a folder is named twice.
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
    _refuse_twice(paths)
    source, sample = _source(paths, options), _sample(options)
    total = sum(map(bytes_to_verify, paths))
    with Reporter(options.progress).task(Task("verify"), int(total * (sample or 1))) as task:
        found = verify_together(paths, source, workers=options.jobs, on_progress=task.advance, sample=sample)
    if not (options.numerics and source is not None and found.ok):
        return found
    return found.model_copy(update={"numerics": check_numerics(paths, *source, options.layer)})


def _refuse_twice(folders: Sequence[Path]) -> None:
    """Raise UsageError if two names are of one folder, also through links."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        first = seen.setdefault(folder.resolve(), folder)
        if first is not folder:
            names = f"{folder}: named twice" if first == folder else f"{folder}: the same folder as {first}"
            raise UsageError(names, hint="Name each folder once.")


def _sample(options: Sample) -> "Fraction | None":
    """The part of the tensors to read; None for all. Raises UsageError if it is no percentage, or makes no sense."""
    from dsv4_shard.verification import parse_share

    if options.sample is None:
        return None
    if getattr(options, "signature", None) is not None:
        raise UsageError("{sample} and {signature}: a signature covers every byte", hint="Leave one out.",
                         parameters={"sample": ..., "signature": ...})  # fmt: skip
    if getattr(options, "against", None) is not None:
        raise UsageError("{sample} is of a result without {against}, which compares every byte", hint="Leave one out.",
                         parameters={"sample": ..., "against": ...})  # fmt: skip
    return parse_share(options.sample)


def _signature(folder: Path, options: VerifyOptions, reporter: "Reporter") -> "Checked | None":
    """Verify the signature; None if none is named.

    Raises:
        UsageError: Options contradict each other, or model_signing is not installed.
    """
    ways = {"public_key": options.public_key, "certificate_chain": options.certificate_chain,
            "identity": options.identity}  # fmt: skip
    given = [name for name, value in ways.items() if value is not None]
    if options.signature is None:
        alone = [
            *given,
            *(name for name in ("identity_provider", "trust_config") if getattr(options, name) is not None),
        ]
        if alone:
            raise UsageError(f"{{{alone[0]}}} is of {{signature}}", hint="Name the signature: --signature FILE.",
                             parameters={alone[0]: ..., "signature": ...})  # fmt: skip
        return None
    if len(given) != 1:
        how = f"{as_option(given[0])} and {as_option(given[1])}" if given else "nothing that says whose it is"
        raise UsageError.about("signature", ..., how, hint=_WHOSE)
    if (options.identity is None) != (options.identity_provider is None):
        raise UsageError("{identity} and {identity_provider} go together", hint=_WHOSE,
                         parameters={"identity": ..., "identity_provider": ...})  # fmt: skip
    if options.trust_config is not None and options.identity is None:
        raise UsageError("{trust_config} is of {identity}", hint=_WHOSE,
                         parameters={"trust_config": ..., "identity": ...})  # fmt: skip
    from dsv4_shard.signing import Expected, check_signature, refuse_without_library

    refuse_without_library()
    key, chain, trust = (
        Path(one) if one is not None else None
        for one in (options.public_key, options.certificate_chain, options.trust_config)
    )
    expected = Expected(key, chain, options.identity, options.identity_provider, trust)
    return check_signature(folder, Path(options.signature), expected, reporter, options.jobs)


_WHOSE = (
    "Say whose it must be: --public-key FILE, --certificate-chain FILE, or --identity NAME --identity-provider URL."
)


def _source(folders: Sequence[Path], options: Against) -> "tuple[Checkpoint, Inventory] | None":
    """Open the checkpoint to verify against; None if none is given.

    Raises:
        UsageError: Options contradict each other.
    """
    from dsv4_shard.opening import as_made_from, open_checkpoint, refuse_url
    from dsv4_shard.sharding.manifest import load_manifest

    for folder in folders:
        refuse_url(
            folder, "Copy it into a folder, and verify that; `reshard` compared the uploaded sizes with the store's."
        )
    if options.numerics and options.against is None:
        raise UsageError("{numerics} needs {against}: the unsharded layer is in the checkpoint",
                         parameters={"numerics": ..., "against": ...})  # fmt: skip
    if options.numerics and importlib.util.find_spec("torch") is None:
        hint = "pip install torch, or verify without --numerics."
        raise UsageError.about("numerics", ..., "torch is not installed here", hint=hint)
    if options.layer is not None and not options.numerics:
        raise UsageError("{layer} needs {numerics}", hint="Add --numerics, or leave out --layer.",
                         parameters={"layer": ..., "numerics": ...})  # fmt: skip
    if options.against is None:
        return None
    origin = load_manifest(folders[0]).source
    return open_checkpoint(as_made_from(str(options.against), origin))
