"""`Launch`: the commands, variables and files that start an engine."""

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from dsv4_shard.catalog.options import LOAD_FORMAT
from dsv4_shard.engines.remarks import Change

Options = dict[str, str | None]
"""Options of a command by name. Values are quoted for a shell; None marks an option without a value."""


@dataclass(frozen=True, slots=True)
class Command:
    """A program with its options. `program` has the words before the options, such as `vllm serve MODEL`."""

    program: str
    options: Options

    def __str__(self) -> str:
        return " ".join((self.program, *settings_of(self.options)))


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start the engine.

    Attributes:
        environment: Variables by name.
        program: The engine's command with the options of the first node; None if nothing is started.
        launcher: The command that starts `program` (torchrun, srun), with the options of the first node; None without.
        node_options: For each node, the options that differ from the first node's. They belong to `launcher` if there
            is one, else to `program`.
        files: Files that the commands name: name → text.
        draft_options: Options to append to the commands to use the MTP draft model.
        needs_plugin: Whether every node needs this package installed in the engine's environment.
    """

    environment: dict[str, str]
    program: Command | None = None
    launcher: Command | None = None
    node_options: tuple[Options, ...] = ({},)
    files: dict[str, str] = field(default_factory=dict)
    draft_options: str = ""
    needs_plugin: bool = False

    @property
    def commands(self) -> tuple[str, ...]:
        """The command line of each node."""
        return commands_of(self.launcher, self.program, self.node_options)

    def with_changes(self, changes: Iterable[Change]) -> "Launch":
        """Return the launch with the variables and options of `changes` as well; itself if nothing is started."""
        if self.program is None:
            return self
        environment, options = dict(self.environment), dict(self.program.options)
        for setting in (setting for change in changes for setting in change.settings):
            name, space, value = setting.partition(" ")
            if name.startswith("-"):
                options[name] = value if space else None
            else:
                variable, _, value = setting.partition("=")
                environment[variable] = value
        return replace(self, environment=environment, program=replace(self.program, options=options))


PLAN_FILE = "plan.json"
"""The plan that commands name: a file in the folder where they run."""


def by_plan(launch: Launch) -> Launch:
    """Return the launch of a checkpoint with this package's loader, which follows the plan in `PLAN_FILE`."""
    assert launch.program is not None, "an engine with a plugin has a command"
    more: Options = {
        "--load-format": LOAD_FORMAT,
        "--model-loader-extra-config": shlex.quote(json.dumps({"plan": PLAN_FILE})),
    }
    program = replace(launch.program, options=launch.program.options | more)
    return replace(launch, program=program, needs_plugin=True)


NODE_RANK = "--node-rank"
"""Option for the number of a node; the same in torchrun, SGLang and vLLM."""

FIRST_NODE = "$NODE0"
"""The address of the first node in commands: a variable that the user sets in the shell."""


def node_ranks(nodes: int) -> tuple[Options, ...]:
    """Options per node if only the node's number differs; the first node has its number in the common options."""
    others: list[Options] = [{NODE_RANK: str(node)} for node in range(1, nodes)]
    return ({}, *others)


def commands_of(
    launcher: Command | None, program: Command | None, node_options: tuple[Options, ...]
) -> tuple[str, ...]:
    """The command line of each node; see `Launch`."""
    if program is None:
        return ()
    own = launcher or program
    on_nodes = (replace(own, options={**own.options, **options}) for options in node_options)
    return tuple(f"{command} {program}" if launcher else str(command) for command in on_nodes)


def on_every_node(
    launcher: Command | None, program: Command | None, node_options: tuple[Options, ...], environment: dict[str, str]
) -> tuple[str, tuple[str, ...]]:
    """Return one command for all nodes, with `$NODE_RANK`, and the options to add on all nodes but the first."""
    own = launcher or program
    if own is None:
        return "", ()
    options, more = dict(own.options), dict[str, str | None]()
    node = str(len(node_options) - 1)
    for name, value in node_options[-1].items():
        if name == NODE_RANK:
            options[name] = "$NODE_RANK"
        elif value is not None and name in options:
            options[name] = re.sub(rf"(?<![^/])node-{node}(?![^/])(?!.*/node-)", "node-$NODE_RANK", value)
        else:
            more[name] = value
    variables = [f"{name}={value}" for name, value in environment.items()]
    words = [*variables, str(Command(own.program, options)), *([str(program)] if launcher else [])]
    return " ".join(words), settings_of(more)


def settings_of(options: Options) -> tuple[str, ...]:
    """Return options as words of a command line: `--tp 16`."""
    return tuple(name if value is None else f"{name} {value}" for name, value in options.items())
