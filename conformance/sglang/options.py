"""The options of SGLang's own parser of arguments, and the variables that it reads."""

import argparse
from typing import Any

import sglang
from sglang.srt.server_args import ServerArgs

from conformance.options import rows_of, variables_of


def options(job: dict[str, Any]) -> dict[str, Any]:
    """Version, rows of options, and names of variables."""
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    variables = variables_of(sglang, "SGLANG")
    return {"version": sglang.__version__, "options": rows_of(parser), "variables": variables}
