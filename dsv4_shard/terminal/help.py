"""The help of the commands: options in groups, examples, exit codes.

Typer's own groups are boxes drawn by rich: commands in them cannot be copied, and help would take twice as long.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from dsv4_shard.errors import ExitCode, UsageError
from dsv4_shard.terminal.command_line_errors import asks_for_json, no_command, options_of, parsed, too_many
from dsv4_shard.terminal.engine_options import in_our_words
from dsv4_shard.terminal.show_error import show_error

_OF_LAYOUTS = ("plan", "reshard")
"""Commands that answer whether a layout runs."""

EXIT_CODES = {
    ExitCode.DONE: "done",
    ExitCode.NO: "does not run, or not as it should be",
    ExitCode.USAGE: "usage",
    ExitCode.CHECKPOINT: "bad checkpoint",
    ExitCode.IO: "I/O",
    ExitCode.NETWORK: "not reachable",
    ExitCode.NOT_VERIFIED: "not verified",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.TERMINATED: "terminated",
}

NO = {
    "inspect": None,
    "plan": "the layout does not run; with --gpus: none does",
    "report": None,
    "reshard": "the layout does not run, or a node's shares are not verified",
    "merge": None,
    "verify": "something differs, no result, or not the expected signature",
    "sign": "the folder holds no result, or a damaged one",
    "explain": "no message in it is recognised",
    "gpus": None,
    "demo": None,
}
"""Meaning of exit code 1 for each command; None if the command does not use it."""

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "inspect": (
        ("A folder, or a repository on the Hub: only headers are read", "DeepSeek-V4-Pro"),
        ("", "deepseek-ai/DeepSeek-V4-Pro"),
        ("What runs at TP 8 and 16 on a GPU, with GiB per GPU", "DeepSeek-V4-Pro --tp 8,16 --gpu h20-96"),
    ),
    "plan": (
        ("A layout, and the plan as a file for reshard", "DeepSeek-V4-Pro --tp 16 --gpu h20-96 -o plan.json"),
        ("Every layout on 16 GPUs, fewest bytes first", "DeepSeek-V4-Pro --gpus 16 --gpu h20-96"),
        ("The same of two engines only", "DeepSeek-V4-Pro --gpus 16 --engine sglang,vllm"),
        ("Another engine, then what differs", "DeepSeek-V4-Pro --tp 16 --engine vllm -o vllm.json"),
        ("", "--compare plan.json vllm.json"),
    ),
    "report": (
        ("Of a plan, of a layout, of all layouts, of a checkpoint", "plan.json"),
        ("", "DeepSeek-V4-Pro --tp 16 --gpu h20-96 -o pro.html"),
        ("", "DeepSeek-V4-Pro --gpus 16 --gpu h20-96"),
        ("", "DeepSeek-V4-Pro"),
    ),
    "reshard": (
        ("List what would be written for a plan; then write it", "DeepSeek-V4-Pro shards --plan plan.json --dry-run"),
        ("", "DeepSeek-V4-Pro shards --plan plan.json"),
        ("Without a plan file, from the Hub", "deepseek-ai/DeepSeek-V4-Pro vllm16 --tp 16 --engine vllm"),
        ("The ranks of one node only", "DeepSeek-V4-Pro node0 --plan plan.json --ranks 0-7"),
    ),
    "merge": (
        ("A checkpoint again, byte by byte as it was", "shards DeepSeek-V4-Pro-merged"),
    ),
    "verify": (
        ("Against the manifest: is every byte as it was written?", "shards"),
        ("Against the checkpoint: is every byte where it belongs?", "shards --against DeepSeek-V4-Pro --numerics"),
        ("Against a signature: is every file what its signer signed?",
         "shards --signature shards/model.sig --public-key key.pub"),
    ),
    "sign": (
        ("With a key", "shards --key key.pem"),
        ("With a certificate, so that others need to know only the root",
         "shards --key key.pem --certificate cert.pem"),
        ("As the identity of a CI job, or of who logs in", "shards --keyless"),
    ),
    "explain": (
        ("A message", "192 is not divisible by 128"),
        ("A log; also `sglang serve ... 2>&1 | dsv4-shard explain`", "server.log"),
        ("Against a checkpoint of your own", "server.log --repo DeepSeek-V4-Pro"),
    ),
    "gpus": (
        ("What --gpu takes", ""),
    ),
    "demo": (
        ("In the folder dsv4-demo, which is made", ""),
    ),
}  # fmt: skip
"""Command → descriptions of its examples (empty: as the one before), and their arguments."""


class HelpCommand(TyperCommand):
    """A command with the help of this module."""

    allow_extra_args = True  # so that they are refused here

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # completion, which must not fail
            return super().parse_args(ctx, args)
        extra = parsed(super().parse_args, ctx, in_our_words(args, options_of(ctx)))
        if extra:
            raise too_many(extra, ctx)
        return extra

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Usage line without the braces that Typer puts around required arguments: `REPO OUT`, as in all texts."""
        return [re.sub("[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, which fit the first screen, and the options after them."""
        with formatter.section("Examples"):
            for line in examples_of(str(self.name)):
                formatter.write(f"  {line}\n" if line else "\n")
        for heading, records in grouped(self, ctx):
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl(exit_codes_of(str(self.name)))


class HelpGroup(TyperGroup):
    """The group of all commands."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **more: Any) -> Any:
        """Run a command. In Typer's standalone mode, show an error of its arguments, and leave with the exit code."""
        words = _as_options(sys.argv[1:] if args is None else list(args))
        is_alone = more.pop("standalone_mode", True)
        try:
            code = super().main(words, *others, **(more | {"standalone_mode": False}))
        except UsageError as error:
            if not is_alone:
                raise
            show_error(error, as_json=asks_for_json(words))
            code = error.exit_code
        if not is_alone:
            return code
        sys.exit(code)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return parsed(super().parse_args, ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not ctx.resilient_parsing and args[0] not in self.commands and not args[0].startswith("-"):
            raise no_command(args[0], [*self.commands, "help", "version"])
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code.value), meaning) for code, meaning in EXIT_CODES.items()])


