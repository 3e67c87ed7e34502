"""Plan files: reading one, and holding it against the checkpoint by making the plan again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dsv4_shard.catalog.verb import wrong_type
from dsv4_shard.checkpoint.fingerprint import differences, origin_of
from dsv4_shard.checkpoint.inventory import Inventory
from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import BadPlan, ForeignPlan, UsageError
from dsv4_shard.planning.document import SCHEMA_VERSION, Plan
from dsv4_shard.planning.make_plan import make_plan
from dsv4_shard.storage.output_folder import write_text
from dsv4_shard.text.sanitize import short, short_name
from dsv4_shard.text.strict_json import BadJson, first_error, is_plain, parse_json
from dsv4_shard.text.units import counted
from dsv4_shard.version import __version__

_REQUEST = TypeAdapter(Request)

MAX_PLAN_BYTES = 64 << 20


def load_plan(path: Path) -> Plan:
    """Read a plan file. Raises BadPlan where it is not one that this version can take."""
    try:
        if path.stat().st_size > MAX_PLAN_BYTES:
            raise BadPlan(f"{path}: {path.stat().st_size} bytes, too large for a plan")
        raw = path.read_bytes()
        document = parse_json(raw)
    except OSError as error:
        raise BadPlan(f"{path}: {error.strerror}") from None
    except BadJson as error:
        raise BadPlan(f"{path}: {error}") from None
    if not is_plain(document):
        raise BadPlan(f"{path}: nested too deeply, or holds a number beyond every double")
    if not isinstance(document, dict) or "schema_version" not in document:
        raise BadPlan(f"{path}: not a plan of dsv4-shard")
    if document["schema_version"] != SCHEMA_VERSION:
        raise BadPlan(f"{path}: plan schema {short(document['schema_version'])}, this version reads {SCHEMA_VERSION}")
    if document.get("tool_version") != __version__:
        raise BadPlan(
            f"{path}: made by dsv4-shard {short_name(str(document.get('tool_version')))}, this is {__version__}"
        )
    try:
        return Plan.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise BadPlan(f"{path}: {first_error(error)}") from None


def save_plan(plan: Plan, path: Path) -> None:
    """Write a plan file. Raises WriteFailed."""
    write_text(path, plan.to_json())


def check_plan(plan: Plan, checkpoint: Checkpoint, inventory: Inventory) -> Plan:
    """Make the plan again from the checkpoint; return it where it is the same.

    Raises ForeignPlan where the checkpoint is another or changed, BadPlan where the plan was edited.
    """
    if len({file.name for file in plan.source.files}) != len(plan.source.files):
        raise BadPlan("the plan was edited: a weight file stands twice in source.files")
    for difference in differences(plan.source, origin_of(checkpoint, plan.source.label)):
        raise ForeignPlan(f"the plan was made for another checkpoint: {difference}")
    try:
        request = _REQUEST.validate_json(json.dumps(plan.request), strict=True)
    except ValidationError as error:
        raise BadPlan(f"the plan's request was edited: {first_error(error)}") from None
    try:
        fresh = make_plan(checkpoint, inventory, request, plan.source.label)
    except UsageError as error:
        raise BadPlan(f"the plan's request was edited: {error}") from None
    ours = fresh.model_copy(update={"source": plan.source})
    edits = list(_differences(plan.model_dump(mode="json"), ours.model_dump(mode="json"), ""))
    if edits:
        more = f" ({counted(len(edits) - 1, 'more difference')})" if len(edits) > 1 else ""
        raise BadPlan(f"the plan was edited: {edits[0]}{more}")
    return fresh


def _differences(theirs: Any, ours: Any, path: str) -> Iterator[str]:
    """Where two JSON values differ, as `path: theirs in the file, ours by the rules`."""
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
    """A plan, or that in a file that is called like one; None for a checkpoint. Raises BadPlan, UsageError."""
    if isinstance(source, Plan) or str(source).endswith(".json") or _is_text(source):
        return plan_of(source, "source")
    if not isinstance(source, str | Path):
        raise wrong_type("source", source, "a plan, or the path of a plan file or checkpoint")
    return None


def plan_of(plan: str | Path | Plan, parameter: str = "plan") -> Plan:
    """A plan, or that in a file. Raises BadPlan, and UsageError for what is neither a plan nor a path."""
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
