"""`Plan` and its parts: the JSON document."""

from itertools import groupby
from typing import Literal

from pydantic import model_validator

from dsv4_shard.checkpoint.fingerprint import Origin
from dsv4_shard.checkpoint.formats import NVFP4
from dsv4_shard.engines.deployment import ANY_ENGINE, Deployment, Request
from dsv4_shard.engines.engine import Command, Launch, commands_of
from dsv4_shard.engines.rules import NOT_VERIFIED, Breach
from dsv4_shard.models.roles import Module
from dsv4_shard.text.document import Document, html_table
from dsv4_shard.text.units import counted, gib

SCHEMA_VERSION: Literal[2] = 2


class DeploymentDocument(Document):
    """What a request comes to, with every choice made.

    `world` is the number of GPUs, `attention_tp` and `moe_tp` the ranks that share one attention and one routed expert,
    `shared_parts` the ranks that share one shared expert. `shared` is how: whole, split, pad or subgroup. `experts` is
    the format in which the engine holds the routed experts. `gpu` is None where no GPU was named. `version` is the
    engine's.
    """

    engine: str
    tp: int
    ep: int
    dp: int
    world: int
    attention_tp: int
    moe_tp: int
    runner: str
    a2a: str | None
    shared: str
    shared_parts: int
    experts: str
    gpu: str | None
    nodes: int
    version: str

    @classmethod
    def of(cls, deployment: Deployment) -> "DeploymentDocument":
        """A deployment as documents have it."""
        return cls.model_validate(_deployment_fields(deployment))


class PlanDeployment(DeploymentDocument):
    """A deployment as a plan has it, with every choice made.

    `runner` is `?` where nothing is known of the GPU's kernels. `architecture` is the GPU's family, which decides
    which kernels run.
    """

    architecture: str

    @classmethod
    def of(cls, deployment: Deployment, *, is_claimed: bool = True) -> "PlanDeployment":
        """A deployment as a plan has it."""
        fields = _deployment_fields(deployment) | {"architecture": deployment.gpu.family}
        return cls.model_validate(fields if is_claimed else fields | {"runner": UNKNOWN_RUNNER})


UNKNOWN_RUNNER = "?"


def _deployment_fields(deployment: Deployment) -> dict[str, str | int | None]:
    """The fields that the document has, with the GPU's name in place of the GPU."""
    fields = {name: getattr(deployment, name) for name in DeploymentDocument.model_fields}
    return fields | {"gpu": deployment.gpu.name if deployment.gpu_named else None}


class PlanBreach(Document):
    """A rule that breaks, of one module or of the whole model: `reason` is the arithmetic, `remedies` are ways out that
    help, as options.

    `engine_says` is what the engine itself prints, None where it prints nothing, its words are not known, or it has
    stopped at another rule, which then is the first; `consequence` says which.
    """

    rule: str
    module: Module | None
    reason: str
    engine_says: str | None
    consequence: str
    remedies: tuple[str, ...]

    @property
    def unknown(self) -> bool:
        """Whether it says that nothing is known, and not that it does not run."""
        return self.consequence == NOT_VERIFIED

    def __str__(self) -> str:
        return f"{self.module}: {self.reason}" if self.module else self.reason

    @classmethod
    def of(cls, breach: Breach, remedies: tuple[str, ...] = ()) -> "PlanBreach":
        """The breach of an engine's rule, with those of its remedies that help."""
        return cls(
            rule=breach.rule,
            module=breach.module,
            reason=breach.reason,
            engine_says=breach.quote,
            consequence=breach.consequence,
            remedies=remedies,
        )


class PlanCheck(Document):
    """A rule that was checked, with its arithmetic: `size` / `parts` must be whole and a multiple of `unit`."""

    rule: str
    module: Module
    arithmetic: str
    holds: bool
    size: int
    size_name: str
    parts: int
    parts_name: str
    unit: int
    unit_name: str


class PlanModule(Document):
    """A role's placement. Shapes in elements; bytes of weights and scales on the heaviest rank.

    `block` is the rows and columns that share one scale, None where there are no scales.
    """

    part_of: Literal["target", "draft"]
    module: Module
    role: str
    format: str
    block: tuple[int, int] | None
    placement: str
    shape: tuple[int, ...]
    rank_shape: tuple[int, ...]
    rank_dtype: str
    tensors_per_rank: int
    bytes_per_rank: int
    padding_per_rank: int


class PlanTotals(Document):
    """Bytes on a rank, exactly those of its files' tensors. `target` and `draft` (MTP) apart.

    `other` (in no module's row: constants, the draft's own embedding and head), `replicated` and `padding` are within
    them.
    """

    ranks: int
    target_bytes_per_rank_min: int
    target_bytes_per_rank_max: int
    draft_bytes_per_rank: int
    other_target_bytes_per_rank: int
    other_draft_bytes_per_rank: int
    replicated_bytes_per_rank: int
    padding_bytes_per_rank: int
    shared_experts_bytes_per_rank: int
    shared_experts_weight_bytes_per_layer: int


class PlanMemory(Document):
    """Whether the weights fit on the named GPU, in bytes.

    `kv_bytes_per_token` is what a token of context costs at the least, in all layers' caches, and `kv_tokens_at_most`
    how many would fill all that is left, in each attention group; None where that is not known.
    """

    gpu: str
    capacity: int
    weights: int
    left: int
    fits: bool
    kv_bytes_per_token: float | None
    kv_tokens_at_most: int | None


