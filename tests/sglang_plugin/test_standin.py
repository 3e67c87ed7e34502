"""SGLang's stand-in has the signatures of SGLang, which `python -m conformance loader --update` records."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sglang_process import Process, standin

import dsv4_shard.sglang_plugin
from conformance.cases import Case
from conformance.digests import read_oracle
from conformance.oracles import committed_path
from conformance.signatures import CALLED, DATACLASSES, ENUMS, RECORDED, members, signatures

MODULES = ("__init__.py", "loader.py", "running.py")


@pytest.fixture(scope="module")
def recorded() -> Any:
    return json.loads(RECORDED.read_text())


@pytest.fixture(autouse=True)
def _sglang() -> Iterator[None]:
    with standin():
        yield


def test_functions_take_what_sglangs_take(recorded: Any) -> None:
    assert signatures() == recorded["signatures"]


def test_classes_have_no_field_that_sglangs_lack(recorded: Any) -> None:
    for name, found in members().items():
        assert found
        assert set(found) <= set(recorded["members"][name])


def test_published_facts_are_facts_of_sglang(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("sglang", "fp4", "marlin", 2, ep=2, shared="whole")
    process = Process(read_oracle(committed_path(case)), 0, monkeypatch)
    assert vars(process.parallel).keys() <= set(recorded["members"]["get_parallel()"])
    assert vars(process.moe).keys() <= set(recorded["members"]["get_exec().moe"])


def test_sglang_places_experts_before_it_loads_the_model(recorded: Any) -> None:
    assert recorded["ModelRunner.initialize"] == ["maybe_init_expert_location_metadata", "load_model"]


def used_names() -> Iterator[str]:
    """Every name that a module of the plugin imports from SGLang, or takes from its module of loaders."""
    for path in (Path(folder) / name for folder in dsv4_shard.sglang_plugin.__path__ for name in MODULES):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module.startswith("sglang.")]
        named = {one.asname or one.name: f"{node.module}.{one.name}" for node in imports for one in node.names}
        loaders = {name for name, full in named.items() if full == "sglang.srt.model_loader.loader"}
        yield from (full for name, full in named.items() if name not in loaders)
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in loaders:
                yield f"{named[node.value.id]}.{node.attr}"


def test_every_name_that_the_plugin_uses_is_recorded() -> None:
    assert {path.name for path in Path(dsv4_shard.sglang_plugin.__file__).parent.glob("*.py")} == set(MODULES)
    recorded_names = {*CALLED, *DATACLASSES, *ENUMS}
    owners = {name.rpartition(".")[0] for name in recorded_names}
    used = set(used_names())
    assert len(used) > 10
    assert used <= recorded_names | owners
