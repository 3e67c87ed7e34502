"""`PlannedDeployment`: the JSON document of a configuration's roles with their plans."""

from enum import StrEnum
from typing import Literal

from dsv4_shard.engines import Verdict
from dsv4_shard.errors import ExitCode
from dsv4_shard.planning import Plan
from dsv4_shard.text.document import Document, html_table
from dsv4_shard.text.units import counted

SCHEMA_VERSION: Literal[1] = 1


class Use(StrEnum):
    """What a plan makes of an option or variable of an engine."""

    USED = "used"
    NO_EFFECT = "no effect"
    UNPLANNED = "cannot be planned"
    UNKNOWN = "not understood"
    ABSENT = "no such option"


class ReadOption(Document):
    """An option or variable of a configuration, and what the plan makes of it.

    `use` is `used` (`note` has the option of `plan`), `no effect` on the weights of a rank (`note` has the subject),
    `cannot be planned`, `not understood` (the engine has it, and its effect on weights is not known here), or
    `no such option` (the engine's version has none of that name).
    """

    option: str
    value: str | None
    use: Use
    note: str

    @property
    def is_understood(self) -> bool:
        """Whether it is known what the option does to the weights of a rank."""
        return self.use in (Use.USED, Use.NO_EFFECT)

    @property
    def written(self) -> str:
        """The option with its value, as a word or two of a command line."""
        if self.value is None:
            return self.option
        return f"{self.option}{'=' if self.option.isupper() else ' '}{self.value}"


class PlannedRole(Document):
    """An engine of a configuration, and its plan.

    `options` are all options and variables that the configuration gives it. `request` is the request in options of
    `plan`. `lacks` are the settings that the plan needs and the configuration has not: as written, the engine would not
    start. `plan` is null if the role cannot be planned; `reason` then says why. `replicas` is the number of such
    engines, `image` the container's image.
    """

    name: str
    engine: str
    replicas: int
    image: str | None
    options: tuple[ReadOption, ...]
    request: str
    lacks: tuple[str, ...]
    plan: Plan | None
    reason: str | None

    @property
    def others(self) -> tuple[ReadOption, ...]:
        """The options that the plan leaves out without knowing that they change nothing."""
        return tuple(option for option in self.options if not option.is_understood)

    @property
    def exit_code(self) -> ExitCode:
        """0 if it runs as written; 1 if not; 6 if that is not verified, as with options that are not understood."""
        if self.plan is None or (self.plan.verdict is Verdict.UNVERIFIED):
            return ExitCode.NOT_VERIFIED
        if not self.plan.verdict.is_good or self.lacks:
            return ExitCode.NO
        return ExitCode.NOT_VERIFIED if self.others else ExitCode.DONE


class PlannedPair(Document):
    """How prefill and decode of one deployment are written and started.

    `same_files`: the shards of both are the same files, so they are written once, and both serve from one folder.
    `equal_bytes` are bytes of tensors that every rank of both holds whole; without `same_files` each result stores them
    once. `writes` are the commands that write the shards. `prefill` and `decode` are the commands on every node of a
    role, `router` is that of the engine's router. `$PREFILL0` and `$DECODE0` stand for the address of a role's first
    node, `$NODE_RANK` for a node's number. `notes` say what is not verified.
    """

    same_files: bool
    equal_bytes: int
    writes: tuple[str, ...]
    prefill: str
    decode: str
    router: str
    notes: tuple[str, ...]


class PlannedDeployment(Document):
    """The engines of a configuration with their plans.

    `source` is the file's name, or `command line`; `format` what it was read as. A role appears once, whatever the
    number of its nodes and replicas. `pair` connects a prefill and a decode role of one engine, if both run; else it is
    null.
    """

    kind: Literal["deployment"] = "deployment"
    schema_version: Literal[1]
    tool_version: str
    source: str
    format: str
    roles: tuple[PlannedRole, ...]
    pair: PlannedPair | None

    @property
    def exit_code(self) -> ExitCode:
        """That of the worst role: 1 before 6 before 0."""
        order = (ExitCode.NO, ExitCode.NOT_VERIFIED, ExitCode.DONE)
        return min((role.exit_code for role in self.roles), key=order.index)

    def in_short(self) -> str:
        """The format, and the verdict of each role."""
        said = (f"{role.name} {role.plan.verdict if role.plan else 'not planned'}" for role in self.roles)
        return f"{self.format}, {counted(len(self.roles), 'role')}: {', '.join(said)}"

    def _repr_html_(self) -> str:
        """HTML for notebooks: a row for each role."""
        rows = [(role.name, role.request, role.plan.in_short() if role.plan else role.reason) for role in self.roles]
        return html_table(self.in_short(), ("role", "request", "plan"), rows)
