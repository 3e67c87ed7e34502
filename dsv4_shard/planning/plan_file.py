"""Plan files: load, save, and verify against the checkpoint by making the plan again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dsv4_shard.catalog.verb import wrong_type
from dsv4_shard.checkpoint import Checkpoint, Inventory, differences, origin_of
from dsv4_shard.errors import BadPlan, ForeignPlan, ReadFailed, UsageError
from dsv4_shard.limits import PLAN
from dsv4_shard.planning.document import SCHEMA_VERSION, Plan
from dsv4_shard.planning.earlier_plans import STEPS
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.storage import read_regular, write_text
from dsv4_shard.text.document_problems import first_error
from dsv4_shard.text.sanitize import short, short_name
from dsv4_shard.text.schema_versions import check_schema, upgraded
from dsv4_shard.text.strict_json import BadJson, is_plain, parse_json
from dsv4_shard.text.units import counted
from dsv4_shard.version import __version__


def load_plan(path: Path) -> Plan:
    """Read a plan file of this schema version or an earlier one.

    Raises:
        BadPlan: The file is not a plan.
        NewerSchema: A newer version wrote it.
    """
    try:
        return read_plan(read_regular(path, PLAN), str(path))
    except ReadFailed as error:
        raise BadPlan(str(error)) from None


def read_plan(raw: bytes, where: str) -> Plan:
    """Return the plan in the JSON `raw`; `where` names the file in messages.

    Raises:
        BadPlan, NewerSchema: As `load_plan`.
    """
    try:
        document = parse_json(raw, PLAN)
        if not is_plain(document):
            raise BadPlan(f"{where}: nested too deeply, or holds a number beyond every double")
        if not isinstance(document, dict) or "schema_version" not in document:
            raise BadPlan(f"{where}: not a plan of dsv4-shard")
        version = check_schema(document["schema_version"], "plan", where, SCHEMA_VERSION)
        if version < SCHEMA_VERSION:
            raw = json.dumps(upgraded(document, version, STEPS)).encode()
        plan = Plan.model_validate_json(raw, strict=True)
        plan._is_early = version < SCHEMA_VERSION
        return plan
    except BadJson as error:
        raise BadPlan(f"{where}: {error}") from None
    except ValidationError as error:
        raise BadPlan(f"{where}: {first_error(error)}") from None


def save_plan(plan: Plan, path: Path) -> None:
    """Write a plan file.

    Raises:
        WriteFailed: The file cannot be written.
    """
    write_text(path, plan.to_json())


def check_plan(plan: Plan, checkpoint: Checkpoint, inventory: Inventory) -> Plan:
    """Make the plan again from the checkpoint, and return it if it is the same.

    If another version of the tool made the plan, or it has an earlier schema, only its `decisions` are compared.

    Raises:
        ForeignPlan: The checkpoint is another one, or has changed.
        BadPlan: The plan was edited, or the rules of this version give another layout.
    """
    if len({file.name for file in plan.source.files}) != len(plan.source.files):
        raise BadPlan("the plan was edited: a weight file stands twice in source.files")
    for difference in differences(plan.source, origin_of(checkpoint, plan.source.label)):
        raise ForeignPlan(f"the plan was made for another checkpoint: {difference}")
    try:
        fresh = make_plan(checkpoint, inventory, plan.request, plan.source.label, plan.context)
    except UsageError as error:
        raise BadPlan(f"the plan's request was edited: {error}") from None
    ours = fresh.model_copy(update={"source": plan.source})
    is_own = plan.tool_version == __version__ and not plan._is_early
    then, now = ((one.model_dump(mode="json") if is_own else decisions(one)) for one in (plan, ours))
    edits = list(_differences(then, now, ""))
    if edits:
        more = f" ({counted(len(edits) - 1, 'more difference')})" if len(edits) > 1 else ""
        other = "" if is_own else f", or dsv4-shard {short_name(plan.tool_version)} planned it in another way"
        raise BadPlan(f"the plan was edited{other}: {edits[0]}{more}")
    return fresh


def _broken(plan: Plan) -> list[dict[str, str | None]]:
    """The rules that break, in an order of their own."""
    breaches = sorted(plan.breaches, key=lambda breach: (breach.rule, breach.module or ""))
    return [{"rule": breach.rule, "module": breach.module} for breach in breaches]


_DECIDING = {"source", "request", "engine_version", "deployment", "layout", "modules"}


def decisions(plan: Plan) -> dict[str, Any]:
    """The parts of a plan that decide which bytes go where; the same in all tool versions that read its schema.

    The order of the rules that break is not among them.
    """

    return plan.model_dump(mode="json", include=_DECIDING) | {"breaches": _broken(plan)}


def _differences(theirs: Any, ours: Any, path: str) -> Iterator[str]:
    """Yield the differences between two JSON values as `path: theirs in the file, ours by the rules`."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            where = f"{path}.{key}" if path else str(key)
            if key in theirs and key in ours:
                yield from _differences(theirs[key], ours[key], where)
            else:
                yield f"{short_name(where)}: {'only' if key in theirs else 'not'} in the file"
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for index, pair in enumerate(zip(theirs, ours, strict=True)):
            yield from _differences(*pair, f"{path}[{index}]")
    elif type(theirs) is not type(ours) or theirs != ours:  # True == 1
        yield f"{short_name(path)}: {short(theirs)} in the file, {short(ours)} by the rules"


def plan_given(source: str | Path | Plan) -> Plan | None:
    """Return the plan itself or the one in a file named like a plan; None for a checkpoint.

    Raises:
        BadPlan: The file is not a plan.
        UsageError: The path is invalid.
    """
    if isinstance(source, Plan) or str(source).endswith(".json") or _is_text(source):
        return plan_of(source, "source")
    if not isinstance(source, str | Path):
        raise wrong_type("source", source, "a plan, or the path of a plan file or checkpoint")
    return None


def plan_of(plan: str | Path | Plan, parameter: str = "plan") -> Plan:
    """Return the plan itself or the one in a file.

    Raises:
        BadPlan: The file is not a plan.
        UsageError: The value is neither a plan nor a path.
    """
    if isinstance(plan, Plan):
        return plan
    if _is_text(plan):
        raise UsageError.about(
            parameter, ..., "that is the text of a plan, not the path of its file",
            hint="Save it to a file, and name that; or parse it with `Plan.model_validate_json(text)`.",
        )  # fmt: skip
    if not isinstance(plan, str | Path):
        raise wrong_type(parameter, plan, "a plan or the path of a plan file")
    return load_plan(Path(plan))


def _is_text(plan: object) -> bool:
    return isinstance(plan, bytes) or (isinstance(plan, str) and plan.lstrip().startswith("{"))
