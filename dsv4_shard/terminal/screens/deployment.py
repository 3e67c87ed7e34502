"""Prints the roles of a configuration: what became of their options, and their plans."""

import shlex
from collections.abc import Iterable

from rich.console import Console

from dsv4_shard.configurations import OPTIONS, PlannedDeployment, PlannedPair, PlannedRole, ReadOption, Use
from dsv4_shard.engines import title_of
from dsv4_shard.terminal.screens.plan import SIGNS, layout_of, show_memory, show_plan
from dsv4_shard.terminal.shell_commands import to_copy
from dsv4_shard.terminal.text import heading, item, paragraph, title
from dsv4_shard.text.sanitize import clean
from dsv4_shard.text.units import counted, size

_LONGEST = 60
"""Characters of an option's value that are shown."""


def show_deployment(
    console: Console, found: PlannedDeployment, plan_file: str | None = None, *, details: bool = False
) -> None:
    """Show every role; of a single one the whole plan."""
    if found.source != OPTIONS:
        parts = dict.fromkeys((found.source, found.format, counted(len(found.roles), "role")))
        title(console, " · ".join(parts))
    for number, role in enumerate(found.roles):
        (heading if number or found.source != OPTIONS else title)(console, _name_of(role))
        if found.source != OPTIONS:
            show_options(console, role, details=details)
        if role.plan is None:
            item(console, f"? Not planned: {role.reason}", "bold yellow")
        elif len(found.roles) == 1:
            console.print()
            show_plan(console, role.plan, title_of(role.engine, role.plan.engine_version), plan_file, details=details)
        else:
            _show_verdict(console, role)
    if found.pair is not None:
        _show_pair(console, found.pair)
    if plan_file is not None and len(found.roles) > 1:
        item(console, f"Wrote {plan_file}.", indent=0)
    if len(found.roles) > 1 and found.source != OPTIONS:
        source = "..." if " " in found.source else shlex.quote(found.source)
        names = " or ".join(role.name for role in found.roles)
        heading(console, f"More: dsv4-shard plan --from {source} --role {names}")


def _show_pair(console: Console, pair: PlannedPair) -> None:
    """Show what the shards of both have in common, and the commands."""
    heading(console, "Prefill and decode")
    if pair.same_files:
        item(console, "The shards of both are the same files: write them once")
    elif pair.writes:
        item(console, f"{size(pair.equal_bytes)} of tensors are the same in both; each result stores them once")
    for command in pair.writes:
        to_copy(console, command)
    item(console, "export PREFILL0=10.0.0.1 DECODE0=10.0.1.1 NODE_RANK=0   # each role's node 0")
    for name, command in (("prefill", pair.prefill), ("decode", pair.decode), ("router", pair.router)):
        item(console, f"{name}:")
        to_copy(console, command)
    for note in pair.notes:
        item(console, note, "dim")


def _name_of(role: PlannedRole) -> str:
    engines = f" · {role.replicas} engines" if role.replicas > 1 else ""
    return f"{role.name}{engines}"


def show_options(console: Console, role: PlannedRole, *, details: bool) -> None:
    """Show what became of each option; those without effect on weights by their names, unless `details`."""
    used = [f"{_short(option)} → {option.note}" for option in role.options if option.use is Use.USED]
    item(console, f"used: {'; '.join(used) or 'none'}")
    without = [option for option in role.options if option.use is Use.NO_EFFECT]
    if without and details:
        item(console, f"no effect on weights: {'; '.join(f'{_short(one)} ({one.note})' for one in without)}", "dim")
    elif without:
        item(console, f"no effect on weights: {', '.join(one.option for one in without)}", "dim")
    for option in role.others:
        item(console, f"{option.use}: {_short(option)}: {option.note}", "yellow")
    if role.lacks:
        item(console, f"As written it does not start. Add: {' '.join(role.lacks)}", "bold red")


def _show_verdict(console: Console, role: PlannedRole) -> None:
    """Show the layout, the verdict and the memory of a role among several."""
    plan = role.plan
    assert plan is not None
    sign, style = SIGNS[plan.verdict]
    item(console, layout_of(plan, title_of(role.engine, plan.engine_version)))
    paragraph(console, f"  {sign} {plan.headline}", style=f"bold {style}")
    for reason in _reasons(role):
        item(console, reason, "red" if not plan.verdict.is_good else "")
    show_memory(console, plan)


def _reasons(role: PlannedRole) -> Iterable[str]:
    plan = role.plan
    assert plan is not None
    return plan.reasons or dict.fromkeys(str(breach) for breach in plan.breaches)


def _short(option: ReadOption) -> str:
    text = clean(option.written)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