def _as_options(words: list[str]) -> list[str]:
    """Return the command line with `help COMMAND` and `version` as the options that they stand for."""
    match words:
        case ["help", *command]:
            return [*command, "--help"]
        case ["version", *rest]:
            return ["--version", *rest]
    return words


def grouped(command: Any, ctx: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headings with the names and texts under each: arguments first, options without a group last."""
    groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    last: list[tuple[str, str]] = []
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None:
            is_argument = param.param_type_name == "argument"
            heading = "Arguments" if is_argument else getattr(param, "rich_help_panel", None)
            name = param.metavar if is_argument else record[0]
            (groups.setdefault(heading, []) if heading else last).append((name, _text(record[1])))
    return [(heading, records) for heading, records in (*groups.items(), ("Options", last)) if records]


def examples_of(command: str) -> Iterator[str]:
    """Yield lines: the description as a comment, the command below it, a blank line between examples."""
    for number, (what, arguments) in enumerate(EXAMPLES[command]):
        if what and number:
            yield ""
        if what:
            yield f"# {what}"
        yield f"dsv4-shard {command} {arguments}".rstrip()


def exit_codes_of(command: str) -> list[tuple[str, str]]:
    """Each exit code with its meaning for this command."""
    unverified = EXIT_CODES[ExitCode.NOT_VERIFIED] if command in _OF_LAYOUTS else ""
    said = EXIT_CODES | {ExitCode.NO: NO[command], ExitCode.NOT_VERIFIED: unverified}
    return [(str(code.value), meaning) for code, meaning in said.items() if meaning]


def _text(text: str) -> str:
    """Help text without the lower bound of numbers that count from one, and without nested brackets."""
    text = re.sub(r"  \[x>=1\]$|; x>=1(?=\]$)", "", text)
    return re.sub(r"\[default: \((.*)\)\]$", r"[default: \1]", text)
