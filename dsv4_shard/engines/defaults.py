"""What an engine does or says unless its table has a function of its own."""

from dsv4_shard.checkpoint import NVFP4, TensorGroup
from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.launch import Launch
from dsv4_shard.engines.placement import Placement, RankTensor, rank_tensor
from dsv4_shard.engines.remarks import Change, Loss
from dsv4_shard.engines.stock_loaders import StockLoader
from dsv4_shard.models import TARGET
from dsv4_shard.text.units import gib


def no_notes(context: Context) -> tuple[str, ...]:
    """No notes."""
    return ()


def no_changes(context: Context) -> tuple[Change, ...]:
    """No changes."""
    return ()


def as_the_target(context: Context) -> Context:
    """Return `context`: the draft model is built as the target."""
    return context


def no_losses(context: Context) -> tuple[Loss, ...]:
    """No losses."""
    return ()


def loads_well(context: Context) -> str | None:
    """None: the engine serves the checkpoint itself."""
    return None


def as_stored(group: TensorGroup, placement: Placement, context: Context) -> RankTensor | None:
    """Dtype and shape as in the checkpoint."""
    return rank_tensor(group, placement, context)


def no_launch(context: Context, model_path: str, sharded: bool) -> Launch:
    """No commands: none are known."""
    return Launch({})


def no_plans(context: Context, model_path: str) -> Launch | None:
    """None: no plugin of this package loads a checkpoint by a plan."""
    return None


def no_stock_loaders(context: Context, sharded: bool) -> tuple[StockLoader, ...]:
    """None beside the engine's usual loader."""
    return ()


def assume_verified(context: Context) -> str:
    """The assumption behind bytes that are not verified: the placements of layouts that are."""
    deployment = context.deployment
    if context.inventory.routed.name == NVFP4:
        return (
            "weights are the parameters that the engine's classes declare for NVFP4 experts; a load of them was not "
            "compared"
        )
    return f"weights are placed as in the layouts that are verified, whatever version {deployment.version} does"


def assume_bound(context: Context) -> str:
    """The assumption behind a bound: experts divided, all else whole; and the least that any cut leaves."""
    nbytes = sum(group.nbytes * count for group, count in context.inventory.groups.items() if group.stage in TARGET)
    return (
        "weights are at most these, with routed experts divided over the ranks and every other tensor whole on each; "
        f"at least {gib(nbytes // context.deployment.world)}, if every tensor is divided"
    )


def not_known_addition(context: Context) -> str:
    """Describe how the shared expert's output joins the sum: not known."""
    return "How the shared expert's output joins the sum is not known for this engine."
