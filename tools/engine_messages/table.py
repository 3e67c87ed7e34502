"""The table of messages that the package has: how it is made and written."""

import json
from collections.abc import Iterable
from typing import Any

from support.paths import ROOT

from engine_messages.collect import Collected

TABLE = ROOT / "dsv4_shard" / "diagnosis" / "engine_messages.json"


def table_of(found: Collected) -> dict[str, Any]:
    """The table of an engine: modules of the way, and by file [line, function, error, text, condition]."""
    files: dict[str, list[list[Any]]] = {}
    for one in sorted(found.said, key=lambda one: (one.file, one.line)):
        files.setdefault(one.file, []).append([one.line, one.function, one.error, one.text, one.condition])
    return {"version": found.version, "modules": sorted(found.modules), "messages": files}


def dump(table: dict[str, Any]) -> str:
    """JSON with one message a line."""
    return _object((name, _engine(document)) for name, document in table.items()) + "\n"


def _engine(document: dict[str, Any]) -> str:
    files = ((file, _list(map(_json, entries))) for file, entries in document["messages"].items())
    parts = ((name, _json(document[name])) for name in ("version", "modules"))
    return _object([*parts, ("messages", _object(files))])


def _object(items: Iterable[tuple[str, str]]) -> str:
    return "{" + ",\n".join(f"{_json(name)}:{text}" for name, text in items) + "}"


def _list(items: Iterable[str]) -> str:
    return "[\n" + ",\n".join(items) + "]"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
