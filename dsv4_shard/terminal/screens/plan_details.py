"""Prints the details of a plan: placement, blocks, bytes per GPU, and the options of the draft model."""

import shlex
from typing import TYPE_CHECKING

from rich.console import Console

from dsv4_shard.engines import Replicate, find_engine
from dsv4_shard.models import Module
from dsv4_shard.planning import BY_PLAN, options_of, shared_grid
from dsv4_shard.terminal.screens.block_picture import show_placed
from dsv4_shard.terminal.shell_commands import to_copy
from dsv4_shard.terminal.tables import Table
from dsv4_shard.terminal.text import heading, item
from dsv4_shard.text.units import gib, size

if TYPE_CHECKING:
    from dsv4_shard.planning import Plan, PlanModule

_WHOLE = str(Replicate())

PLUGIN = "pip install dsv4-shard   # in the engine's environment on every node"
"""What the loader of shards, and of checkpoints by plan, needs."""


def show_details(console: Console, plan: "Plan", more_notes: tuple[str, ...] = ()) -> None:
    """Show what the screen of `plan` leaves out: `more_notes`, and the rest."""
    deployment = plan.deployment
    if more_notes:
        heading(console, "Notes")
    for note in more_notes:
        item(console, note)
    heading(console, "Layout")
    item(
        console,
        f"attention TP {deployment.attention_tp}, MoE TP {deployment.moe_tp}, EP {deployment.ep}, DP {deployment.dp}; "
        f"runner {deployment.runner}; shared experts {deployment.shared}; routed experts in {deployment.experts}",
    )
    if plan.feasible:
        grid = shared_grid(plan)
        if grid is not None:
            show_placed(console, grid)
    if plan.modules:
        heading(console, "Placement")
        table = Table("module", "placement", "held as", "per GPU", right=(3,))
        for module, placement, dtype, nbytes in _placements(plan.modules):
            table.add(module, placement, dtype, size(nbytes))
        table.show(console)
    _show_totals(console, plan)
    if plan.feasible:
        heading(console, "Addition order")
        item(console, plan.shared_expert_addition)
    for way in plan.ways:
        if way.serves == BY_PLAN:
            heading(console, "To load the checkpoint by plan")
            to_copy(
                console, f"dsv4-shard plan {shlex.quote(plan.source.label)} {options_of(plan.request)} -o plan.json"
            )
            item(console, PLUGIN)
            to_copy(console, way.launch.on_every_node[0])
        if way.launch.draft_options:
            heading(console, f"To serve the draft model with the {way.serves}, add")
            to_copy(console, way.launch.draft_options)
        for loader in way.loaders:
            heading(console, f"To load the {way.serves} with {loader.name}, set")
            if loader.package is not None:
                item(console, f"pip install {loader.package}   # in the engine's environment on every node")
            to_copy(console, loader.settings)
            item(console, loader.words)


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
    heading(console, "Bytes per GPU")
    least, most = totals.target_bytes_per_rank_min, totals.target_bytes_per_rank_max
    same = f", the same on each of {totals.ranks} ranks" if totals.ranks > 1 else ""
    item(console, f"weights: {size(most)} ({gib(most)}){same}" if least == most else
         f"weights: {size(least)} to {size(most)}")  # fmt: skip
    for stage in plan.stages:
        item(console, stage.words)
    if totals.draft_bytes_per_rank:
        item(console, f"draft model: {size(totals.draft_bytes_per_rank)} more")
    shared = f"shared experts: {size(totals.shared_experts_bytes_per_rank)}"
    if plan.deployment.shared == "whole" and totals.ranks > 1:
        shared += f", whole on every rank: {size(totals.shared_experts_weight_bytes_per_layer)} of weights per layer"
    item(console, shared)
    if totals.ranks > 1:
        item(console, f"whole on every rank, all modules together: {size(totals.replicated_bytes_per_rank)}")
    if totals.padding_bytes_per_rank:
        item(console, f"zeros for padding: {size(totals.padding_bytes_per_rank)} on average")
    memory = plan.memory
    if memory is not None:
        item(console, f"{memory.gpu}: {gib(memory.capacity)}, as its driver reports it")
        if memory.kv_cache is not None:
            for words in memory.kv_cache.words:
                item(console, words)
        elif memory.fits and find_engine(plan.deployment.engine).serves:
            what = "pipeline stages" if plan.stages else "this engine, model and GPU"
            item(console, f"KV cache: not verified for {what}, so no tokens are given", "dim")
    if plan.host is not None:
        item(console, plan.host.words)
