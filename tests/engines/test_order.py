"""The first stop that a plan names, compared with the first error of the engines' own code (tests/data/order)."""

import json
from collections import Counter
from functools import cache
from typing import Any

import pytest
from support.checkpoints.full_size import PRO, V3, V32, V41, config_of, inventory_of
from support.checkpoints.skeletons import expand
from support.oracles.v3 import WORDS
from support.oracles.v4 import CUT
from support.paths import DATA, ROOT

from dsv4_shard.checkpoint.synthetic import by_file
from dsv4_shard.engines import ENGINES, Breach, Context, Request, StartStage, engine_for
from dsv4_shard.engines.rules import REFUSED, Divides, Rule
from dsv4_shard.models import FAMILIES
from dsv4_shard.planning.choice import choose

GPUS = {90: "h200", 100: "b200", 120: "rtx-pro-6000"}

MODELS = (
    PRO, "DeepSeek-V4-Flash", "DeepSeek-V4-Pro-FP8", "DeepSeek-V4-Flash-Base", "DeepSeek-V4-Flash-0731",
    "DeepSeek-V4-Pro-NVFP4", V41, V3, V32,
)  # fmt: skip


@cache
def answers(engine: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DATA / "order" / f"{engine}.json").read_text())
    return found


def request_of(engine: str, asked: dict[str, Any]) -> Request:
    """A request that leaves the engine no choice of its own."""
    runner = None if (engine, asked["runner"]) == ("vllm", "auto") else asked["runner"]
    return Request(
        asked["tp"], ep=asked["ep"], dp=asked["dp"], engine=engine, runner=runner, a2a=asked.get("a2a"),
        shared_experts=asked.get("shared", "auto"), gpu=GPUS[asked["sm"]], nodes=asked["nodes"],
    )  # fmt: skip


def breaches_in(engine: str, answer: dict[str, Any]) -> tuple[Breach, ...]:
    return choose(inventory_of(answer["asked"]["model"])[1], request_of(engine, answer["asked"])).breaches


def verdict(breaches: tuple[Breach, ...], answer: dict[str, Any]) -> str:
    """How the plan's first breach and the engine's first error go together: "same", or in which way not."""
    first = breaches[0] if breaches else None
    stops = first is not None and first.stops
    if "error" not in answer:
        is_served = first is None or not stops or first.stage is StartStage.SERVING  # forward passes are not run
        return "same" if is_served else f"the engine loads it, the plan stops at {first.rule}"
    if first is not None and first.unknown:
        # nothing is said of it, but that must not hide what the arguments alone decide
        return "the engine refuses its arguments" if answer["stage"] == StartStage.CONFIGURATION else "not verified"
    if first is None or not stops:
        return "the engine stops, the plan does not"
    said = " ".join((first.quote or first.consequence).split())
    told = f"{first.stage}: {said}"
    is_same = said in answer["error"] or said == answer.get("line")
    return "same" if is_same and first.stage == answer["stage"] else f"the plan says {first.rule}, {told}"


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
@pytest.mark.parametrize("model", MODELS)
def test_the_first_stop_is_the_engines_own(engine: str, model: str) -> None:
    recorded = [
        one for one in answers(engine) if one["asked"]["model"] == model and not one["asked"].get("default_prefill")
    ]
    assert len(recorded) > 30
    found = [(verdict(breaches_in(engine, one), one), one) for one in recorded]
    assert [pair for pair in found if pair[0] not in ("same", "not verified")] == []


@pytest.mark.slow
def test_the_page_on_proof_counts_these_layouts() -> None:
    compared = [
        (engine, one)
        for engine in ("sglang", "vllm")
        for one in answers(engine)
        if not one["asked"].get("default_prefill")
    ]
    found = Counter((verdict(breaches_in(engine, one), one), "error" in one) for engine, one in compared)
    unknown = {one["asked"]["model"] for engine, one in compared if verdict(breaches_in(engine, one), one) != "same"}
    page = " ".join((ROOT / "docs" / "explanation" / "proof.md").read_text().split())
    assert unknown == {V41}
    assert f"for {len(compared)} layouts of nine releases" in page
    assert len(MODELS) == 9
    assert f"For {found['same', True]} layouts the plan names that error" in page
    assert f"{found['same', False]} load without one" in page
    assert f'for {found["not verified", True]} of V4.1 it says "not verified"' in page


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "several"), [("sglang", 150), ("vllm", 150)])
def test_most_layouts_break_several_rules_and_every_stage_is_there(engine: str, several: int) -> None:
    told = [one for one in answers(engine) if "error" in one]
    assert sum(len(breaches_in(engine, one)) > 1 for one in told) > several
    stages = Counter(one["stage"] for one in told)
    assert stages.keys() >= {StartStage.CONFIGURATION, StartStage.CONSTRUCTION}
    assert sum("error" not in one for one in answers(engine)) > 30


