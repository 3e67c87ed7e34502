"""`Engine`: rules and functions of one engine; `Launch`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from dsv4_shard.checkpoint.inventory import Inventory, TensorGroup
from dsv4_shard.engines.deployment import Context, Deployment, Request
from dsv4_shard.engines.layout import Layout
from dsv4_shard.engines.placement import Placement, RankTensor, Replicate
from dsv4_shard.engines.rules import BREAKS_TOO, UNCLAIMED, Breach, Requires, Rule
from dsv4_shard.models.family import Family
from dsv4_shard.models.roles import Module, Role

# --- engines -------------------------------------------------------------------------------------------------------


Options = dict[str, str | None]
"""Options of a command by name, with values as a shell takes them; None for those that take none."""


@dataclass(frozen=True, slots=True)
class Command:
    """A program with its options. `program` has the words before them, as in `vllm serve MODEL`."""

    program: str
    options: Options

    def __str__(self) -> str:
        options = (name if value is None else f"{name} {value}" for name, value in self.options.items())
        return " ".join((self.program, *options))


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start the engine: environment, a command for each node, and files (name → text) that commands name.

    `program` and `launcher`, which starts it where it needs one, have the first node's options. `node_options` has for
    each node those in which it differs from the first; they are the launcher's where there is one. No program: nothing
    is started. `draft_options` are added to the commands to use the MTP draft model.
    """

    environment: dict[str, str]
    program: Command | None = None
    launcher: Command | None = None
    node_options: tuple[Options, ...] = ({},)
    files: dict[str, str] = field(default_factory=dict)
    draft_options: str = ""

    @property
    def commands(self) -> tuple[str, ...]:
        """The command of each node."""
        return commands_of(self.launcher, self.program, self.node_options)


NODE_RANK = "--node-rank"
"""What torchrun, SGLang and vLLM alike call the number of a node."""


def node_ranks(nodes: int) -> tuple[Options, ...]:
    """In what nodes differ that only need their number; the first has it among the common options."""
    others: list[Options] = [{NODE_RANK: str(node)} for node in range(1, nodes)]
    return ({}, *others)


def commands_of(
    launcher: Command | None, program: Command | None, node_options: tuple[Options, ...]
) -> tuple[str, ...]:
    """The command of each node; see `Launch`."""
    if program is None:
        return ()
    own = launcher or program
    on_nodes = (replace(own, options={**own.options, **options}) for options in node_options)
    return tuple(f"{command} {program}" if launcher else str(command) for command in on_nodes)


def _no_notes(_: Context) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine as rules, and functions that turn requests and roles into what it does with them.

    `candidates` turns a request into deployments, the engine's own choices first; `place` gives a role's placement;
    `hold` says how a rank holds one tensor of a group; `launch` is how to start it on a path, which is that of shards
    or of the checkpoint (its last argument); `addition` is how the shared expert's output joins the sum;
    `notes` is what else a user of the deployment should know. `others` are rules of other versions, by whose messages
    logs are explained; no plan asks them.
    """

    name: str
    title: str
    version: str
    candidates: Callable[[Inventory, Request], Iterator[Deployment]]
    rules: tuple[Rule, ...]
    place: Callable[[Role, Context], Placement]
    hold: Callable[[TensorGroup, Placement, Context], RankTensor | None]
    launch: Callable[[Context, str, bool], Launch]
    addition: Callable[[Context], str]
    notes: Callable[[Context], tuple[str, ...]] = _no_notes
    layout: Layout | None = None
    others: tuple[Rule, ...] = ()

    def held(self, group: TensorGroup, context: Context) -> RankTensor | None:
        """How a rank holds one tensor of `group`, or None where no rank gets it."""
        return self.hold(group, self.place(group.role, context), context)

    def breaches(self, context: Context) -> list[Breach]:
        """Every rule that breaks, in the order in which the engine would meet them, but first the one where it stops.

        Of the others only the arithmetic is told then, and the ways out: the engine does not come to what it says or
        does there.
        """
        found: list[Breach] = []
        for rule in self.rules:
            breach = rule.check(context)
            if breach is not None:
                found.append(breach)
                if rule.fatal:
                    break
        stop = next((breach for breach in found if breach.stops), None)
        if stop is not None:
            others = (breach for breach in found if breach is not stop)
            found = [stop, *(replace(breach, quote=None, consequence=BREAKS_TOO) for breach in others)]
        return [replace(breach, consequence=breach.consequence.format(engine=self.title)) for breach in found]


UNKNOWN_FAMILY = "family"

UNKNOWN_GPU = "gpu"
"""Rules that break for a family or on a GPU of which nothing is known."""


def unknown_to(engine: Engine, family: Family) -> Engine:
    """`engine` where its classes for a family were never held against it: it has one rule, which always breaks."""
    known = Requires(
        UNKNOWN_FAMILY, Module.DEPLOYMENT, lambda _: False,
        f"what {engine.title} {engine.version} does with {family.title} was never held against its own classes",
        consequence=UNCLAIMED, fatal=True,
        remedies=("--engine node or reference, where they know the family",),
    )  # fmt: skip
    return replace(engine, rules=(known,), place=lambda role, context: Replicate(), notes=_no_notes, layout=None)
