"""The options of vLLM's own parser of arguments, and the variables that it reads."""

from typing import Any

import vllm
from vllm.entrypoints.common.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from conformance.options import rows_of, variables_of


def options(job: dict[str, Any]) -> dict[str, Any]:
    """Version, rows of options, and names of variables."""
    parser = make_arg_parser(FlexibleArgumentParser())
    return {"version": vllm.__version__, "options": rows_of(parser), "variables": variables_of(vllm, "VLLM")}