@pytest.mark.parametrize("model", MODELS)
def test_attention_dp_gets_a_step_of_prefill_where_sglang_refuses_its_default(model: str) -> None:
    recorded = [
        one for one in answers("sglang") if one["asked"]["model"] == model and one["asked"].get("default_prefill")
    ]
    assert len(recorded) == 12
    inventory = inventory_of(model)[1]
    for answer in recorded:
        choice = choose(inventory, request_of("sglang", answer["asked"]))
        program = (
            engine_for("sglang", inventory.family).launch(Context(inventory, choice.deployment), "x", False).program
        )
        assert program is not None
        is_refused = "chunked_prefill_size must be divisible by page_size" in answer.get("error", "")
        has_option = "--chunked-prefill-size" in program.options
        assert has_option or not is_refused
        assert is_refused or not has_option or model in (V3, V32)  # their pages are smaller with some kernels


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("engine", ENGINES)
def test_rules_stand_in_the_order_of_their_stages(engine: str, family: Any) -> None:
    orders = [rule.stage.order for rule in _checked(engine, family) if rule.stage is not None]
    assert orders == sorted(orders)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("engine", ["sglang", "vllm", "reference"])
def test_every_rule_that_stops_an_engine_has_a_stage(engine: str, family: Any) -> None:
    assert [rule.name for rule in _checked(engine, family) if rule.stage is None and _refuses(rule)] == []


def _checked(engine: str, family: Any) -> list[Rule]:
    """The engine's rules; without those of versions that fail in the first forward, which come before all."""
    return [rule for rule in engine_for(engine, family).rules if rule.name != "broken-version"]


def _refuses(rule: Rule) -> bool:
    symptoms = (rule.uneven, rule.cut) if isinstance(rule, Divides) else (rule,)
    return any(one.consequence == REFUSED for one in symptoms) and rule.name != "nodes"


# --- DeepSeek's converters -----------------------------------------------------------------------------------------


def _converters_first_stop(model: str, ranks: int) -> str | None:
    """What `convert.py` asserts first: the experts, then every tensor of its files, by their names."""
    if config_of(model)["n_routed_experts"] % ranks:
        return "AssertionError: Number of experts must be divisible by model parallelism"
    axes = (axis for axis, size in _converters_cuts(model) if size % ranks)
    return next((f"AssertionError: Dimension {axis} must be divisible by {ranks}" for axis in axes), None)


@cache
def _converters_cuts(model: str) -> tuple[tuple[int, int], ...]:
    """The axis that `convert.py` cuts, and its size: each pair once, in the order of files and names."""
    document = config_of(model)
    cuts: dict[tuple[int, int], None] = {}
    for _, tensors in sorted(by_file(expand(model), document).items()):
        for name in sorted(tensors):
            axis = _axis(name, document)
            if axis is not None:
                cuts.setdefault((axis, tensors[name][1][axis]))
    return tuple(cuts)


def _axis(name: str, document: dict[str, Any]) -> int | None:
    """The axis on which the converter cuts a tensor; None for those that it copies or spreads whole."""
    words = name.removeprefix("model.").split(".")
    if "experts" in words or words[:2] == ["layers", str(document["num_hidden_layers"])]:
        return None
    if document["model_type"] != "deepseek_v4":
        return WORDS[words[-2]][1]
    skipped = name.startswith("mtp.") and ("emb" in name or name.endswith("head.weight"))
    return None if skipped else CUT.get(words[-1] if words[-1] == "attn_sink" else words[-2] if len(words) > 1 else "")


@pytest.mark.parametrize("model", [PRO, "DeepSeek-V4-Flash", V3, V32])
def test_the_first_stop_of_the_reference_is_that_of_its_converter(model: str) -> None:
    inventory = inventory_of(model)[1]
    for ranks in (1, 2, 3, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384):
        breaches = choose(inventory, Request(ranks, engine="reference", nodes=1)).breaches
        asserted = [breach.quote for breach in breaches if breach.stage is StartStage.CONVERSION]
        assert (asserted[0] if asserted else None) == _converters_first_stop(model, ranks), ranks
        assert not asserted or breaches[0].stage is StartStage.CONVERSION