class PlanCommand(Document):
    """A program with its options, by name. Values are as a shell takes them, None for options that take none."""

    program: str
    options: dict[str, str | None]

    @classmethod
    def of(cls, command: Command | None) -> "PlanCommand | None":
        """An engine's command as documents have it."""
        return cls(program=command.program, options=command.options) if command else None

    def to_command(self) -> Command:
        """The command that it was made of."""
        return Command(self.program, self.options)


class PlanLaunch(Document):
    """How to start the engine on this plan, empty where it does not run.

    `commands` has a line for each node. They are made of `program` and, where it needs one to start it, its `launcher`,
    which have the options of the first node; `node_options` has for each node the options in which it differs from the
    first, which are the launcher's where there is one. `draft_options` are added to the commands to use the MTP draft
    model.
    """

    environment: dict[str, str]
    commands: tuple[str, ...]
    files: dict[str, str]
    draft_options: str
    launcher: PlanCommand | None
    program: PlanCommand | None
    node_options: tuple[dict[str, str | None], ...]

    @model_validator(mode="after")
    def _commands_are_those_of_the_parts(self) -> "PlanLaunch":
        launcher, program = (part.to_command() if part else None for part in (self.launcher, self.program))
        if self.commands != commands_of(launcher, program, self.node_options):
            raise ValueError("commands are not those of program, launcher and node_options")
        return self

    @classmethod
    def of(cls, launch: Launch, *, has_draft: bool) -> "PlanLaunch":
        """An engine's launch as plans have it; `has_draft`: the model has an MTP draft that the options are for."""
        return cls(
            environment=launch.environment,
            commands=launch.commands,
            files=launch.files,
            draft_options=launch.draft_options if has_draft else "",
            launcher=PlanCommand.of(launch.launcher),
            program=PlanCommand.of(launch.program),
            node_options=launch.node_options if launch.program else (),
        )


class PlanAlternative(Document):
    """A layout near the one asked for that works."""

    options: str
    gpus: int
    bytes_per_rank: int
    notes: tuple[str, ...]


class Plan(Document):
    """The whole plan.

    `choices` says what the plan chose instead of the engine's default and why, and what the engine pads. `unwritten`
    says why no shards can be written for it, where they cannot; then the commands serve the checkpoint itself.
    `reshard` writes them into the folder `out`, which the commands serve.
    """

    schema_version: Literal[2]
    tool_version: str
    source: Origin
    request: Request
    engine_version: str
    deployment: PlanDeployment
    feasible: bool
    breaches: tuple[PlanBreach, ...]
    checks: tuple[PlanCheck, ...]
    choices: tuple[str, ...]
    assumptions: tuple[str, ...]
    modules: tuple[PlanModule, ...]
    totals: PlanTotals | None
    memory: PlanMemory | None
    shared_expert_addition: str
    launch: PlanLaunch
    layout: str | None
    unwritten: str | None
    reshard: str | None
    out: str | None
    alternatives: tuple[PlanAlternative, ...]

    @property
    def unknown(self) -> bool:
        """Whether nothing is known of the layout, so that it is not called unable to run."""
        return any(breach.unknown for breach in self.breaches)

    @property
    def verdict(self) -> str:
        """What is said of the layout: that it "runs", or less."""
        return self._verdict[0]

    @property
    def title(self) -> str:
        """The verdict as a heading."""
        return self._verdict[1]

    @property
    def _verdict(self) -> tuple[str, str]:
        """What is said of the layout, and its heading."""
        if not self.feasible:
            unknown = ("is not known to run", "Not known to run")
            return unknown if self.unknown else ("does not run", "Does not run")
        is_served = self.engine_version != ANY_ENGINE and self.deployment.experts != NVFP4
        return ("runs", "Runs") if is_served else ("can be written", "Can be written")

    def in_short(self) -> str:
        """Layout, verdict, and what a rank holds, or how many rules break."""
        per_rank = self.totals and gib(self.totals.target_bytes_per_rank_max)
        told = f"{per_rank} per rank" if self.feasible and per_rank else counted(len(self.breaches), "broken rule")
        layout = f"TP {self.deployment.tp} on {self.request.engine} {self.engine_version}"
        return f"{layout} {self.verdict}: {told}, {self.source.label}"

    def _repr_html_(self) -> str:
        """For notebooks: the rules that break, and where the modules go."""
        breaches = [(breach.rule, breach.module or "", breach.reason) for breach in self.breaches]
        broken = html_table("Rules that break", ("rule", "module", "reason"), breaches) if breaches else ""
        rows = [_row(*key, list(roles)) for key, roles in groupby(self.modules, lambda row: (row.part_of, row.module))]
        return broken + html_table(self.in_short(), ("part of", "module", "placement", "bytes per rank"), rows)


def _row(part_of: str, module: Module, roles: list[PlanModule]) -> tuple[str, ...]:
    """A module in a row: how its roles are placed, and what they weigh."""
    placements = dict.fromkeys(role.placement for role in roles)
    return part_of, module, "; ".join(placements), gib(sum(role.bytes_per_rank for role in roles))
