"""`Plan`: the JSON document."""

from itertools import groupby
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr

from dsv4_shard.catalog.options import NO_DRAFT
from dsv4_shard.checkpoint import Origin
from dsv4_shard.engines import Request, Verdict
from dsv4_shard.models import Module
from dsv4_shard.planning.launch_documents import NO_LAUNCH, PlanLaunch, PlanWay
from dsv4_shard.planning.layout_documents import PlanDeployment, PlanModule
from dsv4_shard.planning.memory_documents import PlanHost, PlanMemory, PlanStage, PlanTotals
from dsv4_shard.planning.verdict_documents import PlanBreach, PlanChange, PlanCheck, PlanLoss
from dsv4_shard.text.document import Document, html_table
from dsv4_shard.text.units import counted, gib

SCHEMA_VERSION: Literal[5] = 5


class PlanAlternative(Document):
    """A layout near the requested one that runs."""

    options: str
    gpus: int
    bytes_per_rank: int
    changes: tuple[PlanChange, ...]


class Plan(Document):
    """The whole plan.

    `context` is the number of tokens of a session, None if none was asked for. `verdict` says whether it runs;
    `breaches` are the rules that break or cannot be verified. `changes` are the differences from the engine's defaults,
    `losses` the parts of the checkpoint that the shards lack, `notes` further facts, such as padding. `checks` are the
    divisions that were checked, `assumptions` facts that the plan could not check. `ways` are the ways to serve: the
    checkpoint as it is, and then the shards, which `reshard` writes into the folder `out`. `unwritten` is the reason if
    no shards can be written. `alternatives` are nearby layouts that run. `stages` are the pipeline stages,
    none without pipeline parallelism.
    """

    kind: Literal["plan"]
    schema_version: Literal[5]
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
    stages: tuple[PlanStage, ...]

    _is_early: bool = PrivateAttr(default=False)
    """Whether it was read from an earlier schema."""

    @property
    def feasible(self) -> bool:
        """Whether no rule breaks, so that shards can be written if the engine has files."""
        return not self.breaches

    @property
    def serves_draft(self) -> bool:
        """Whether commands, memory and KV cache include the draft model."""
        return self.request.draft not in (None, NO_DRAFT)

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
        """The verdict in one line: with the number of changes, and the parts that the shards lack."""
        if self.verdict is Verdict.UNVERIFIED:
            return "Not verified"
        if not self.verdict.is_good:
            return "Does not run"
        changes = f" with {counted(len(self.changes), 'change')} from the defaults" if self.changes else ""
        lost = f"; the shards lack {', '.join(loss.part for loss in self._lost)}" if self._lost else ""
        return f"Runs{changes}{lost}"

    @property
    def reasons(self) -> tuple[str, ...]:
        """What the headline rests on: what is not verified, or why the shards lack a part."""
        if self.verdict is Verdict.UNVERIFIED:
            return (next((str(breach) for breach in self.breaches), "no engine was run with such folders"),)
        return tuple(f"{loss.part}: {loss.reason}" for loss in self._lost) if self.verdict.is_good else ()

    @property
    def _lost(self) -> tuple[PlanLoss, ...]:
        """The losses, if shards can be written."""
        return self.losses if self.layout else ()

    def in_short(self) -> str:
        """The layout, the verdict, and the bytes per rank or the number of broken rules."""
        per_rank = self.totals and gib(self.totals.target_bytes_per_rank_max)
        told = f"{per_rank} per GPU" if self.feasible and per_rank else counted(len(self.breaches), "broken rule")
        stages = f" PP {self.deployment.pp}" if self.deployment.pp > 1 else ""
        layout = f"TP {self.deployment.tp}{stages} on {self.request.engine} {self.deployment.version}"
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
