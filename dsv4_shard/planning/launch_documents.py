"""The parts of a plan about serving: the ways, and the commands of each."""

from typing import Literal

from pydantic import model_validator

from dsv4_shard.engines import Command, Launch, StockLoader, commands_of, on_every_node, settings_of
from dsv4_shard.text.document import Document
from dsv4_shard.text.units import size


class PlanCommand(Document):
    """A program with its options by name. Values are quoted for a shell; None marks an option without a value."""

    program: str
    options: dict[str, str | None]

    @classmethod
    def of(cls, command: Command | None) -> "PlanCommand | None":
        """Return the document of an engine's command."""
        return cls(program=command.program, options=command.options) if command else None

    def to_command(self) -> Command:
        """Return the command of the document."""
        return Command(self.program, self.options)


class PlanLaunch(Document):
    """How to start the engine on this plan; empty if the plan does not run.

    `commands` has a line for each node, made of `program` and, if the engine needs one, its `launcher`. Both have the
    options of the first node. `node_options` has, for each node, the options that differ from the first node's; they
    belong to `launcher` if there is one, else to `program`. `files` are files that the commands name: name → text.
    `draft_options` are options to append to the commands to use the MTP draft model. `needs_plugin`: every node needs
    this package installed in the engine's environment. `$NODE0` stands for the address of the first node.
    """

    environment: dict[str, str]
    commands: tuple[str, ...]
    files: dict[str, str]
    draft_options: str
    launcher: PlanCommand | None
    program: PlanCommand | None
    node_options: tuple[dict[str, str | None], ...]
    needs_plugin: bool

    @property
    def on_every_node(self) -> tuple[str, tuple[str, ...]]:
        """One command for all nodes, with `$NODE_RANK`, and the options to add on all nodes but the first."""
        launcher, program = (part.to_command() if part else None for part in (self.launcher, self.program))
        return on_every_node(launcher, program, self.node_options, self.environment)

    @model_validator(mode="after")
    def _commands_are_those_of_the_parts(self) -> "PlanLaunch":
        launcher, program = (part.to_command() if part else None for part in (self.launcher, self.program))
        if self.commands != commands_of(launcher, program, self.node_options):
            raise ValueError("commands are not those of program, launcher and node_options")
        return self

    @classmethod
    def of(cls, launch: Launch, *, has_draft: bool) -> "PlanLaunch":
        """Return the plan's document of a launch; `has_draft`: the model has an MTP draft that the options are for."""
        return cls(
            environment=launch.environment,
            commands=launch.commands,
            files=launch.files,
            draft_options=launch.draft_options if has_draft else "",
            launcher=PlanCommand.of(launch.launcher),
            program=PlanCommand.of(launch.program),
            node_options=launch.node_options if launch.program else (),
            needs_plugin=launch.needs_plugin,
        )


BY_PLAN: Literal["checkpoint by plan"] = "checkpoint by plan"
"""The way to serve in which the plugin makes a rank's parameters from the checkpoint."""


class PlanLoader(Document):
    """Another loader of the engine's own for a way to serve.

    `options` are set in the way's commands. `node_bytes` are those of `PlanWay` with it. `package` is the Python
    package that the engine's environment needs, None without. `note` says what the loader does, and what of it was
    verified.
    """

    name: str
    options: dict[str, str | None]
    node_bytes: int
    package: str | None
    note: str

    @classmethod
    def of(cls, loader: StockLoader, node_bytes: int) -> "PlanLoader":
        """Return the document of an engine's loader."""
        return cls(
            name=loader.name, options=loader.options, node_bytes=node_bytes, package=loader.package, note=loader.note
        )

    @property
    def settings(self) -> str:
        """The options as words of a command line."""
        return " ".join(settings_of(self.options))

    @property
    def words(self) -> str:
        """How much a node reads, and the note."""
        return f"each node reads {size(self.node_bytes)}; {self.note}"


class PlanWay(Document):
    """A way to serve: what the engine loads, how that is made, and how the engine starts.

    `node_bytes` are the bytes that the fullest node reads from its disk at each start: all files of a checkpoint; by
    plan, the rows that its ranks need of the target model; of shards those of the target model, and once what all
    ranks share. `prepare` is the command that writes what is loaded; None if nothing has to be written. `loaders` are
    the engine's own other loaders of the same.
    """

    serves: Literal["checkpoint", "checkpoint by plan", "shards", "node folders"]
    node_bytes: int
    prepare: str | None
    launch: PlanLaunch
    loaders: tuple[PlanLoader, ...]

    def title(self, *, is_first: bool) -> str:
        """Say what is served, and how much a node reads."""
        match self.serves:
            case "checkpoint":
                way = "Serve the checkpoint as it is"
            case "checkpoint by plan":
                way = f"{'Load' if is_first else 'Or load'} it by plan, without shards"
            case _:
                serve = " and serve them" if self.launch.commands else ""
                way = f"{'Write' if is_first else 'Or write'} {self.serves}{serve}"
        return f"{way}: each node reads {size(self.node_bytes)}"


NO_LAUNCH = PlanLaunch(
    environment={}, commands=(), files={}, draft_options="", launcher=None, program=None, node_options=(),
    needs_plugin=False,
)  # fmt: skip
"""The launch of a plan that does not run."""
