"""`Engine`: rules and functions of one engine; `Launch`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

from dsv4_shard.checkpoint.inventory import Inventory, TensorGroup
from dsv4_shard.engines import bytes_sent, kv_cache
from dsv4_shard.engines.deployment import Context, Deployment, Request
from dsv4_shard.engines.layout import Layout
from dsv4_shard.engines.parallelism import Pairs, ep_option, every_divisor
from dsv4_shard.engines.placement import Placement, RankTensor, Replicate, rank_tensor
from dsv4_shard.engines.rules import BREAKS_TOO, NOT_VERIFIED, Breach, Requires, Rule
from dsv4_shard.models.family import Family
from dsv4_shard.models.roles import TARGET, Module, Role, Stage

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


def no_notes(context: Context) -> tuple[str, ...]:
    """Nothing more to say."""
    return ()


def as_stored(group: TensorGroup, placement: Placement, context: Context) -> RankTensor | None:
    """As the checkpoint stores it."""
    return rank_tensor(group, placement, context)


def no_launch(context: Context, model_path: str, sharded: bool) -> Launch:
    """No commands are known."""
    return Launch({})


def not_known_addition(context: Context) -> str:
    """How the shared expert's output joins the sum."""
    return "How the shared expert's output joins the sum is not known of this engine."


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine as one table: its rules, and functions that turn requests and roles into what it does with them.

    A new engine is one such table in `engines/registry.py`; only the first five fields have no default.

    Names: `name` is what `--engine` takes, `title` and `short_title` (default: `title`) what people read, `version`
    that of its rules. `runners`, `versions` and `a2a` are the names that its options accept; the catalog lists them.
    `families` are those whose models the table is for, `variants` the tables for others.

    Rules: `candidates` turns a request into deployments, the engine's own choices first. `rules` are asked in the order
    in which the engine would meet them. `others` are rules of other versions, by whose messages logs are explained; no
    plan asks them.

    Tensors: `place` gives a role's placement, `store` how a rank stores one tensor of a group (None: no rank gets it).
    `layout` are the files that it reads, None where this tool writes none. `files_for_any_gpu` says that these are the
    same on each GPU. `draft_in_model` says that the engine loads the draft model's blocks with the target model.

    Parallelism: `dp_multiplies` says that each DP replica has TP GPUs of its own; else DP divides the GPUs of TP.
    `parallelism` gives the pairs of DP and EP that it offers on a number of GPUs, and `search_requests` the requests
    that a search tries for one that names the GPUs as TP (default: each pair with each runner).

    Costs: `bytes_sent` is what all GPUs send for a token in a layer, `kv_bytes_per_token` what a token of context costs
    a rank; both None where that is not known.

    Running: `serves` says that it runs a model, and does not only lay out files. `launch` is how to start it on a path,
    which is that of shards or of the checkpoint (its last argument), `addition` how the shared expert's output joins
    the sum, and `notes` what else a user of the deployment should know.

    Logs: a log is the engine's where a line has `log_word`. `logs_count_replicas` says that `--dp-size` in it counts
    replicas of the whole model, unless attention DP is on.
    """

    name: str
    title: str
    version: str
    candidates: Callable[[Inventory, Request], Iterator[Deployment]]
    rules: tuple[Rule, ...]
    place: Callable[[Role, Context], Placement] = lambda role, context: Replicate()
    store: Callable[[TensorGroup, Placement, Context], RankTensor | None] = as_stored
    launch: Callable[[Context, str, bool], Launch] = no_launch
    addition: Callable[[Context], str] = not_known_addition
    notes: Callable[[Context], tuple[str, ...]] = no_notes
    layout: Layout | None = None
    others: tuple[Rule, ...] = ()
    families: tuple[Family, ...] = ()
    variants: "tuple[Engine, ...]" = ()
    short_title: str = ""
    runners: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    a2a: tuple[str, ...] = ()
    serves: bool = True
    draft_in_model: bool = False
    files_for_any_gpu: bool = False
    dp_multiplies: bool = False
    parallelism: Callable[[int], Pairs] = every_divisor
    search_requests: Callable[[Request], Iterator[Request]] | None = None
    bytes_sent: Callable[[Context], int | None] = bytes_sent.not_known
    kv_bytes_per_token: Callable[[Context], Fraction | None] = kv_cache.not_known
    log_word: str = ""
    logs_count_replicas: bool = False

    def table_for(self, family: Family) -> "Engine | None":
        """The table for models of `family`; None where the engine has none."""
        return next((table for table in (self, *self.variants) if family in table.families), None)

    def gpus(self, request: Request) -> int:
        """GPUs of a request."""
        return request.tp * (request.dp if self.dp_multiplies else 1)

    def tp_on(self, world: int, dp: int) -> int:
        """The TP that a request names for `world` GPUs with `dp`."""
        return world // dp if self.dp_multiplies else world

    @property
    def by_node(self) -> bool:
        """Whether the files are those of nodes, so that their number decides what is written."""
        return self.layout is not None and self.layout.by_node

    def requests(self, asked: Request) -> Iterator[Request]:
        """Every request that a search tries on `asked.tp` GPUs; the engine's own choice of runner comes first."""
        asked = replace(asked, engine=self.name)
        if self.search_requests is not None:
            yield from self.search_requests(asked)
            return
        for dp, ep in self.parallelism(asked.tp):
            for runner in (None, *self.runners):
                yield replace(asked, tp=self.tp_on(asked.tp, dp), dp=dp, ep=ep_option(ep), runner=runner)

    def loaded_stages(self) -> tuple[Stage, ...]:
        """The stages of a checkpoint that one model in memory holds."""
        return tuple(Stage) if self.draft_in_model else TARGET

    def rank_tensor_of(self, group: TensorGroup, context: Context) -> RankTensor | None:
        """How a rank stores one tensor of `group`, or None where no rank gets it."""
        return self.store(group, self.place(group.role, context), context)

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
    """`engine` for a family that it is not verified for: it has one rule, which always breaks."""
    known = Requires(
        UNKNOWN_FAMILY, Module.DEPLOYMENT, lambda _: False,
        f"what {engine.title} {engine.version} does with {family.title} was never held against its own classes",
        consequence=NOT_VERIFIED, fatal=True,
        remedies=("--engine node or reference, where they know the family",),
    )  # fmt: skip
    return replace(engine, rules=(known,), place=lambda role, context: Replicate(), notes=no_notes, layout=None)
