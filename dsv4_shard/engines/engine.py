"""`Engine`: the rules and functions of one engine."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from dsv4_shard.catalog.gpus import Gpu
from dsv4_shard.checkpoint import Inventory, TensorGroup
from dsv4_shard.engines import bytes_sent
from dsv4_shard.engines.defaults import (
    as_stored,
    as_the_target,
    assume_verified,
    loads_well,
    no_changes,
    no_launch,
    no_losses,
    no_notes,
    no_plans,
    no_stock_loaders,
    not_known_addition,
)
from dsv4_shard.engines.deployment import ANY_ENGINE, Context, Deployment, Request
from dsv4_shard.engines.host_memory import HostRules
from dsv4_shard.engines.kv_cache import CacheOf, MemoryShare, not_known
from dsv4_shard.engines.launch import Launch
from dsv4_shard.engines.layout import Layout
from dsv4_shard.engines.parallelism import Pairs, ep_option, every_divisor
from dsv4_shard.engines.placement import Expert, Placement, RankTensor, Replicate
from dsv4_shard.engines.remarks import Change, Loss
from dsv4_shard.engines.rules import Breach, Rule
from dsv4_shard.engines.stock_loaders import StockLoader
from dsv4_shard.models import TARGET, Family, Role, Stage


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine as one table: its rules, and functions that map requests and roles to its behaviour.

    A new engine is one such table in `engines/registry.py`; only the first five fields have no default.

    Attributes:
        name: Value of `--engine`.
        title: Name in printed text.
        version: Version that the rules are for.
        candidates: Returns the deployments for a request, the engine's own choices first.
        rules: Rules in the order in which the engine checks them: by stage, then in the order of its code.
        place: Returns the placement of a role.
        store: Returns how a rank stores one tensor of a group; None if no rank stores it.
        launch: Returns how to start the engine on a path: that of shards if its last argument is true, else that of
            the checkpoint.
        addition: Describes how the shared expert's output joins the sum.
        notes: Returns further notes for users of a deployment.
        changes: Returns the differences from the engine's defaults, beside those of shared experts and runner.
        drafted: Returns the context in which the engine builds the draft model: the same, or one with another format of
            experts and its runner.
        losses: Returns the parts of the checkpoint that the engine's rank files lack.
        misloads: Returns why the engine cannot serve the checkpoint itself; None if it can.
        layout: The files that the engine reads; None if this tool cannot write them.
        launch_by_plan: Returns how to start the engine on the checkpoint's path with this package's plugin, which makes
            a rank's parameters by the plan in `launch.PLAN_FILE`; None where it cannot.
        stock_loaders: Returns the engine's own other loaders, of shards if the last argument is true, else of the
            checkpoint.
        others: Rules of other versions and of later checks. They only explain messages in logs; no plan checks them.
        families: Model families that the table is for.
        variants: Tables for other families.
        short_title: Name in narrow columns (default: `title`).
        runners, versions, a2a: Names that these options accept; the catalog lists them.
        failing_versions: Those of `versions` that load a model and then fail; a rule says why.
        other_runners: Further names of runners, which no search tries, since they are not verified.
        serves: Whether it runs a model, rather than only defining a file layout.
        draft_in_model: Whether the engine loads the draft model's blocks together with the target model.
        files_for_any_gpu: Whether the files are the same for every GPU.
        dp_multiplies: Whether each DP replica has TP GPUs of its own; if not, DP divides the GPUs of TP.
        parallelism: Returns the pairs of DP and EP that the engine offers on a number of GPUs.
        search_requests: Returns the requests that a search tries for a request whose TP is the number of GPUs
            (default: each pair with each runner).
        bytes_sent: Bytes that all GPUs together send per token and layer; None if not known.
        kv_cache: The KV cache of a deployment; None if not known.
        not_for: Makers whose GPUs the engine has no code for.
        memory_share: The share of a GPU's memory that weights and KV cache may take; None if the engine has none.
        host: What the engine holds in host memory; None if not known.
        assumes: Says what bytes per rank rest on where the outcome is not verified.
        is_bound: Whether bytes per rank are only an upper bound.
        on_every_stage: Roles outside of the layers that every pipeline stage holds.
        log_word: Word in a log line that identifies the engine.
        logs_count_replicas: Whether `--dp-size` in a log counts replicas of the whole model, unless attention DP is on.
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
    changes: Callable[[Context], tuple[Change, ...]] = no_changes
    drafted: Callable[[Context], Context] = as_the_target
    losses: Callable[[Context], tuple[Loss, ...]] = no_losses
    misloads: Callable[[Context], str | None] = loads_well
    layout: Layout | None = None
    launch_by_plan: Callable[[Context, str], Launch | None] = no_plans
    stock_loaders: Callable[[Context, bool], tuple[StockLoader, ...]] = no_stock_loaders
    others: tuple[Rule, ...] = ()
    families: tuple[Family, ...] = ()
    variants: "tuple[Engine, ...]" = ()
    short_title: str = ""
    runners: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    failing_versions: tuple[str, ...] = ()
    a2a: tuple[str, ...] = ()
    other_runners: tuple[str, ...] = ()
    serves: bool = True
    draft_in_model: bool = False
    files_for_any_gpu: bool = False
    dp_multiplies: bool = False
    parallelism: Callable[[int], Pairs] = every_divisor
    search_requests: Callable[[Request], Iterator[Request]] | None = None
    bytes_sent: Callable[[Context], int | None] = bytes_sent.not_known
    kv_cache: CacheOf = not_known
    not_for: tuple[str, ...] = ()
    memory_share: Callable[[Deployment], MemoryShare] | None = None
    host: HostRules | None = None
    assumes: Callable[[Context], str] = assume_verified
    is_bound: bool = False
    on_every_stage: frozenset[Role] = frozenset()
    log_word: str = ""
    logs_count_replicas: bool = False

    def table_for(self, family: Family) -> "Engine | None":
        """The table for models of `family`; None if the engine has none."""
        return next((table for table in (self, *self.variants) if family in table.families), None)

    def is_for(self, gpu: Gpu) -> bool:
        """Whether the engine has code for GPUs of this maker."""
        return gpu.maker not in self.not_for

    def gpus(self, request: Request) -> int:
        """Number of GPUs of a request."""
        return request.tp * (request.dp if self.dp_multiplies else 1) * request.pp

    def tp_on(self, world: int, dp: int) -> int:
        """The TP of a request for `world` GPUs with `dp`."""
        return world // dp if self.dp_multiplies else world

    @property
    def by_node(self) -> bool:
        """Whether each set of files is for a node, so that the number of nodes decides what is written."""
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
        """Stages of a checkpoint that the engine loads as one model."""
        return tuple(Stage) if self.draft_in_model else TARGET

    def context_of(self, stage: Stage, context: Context) -> Context:
        """The context in which the engine builds the model that tensors of `stage` belong to."""
        return self.drafted(context) if stage is Stage.MTP else context

    def held(self, group: TensorGroup, context: Context) -> tuple[Placement, RankTensor | None]:
        """The placement of `group`, and how a rank stores one tensor of it; None if no rank stores it.

        A tensor that does not divide is whole: rules refuse that where they are verified.
        """
        context = self.context_of(group.stage, context)
        placement = self.place(group.role, context)
        try:
            return placement, self.store(group, placement, context)
        except ValueError:
            whole = Expert(Replicate()) if isinstance(placement, Expert) else Replicate()
            return whole, self.store(group, whole, context)

    def divides(self, context: Context) -> bool:
        """Whether every tensor divides as the engine places it."""
        try:
            for group in context.inventory.groups:
                own = self.context_of(group.stage, context)
                self.store(group, self.place(group.role, own), own)
        except ValueError:
            return False
        return True

    def is_verified_for(self, deployment: Deployment) -> bool:
        """Whether the engine's own code was run with such layouts where its rules hold: else these are not verified.

        It was not with folders for any engine, with bytes that are only a bound, or on a GPU whose architecture nobody
        had.
        """
        return self.version != ANY_ENGINE and not self.is_bound and deployment.gpu.verified

    def assumption(self, context: Context, *, is_known: bool) -> str | None:
        """What bytes per rank rest on if they are not verified; `is_known`: the rules hold, on a GPU that is."""
        if not is_known or self.is_bound:
            return self.assumes(context)
        gpu = context.deployment.gpu
        return None if gpu.verified else f"weights are those on {gpu.stands_for} (sm_{gpu.sm})"

    def rank_tensor_of(self, group: TensorGroup, context: Context) -> RankTensor | None:
        """How a rank stores one tensor of `group`; None if no rank stores it."""
        return self.held(group, context)[1]

    def breaches(self, context: Context) -> list[Breach]:
        """Return every broken rule: first the one that stops the engine, then the others in the order of its checks.

        The others keep their arithmetic and remedies. They have no quote, and their consequence says that they would
        follow. Those that are not verified are left out if the engine stops anyway.
        """
        found: list[Breach] = []
        for rule in self.rules:
            breach = rule.check(context)
            if breach is not None:
                found.append(breach)
                if rule.fatal:
                    break
        found.sort(key=lambda breach: breach.stage.order if breach.stage else -1)
        stop = next((breach for breach in found if breach.stops), None)
        if stop is not None:
            others = (breach for breach in found if breach is not stop and not breach.unknown)
            found = [stop, *(breach.after_the_stop() for breach in others)]
        return [
            replace(breach, consequence=breach.consequence.format(engine=self.title))
            if "{" in breach.consequence
            else breach
            for breach in found
        ]
