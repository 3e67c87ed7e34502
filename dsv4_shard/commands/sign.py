"""`sign`: a signature of a result."""

from typing import Any

import dsv4_shard
from dsv4_shard.sharding.options import (
    SignCommand,
)
from dsv4_shard.terminal import options
from dsv4_shard.terminal.output import log_console, show
from dsv4_shard.terminal.process import reported


@reported
@options.takes(SignCommand)
def sign(
    out: options.ResultArg,
    given: dict[str, Any],
    how: options.ProgressOpt = "auto",
    as_json: options.JsonOpt = False,
) -> None:
    """Sign every file of a result.

    Writes a signature of OpenSSF model_signing, whose own command verifies it too. Needs the extra `sign`.
    """
    from dsv4_shard.terminal.progress_lines import progress_as
    from dsv4_shard.terminal.screens.sign import show_signed

    with progress_as(how, log_console(), as_json=as_json) as progress:
        signed = dsv4_shard.sign(out, progress=progress, **given)
    show(signed, as_json, show_signed)
