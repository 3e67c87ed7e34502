"""An engine's table for what it is not verified for: rules that say so, and a bound on its bytes."""

from dataclasses import replace

from dsv4_shard.engines.defaults import as_stored, assume_bound, no_changes, no_losses, no_notes
from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.engine import Engine
from dsv4_shard.engines.placement import Expert, Placement, Replicate, Split
from dsv4_shard.engines.remedies import for_engine
from dsv4_shard.engines.rules import NOT_VERIFIED, Requires, Rule
from dsv4_shard.engines.stages import StartStage
from dsv4_shard.models import Family, Module, Role

UNKNOWN_FAMILY = "family"

UNKNOWN_GPU = "gpu"
"""Names of the rules that break for an unknown family or GPU."""


def unverified_rules(engine: Engine, reason: str) -> tuple[Rule, ...]:
    """Rules for what `engine` is not verified for: what its configuration refuses, then one rule with the reason."""
    known = Requires(
        UNKNOWN_FAMILY, Module.DEPLOYMENT, lambda _: False, reason, consequence=NOT_VERIFIED, fatal=True,
        remedies=(for_engine("node"), for_engine("reference")),
    )  # fmt: skip
    return (*(rule for rule in engine.rules if rule.stage is StartStage.CONFIGURATION), known)


def unknown_to(engine: Engine, family: Family) -> Engine:
    """Return `engine` for a family that it is not verified for. Its bytes per rank are a bound."""
    reason = f"{engine.title} {engine.version}'s own classes were not run with {family.title}"
    return replace(
        engine, rules=unverified_rules(engine, reason),
        place=divided_experts, store=as_stored, notes=no_notes, changes=no_changes, losses=no_losses, layout=None,
        assumes=assume_bound, is_bound=True,
    )  # fmt: skip


def divided_experts(role: Role, context: Context) -> Placement:
    """Routed experts over EP and MoE TP, all other tensors whole."""
    if role.module is not Module.ROUTED:
        return Replicate()
    if context.deployment.moe_tp == 1:
        return Expert(Replicate())
    return Expert(Split(1 if role is Role.ROUTED_DOWN else 0, "moe"))
