"""Prints a plan: the verdict, then the placement, bytes and launch, or the remedies."""

import shlex
from typing import TYPE_CHECKING

from rich.console import Console

from dsv4_shard.engines import Replicate, find_engine
from dsv4_shard.models import Module
from dsv4_shard.planning import broken_grids, shared_grid
from dsv4_shard.terminal.block_picture import show_broken, show_placed
from dsv4_shard.terminal.tables import Table
from dsv4_shard.terminal.text import heading, item, title, to_copy
from dsv4_shard.text.units import counted, gib, size

if TYPE_CHECKING:
    from dsv4_shard.planning import Plan, PlanModule

_WHOLE = str(Replicate())


def show_plan(console: Console, plan: "Plan", engine: str, plan_file: str | None = None) -> None:
    """Show verdict, placements, bytes and launch. `engine` is the engine's title."""
    deployment = plan.deployment
    title(console, f"{plan.source.label} on {engine} {plan.deployment.version}")
    named = f"{deployment.gpu} " if deployment.gpu else ""
    nodes = f" on {deployment.nodes} nodes" if deployment.nodes > 1 else ""
    a2a = f", all-to-all {deployment.a2a}" if deployment.a2a else ""
    gpus = counted(deployment.world, f"{named}GPU")
    item(
        console,
        f"TP {deployment.tp}, EP {deployment.ep}, DP {deployment.dp}: {gpus}{nodes}; attention TP "
        f"{deployment.attention_tp}, MoE TP {deployment.moe_tp}, runner {deployment.runner}{a2a}",
    )
    for assumption in plan.assumptions:
        item(console, assumption, "dim")
    if plan.feasible:
        _show_feasible(console, plan, plan_file)
    else:
        _show_refusal(console, plan, engine)


def _show_refusal(console: Console, plan: "Plan", engine: str) -> None:
    heading(console, plan.title)
    if plan.unknown and plan.totals is None and plan.host is not None:
        item(console, plan.host.words)
    told: set[str] = set()
    for breach in plan.breaches:
        if str(breach) in told:
            continue
        item(console, str(breach), "red")
        item(console, breach.words(engine), indent=4)
        for remedy in breach.remedies:
            if remedy not in told:
                item(console, f"way out: {remedy}", indent=4)
        told |= {str(breach), *breach.remedies}
    if plan.unknown:
        _show_totals(console, plan)
    broken = () if plan.unknown else broken_grids(plan)
    if broken:
        show_broken(console, next((grid for grid in broken if grid.module is Module.SHARED), broken[0]))
    if plan.alternatives or not plan.unknown:
        heading(console, "Nearest layouts that run" if plan.alternatives else "No layout near it is known to run")
    for alternative in plan.alternatives:
        item(
            console,
            f"{alternative.options}   {counted(alternative.gpus, 'GPU')}, {gib(alternative.bytes_per_rank)} a rank",
        )
        for note in alternative.notes:
            item(console, note, "dim", indent=4)


def _show_feasible(console: Console, plan: "Plan", plan_file: str | None) -> None:
    heading(console, f"{plan.title}, with" if plan.choices else plan.title)
    for choice in plan.choices:
        item(console, choice)
    grid = shared_grid(plan)
    if grid is not None:
        show_placed(console, grid)
    heading(console, "Placement")
    table = Table("module", "placement", "held as", "bytes a rank", right=(3,))
    for module, placement, dtype, nbytes in _placements(plan.modules):
        table.add(module, placement, dtype, size(nbytes))
    table.show(console)
    _show_totals(console, plan)
    heading(console, "Addition order")
    item(console, plan.shared_expert_addition)
    _show_launch(console, plan, plan_file)


def _placements(modules: "tuple[PlanModule, ...]") -> list[tuple[str, str, str, int]]:
    """Rows for the roles of a module with the same placement; the draft model, if placed like a layer, has one row."""
    rows: dict[tuple[Module, str], list[PlanModule]] = {}
    for row in modules:
        if row.part_of == "target":
            rows.setdefault((row.module, row.placement), []).append(row)
    split_modules = {module for module, placement in rows if sum(m is module for m, _ in rows) > 1}
    table = []
    for (module, placement), members in rows.items():
        roles = ", ".join(member.role.rpartition(".")[2] for member in members)
        rest = placement == _WHOLE
        name = f"{module}: {'the rest' if rest else roles}" if module in split_modules else str(module)
        dtypes = ", ".join(dict.fromkeys(member.rank_dtype for member in members))
        table.append((name, placement, dtypes, sum(member.bytes_per_rank for member in members)))
    draft = sum(row.bytes_per_rank for row in modules if row.part_of == "draft")
    return [*table, ("MTP block (draft model)", "as the layers", "", draft)] if draft else table


def _show_totals(console: Console, plan: "Plan") -> None:
    totals = plan.totals
    if totals is None:
        return
    heading(console, "Bytes a rank")
    heaviest = totals.target_bytes_per_rank_max
    item(console, f"weights: {size(heaviest)} ({gib(heaviest)}), the same on each of {totals.ranks} ranks"
          if totals.target_bytes_per_rank_min == heaviest else
          f"weights: {size(totals.target_bytes_per_rank_min)} to {size(heaviest)}")  # fmt: skip
    if totals.draft_bytes_per_rank:
        item(console, f"MTP draft model: {size(totals.draft_bytes_per_rank)} more")
    shared = f"shared experts: {size(totals.shared_experts_bytes_per_rank)}"
    if plan.deployment.shared == "whole" and totals.ranks > 1:
        shared += f", whole on every rank: {size(totals.shared_experts_weight_bytes_per_layer)} of weights a layer"
    item(console, shared)
    if totals.ranks > 1:
        item(console, f"whole on every rank, all modules together: {size(totals.replicated_bytes_per_rank)}")
    if totals.padding_bytes_per_rank:
        item(console, f"zeros for padding: {size(totals.padding_bytes_per_rank)} on average")
    if plan.memory:
        memory = plan.memory
        left = f"{gib(memory.left)} left for KV cache, activations and graphs"
        missing = f"{gib(-memory.left)} too little for the weights"
        item(
            console, f"{memory.gpu}: {gib(memory.capacity)} as its driver counts it, {left if memory.fits else missing}"
        )
        if memory.kv_cache is not None:
            for words in memory.kv_cache.words:
                item(console, words)
        elif memory.fits and find_engine(plan.deployment.engine).serves:
            item(console, "KV cache: not verified for this engine, model and GPU, so no tokens are named", "dim")
    if plan.host is not None:
        item(console, plan.host.words)


def _show_launch(console: Console, plan: "Plan", plan_file: str | None) -> None:
    if plan.reshard and plan.out:
        following = f"dsv4-shard reshard {shlex.quote(plan.source.label)} {shlex.quote(plan.out)} --plan {plan_file}"
        heading(console, "Write the shards")
        to_copy(console, plan.reshard if plan_file is None else following)
    if plan.launch.commands or plan.unwritten:
        heading(console, "Launch")
    if plan.unwritten:
        item(console, f"from the checkpoint; no shards are written for it: {plan.unwritten}")
    for name, content in plan.launch.files.items():
        item(console, f"{name}: {content.strip()}")
    environment = "".join(f"{key}={value} " for key, value in plan.launch.environment.items())
    for node, command in enumerate(plan.launch.commands):
        if len(plan.launch.commands) > 1:
            item(console, f"node {node}:", "dim")
        to_copy(console, environment + command)
    if plan.launch.draft_options:
        item(console, "with the MTP draft model, add:", "dim")
        to_copy(console, plan.launch.draft_options)
