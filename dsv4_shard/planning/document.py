"""`Plan` and its parts: the JSON document."""

from itertools import groupby
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, model_validator

from dsv4_shard.checkpoint import Origin
from dsv4_shard.engines import (
    NOT_VERIFIED,
    Breach,
    Change,
    Command,
    Deployment,
    Launch,
    Loss,
    Request,
    StartStage,
    Verdict,
    commands_of,
    on_every_node,
)
from dsv4_shard.models import Module
from dsv4_shard.text.document import Document, html_table
from dsv4_shard.text.units import counted, gib, size

SCHEMA_VERSION: Literal[4] = 4


class DeploymentDocument(Document):
    """A deployment with every choice made.

    `world` is the number of GPUs. `attention_tp` ranks share one attention module, `moe_tp` ranks one routed expert,
    and `shared_parts` ranks one shared expert. `shared` is how shared experts are held: whole, split, pad or subgroup.
    `experts` is the format in which the engine holds the routed experts. `a2a` is the all-to-all backend, None without
    one. `gpu` is None if no GPU is named. `version` is the version of the engine.
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
        """Return the document of a deployment."""
        return cls.model_validate(_deployment_fields(deployment))


class PlanDeployment(DeploymentDocument):
    """A deployment in a plan, with every choice made.

    `runner` is `?` if the kernels of the GPU are not known. `architecture` is the GPU's family, which decides which
    kernels run.
    """

    architecture: str

    @classmethod
    def of(cls, deployment: Deployment, *, is_verified: bool = True) -> "PlanDeployment":
        """Return the plan's document of a deployment."""
        fields = _deployment_fields(deployment) | {"architecture": deployment.gpu.family}
        return cls.model_validate(fields if is_verified else fields | {"runner": UNKNOWN_RUNNER})


UNKNOWN_RUNNER = "?"


def _deployment_fields(deployment: Deployment) -> dict[str, str | int | None]:
    """The fields of the document, with the GPU's name instead of the GPU."""
    fields = {name: getattr(deployment, name) for name in DeploymentDocument.model_fields}
    return fields | {"gpu": deployment.gpu.name if deployment.gpu_named else None}


