"""The options and variables of the engines, by their own parsers, for dsv4_shard/configurations/engine_options.json.

This module is imported in the engines' environments too: what the comparison needs is imported by its function.
"""

import argparse
import json
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conformance.engines import Engine


def rows_of(parser: argparse.ArgumentParser) -> list[list[Any]]:
    """A row for each option: its names, the plain one first, and the number of its values (`1`, `0`, `?`, `*`, `+`).

    An option that can be denied has two rows, the second with the names that deny it. Names that the parser accepts but
    hides from its help count too.
    """
    names: dict[int, list[str]] = {}
    actions: dict[int, argparse.Action] = {}
    for name, action in parser._option_string_actions.items():
        names.setdefault(id(action), []).append(name)
        actions[id(action)] = action
    rows: list[list[Any]] = []
    for key, action in actions.items():
        denying = _denying(action, names[key])
        plain = [name for name in names[key] if name not in denying]
        values = "1" if action.nargs is None else str(action.nargs)
        rows += [[plain, values], *([[denying, values, plain[0]]] if denying else [])]
    return sorted(rows, key=lambda row: row[0])


def variables_of(package: ModuleType, prefix: str) -> list[str]:
    """Names of the variables that a package's source has in it, wherever they are read."""
    assert package.__file__ is not None
    name = re.compile(rf"\b{prefix}_[A-Z0-9_]+\b")
    found = (name.findall(path.read_text(errors="replace")) for path in Path(package.__file__).parent.rglob("*.py"))
    return sorted({one for names in found for one in names})


def _denying(action: argparse.Action, names: list[str]) -> list[str]:
    """The names that set the option to False."""
    if not isinstance(action, argparse.BooleanOptionalAction):
        return []
    inverses = getattr(action, "negative_option_strings", ())
    return [name for name in names if name.startswith("--no-") or name in inverses]


def check_options(engine: "Engine", *, update: bool) -> int:
    """Compare the engine's options with the table of the package, or write them. Returns the number of differences."""
    from conformance.cases import Case
    from conformance.contracts import config_folder
    from conformance.engines import ROOT

    path = ROOT / "dsv4_shard" / "configurations" / "engine_options.json"
    case = Case(engine.name, "flash-fp4", "auto", 1, 1)
    job = {"do": "options", "case": case.to_dict(), "rank": 0, "model": str(config_folder(case, engine.work))}
    [found] = engine.run([job])
    if "error" in found:
        print(f"{engine.name} options: {found['error']}")
        return 1
    table = json.loads(path.read_text()) if path.exists() else {}
    named = {"version": found["version"], "variables": " ".join(found["variables"]), "options": found["options"]}
    differ = 0 if table.get(engine.name) == named else 1
    if update:
        path.write_text(_dump(dict(sorted((table | {engine.name: named}).items()))))
        differ = 0
    numbers = f"{len(named['options'])} options, {len(found['variables'])} variables"
    print(f"{engine.name} {named['version']}: {numbers}" + (", FAILED: not those of the table" if differ else ""))
    return differ


def _dump(table: dict[str, Any]) -> str:
    """JSON with an option a line."""
    engines = []
    for name, engine in table.items():
        rows = ",\n".join(json.dumps(row) for row in engine["options"])
        variables = json.dumps(engine["variables"])
        version = json.dumps(engine["version"])
        engines.append(f'"{name}": {{"version": {version}, "variables": {variables},\n"options": [\n{rows}\n]}}')
    return "{" + ",\n".join(engines) + "}\n"
