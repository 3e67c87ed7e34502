"""How the engines divide layers over pipeline stages: their own `get_pp_indices`, compared with tests/data/pipeline.

The function is taken from the source of each engine's wheel and run alone, with its variable set in the environment.
"""

import ast
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from conformance.engines import ROOT, Engine

COMMITTED = ROOT / "tests" / "data" / "pipeline"

_PACKAGES = {"sglang": "sglang/srt/distributed/utils.py", "vllm": "vllm/distributed/utils.py"}

_LAYERS = (3, 43, 61)
"""Layers of the tests' tiny models, of V4-Flash and of V4-Pro."""

_STAGES = range(1, 9)

_PARTITIONS = ("31,30", "30,31", "30,30", "31,30,1", "61")
"""Numbers of layers per stage, for V4-Pro at PP 2. The engines refuse some of them."""


def check_stages(engine: Engine, *, update: bool) -> int:
    """Compare what the engine does with the recorded divisions and refusals, or write them; 1 if they differ."""
    found = _record(engine)
    path = COMMITTED / f"{engine.name}.json"
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    same = path.exists() and json.loads(path.read_text()) == found
    print(f"{engine.name} stages: {len(found['divided'])} divisions" + ("" if same else f", FAILED: not {path.name}"))
    return int(not same)


def _record(engine: Engine) -> dict[str, Any]:
    (source,) = engine.environment.glob(f"lib/python*/site-packages/{_PACKAGES[engine.name]}")
    variable = f"{engine.name.upper()}_PP_LAYER_PARTITION"
    indices = _function(source, variable)

    def divide(layers: int, stages: int) -> list[int]:
        ends = [indices(layers, stage, stages) for stage in range(stages)]
        return [stop - start for start, stop in ends]

    divided = {f"{layers}/{stages}": divide(layers, stages) for layers in _LAYERS for stages in _STAGES}
    given: dict[str, Any] = {}
    for partition in _PARTITIONS:
        os.environ[variable] = partition
        try:
            given[partition] = divide(61, 2)
        except ValueError as error:
            given[partition] = f"ValueError: {error}"
        finally:
            del os.environ[variable]
    return {"divided": divided, "given": given}


def _function(source: Path, variable: str) -> Any:
    """`get_pp_indices` of a module, with what it reads of its module."""
    tree = ast.parse(source.read_text())
    [found] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "get_pp_indices"]
    namespace: dict[str, Any] = {
        "os": os, "Tuple": tuple, "logger": logging.getLogger(__name__), "envs": _Variables(**{variable: None}),
    }  # fmt: skip
    exec(compile(ast.Module([found], []), str(source), "exec"), namespace)
    return namespace["get_pp_indices"]


class _Variables(SimpleNamespace):
    """vLLM's `envs`, whose attributes are environment variables."""

    def __getattribute__(self, name: str) -> Any:
        return os.environ.get(name)
