"""Prints a plan: the verdict, bytes per GPU, changes from the engine's defaults, and the ways to serve.

It fits a screen: `terminal/screens/plan_details.py` prints what it leaves out.
"""

import shlex
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from dsv4_shard.catalog.gpus import counted_gpus
from dsv4_shard.engines import FIRST_NODE, Verdict
from dsv4_shard.models import Module
from dsv4_shard.planning import BY_PLAN, MEMORY_RULE, broken_grids
from dsv4_shard.terminal.screens.block_picture import show_broken
from dsv4_shard.terminal.screens.plan_details import PLUGIN, show_details
from dsv4_shard.terminal.shell_commands import to_copy
from dsv4_shard.terminal.text import heading, item, named, paragraph, title
from dsv4_shard.text.sanitize import clean
from dsv4_shard.text.units import counted, gib, rounded

if TYPE_CHECKING:
    from dsv4_shard.planning import Plan, PlanCache, PlanWay

SIGNS = {
    Verdict.RUNS: ("✓", "green"),
    Verdict.CHANGED: ("✓", "green"),
    Verdict.FAILS: ("✗", "red"),
    Verdict.UNVERIFIED: ("?", "yellow"),
}
"""Sign and style of each verdict, in every command."""

_NOTES_SHOWN = 2

_DRAFTS = {"none": "no draft", "mtp": "MTP draft", "dspark": "DSpark draft"}
"""Words for `--draft`."""

_GIB = 1 << 30


def show_plan(
    console: Console, plan: "Plan", engine: str, plan_file: str | None = None, *, details: bool = False
) -> None:
    """Show the answer of `plan`. `engine` is the engine's title, `plan_file` the file that the plan was written to."""
    title(console, layout_of(plan, engine))
    sign, style = SIGNS[plan.verdict]
    paragraph(console, f"{sign} {plan.headline}", style=f"bold {style}")
    for reason in plan.reasons:
        item(console, reason, "yellow")
    show_memory(console, plan)
    for assumption in plan.assumptions:
        item(console, assumption, "dim")
    if plan.feasible:
        _show_changes(console, plan)
        _show_ways(console, plan, plan_file)
    else:
        _show_breaches(console, plan, engine)
        _show_alternatives(console, plan)
    if details:
        show_details(console, plan, more_notes=plan.notes[_NOTES_SHOWN:])
    elif plan.feasible:
        _show_more(console, plan, plan_file)
    if plan_file is not None:
        console.print(Text(f"Wrote {clean(plan_file)}."), soft_wrap=True)


def layout_of(plan: "Plan", engine: str) -> str:
    """The checkpoint, the engine, the parallel sizes and the GPUs."""
    deployment = plan.deployment
    parallel = [f"TP {deployment.tp}"]
    parallel += [f"EP {deployment.ep}"] if deployment.ep > 1 else []
    parallel += [f"DP {deployment.dp}"] if deployment.dp > 1 else []
    parallel += [f"PP {deployment.pp}"] if deployment.pp > 1 else []
    parallel += [deployment.a2a] if deployment.a2a else []
    parallel += [_DRAFTS[deployment.draft]] if deployment.draft else []
    nodes = f" on {deployment.nodes} nodes" if deployment.nodes > 1 else ""
    gpus = counted_gpus(deployment.world, deployment.gpu)
    parts = (plan.source.label, f"{engine} {deployment.version}", ", ".join(parallel), gpus + nodes)
    return " · ".join(parts)


def show_memory(console: Console, plan: "Plan") -> None:
    """The weights of a GPU, what is left, and whether a session fits."""
    if plan.host is not None and plan.host.pinned:
        item(console, f"{gib(plan.host.pinned_bytes)} of host memory stay pinned on each node: {plan.host.pinned}")
    totals, memory = plan.totals, plan.memory
    if totals is None:
        return
    if plan.stages:
        counts = ", ".join(map(str, plan.deployment.stage_layers))
        item(console, f"{len(plan.stages)} pipeline stages of {counts} layers; the bytes are those of the fullest")
    own = gib(totals.draft_bytes_per_rank) if totals.draft_bytes_per_rank else ""
    draft = own and f"; draft model {own}"
    if memory is None:
        item(console, f"weights {gib(totals.target_bytes_per_rank_max)} per GPU{draft}")
    else:
        draft += " of the weights" if own and plan.serves_draft else ""
        left = f"{gib(memory.left)} free" if memory.fits else f"{gib(-memory.left)} short"
        item(console, f"weights {memory.weights / _GIB:.1f} of {gib(memory.capacity)} per GPU, {left}{draft}")
        if memory.kv_cache is not None and not memory.kv_cache.stops:
            is_said = _is_said(plan, memory.kv_cache)
            item(console, memory.kv_cache.words[1] if is_said else _cache(memory.kv_cache))


