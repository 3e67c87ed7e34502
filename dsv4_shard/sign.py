"""The verb that signs a result: `sign`."""

from pathlib import Path
from typing import TYPE_CHECKING

from dsv4_shard.catalog.verb import Later, verb
from dsv4_shard.errors import UsageError
from dsv4_shard.sharding.options import SignOptions
from dsv4_shard.text.suggest import as_option

if TYPE_CHECKING:
    from dsv4_shard import signing
    from dsv4_shard.sharding import progress as progressing
else:
    signing = Later("dsv4_shard.signing")
    progressing = Later("dsv4_shard.sharding.progress")


@verb(SignOptions)
def sign(out: str | Path, options: SignOptions) -> "signing.Signed":
    """Sign every file of a result, as OpenSSF model_signing does: `model_signing verify` takes the signature.

    `out` is a folder written by reshard or merge. `key` signs; with its `certificate`, others need to know only the
    root. With `keyless`, Sigstore vouches for an identity: that of `identity_token`, of the workload that runs this, or
    of who logs in with a browser. `signature` is the file to write. Rank files are signed with the SHA-256 of the
    manifest, after their sizes and headers were compared with it. `jobs` and `progress` are as in `reshard`.

    Returns a Signed: the signature, who made it, and the number of files.

    Raises:
        - UsageError: options contradict each other, or the extra `sign` is not installed.
        - BadKey: the key or certificate cannot be used.
        - NotAResult, DamagedResult: the folder has no valid manifest, or a file is not what the manifest says.
        - OutputNotEmpty: the signature is there already.
        - Unreachable: Sigstore does not answer.
        - ReadFailed, WriteFailed: reading or writing failed.
    """
    from dsv4_shard.opening import refuse_url
    from dsv4_shard.sharding.progress import Reporter
    from dsv4_shard.signing import Signer, refuse_without_library, sign_result

    folder = Path(out)
    refuse_url(folder, "Sign the folder before it is uploaded, and upload the signature beside it.")
    _refuse_contradictions(options)
    refuse_without_library()
    key, certificate, chain, token, trust, signature = (
        Path(given) if given is not None else None
        for given in (options.key, options.certificate, options.certificate_chain, options.identity_token,
                      options.trust_config, options.signature)
    )  # fmt: skip
    signer = Signer(key, certificate, chain, token, trust)
    return sign_result(folder, signer, signature, Reporter(options.progress), options.jobs)


def _refuse_contradictions(options: SignOptions) -> None:
    """Raise UsageError unless exactly one method is named, and nothing of another."""
    if options.keyless == (options.key is not None):
        how = "{key} and {keyless}: one of them signs" if options.keyless else "neither {key} nor {keyless}"
        raise UsageError(how, hint="Sign with a key: --key FILE; or as an identity: --keyless.",
                         parameters={"key": ..., "keyless": ...})  # fmt: skip
    for name, other in (("certificate", "key"), ("certificate_chain", "certificate"), ("identity_token", "keyless"),
                        ("trust_config", "keyless")):  # fmt: skip
        if getattr(options, name) is not None and not getattr(options, other):
            raise UsageError(f"{{{name}}} is of {{{other}}}", hint=f"Add {as_option(other)}, or leave out "
                             f"{as_option(name)}.", parameters={name: ..., other: ...})  # fmt: skip
