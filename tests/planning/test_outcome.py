"""One verdict and one number of bytes for a layout, whoever is asked: plan, searches, inspect, explain."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from support.checkpoints.full_size import REAL_MODELS, inventory_of

from dsv4_shard.catalog.gpus import find_gpu
from dsv4_shard.checkpoint import outside_layers
from dsv4_shard.diagnosis.document import WayOut
from dsv4_shard.diagnosis.known_model import KnownModel
from dsv4_shard.diagnosis.releases import NAMED_RELEASES
from dsv4_shard.diagnosis.releases import inventory_of as inventory_of_release
from dsv4_shard.diagnosis.way_out import way_out
from dsv4_shard.engines import ENGINES, Request, Verdict, engine_for, serving
from dsv4_shard.inspection.known_family import inspect
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.layouts import layouts_on
from dsv4_shard.planning.outcome import CACHE_RULE, MEMORY_RULE
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.text.units import gib

GPUS = (None, "h20-96", "b200", "mi300x")
TPS = (3, 8, 16)


def layouts() -> Iterator[tuple[int, int | None, int]]:
    """TP, EP and DP: every TP alone, over all experts, and with attention DP."""
    for tp in TPS:
        yield from {(tp, None, 1): None, (tp, tp, 1): None, (tp, None, 2): None, (tp, tp, tp): None}


def plan_of(model: str, request: Request) -> Plan:
    checkpoint, inventory = inventory_of(model)
    return make_plan(checkpoint, outside_layers(inventory), request)


def weights_of(plan: Plan) -> int | None:
    """Bytes of weights on the fullest GPU, as a plan says them."""
    return plan.memory.weights if plan.memory else None


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", REAL_MODELS)
def test_explain_has_the_verdict_and_bytes_of_the_plan(model: str, engine: str) -> None:
    known = KnownModel(model, outside_layers(inventory_of(model)[1]), given=True)
    for gpu, (tp, ep, dp) in itertools.product(GPUS, layouts()):
        asked = Request(tp, ep=ep, dp=dp, engine=engine, gpu=gpu)
        plan, way = plan_of(model, asked), way_out(known, asked)
        assert way.verdict is plan.verdict, asked
        assert (way.command is None) == (not plan.verdict.is_good or plan.launch.program is None), asked
        assert_same_bytes(plan, way)


def assert_same_bytes(plan: Plan, way: WayOut) -> None:
    """What a plan has in GiB is in the notes of the way out."""
    weights = weights_of(plan)
    ruled = [breach for breach in plan.breaches if breach.rule not in (MEMORY_RULE, CACHE_RULE)]
    if weights is not None and not ruled and CACHE_RULE not in {breach.rule for breach in plan.breaches}:
        assert any(note.startswith(f"{gib(weights)} of weights per GPU") for note in way.notes), plan.request


@pytest.mark.parametrize("release", NAMED_RELEASES, ids=lambda release: release.title)
def test_explain_without_a_checkpoint_has_the_verdict_of_the_plan(release: object) -> None:
    model = release.title  # type: ignore[attr-defined]
    if model not in REAL_MODELS:
        pytest.skip("its files are not among the tests' data")
    known = KnownModel(model, inventory_of_release(release), given=True, release=release)  # type: ignore[arg-type]
    for engine, gpu, (tp, ep, dp) in itertools.product(serving(), (None, "h20-96", "b200"), layouts()):
        asked = Request(tp, ep=ep, dp=dp, engine=engine, gpu=gpu)
        plan, way = plan_of(model, asked), way_out(known, asked)
        assert way.verdict is plan.verdict, asked


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("model", REAL_MODELS)
def test_the_matrix_of_inspect_has_the_verdict_and_bytes_of_the_plan(model: str, gpu: str | None) -> None:
    for cell in inspect(*inventory_of(model), TPS, gpu).matrix:
        plan = plan_of(model, Request(cell.tp, engine=cell.engine, gpu=gpu))
        assert cell.verdict is plan.verdict, cell
        assert cell.rule == (plan.breaches[0].rule if plan.breaches else None)
        if not cell.otherwise:
            assert cell.changes == (plan.changes if not plan.breaches else ())
            assert plan.memory is None or cell.bytes_per_rank == weights_of(plan), cell
            assert (cell.bytes_per_rank is None) == (plan.totals is None)


@pytest.mark.parametrize("engine", serving())
@pytest.mark.parametrize("model", REAL_MODELS)
def test_a_search_has_the_verdict_and_bytes_of_the_plan(model: str, engine: str) -> None:
    checkpoint, inventory = inventory_of(model)
    for gpu, gpus, is_verified in itertools.product(("h20-96", "b200", "mi300x"), (3, 8), (True, False)):
        if not engine_for(engine, inventory.family).is_for(find_gpu(gpu)):
            continue
        asked = Request(gpus, engine=engine, gpu=gpu)
        found, _ = layouts_on(checkpoint, outside_layers(inventory), asked, (engine,), verified=is_verified)
        for one in found[::5]:
            plan = plan_of(model, one.request)
            assert one.outcome.verdict is plan.verdict, one.request
            assert one.layout.weight_bytes == weights_of(plan)
            assert (one.layout.assumption is not None) == (plan.verdict is Verdict.UNVERIFIED)
            assert plan.verdict is Verdict.UNVERIFIED or one.layout.fits == plan.verdict.is_good


@pytest.mark.parametrize("model", REAL_MODELS)
def test_the_memory_is_compared_with_the_bytes_of_the_totals(model: str) -> None:
    """The verdict needs no tensor of the checkpoint, and the totals do: they agree on what a GPU holds."""
    for engine, version in (("sglang", None), ("vllm", "0.24.0"), ("reference", None), ("node", None)):
        asked = Request(8, ep=8 if engine == "vllm" else None, engine=engine, engine_version=version)
        plan, named = plan_of(model, asked), plan_of(model, replace(asked, gpu="b200"))
        for one in (plan, named):
            if one.totals is not None and one.memory is not None:
                draft = one.totals.draft_bytes_per_rank if engine == "reference" else 0
                assert one.memory.weights == one.totals.target_bytes_per_rank_max + draft