def _is_said(plan: "Plan", cache: "PlanCache") -> bool:
    """Whether a change from the defaults says already that they leave no room for KV cache."""
    return cache.stops_by_default and any(cache.option in setting for one in plan.changes for setting in one.settings)


def _cache(cache: "PlanCache") -> str:
    room, session = cache.words
    if cache.stops_by_default:
        return room
    if cache.tokens is None:
        return session
    tokens = f"KV cache: about {rounded(cache.tokens)} tokens{' in each attention group' if cache.groups > 1 else ''}"
    if cache.fits and cache.all_sessions is not None:
        return f"{tokens}, {counted(cache.all_sessions, 'session')} of {cache.session:,} tokens at once"
    return f"{tokens}; {session}"


def _show_changes(console: Console, plan: "Plan") -> None:
    for change in plan.changes:
        named(console, " ".join(change.settings), str(change))
    for note in plan.notes[:_NOTES_SHOWN]:
        item(console, note)


def _show_ways(console: Console, plan: "Plan", plan_file: str | None) -> None:
    """The ways to serve. What differs between nodes stands above the first command that needs it."""
    console.print()
    if plan.unwritten and plan.ways:
        item(console, f"no shards are written: {plan.unwritten}", "yellow", indent=0)
    is_said = False
    for number, way in enumerate(plan.ways):
        if way.serves == BY_PLAN:
            title(console, f"{way.title(is_first=number == 0)} (--details)")
            continue
        title(console, way.title(is_first=number == 0))
        if way.prepare is not None:
            written = f"dsv4-shard reshard {shlex.quote(plan.source.label)} {shlex.quote(str(plan.out))}"
            to_copy(console, way.prepare if plan_file is None else f"{written} --plan {shlex.quote(plan_file)}")
        if way.launch.needs_plugin:
            item(console, PLUGIN)
        is_said = is_said or show_nodes(console, *way.launch.on_every_node)
        _show_command(console, way)
        if plan.losses and way.serves == "checkpoint" and way.launch.draft_options:
            item(console, f"# with {plan.losses[0].part}, add")
            console.print(Text(f"  # {way.launch.draft_options}"), soft_wrap=True)


def show_nodes(console: Console, command: str, more: tuple[str, ...]) -> bool:
    """Show what each node sets before a command, and adds to it on all but the first; whether there is anything."""
    if FIRST_NODE not in command:
        return False
    item(console, "export NODE0=10.0.0.1 NODE_RANK=0   # node 0's address, this node's number")
    if more:
        item(console, f"# on every node but the first, add {' '.join(more)}")
    return True


def _show_command(console: Console, way: "PlanWay") -> None:
    for name, content in way.launch.files.items():
        item(console, f"# {name} holds: {content.strip()}")
    command, _ = way.launch.on_every_node
    if command:
        to_copy(console, command)


def _show_more(console: Console, plan: "Plan", plan_file: str | None) -> None:
    """Name what this screen leaves out."""
    hidden = len(plan.notes) - _NOTES_SHOWN
    details = f"--details ({counted(hidden, 'more note')})" if hidden > 0 else "--details"
    options = (details, *(() if plan_file else ("-o plan.json",)))
    item(console, f"More: {', '.join(options)}; `report` in place of `plan` writes a page", "dim", indent=0)


def _show_breaches(console: Console, plan: "Plan", engine: str) -> None:
    """Each rule that breaks, once, with what helps; and the blocks that are cut."""
    told: set[str] = set()
    for number, breach in enumerate(plan.breaches):
        if str(breach) not in told and not breach.unknown and breach.rule != MEMORY_RULE:
            item(console, f"also {breach}" if number else str(breach), "red")
            if breach.is_first_stop or not number:
                item(console, breach.words(engine), indent=4)
        for remedy in breach.remedies:
            if remedy not in told:
                item(console, f"{'verified instead' if breach.unknown else 'helps'}: {remedy}", indent=4)
        told |= {str(breach), *breach.remedies}
    broken = () if plan.verdict is Verdict.UNVERIFIED else broken_grids(plan)
    if broken:
        show_broken(console, next((grid for grid in broken if grid.module is Module.SHARED), broken[0]))


def _show_alternatives(console: Console, plan: "Plan") -> None:
    if plan.verdict is Verdict.UNVERIFIED:
        return
    heading(console, "Nearest layouts that run" if plan.alternatives else "No layout near it runs")
    for near in plan.alternatives:
        command = f"dsv4-shard plan {shlex.quote(plan.source.label)} {near.options}"
        to_copy(console, command, f"{counted(near.gpus, 'GPU')}, {gib(near.bytes_per_rank)} per GPU")
