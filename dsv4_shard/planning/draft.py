"""A draft model in another format than its target → its own plan, in a sentence."""

from dataclasses import replace

from dsv4_shard.checkpoint import Inventory, draft_alone
from dsv4_shard.engines import Context, Request, engine_for
from dsv4_shard.models import Module, Stage
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.weights import rank_nbytes
from dsv4_shard.text.units import size


def draft_notes(inventory: Inventory, request: Request, context: Context) -> tuple[str, ...]:
    """Return how the draft differs, what becomes of it, and what it needs alone; empty if it does not differ."""
    difference = inventory.draft_difference
    if difference is None:
        return ()
    return (
        f"the draft is planned separately: {difference}. {_kept(inventory, context)}; {_alone(inventory, request)}",
    )


def _kept(inventory: Inventory, context: Context) -> str:
    """Say whether the files of a deployment hold the draft."""
    engine = engine_for(context.deployment.engine, inventory.family)
    groups = [group for group in inventory.groups if group.stage is Stage.MTP]
    stored = [(group, engine.rank_tensor_of(group, context)) for group in groups]
    if not engine.by_node and all(tensor is None for _, tensor in stored):
        return "It is left out, and the target drafts nothing"
    is_cast = any(
        tensor is not None and tensor.dtype == "F8_E4M3" != group.dtype and group.role.module is Module.ROUTED
        for group, tensor in stored
    )
    return "It is cast as the target" if is_cast else "It stays as it is stored, beside the target"


def _alone(inventory: Inventory, request: Request) -> str:
    """Say what the draft needs alone, under the request's parallelism and with the engine's own choice of runner."""
    if not inventory.is_draft_known:
        return "alone, it is not planned"
    alone = draft_alone(inventory)
    choice = choose(alone, replace(request, runner=None, expert_dtype=None))
    if not choice.feasible:
        return f"alone, it does not run: {choice.breaches[0].reason}"
    return f"alone, it has {size(rank_nbytes(alone, choice.deployment))} per GPU with runner {choice.deployment.runner}"
