"""`Plan` and its parts: the JSON document."""

from itertools import groupby
from typing import Any, Literal

from dsv4_shard.checkpoint.fingerprint import Origin
from dsv4_shard.checkpoint.formats import NVFP4
from dsv4_shard.engines.deployment import ANY_ENGINE
from dsv4_shard.engines.rules import UNCLAIMED, Breach
from dsv4_shard.models.roles import Module
from dsv4_shard.text.document import Document, html_table
from dsv4_shard.text.units import counted, gib

SCHEMA_VERSION: Literal[1] = 1


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
        return self.consequence == UNCLAIMED

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


class PlanLaunch(Document):
    """How to start the engine on this plan, empty where it does not run. `draft_options` are added to the commands to
    use the MTP draft model."""

    environment: dict[str, str]
    commands: tuple[str, ...]
    files: dict[str, str]
    draft_options: str


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
    """

    schema_version: Literal[1]
    tool_version: str
    source: Origin
    request: dict[str, int | str | None]
    engine_version: str
    deployment: dict[str, Any]
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
    alternatives: tuple[PlanAlternative, ...]

    @property
    def unknown(self) -> bool:
        """Whether nothing is known of the layout, so that it is not called unable to run."""
        return any(breach.unknown for breach in self.breaches)

    @property
    def verdict(self) -> str:
        """What is said of the layout: that it "runs", or less."""
        if not self.feasible:
            return "is not known to run" if self.unknown else "does not run"
        served = self.engine_version != ANY_ENGINE and self.deployment["experts"] != NVFP4
        return "runs" if served else "can be written"

    @property
    def title(self) -> str:
        """The verdict as a heading."""
        return self.verdict.removeprefix("is ").capitalize()

    def in_short(self) -> str:
        """Layout, verdict, and what a rank holds, or how many rules break."""
        per_rank = self.totals and gib(self.totals.target_bytes_per_rank_max)
        told = f"{per_rank} per rank" if self.feasible and per_rank else counted(len(self.breaches), "broken rule")
        at = f"TP {self.deployment['tp']} on {self.request['engine']} {self.engine_version}"
        return f"{at} {self.verdict}: {told}, {self.source.label}"

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