class PlanBreach(Document):
    """A rule that breaks, for one module or for the whole model.

    `reason` is the arithmetic; `remedies` are remedies that help, as options. `stage` is the stage of the engine's
    start in which it stops or fails: conversion, configuration, construction, loading, KV planning or serving. It is
    None for a choice that the engine does not offer, or if the stage is not known. `is_first_stop` marks the breach
    that stops the engine, which is the first in a plan; the others would follow. `engine_says` is the text that the
    engine prints. It is None if the engine prints nothing, if its text is not known, or if it has stopped at another
    rule. `consequence` says what happens, and tells these cases of None apart.
    """

    rule: str
    module: Module | None
    reason: str
    stage: StartStage | None
    is_first_stop: bool
    engine_says: str | None
    consequence: str
    remedies: tuple[str, ...]

    def words(self, engine: str) -> str:
        """What the engine does, in its own words where they are known; `engine` is its title."""
        said = f"{engine} says: {' '.join(self.engine_says.split())}" if self.engine_says else self.consequence
        return f"first stop, in {self.stage}: {said}" if self.is_first_stop and self.stage else said

    @property
    def unknown(self) -> bool:
        """Whether the outcome is unknown, rather than a failure."""
        return self.consequence == NOT_VERIFIED

    def __str__(self) -> str:
        return f"{self.module}: {self.reason}" if self.module not in (None, Module.DEPLOYMENT) else self.reason

    @classmethod
    def of(cls, breach: Breach, remedies: tuple[str, ...] = ()) -> "PlanBreach":
        """Return the document of a breach of an engine's rule, with the remedies that help."""
        return cls(
            rule=breach.rule,
            module=breach.module,
            reason=breach.reason,
            stage=breach.stage,
            is_first_stop=breach.stops,
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
    """The placement of a role. Shapes are in elements; bytes are of weights and scales on the heaviest rank.

    `block` is the rows and columns that share one scale, None without scales.
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
    """Bytes per rank, exactly those of the tensors in its files; target and draft (MTP) separately.

    The `other` bytes (constants, the draft's own embedding and head) are in no module's row. The `other`, `replicated`
    and `padding` bytes are included in the bytes per rank.
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


_NAMES_LONGEST = {
    "--gpu-memory-utilization": "without a shorter --max-model-len vLLM stops, and names the longest that fits"
}
"""What an engine does if the context does not fit, by its option for the share of memory."""


class PlanCache(Document):
    """KV cache by the engine's own accounting, on each rank; without a draft model, and with the engine's defaults.

    `option` sets the `share` of memory that weights and cache may take; `share` is the engine's default. `room` is
    the likely number of bytes for the cache, between `room_least` and `room_most`: what an engine holds beside
    weights and cache is only measured, in published logs. A session has `session` tokens, those asked for or the
    model's longest context (`longest_session`), and needs `session_bytes` of room.

    `fits` says whether such a session fits: None if that depends on where in its bounds the room is.
    `certain_session` is the longest session that fits for certain, and `share_needed` a share in which the session
    fits; None if it fits already, or in no share. `share_least` is a share in which a session of 32,768 tokens fits,
    None if it fits in none. `never_fits`: no share leaves room for a single token.

    `tokens` is the number that the engine prints, and `sessions` how many sessions it holds at once, for each of
    `groups` attention groups; 0 if the share leaves no room, so that the engine stops. Both are None if the bounds
    of the room change the tokens by more than 15 %.
    """

    option: str
    share: float
    room: int
    room_least: int
    room_most: int
    session: int
    longest_session: int | None
    session_bytes: int
    fits: bool | None
    certain_session: int
    share_needed: float | None
    share_least: float | None
    never_fits: bool
    groups: int
    tokens: int | None
    sessions: int | None

    @property
    def all_sessions(self) -> int | None:
        """Sessions that the whole deployment holds at once."""
        return None if self.sessions is None else self.sessions * self.groups

    @property
    def words(self) -> tuple[str, str]:
        """Two sentences: the room and its tokens, and whether the session fits."""
        return self._room_in_words, self._session_in_words

    @property
    def _room_in_words(self) -> str:
        default = f"the default {self.option} {self.share:g}"
        if self.room_most <= 0:
            return f"{default} leaves no room for KV cache beside the weights"
        bounds = f"{gib(max(0, self.room_least))} to {gib(self.room_most)}"
        tokens = "how many tokens that holds is not certain enough to say"
        if self.tokens is not None:
            each = " in each attention group" if self.groups > 1 else ""
            tokens = f"about {self.tokens:,} tokens{each}"
        return f"{bounds} for KV cache at {default}: {tokens}"

    @property
    def _session_in_words(self) -> str:
        context = f"a context of {self.session:,} tokens"
        if self.longest_session is not None and self.session > self.longest_session:
            return f"{context} does not fit: the model's longest is {self.longest_session:,}"
        if self.fits and self.sessions is not None:
            several = f" in each of {self.groups} attention groups, {self.all_sessions:,} in all"
            return f"{context} fits: {counted(self.sessions, 'session')} at once{several if self.groups > 1 else ''}"
        if self.fits:
            return f"{context} fits; it takes {gib(self.session_bytes)}"
        verdict = "does not fit" if self.fits is False else "may not fit"
        ways = []
        if self.certain_session:
            ways.append(f"up to {self.certain_session:,} tokens fit for certain")
        if self.share_needed is not None:
            ways.append(f"{self.option} {self.share_needed:g} makes room")
        if not ways and self.option in _NAMES_LONGEST:
            ways.append(_NAMES_LONGEST[self.option])
        advice = f": {', or '.join(ways)}" if ways else ""
        return f"{context} {verdict}; it takes {gib(self.session_bytes)} of room{advice}"


class PlanMemory(Document):
    """Whether the weights fit on the named GPU, in bytes.

    `kv_cache` is None if the weights do not fit, or if the engine's KV cache is not verified for the model and GPU.
    """

    gpu: str
    capacity: int
    weights: int
    left: int
    fits: bool
    kv_cache: PlanCache | None

    @property
    def serves(self) -> bool:
        """Whether the weights fit, with some KV cache beside them."""
        return self.fits and not (self.kv_cache and self.kv_cache.never_fits)


class PlanHost(Document):
    """What the fullest node holds on its disk and in its host memory, in bytes.

    The engine reads `reads`: shards, or the checkpoint (`checkpoint_bytes`, which `reshard` reads). `disk_bytes`
    are the files that the node reads, those under several names once. They pass through the page cache, which the
    kernel drops where memory is short. `window_bytes` are the tensors that loaders map at once by the code in `source`:
    with less free memory, pages are read again. `pinned_bytes` stay for as long as the engine runs, and `pinned`
    says what they are (None: nothing). Beside these are the processes' own memory and CUDA's, which are not
    counted.
    """

    nodes: int
    reads: str
    disk_bytes: int
    checkpoint_bytes: int
    window_bytes: int
    pinned_bytes: int
    pinned: str | None
    source: str

    @property
    def words(self) -> str:
        """The numbers in one sentence."""
        each = "each node" if self.nodes > 1 else "the node"
        pinned = f"; {gib(self.pinned_bytes)} of host memory stay pinned: {self.pinned}" if self.pinned else ""
        return (
            f"{each} has {size(self.disk_bytes)} of {self.reads} on its disk, and maps up to {gib(self.window_bytes)} "
            f"of it into memory at once while it loads{pinned}"
        )


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


class PlanWay(Document):
    """A way to serve: what the engine loads, how that is made, and how the engine starts.

    `node_bytes` are the bytes that the fullest node reads from its disk at each start: all files of a checkpoint; of
    shards those of the target model, and once what all ranks share. `prepare` is the command that writes what is
    loaded; None if nothing has to be written.
    """

    serves: Literal["checkpoint", "shards", "node folders"]
    node_bytes: int
    prepare: str | None
    launch: PlanLaunch


class PlanChange(Document):
    """A difference from the engine's defaults, which the launch commands contain.

    `settings` are the variables (`NAME=value`) and options that it takes; empty if the engine does it unasked.
    """

    subject: str
    settings: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}"

    @classmethod
    def of(cls, change: Change) -> "PlanChange":
        """Return the document of a change."""
        return cls(subject=change.subject, settings=change.settings, reason=change.reason)


class PlanLoss(Document):
    """A part of the checkpoint that the shards lack; `bytes` are those of its tensors."""

    part: str
    bytes: int
    reason: str

    def __str__(self) -> str:
        return f"without {self.part}: {self.reason}"

    @classmethod
    def of(cls, loss: Loss) -> "PlanLoss":
        """Return the document of a loss."""
        return cls(part=loss.part, bytes=loss.nbytes, reason=loss.reason)


class PlanAlternative(Document):
    """A layout near the requested one that runs."""

    options: str
    gpus: int
    bytes_per_rank: int
    changes: tuple[PlanChange, ...]


NO_LAUNCH = PlanLaunch(
    environment={}, commands=(), files={}, draft_options="", launcher=None, program=None, node_options=(),
    needs_plugin=False,
)  # fmt: skip
"""The launch of a plan that does not run."""


class Plan(Document):
    """The whole plan.

    `context` is the number of tokens of a session, None if none was asked for. `verdict` says whether it runs;
    `breaches` are the rules that break or cannot be verified. `changes` are the differences from the engine's defaults,
    `losses` the parts of the checkpoint that the shards lack, `notes` further facts, such as padding. `checks` are the
    divisions that were checked, `assumptions` facts that the plan could not check. `ways` are the ways to serve: the
    checkpoint as it is, and then the shards, which `reshard` writes into the folder `out`. `unwritten` is the reason if
    no shards can be written. `alternatives` are nearby layouts that run.
    """

    kind: Literal["plan"]
    schema_version: Literal[4]
    tool_version: str
    source: Origin
    request: Request
    context: Annotated[int, Field(ge=1)] | None
    engine_version: str
    deployment: PlanDeployment
    verdict: Verdict
    breaches: tuple[PlanBreach, ...]
    checks: tuple[PlanCheck, ...]
    changes: tuple[PlanChange, ...]
    losses: tuple[PlanLoss, ...]
    notes: tuple[str, ...]
    assumptions: tuple[str, ...]
    modules: tuple[PlanModule, ...]
    totals: PlanTotals | None
    memory: PlanMemory | None
    host: PlanHost | None
    shared_expert_addition: str
    ways: tuple[PlanWay, ...]
    layout: str | None
    unwritten: str | None
    out: str | None
    alternatives: tuple[PlanAlternative, ...]

    _is_early: bool = PrivateAttr(default=False)
    """Whether it was read from an earlier schema."""

    @property
    def feasible(self) -> bool:
        """Whether no rule breaks, so that shards can be written if the engine has files."""
        return not self.breaches

    @property
    def way(self) -> PlanWay | None:
        """The last way to serve: shards, if they can be written. None if the plan does not run."""
        return self.ways[-1] if self.ways else None

    @property
    def reshard(self) -> str | None:
        """The command that writes the shards; None if there are none."""
        return self.way.prepare if self.way else None

    @property
    def launch(self) -> PlanLaunch:
        """The launch of the last way to serve; empty if the plan does not run."""
        return self.way.launch if self.way else NO_LAUNCH

    @property
    def headline(self) -> str:
        """The verdict in one sentence: with the number of changes, the losses, or what is not verified."""
        if self.verdict is Verdict.UNVERIFIED:
            why = next((str(breach) for breach in self.breaches), "no engine was run with such folders")
            return f"Not verified: {why}"
        if not self.verdict.is_good:
            return "Does not run"
        changes = f" with {counted(len(self.changes), 'change')} from the defaults" if self.changes else ""
        lost = ", ".join(map(str, self.losses)) if self.layout else ""
        return f"Runs{changes}{', ' if changes and lost else ' ' if lost else ''}{lost}"

    def in_short(self) -> str:
        """The layout, the verdict, and the bytes per rank or the number of broken rules."""
        per_rank = self.totals and gib(self.totals.target_bytes_per_rank_max)
        told = f"{per_rank} per GPU" if self.feasible and per_rank else counted(len(self.breaches), "broken rule")
        layout = f"TP {self.deployment.tp} on {self.request.engine} {self.deployment.version}"
        return f"{layout} {self.verdict}: {told}, {self.source.label}"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the rules that break, and where the modules go."""
        breaches = [(breach.rule, breach.module or "", breach.reason) for breach in self.breaches]
        broken = html_table("Rules that break", ("rule", "module", "reason"), breaches) if breaches else ""
        rows = [_row(*key, list(roles)) for key, roles in groupby(self.modules, lambda row: (row.part_of, row.module))]
        return broken + html_table(self.in_short(), ("part of", "module", "placement", "bytes per GPU"), rows)


def _row(part_of: str, module: Module, roles: list[PlanModule]) -> tuple[str, ...]:
    """A module in a row: the placements of its roles, and their bytes."""
    placements = dict.fromkeys(role.placement for role in roles)
    return part_of, module, "; ".join(placements), gib(sum(role.bytes_per_rank for role in roles))
