"""The command line: the table of commands, and the entry point.

Results go to stdout, everything else to stderr.
"""

import gc
import io
import os
import sys
from typing import Annotated

import typer

import dsv4_shard
from dsv4_shard.commands.demo import demo
from dsv4_shard.commands.explain import explain
from dsv4_shard.commands.gpus import gpus
from dsv4_shard.commands.inspect import inspect
from dsv4_shard.commands.merge import merge
from dsv4_shard.commands.plan import plan
from dsv4_shard.commands.report import report
from dsv4_shard.commands.reshard import reshard
from dsv4_shard.commands.sign import sign
from dsv4_shard.commands.verify import verify
from dsv4_shard.terminal import completion
from dsv4_shard.terminal.ascii import show_signs
from dsv4_shard.terminal.help import HelpCommand, HelpGroup
from dsv4_shard.terminal.process import OUTSIDE, allow_open_files, handle_signals
from dsv4_shard.terminal.standard_streams import open_standard_streams

app = typer.Typer(
    name="dsv4-shard",
    help="From a DeepSeek-V4 checkpoint to a deployment plan to verified per-rank shards.",
    cls=HelpGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dsv4-shard {dsv4_shard.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for _command in (inspect, plan, report, reshard, merge, verify, sign, explain, gpus, demo):
    app.command(cls=HelpCommand)(_command)


def main() -> None:
    """Run the command line: the entry point."""
    open_standard_streams()
    if os.environ.get(completion.ASKED):
        completion.answer(app)
    handle_signals(OUTSIDE)
    gc.disable()  # headers stay in memory until the command ends; collecting them takes half a second
    allow_open_files()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            show_signs(stream)
    try:
        app()
    finally:
        gc.freeze()  # the interpreter's end would look through all of them once more
