"""Plan → job: the recipe and the small files that a run will write."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from dsv4_shard.catalog.request import Request
from dsv4_shard.checkpoint import Checkpoint, Inventory, Origin, refuse_errors
from dsv4_shard.engines import Context, Engine, Layout, engine_for
from dsv4_shard.errors import BadPlan, NewerSchema, UsageError
from dsv4_shard.limits import PLAN
from dsv4_shard.planning import Plan, choose, decisions, read_plan, refuse_infeasible
from dsv4_shard.sharding.companions import Carried, Companions, carry
from dsv4_shard.sharding.joining import share_name
from dsv4_shard.sharding.manifest import PLAN_NAME, Manifest, Provenance
from dsv4_shard.sharding.recipe import Recipe
from dsv4_shard.sharding.recipe_builder import make_recipe
from dsv4_shard.sharding.statement import (
    MERGE,
    RESHARD,
    ResourceDescriptor,
    Statement,
    inputs_of,
    make_statement,
    statement_name,
)
from dsv4_shard.sources.base import Source
from dsv4_shard.sources.checkpoint_files import CARD_FILE
from dsv4_shard.storage import digest_of, read_regular
from dsv4_shard.version import __version__


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a run will write, known before it starts.

    Attributes:
        layout: Name of the file layout.
        origin: The checkpoint that the files are made from.
        request: The user's request; None for a merge.
        recipe: The weight files and the steps that fill them.
        companions: Name -> content of each small file.
        ranks: The ranks that this run writes.
        world: Number of all ranks.
        identity: Engine, runner and parallelism that the files are made for.
        inputs: What the files are made from, for the statement of provenance.
        of_ranks: Makes the job for other ranks of the same deployment; None for a merge.
        beside: Makes the companions for another plan.json; None for a merge.
        nodes: Number of machines that serve the ranks.
    """

    layout: str
    origin: Origin
    request: Request | None
    recipe: Recipe
    companions: dict[str, bytes]
    ranks: tuple[int, ...]
    world: int
    identity: dict[str, str]
    inputs: tuple[ResourceDescriptor, ...] = ()
    of_ranks: "Callable[[tuple[int, ...]], Job] | None" = None
    beside: Companions | None = None
    nodes: int = 1

    @property
    def is_share(self) -> bool:
        """Whether other runs write the other ranks, and all of them join into one result."""
        return len(self.ranks) < self.world

    @property
    def share(self) -> str:
        """The name of this share; empty if the job covers all ranks."""
        return share_name(self.ranks) if self.is_share else ""

    @property
    def made(self) -> Provenance:
        plan = self.companions.get(PLAN_NAME)
        return Provenance(
            self.layout, self.world, self.identity, self.origin, digest_of(plan) if plan is not None else None
        )

    @property
    def statement_name(self) -> str:
        """The name of the statement of provenance, which is written after the files that it names."""
        return statement_name(self.share)

    def statement(self, sha256: Mapping[str, str], version: str = __version__) -> Statement:
        """The statement of provenance of a run.

        `sha256` has the SHA-256 of each file of the recipe and each companion by name; other names of a file may be
        left out. `version` of the tool wrote the files.
        """
        names = {name: file.name for file in self.recipe.files for name in (file.name, *file.links)}
        names |= {name: name for name in self.companions}
        made = self.made
        if self.request is None:
            asked: dict[str, object] = {"folder": self.origin.label}
        else:
            asked = {"checkpoint": self.origin.label, "ranks": list(self.ranks), "request": asdict(self.request)}
        followed = {"layout": made.layout, "world": made.world, "identity": made.identity}
        followed |= {"planDigest": made.plan_digest} if made.plan_digest is not None else {}
        written = {name: sha256.get(name, sha256[original]) for name, original in names.items()}
        return make_statement(
            MERGE if self.request is None else RESHARD, asked, followed, self.inputs, written, version
        )

    @property
    def small_files(self) -> dict[str, int]:
        """Name -> bytes of each small file, the statement included; its size does not depend on the digests."""
        unknown = dict.fromkeys([*self.companions, *(file.name for file in self.recipe.files)], "0" * 64)
        sizes = {name: len(content) for name, content in self.companions.items()}
        return sizes | {self.statement_name: len(self.statement(unknown).to_bytes())}

    @property
    def nbytes(self) -> int:
        """Bytes of the output without the manifest."""
        return self.recipe.nbytes + sum(self.small_files.values())

    def like(self, there: Manifest, out: Path) -> "Job":
        """This job with the small files that the result `there` in `out` has, if it makes the same decisions.

        Two versions of the tool may word the same plan differently. Their shares still form one result, which keeps the
        plan.json that it has, and the card that follows from it. A result that was begun before the whole release
        travelled gets only what the engine reads.
        """
        held = read_regular(out / PLAN_NAME, PLAN) if (out / PLAN_NAME).is_file() else None
        return self.like_with(there, held)

    def like_with(self, there: Manifest, held: bytes | None) -> "Job":
        """This job with the small files of the result `there`, whose plan.json is `held`: see `like`."""
        if self.beside is None:
            return self
        whole, own = CARD_FILE in there.names, self.companions[PLAN_NAME]
        plan = _plan_of(there, held, own)
        return self if whole and plan == own else replace(self, companions=self.beside.of(plan, whole=whole))

    def as_before(self) -> "Job":
        """This job as it was before the whole release travelled with the weights."""
        if self.beside is None:
            return self
        return replace(self, companions=self.beside.of(self.companions[PLAN_NAME], whole=False))

    @property
    def left_behind(self) -> Mapping[str, str]:
        """Name of each file or folder of the checkpoint that does not travel -> the reason."""
        return self.beside.carried.left_behind if self.beside else {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user about the checkpoint's small files."""
        return self.beside.carried.notes if self.beside else ()

    def nbytes_to_write(self, source: Source, out: Path) -> int:
        """`nbytes` without the files that can be hard links to the checkpoint's own."""
        linked = [file.nbytes for file in self.recipe.files if file.source and source.shares_disk(file.source, out)]
        return self.nbytes - sum(linked)


def _plan_of(there: Manifest, held: bytes | None, own: bytes) -> bytes:
    """The plan.json `held` by a result, if it is sound and makes the same decisions as `own`; else `own`."""
    is_sound = held is not None and held != own and digest_of(held) == there.plan_digest
    return held if held is not None and is_sound and _decide_the_same(held, own) else own


def _decide_the_same(then: bytes, now: bytes) -> bool:
    """Whether two plans put the same bytes in the same places."""
    try:
        return decisions(read_plan(then, PLAN_NAME)) == decisions(read_plan(now, PLAN_NAME))
    except (BadPlan, NewerSchema):
        return False


def deploy(plan: Plan, inventory: Inventory) -> tuple[Engine, Layout, Context]:
    """The engine, layout and context that a plan's files are made with. Raises the errors of `prepare`."""
    refuse_errors(inventory)
    refuse_infeasible(plan)
    request = plan.request
    engine = engine_for(request.engine, inventory.family)
    if engine.layout is None:
        raise UsageError(
            f"dsv4-shard writes no rank files of {inventory.family.title} for {engine.title}",
            hint="Serve the checkpoint itself, as `plan` says, or the folders of --engine node.",
        )
    if plan.unwritten is not None:
        raise UsageError(f"no shards for this: {plan.unwritten}", hint="Serve the checkpoint itself, as `plan` says.")
    return engine, engine.layout, Context(inventory, choose(inventory, request).deployment)


def world_of(plan: Plan, inventory: Inventory) -> int:
    """Number of ranks that a plan's files are for. Raises the errors of `prepare`."""
    _, layout, context = deploy(plan, inventory)
    return context.deployment.readers(layout.by_node)


def prepare(
    checkpoint: Checkpoint,
    inventory: Inventory,
    plan: Plan,
    ranks: tuple[int, ...] | None = None,
    carried: Carried | None = None,
    in_parts: bool | None = None,
) -> Job:
    """Turn a plan into a job for `ranks` (default: all). Reads headers and small files only.

    `carried` has the checkpoint's small files, if they were read before. `in_parts` is that of `make_recipe`; by
    default, large tensors are moved in parts unless the source must read them from beginning to end to check them.

    Raises:
        InfeasiblePlan: The plan breaks a rule.
        IncompleteCheckpoint: The checkpoint has errors.
        UsageError: The engine has no file layout, or a rank does not exist.
    """
    engine, layout, context = deploy(plan, inventory)
    deployment, world = context.deployment, context.deployment.readers(layout.by_node)
    wanted = ranks if ranks is not None else tuple(range(world))
    beyond = [rank for rank in wanted if not 0 <= rank < world]
    if beyond:
        raise UsageError.about("ranks", ..., f"rank {beyond[0]} of {world}; the last one is {world - 1}")
    in_parts = checkpoint.source.witness is None if in_parts is None else in_parts
    recipe = make_recipe(checkpoint, engine, context, wanted, in_parts=in_parts, part_nbytes=plan.request.part_nbytes)
    carried = carried or carry(checkpoint, layout, context)
    folders = {rank: layout.file_name(rank, 0, deployment) for rank in wanted} if layout.by_node else {}
    beside = Companions(carried, checkpoint, layout, context, folders, recipe)
    return Job(layout.name, plan.source, plan.request, recipe, beside.of(plan.to_json().encode()), wanted, world,
               layout.identity(context), inputs_of(checkpoint, plan.source),
               partial(prepare, checkpoint, inventory, plan, carried=carried, in_parts=in_parts), beside,
               deployment.nodes)  # fmt: skip
