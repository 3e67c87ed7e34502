"""Ways out of broken rules: the plan of each runs."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from support.checkpoints.full_size import FLASH, PRO, PRO_NVFP4, V3, V41, inventory_of
from support.paths import DATA

from dsv4_shard.engines import ENGINES, Breach, Engine, Remedy, Request, engine_for
from dsv4_shard.models import FAMILIES
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.planning.remedies import running_ways, ways_out

GPUS = {90: "h200", 100: "b200", 120: "rtx-pro-6000"}

_EVERY = 40
"""One of so many recorded layouts is planned with all its ways out."""


def recorded() -> list[tuple[str, str, dict[str, Any]]]:
    """Layouts on which the engines' own first stops are recorded: most break several rules."""
    found = []
    for engine in ("sglang", "vllm"):
        answers = json.loads((DATA / "order" / f"{engine}.json").read_text())
        for answer in answers[::_EVERY]:
            asked = answer["asked"]
            own = engine == "vllm" and asked["runner"] == "auto"
            wanted = {key: asked[key] for key in ("tp", "ep", "dp", "nodes", "a2a") if key in asked}
            wanted |= {"runner": None if own else asked["runner"], "shared_experts": asked.get("shared", "auto")}
            found.append((asked["model"], engine, wanted | {"gpu": GPUS[asked["sm"]]}))
    return found


OTHERS: list[tuple[str, str, dict[str, Any]]] = [
    (PRO, "reference", {"tp": 32}), (PRO, "reference", {"tp": 8, "dp": 2}), (PRO, "reference", {"tp": 24, "ep": 8}),
    (V3, "reference", {"tp": 8, "runner": "marlin"}), (PRO, "trtllm", {"tp": 12}), (PRO, "trtllm", {"tp": 16, "dp": 4}),
    (FLASH, "trtllm", {"tp": 64, "ep": 3}), (PRO, "node", {"tp": 16, "ep": 8, "nodes": 2}),
    (PRO_NVFP4, "sglang", {"tp": 8}), (PRO_NVFP4, "vllm", {"tp": 16, "nodes": 2}), (PRO_NVFP4, "node", {"tp": 8}),
    (PRO_NVFP4, "sglang", {"tp": 12, "gpu": "b200"}), (V41, "sglang", {"tp": 8}), (V41, "trtllm", {"tp": 8}),
    (V41, "vllm", {"tp": 4, "gpu": "h20-96"}), (PRO, "sglang", {"tp": 16, "expert_dtype": "fp8"}),
    (FLASH, "vllm", {"tp": 4, "expert_dtype": "fp8"}), (PRO, "vllm", {"tp": 24, "engine_version": "0.24.0"}),
    (FLASH, "vllm", {"tp": 2, "engine_version": "0.26.0"}), (PRO, "sglang", {"tp": 7, "nodes": 2}),
    (PRO, "sglang", {"tp": 12, "gpu": "h20-96"}), (PRO, "sglang", {"tp": 12, "gpu_memory": "40GB"}),
    (V3, "vllm", {"tp": 32}), (V3, "vllm", {"tp": 8, "dp": 2}), (V3, "sglang", {"tp": 48, "shared_experts": "pad"}),
    (FLASH, "sglang", {"tp": 24, "gpu": "rtx-pro-6000"}), (FLASH, "vllm", {"tp": 16, "runner": "deep_gemm_mega_moe"}),
]  # fmt: skip
"""Engines, families, GPUs and options that are not among the recorded ones."""


@pytest.mark.slow
@pytest.mark.parametrize(("model", "engine", "wanted"), [*recorded(), *OTHERS])
def test_every_way_out_leads_to_a_plan_that_runs(model: str, engine: str, wanted: dict[str, Any]) -> None:
    checkpoint, inventory = inventory_of(model)
    request = Request(engine=engine, **wanted)
    for breach in choose(inventory, request).breaches:
        for words, end in running_ways(inventory, request, breach):
            plan = make_plan(checkpoint, inventory, end)
            assert plan.feasible, (breach.rule, words, plan.breaches)
            assert end != request


def test_a_way_out_that_needs_others_names_all_options() -> None:
    inventory, request = inventory_of(PRO)[1], Request(24, ep=5)
    breach = choose(inventory, request).breaches[0]
    ((words, end),) = running_ways(inventory, request, breach)
    assert words.endswith("; together with the rest: --tp 24 --ep 1 --dp 3")
    assert (end.dp, end.ep) == (3, 1)
    assert ways_out(inventory, request, breach) == (words,)


def test_a_way_out_to_a_gpu_that_is_too_small_is_none() -> None:
    inventory = inventory_of(PRO)[1]
    for memory, is_offered in (("141GB", True), ("48GB", False)):
        request = Request(12, gpu_memory=memory)
        breach = choose(inventory, request).breaches[0]
        assert bool(ways_out(inventory, request, breach)) is is_offered


@pytest.mark.parametrize("model", [PRO, V41])
@pytest.mark.parametrize("gpu", ["gb10", "mi300x", "ascend-910b"])
def test_a_verified_gpu_is_offered_only_where_the_request_runs_on_it(model: str, gpu: str) -> None:
    checkpoint, inventory = inventory_of(model)
    for wanted in (Request(16, gpu=gpu), Request(12, gpu=gpu), Request(2, gpu=gpu, engine="vllm")):
        (breach,) = make_plan(checkpoint, inventory, wanted).breaches[:1]
        for remedy in breach.remedies:
            name = re.match(r"--gpu (\S+),", remedy)
            assert name is not None
            assert make_plan(checkpoint, inventory, replace(wanted, gpu=name[1])).feasible


def _texts(engine: Engine) -> set[str]:
    """Remedies of an engine's rules that no request stands for."""
    breaches: set[str] = set()
    for rule in engine.rules:
        for one in (rule.uneven, rule.cut) if hasattr(rule, "cut") else (rule,):
            breaches |= {remedy for remedy in one.remedies if isinstance(remedy, str)}
    return breaches


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("engine", ENGINES)
def test_only_what_is_outside_of_this_tool_is_offered_untried(engine: str, family: Any) -> None:
    ours = r"(^|[^\w-])--(tp|ep|dp|engine|nodes|gpu|runner|a2a|shared-experts|expert-dtype)\b"
    assert [text for text in _texts(engine_for(engine, family)) if re.search(ours, text)] == []


def test_a_remedy_that_helps_no_request_is_not_offered() -> None:
    nothing = Remedy("nothing", lambda request: (request,))
    breach = Breach(
        "o_groups", choose(inventory_of(FLASH)[1], Request(16)).breaches[0].module, "", None, "", (nothing,)
    )
    assert ways_out(inventory_of(FLASH)[1], Request(16), breach) == ()
