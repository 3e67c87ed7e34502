"""Roles → their plans: each with the checkpoint that is asked for, or that the configuration names."""

from collections.abc import Callable, Mapping
from typing import Any

from dsv4_shard.catalog.option import words_of
from dsv4_shard.catalog.request import PlanOptions
from dsv4_shard.checkpoint import Checkpoint, Inventory
from dsv4_shard.configurations.documents import PlannedDeployment, PlannedRole, ReadOption, Use
from dsv4_shard.configurations.formats import Configuration
from dsv4_shard.configurations.role import EngineRole
from dsv4_shard.configurations.translation import Translation, is_on, plain_name, translated
from dsv4_shard.engines import Request
from dsv4_shard.errors import UsageError
from dsv4_shard.planning import Plan, make_plan, request_of
from dsv4_shard.text.suggest import as_option, did_you_mean
from dsv4_shard.version import __version__

Opener = Callable[[str], tuple[Checkpoint, Inventory]]
"""Opens the checkpoint that a role names: returns it with its inventory."""


def planned(
    configuration: Configuration, role: str | None, given: Mapping[str, Any], open_model: Opener
) -> PlannedDeployment:
    """Plan the roles of a configuration.

    Args:
        configuration: What was read.
        role: The name of the one role to plan; None for all.
        given: Options of `plan` that count in place of the configuration's, or beside them.
        open_model: Opens a role's checkpoint.

    Raises:
        UsageError: No role is called so.
        ShardError: A checkpoint cannot be opened.
    """
    roles = configuration.roles
    if role is not None:
        roles = tuple(one for one in roles if one.name == role)
        if not roles:
            raise UsageError(f"--role {role}: not in {configuration.source}",
                             hint=did_you_mean(role, [one.name for one in configuration.roles]))  # fmt: skip
    return PlannedDeployment(
        schema_version=1,
        tool_version=__version__,
        source=configuration.source,
        format=configuration.format,
        roles=tuple(_planned_role(one, given, open_model) for one in roles),
        pair=None,
    )


def _planned_role(role: EngineRole, given: Mapping[str, Any], open_model: Opener) -> PlannedRole:
    found = translated(role)
    values = {**found.values, **given}
    denied = [reason for reason, options in found.denied.items() if given.keys().isdisjoint(options)]
    request, plan, reason = "", None, "; ".join(denied) or None
    try:
        options = PlanOptions.of({name: value for name, value in values.items() if name not in ("refresh", "output")})
        request = " ".join(words_of(options.part(Request)))
        wanted = request_of(options)
    except UsageError as error:
        reason = "; ".join([*denied, error.spelled(_on_command_line)])
    if reason is None:
        opened = open_model(role.model)
        try:
            plan = make_plan(*opened, wanted, session=options.context)
        except UsageError as error:
            reason = error.spelled(_on_command_line)
    return PlannedRole(
        name=role.name,
        engine=role.engine,
        replicas=role.replicas,
        image=role.image or None,
        options=tuple(found.rows),
        request=request,
        lacks=_lacking(role, found, plan) if plan is not None else (),
        plan=plan,
        reason=reason,
    )


def _on_command_line(name: str, value: object) -> str:
    return as_option(name) if value is ... else f"{as_option(name)} {value}"


def _lacking(role: EngineRole, found: Translation, plan: Plan) -> tuple[str, ...]:
    """Return the settings that the plan changes from the engine's defaults, and the configuration does not have.

    A setting that it has with another value counts as one that it has, but for an option that was replaced, and for a
    switch.
    """
    replaced = {plain_name(role.engine, row.option) for row in found.rows if _is_replaced(row)}
    own = {plain_name(role.engine, option.name) for option in role.options} - replaced
    needed = (setting for change in plan.changes for setting in change.settings)
    return tuple(setting for setting in needed if not _has(setting, role, own))


def _is_replaced(row: ReadOption) -> bool:
    """Whether an option is planned with another value than it has."""
    return row.use is Use.USED and row.value is not None and ":" in row.note


def _has(setting: str, role: EngineRole, own: set[str]) -> bool:
    if setting.startswith("-"):
        return plain_name(role.engine, setting.partition(" ")[0]) in own
    name, _, needed = setting.partition("=")
    given = role.variables.get(name)
    is_switch = needed in ("0", "1")
    return given is not None and (not is_switch or is_on(given) == is_on(needed))
