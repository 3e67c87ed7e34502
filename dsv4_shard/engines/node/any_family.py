"""Node folders for a family that no engine is verified for, under EP over all GPUs.

Each node's GPUs have equal blocks of the experts and all other tensors whole; the experts of the layers and of the
draft model are counted separately. How an engine cuts the whole tensors, and its other conditions, are not verified. So
bytes per GPU are a bound, and the plan has no commands.
"""

from collections.abc import Iterator

from dsv4_shard.catalog.options import VERSIONS
from dsv4_shard.checkpoint import Inventory
from dsv4_shard.engines.defaults import assume_bound
from dsv4_shard.engines.deployment import ANY_ENGINE, Context, Deployment, Request, resolve
from dsv4_shard.engines.drafts import NODE_DRAFT_RULES
from dsv4_shard.engines.engine import Engine
from dsv4_shard.engines.node.known_family import EP_RULE, NodeLayout, folders_notes
from dsv4_shard.engines.parallelism import dp_alone
from dsv4_shard.engines.pipeline_rules import NO_PIPELINE_RULE
from dsv4_shard.engines.placement import Expert, Placement, Replicate
from dsv4_shard.engines.remedies import ANY_DP, MORE_DP, leave_out
from dsv4_shard.engines.rules import NOT_VERIFIED, Divides, Requires, Rule, Symptom
from dsv4_shard.engines.shared_rules import (
    EXPERTS,
    EXPERTS_RULE,
    NO_CAST_RULE,
    NODES_RULE,
    SGLANG_OPTIONS_RULE,
)
from dsv4_shard.models import V41, Module, Role, Stage

_RUNNER = "any"


def candidates(inventory: Inventory, request: Request) -> Iterator[Deployment]:
    """Deployments with EP over all GPUs by default, and attention TP over the GPUs that attention DP leaves."""
    yield resolve(
        request, inventory, engine="node", version=ANY_ENGINE, ep=request.ep if request.ep is not None else request.tp,
        runner=request.runner or _RUNNER, shared="whole", shared_parts=1,
    )  # fmt: skip


RULES: tuple[Rule, ...] = (
    EP_RULE,
    Requires(
        "options", Module.ROUTED,
        lambda c: (c.deployment.runner, c.deployment.a2a, c.deployment.shared, c.deployment.version) == (_RUNNER,
        None, "whole", ANY_ENGINE),
        "no engine's rules for this family are known, so there is no runner, all-to-all backend, way of shared "
        "experts or version to choose", consequence=NOT_VERIFIED, fatal=True,
        remedies=(leave_out("runner", "a2a", "shared_experts", "engine_version"),),
    ),
    NO_PIPELINE_RULE,
    SGLANG_OPTIONS_RULE,
    *NODE_DRAFT_RULES,
    NODES_RULE,
    NO_CAST_RULE,
    Divides(
        "attention-dp", Module.DEPLOYMENT, lambda c: c.deployment.tp, "TP", lambda c: c.deployment.dp, "attention DP",
        fatal=True, uneven=Symptom(remedies=(ANY_DP,)),
    ),
    Divides(
        "heads", Module.ATTENTION, lambda c: c.config.num_attention_heads, "num_attention_heads",
        lambda c: c.deployment.attention_tp, "attention TP", uneven=Symptom(remedies=(MORE_DP,)),
    ),
    EXPERTS_RULE,
    Divides(
        "draft-experts", Module.ROUTED, lambda c: c.config.experts_in(Stage.MTP), "experts of the draft model",
        lambda c: c.deployment.ep, "EP", uneven=EXPERTS, when=lambda c: c.inventory.mtp_blocks > 0,
    ),
)  # fmt: skip


def place(role: Role, context: Context) -> Placement:
    """Experts over EP, all other tensors whole."""
    return Expert(Replicate()) if role.module is Module.ROUTED else Replicate()


def addition(context: Context) -> str:
    """Describe how the shared expert's output joins the sum."""
    return "The folders have shared experts whole; where their output joins the sum is the engine's affair."


def notes(context: Context) -> tuple[str, ...]:
    """Notes on the content and limits of a folder, and on what is not verified."""
    title = context.inventory.family.title
    return (
        *folders_notes(context),
        f"no engine was run with {title}: whether it takes this layout, how it cuts what is whole in a "
        "folder, and whether it asks for experts that are on other nodes, must be tried; bytes per GPU are those of "
        "all dense tensors whole, and of its experts",
    )


NODE_ANY = Engine(
    name="node",
    title="node folders",
    version=ANY_ENGINE,
    families=(V41,),
    serves=False,
    versions=VERSIONS["node"],
    files_for_any_gpu=True,
    parallelism=dp_alone,
    candidates=candidates,
    rules=RULES,
    place=place,
    addition=addition,
    notes=notes,
    layout=NodeLayout(),
    assumes=assume_bound,
    is_bound=True,
)
