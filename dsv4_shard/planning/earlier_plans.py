"""Plans of earlier schema versions → the newest.

Schema 2 renames the option `shared_experts` in requests to match the command line, and adds `out` and the parts of the
launch commands. Schema 1 has only the command lines; only this module parses them. Schema 3 adds `context`, `host`,
`kv_cache` in `memory` in place of a bound on its tokens, and the stage of each breach. Schema 4 has a verdict of four
words, changes and losses as data, and a launch for each way to serve. Schema 5 adds `part_size` to requests, before
which a file had one part, in the order of the safetensors library; pipeline stages; and other loaders of each way.
"""

import re
import shlex
from typing import Any

from dsv4_shard.catalog.options import DEFAULT_ENGINE
from dsv4_shard.engines import ENGINES, Command, Options, commands_of
from dsv4_shard.text.schema_versions import JsonObject, Steps

_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""")
"""A word of a shell command, with its quotes."""


def _from_1(plan: JsonObject) -> JsonObject:
    launch, reshard = plan.get("launch"), plan.get("reshard")
    return plan | {
        "schema_version": 2,
        "request": request_from_1(plan.get("request")),
        "out": _folder_of(reshard) if isinstance(reshard, str) else None,
        "launch": launch | _parts(launch.get("commands")) if isinstance(launch, dict) else launch,
    }


def _from_2(plan: JsonObject) -> JsonObject:
    memory = plan.get("memory")
    if isinstance(memory, dict):
        memory = {name: value for name, value in memory.items() if not name.startswith("kv_")} | {"kv_cache": None}
    breaches = plan.get("breaches")
    if isinstance(breaches, list):
        breaches = [one | _NO_STAGE if isinstance(one, dict) else one for one in breaches]
    return plan | {"schema_version": 3, "context": None, "memory": memory, "host": None, "breaches": breaches}


def _from_3(plan: JsonObject) -> JsonObject:
    kept = {name: value for name, value in plan.items() if name not in _DROPPED_BY_4}
    way = {"serves": "shards" if plan.get("reshard") else "checkpoint", "node_bytes": 0, "prepare": plan.get("reshard")}
    launch = plan.get("launch")
    ways = (
        [way | {"launch": launch | {"needs_plugin": False}}]
        if isinstance(launch, dict) and plan.get("feasible")
        else []
    )
    return kept | {
        "kind": "plan",
        "schema_version": 4,
        "verdict": _verdict_of_3(plan),
        "changes": [],
        "losses": [],
        "notes": plan.get("choices"),
        "ways": ways,
        "alternatives": [],
    }


_DROPPED_BY_4 = frozenset({"feasible", "choices", "launch", "reshard"})


def _verdict_of_3(plan: JsonObject) -> str:
    breaches = plan.get("breaches")
    if plan.get("feasible") is True:
        return "runs with changes" if plan.get("choices") else "runs"
    unknown = isinstance(breaches, list) and any(
        isinstance(one, dict) and one.get("consequence") == "not verified" for one in breaches
    )
    return "not verified" if unknown else "does not run"


_NO_STAGE = {"stage": None, "is_first_stop": False}


def _from_4(plan: JsonObject) -> JsonObject:
    ways = plan.get("ways")
    if isinstance(ways, list):
        ways = [way | {"loaders": []} if isinstance(way, dict) else way for way in ways]
    request = in_one_part(plan.get("request"))
    return plan | {"schema_version": 5, "request": request, "stages": [], "ways": ways}


STEPS: Steps = {1: _from_1, 2: _from_2, 3: _from_3, 4: _from_4}


def request_from_1(request: Any) -> Any:
    """Return a request of schema 1 with the option names of schema 2. A malformed request stays unchanged."""
    if not isinstance(request, dict):
        return request
    return {"shared_experts" if name == "shared" else name: value for name, value in request.items()}


def in_one_part(request: Any) -> Any:
    """Return a request from before files had parts as one of today. A malformed request stays unchanged."""
    engine = ENGINES.get(request.get("engine", DEFAULT_ENGINE)) if isinstance(request, dict) else None
    has_parts = engine is not None and engine.layout is not None and engine.layout.has_parts
    return request | {"part_size": None} if has_parts else request


def _folder_of(reshard: str) -> str | None:
    """The output folder in `dsv4-shard reshard REPO OUT --tp N`."""
    try:
        return shlex.split(reshard)[3]
    except (ValueError, IndexError):
        return None


def _parts(commands: Any) -> dict[str, Any]:
    """Return the parts of the commands; without the commands if they do not have the form of any engine's."""
    nothing: dict[str, Any] = {"launcher": None, "program": None, "node_options": []}
    if not isinstance(commands, list) or not all(isinstance(line, str) for line in commands):
        return nothing
    taken = [_taken_apart(line) for line in commands]
    if not taken or not all(taken):
        return nothing | {"commands": []}
    launcher, program = (taken[0][0] if len(taken[0]) > 1 else None), taken[0][-1]
    first = set(taken[0][0].options.items())
    node_options = [dict(item for item in parts[0].options.items() if item not in first) for parts in taken]
    if list(commands_of(launcher, program, tuple(node_options))) != commands:
        return nothing | {"commands": []}
    parts = {"launcher": launcher, "program": program}
    documents = {name: part and {"program": part.program, "options": part.options} for name, part in parts.items()}
    return documents | {"node_options": node_options}


def _taken_apart(line: str) -> list[Command]:
    """Split a line into the program, or the launcher and the program: each with its words, then its options."""
    found: list[tuple[list[str], Options]] = []
    name: str | None = None
    for word in _WORD.findall(line):
        if word.startswith("-") and found:
            name = word
            found[-1][1][word] = None
        elif name is not None and "=" not in name:
            found[-1][1][name], name = word, None
        elif found and not found[-1][1]:
            found[-1][0].append(word)
        else:
            found.append(([word], {}))
            name = None
    return [Command(" ".join(words), options) for words, options in found] if len(found) <= 2 else []
