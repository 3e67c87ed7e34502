"""`explain`: what an engine's message means, and what helps."""

import gc
from typing import Any

import typer

import dsv4_shard
from dsv4_shard.errors import ExitCode
from dsv4_shard.explain import ExplainOptions
from dsv4_shard.terminal import options
from dsv4_shard.terminal.arguments import text_or_log
from dsv4_shard.terminal.output import show
from dsv4_shard.terminal.process import reported


@reported
@options.takes(ExplainOptions)
def explain(given: dict[str, Any], text: options.TextArg = None, as_json: options.JsonOpt = False) -> None:
    """Explain an engine's message: what broke, and what helps.

    In a log, finds the first message that ends a run; colours, prefixes and other ranks do not matter.
    """
    from dsv4_shard.terminal.screens.explain import show_explanation

    gc.enable()  # a log from a pipe may take days
    explanation = dsv4_shard.explain(text_or_log(text), **given)
    show(explanation, as_json, show_explanation)
    if not explanation.recognised:
        raise typer.Exit(ExitCode.NO)
