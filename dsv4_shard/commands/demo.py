"""`demo`: the other commands, on a small checkpoint that it makes."""

import importlib.util
import shlex
from pathlib import Path

import typer

import dsv4_shard
from dsv4_shard.errors import OutputNotEmpty
from dsv4_shard.terminal import options
from dsv4_shard.terminal.output import output_console
from dsv4_shard.terminal.process import reported
from dsv4_shard.text.shell import shell_word


@reported
def demo(command_context: typer.Context, folder: options.DemoArg = Path("dsv4-demo")) -> None:
    """Inspect, plan, reshard, verify and report a small checkpoint.

    Generates a 121 MB checkpoint with V4-Pro's structure (4 layers, 16 experts). Takes under a minute and 250 MB.
    """
    from dsv4_shard.checkpoint.synthetic import write_checkpoint
    from dsv4_shard.storage import check_output
    from dsv4_shard.terminal.text import paragraph

    try:
        check_output(folder, Path(dsv4_shard.__file__).parent, overwrite=False)
    except OutputNotEmpty as error:
        error.hint = f"Remove it, or name another folder: `dsv4-shard demo {shell_word(f'{folder}-2')}`."
        raise
    checkpoint, shards, plan_file = folder / "checkpoint", folder / "shards", folder / "plan.json"
    page = folder / "report.html"
    folder.mkdir(exist_ok=True)
    console = output_console()
    paragraph(console, f"Generates a checkpoint with V4-Pro's structure, 4 layers and 16 experts: {checkpoint}")
    write_checkpoint(checkpoint)
    numerics = ["--numerics"] if importlib.util.find_spec("torch") else []
    if not numerics:
        paragraph(console, "torch is not installed: verify compares bytes, and leaves out --numerics.")
    commands = (
        ["inspect", str(checkpoint)],
        ["plan", str(checkpoint), "--tp", "16", "-o", str(plan_file)],
        ["reshard", str(checkpoint), str(shards), "--plan", str(plan_file)],
        ["verify", str(shards), "--against", str(checkpoint), *numerics],
        ["report", str(plan_file), "-o", str(page)],
    )
    command_line = command_context.find_root().command
    for arguments in commands:
        print(f"\n$ {shlex.join(['dsv4-shard', *arguments])}", flush=True)
        if code := command_line.main(arguments, standalone_mode=False):
            raise typer.Exit(code)
    console.print()
    for line in (f"The checkpoint is in {checkpoint}, its 16 ranks in {shards}, the plan in {plan_file}.",
                 f"Open {page} in a browser. Next: dsv4-shard plan YOUR-CHECKPOINT"):  # fmt: skip
        paragraph(console, line)
