"""`verify`: a result against its manifest, or against the checkpoint."""

from typing import Any

import typer

import dsv4_shard
from dsv4_shard.catalog.option import names_of
from dsv4_shard.errors import ExitCode, UsageError
from dsv4_shard.sharding.options import (
    SignatureToVerify,
    VerifyCommand,
)
from dsv4_shard.terminal import options
from dsv4_shard.terminal.output import log_console, show
from dsv4_shard.terminal.process import reported
from dsv4_shard.text.suggest import as_option


@reported
@options.takes(VerifyCommand)
def verify(
    out: options.ResultsArg,
    given: dict[str, Any],
    how: options.ProgressOpt = "auto",
    as_json: options.JsonOpt = False,
) -> None:
    """Compare a result with its manifest, or with the checkpoint.

    With --against, derives every byte again from the checkpoint and compares. With --signature, compares every file
    with what its signer signed.
    """
    from dsv4_shard.terminal.progress_lines import progress_as
    from dsv4_shard.terminal.screens.verify import show_verification
    from dsv4_shard.verification import SharesVerification, Verification

    if len(out) > 1 and (alone := [name for name in names_of(SignatureToVerify) if name in given]):
        raise UsageError(f"{as_option(alone[0])}: a signature covers one folder", hint="Verify one folder at a time.")
    found: Verification | SharesVerification
    with progress_as(how, log_console(), as_json=as_json) as progress:
        if len(out) == 1:
            found = dsv4_shard.verify(out[0], progress=progress, **given)
        else:
            found = dsv4_shard.verify_shares(out, progress=progress, **given)
    show(found, as_json, show_verification)
    if not found.ok:
        raise typer.Exit(ExitCode.NO)
