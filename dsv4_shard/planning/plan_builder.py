"""Checkpoint + request → Plan: the placement of every module, bytes per rank, and the launch.

A plan is a JSON document that a person can read, diff and review, and that `reshard` reads on another machine. It
follows from headers and rules alone, so `check_plan` can make it again and detect an edited or a foreign plan.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dsv4_shard.catalog.options import NO_DRAFT
from dsv4_shard.checkpoint import Checkpoint, Inventory, origin_of, refuse_errors
from dsv4_shard.engines import ASSUMED_GPU, Deployment, Request, Verdict, engine_for, pick_nodes
from dsv4_shard.errors import InfeasiblePlan, LayoutNotVerified
from dsv4_shard.models import NATIVE, TARGET
from dsv4_shard.planning.assumptions import assumptions_of
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.document import SCHEMA_VERSION, Plan, PlanAlternative
from dsv4_shard.planning.draft import draft_notes
from dsv4_shard.planning.host_memory import plan_host
from dsv4_shard.planning.layout_documents import PlanDeployment
from dsv4_shard.planning.module_rows import checked_divisions, module_rows
from dsv4_shard.planning.nearby import nearest
from dsv4_shard.planning.outcome import LayoutOutcome, outcome_of
from dsv4_shard.planning.remedies import with_remedies
from dsv4_shard.planning.request import options_of
from dsv4_shard.planning.stages import plan_stages
from dsv4_shard.planning.verdict_documents import PlanChange, PlanLoss
from dsv4_shard.planning.ways import Shards, ways_of
from dsv4_shard.planning.weights import rank_nbytes
from dsv4_shard.text.shell import shell_word
from dsv4_shard.version import __version__

_ALTERNATIVES = 3

_ALONE = "One rank holds all of it: nothing is added up between ranks."


def make_plan(
    checkpoint: Checkpoint,
    inventory: Inventory,
    request: Request,
    label: str | None = None,
    session: int | None = None,
) -> Plan:
    """Return the plan for `request`, feasible or not.

    `label` is the name of the checkpoint in commands, `session` the tokens of a session that must fit.

    Raises:
        IncompleteCheckpoint: The checkpoint has errors.
        UsageError: The request is invalid.
    """
    refuse_errors(inventory)
    label = checkpoint.source.label if label is None else label
    outcome = outcome_of(inventory, request, session, checkpoint)
    engine, context, deployment = outcome.engine, outcome.context, outcome.deployment
    refusal = engine.layout.refusal(context) if engine.layout and outcome.keeps_rules else None
    shards = _shards_of(outcome, label) if refusal is None else None
    layout = engine.layout.name if engine.layout and shards else None
    is_known = not any(breach.unknown for breach in outcome.breaches)
    return Plan(
        kind="plan",
        schema_version=SCHEMA_VERSION,
        tool_version=__version__,
        source=origin_of(checkpoint, label),
        request=request,
        context=session,
        engine_version=engine.version,
        deployment=PlanDeployment.of(deployment, is_verified=is_known),
        verdict=outcome.verdict,
        breaches=with_remedies(outcome),
        checks=tuple(checked_divisions(engine, context)) if deployment.gpu.verified else (),
        changes=tuple(map(PlanChange.of, outcome.changes)),
        losses=tuple(map(PlanLoss.of, engine.losses(context))) if shards else (),
        notes=(*engine.notes(context), *draft_notes(inventory, request, context)) if outcome.keeps_rules else (),
        unwritten=refusal if engine.layout else f"none of {inventory.family.title} for {engine.title}",
        assumptions=tuple(assumptions_of(outcome, NATIVE if shards else checkpoint.dialect)),
        modules=tuple(module_rows(engine, context, outcome.loads)),
        totals=outcome.totals,
        memory=outcome.memory,
        host=plan_host(checkpoint, context, outcome.stages, shards is not None),
        shared_expert_addition=engine.addition(context) if deployment.world > 1 else _ALONE,
        ways=() if outcome.breaches else tuple(ways_of(checkpoint, outcome, label, shards)),
        layout=layout,
        out=shards.folder if shards else None,
        alternatives=tuple(_alternatives(inventory, request)) if outcome.breaches and is_known else (),
        stages=plan_stages(outcome.stages, context),
    )


def _shards_of(outcome: LayoutOutcome, label: str) -> Shards | None:
    """Return the folder for the shards and the command that writes them; None if nothing can be written."""
    if outcome.engine.layout is None or outcome.breaches:
        return None
    folder = folder_of(outcome.context.inventory, outcome.request, outcome.deployment, label)
    options = options_of(outcome.request)
    return Shards(folder, f"dsv4-shard reshard {shell_word(label)} {shell_word(folder)} {options}")


def folder_of(inventory: Inventory, request: Request, deployment: Deployment, label: str) -> str:
    """Return a folder name that is unique to the layout. It omits the engine's own choices.

    Files for nodes of another size than the assumed GPU's have the GPU's name in place of the number of nodes.
    """
    engine = engine_for(request.engine, inventory.family)
    own = choose(inventory, replace(request, runner=None, shared_experts="auto")).deployment
    usual, own_nodes = (
        pick_nodes(replace(request, nodes=None), deployment.world, gpu) for gpu in (ASSUMED_GPU, deployment.gpu)
    )
    own_ep = next(engine.candidates(inventory, replace(request, ep=None))).ep
    parts = (
        (f"tp{deployment.tp}", True),
        (f"ep{deployment.ep}", deployment.ep != own_ep),
        (f"dp{deployment.dp}", deployment.dp > 1),
        (f"pp{deployment.pp}", deployment.pp > 1),
        (deployment.partition.replace(",", "_"), request.pp_partition is not None),
        ("dphead", deployment.head_group == "attention"),
        (f"red{deployment.redundant_experts}", deployment.redundant_experts),
        (f"map-{deployment.expert_locations[-32:-24]}", deployment.locations),
        ("nodraft", deployment.draft == NO_DRAFT),
        ("draft", engine.by_node and deployment.serves_draft),
        (deployment.a2a, deployment.a2a),
        (deployment.runner, deployment.runner != own.runner),
        (deployment.shared, deployment.shared != own.shared),
        (deployment.experts.lower(), deployment.experts != inventory.routed.name),
        (deployment.gpu.name, engine.by_node and deployment.nodes == own_nodes != usual),
        (f"{deployment.nodes}nodes", engine.by_node and deployment.nodes != own_nodes),
        (f"sm{deployment.gpu.sm}", deployment.gpu.sm != ASSUMED_GPU.sm and not engine.files_for_any_gpu),
        (deployment.version, deployment.version != engine.version),
    )
    return "-".join((Path(label).name, engine.name, *(str(part) for part, told in parts if told)))


def _alternatives(inventory: Inventory, request: Request) -> Iterator[PlanAlternative]:
    for near in nearest(inventory, request, _ALTERNATIVES):
        yield PlanAlternative(
            options=options_of(near.request),
            gpus=near.deployment.world,
            bytes_per_rank=rank_nbytes(inventory, near.deployment, TARGET),
            changes=tuple(map(PlanChange.of, near.changes)),
        )


def refuse_infeasible(plan: Plan) -> None:
    """Refuse a plan that has breaches.

    Raises:
        InfeasiblePlan, LayoutNotVerified: The plan has breaches; the message has the first one.
    """
    if plan.breaches:
        breach = plan.breaches[0]
        ways = [f"`{alternative.options}`" for alternative in plan.alternatives]
        planned = f"dsv4-shard plan {shell_word(plan.source.label)} {options_of(plan.request)}"
        hint = f"These work: {', '.join(ways)}." if ways else f"`{planned}` shows bytes and fit."
        error = LayoutNotVerified if plan.verdict is Verdict.UNVERIFIED else InfeasiblePlan
        raise error(f"{breach} ({breach.consequence})", hint=hint)
