"""Plan → a run script for each way to serve and each node, and one that writes the shards."""

import re
from collections.abc import Iterable, Iterator

from dsv4_shard.engines import FIRST_NODE, title_of
from dsv4_shard.planning import BY_PLAN, Plan, PlanWay
from dsv4_shard.text.sanitize import clean
from dsv4_shard.text.shell import replace_unquoted, shell_word, unquoted

MARK = "# Written by `dsv4-shard plan -o`"
"""Begins the second line of every file: a file without it is not replaced."""

_ADDRESS = re.compile(r"\$([A-Z][A-Z0-9_]*)", re.ASCII)
"""A variable in a command."""


def scripts_of(plan: Plan, plan_name: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each script. `plan_name` is the plan's file, in the same folder.

    A way without commands, such as shards that another program reads, has a script that writes alone.
    """
    for way in plan.ways:
        name = name_of(way)
        if way.prepare is not None and way.serves != BY_PLAN:
            yield f"{name}-write.sh", _writing(plan, way, plan_name)
        nodes = len(way.launch.commands)
        for node, command in enumerate(way.launch.commands):
            place = f"-node-{node}" if nodes > 1 else ""
            yield f"{name}{place}.sh", _serving(plan, way, node, command)


def script_of(command: str, comments: Iterable[str]) -> str:
    """Return the script of a command that needs addresses, each of which must be set."""
    names = dict.fromkeys(_ADDRESS.findall(unquoted(command)))
    asked = [f'{name}="${{{name}:?set it: see the comments}}"' for name in names]
    return _script(list(comments), [*asked, f'{_broken(command)} "$@"'])


def name_of(way: PlanWay) -> str:
    """Return the name of a way's files: `checkpoint`, `by-plan`, `shards` or `node-folders`."""
    return {"checkpoint by plan": "by-plan"}.get(way.serves, way.serves.replace(" ", "-"))


def about(plan: Plan) -> str:
    """Return the layout in a line: the checkpoint, the engine, and the parallel sizes."""
    at = plan.deployment
    sizes = [f"TP {at.tp}", *([f"EP {at.ep}"] if at.ep > 1 else []), *([f"DP {at.dp}"] if at.dp > 1 else [])]
    return f"{plan.source.label}, {title_of(plan.request.engine, plan.engine_version)} {at.version}, {', '.join(sizes)}"


def _serving(plan: Plan, way: PlanWay, node: int, command: str) -> str:
    nodes = len(way.launch.commands)
    lines = [f"{about(plan)}, node {node} of {nodes}." if nodes > 1 else f"{about(plan)}."]
    if way.launch.needs_plugin:
        lines.append("Needs `pip install dsv4-shard` in the engine's environment.")
    if way.serves == "checkpoint by plan":
        lines.append("Run it in the folder of plan.json.")
    if way.launch.draft_options:
        lines.append(f"For the draft model, add: {way.launch.draft_options}")
    head = [f'{FIRST_NODE[1:]}="${{{FIRST_NODE[1:]}:?set it to the address of node 0}}"'] if nodes > 1 else []
    files = [line for name, text in way.launch.files.items() for line in _file(name, text)]
    variables = [f"export {name}={shell_word(value)}" for name, value in way.launch.environment.items()]
    return _script(lines, [*head, *files, *variables, f'exec {_broken(command)} "$@"'])


def _writing(plan: Plan, way: PlanWay, plan_name: str) -> str:
    """Return the script that writes what a way serves; its arguments go to reshard, such as `--ranks 0-7`."""
    assert plan.out is not None
    words = [shell_word(plan.source.label), shell_word(plan.out), f'--plan "$(dirname "$0")"/{shell_word(plan_name)}']
    return _script([f"Writes the {way.serves} of {about(plan)}.", "One node's part: add --ranks auto, or --ranks 0-7."],
                   [f'exec dsv4-shard reshard {" ".join(words)} "$@"'])  # fmt: skip


def _file(name: str, text: str) -> Iterator[str]:
    """Yield the lines that write a file which the command names, unless it is there."""
    yield f"[ -e {shell_word(name)} ] || cat > {shell_word(name)} <<'END_OF_FILE'"
    yield text.rstrip("\n")
    yield "END_OF_FILE"


def _broken(command: str) -> str:
    """Return a command with each option on a line of its own."""
    return replace_unquoted(command, " --", " \\\n  --")


def comment_of(text: str) -> str:
    """Return the comment with a text: one line, whatever names of checkpoints are in it."""
    return f"# {clean(text)}"


def _script(comments: list[str], lines: list[str]) -> str:
    return "\n".join(["#!/bin/sh", MARK, *map(comment_of, comments), "set -eu", *lines]) + "\n"
