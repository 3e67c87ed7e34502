"""The grids that plans' pictures are drawn from: their geometry, and that they say what the engines say."""

import json
import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.checkpoints.full_size import FLASH, PRO, V3, inventory_of
from support.checkpoints.skeletons import DATA

from dsv4_shard.engines.deployment import Request
from dsv4_shard.models.roles import Module
from dsv4_shard.planning.block_grid import BlockCut, BlockGrid, RankBlocks, broken_grids, shared_grid
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.plan_builder import make_plan


def plan_of(model: str, *arguments: Any, **wanted: Any) -> Plan:
    """A plan as it is read from a file."""
    return Plan.model_validate_json(make_plan(*inventory_of(model), Request(*arguments, **wanted), model).to_json())


def grid(size: int, block: int, ranks: int, parts: int, way: Any) -> BlockGrid:
    return BlockGrid(Module.SHARED, "rows", size, block, "blocks", "TP", ranks, parts, way)


# --- geometry ------------------------------------------------------------------------------------------------------

SIZES = st.integers(1, 5000)
RANKS = st.integers(1, 64)


@given(SIZES, st.integers(1, 300), RANKS, st.sampled_from(["split", "pad"]))
def test_shares_cover_each_element_once_in_order(size: int, block: int, parts: int, way: str) -> None:
    shares = grid(size, block, parts, parts, way).shares
    assert len(shares) == parts
    assert [n for share in shares for n in range(share.start, share.stop)] == list(range(size))


@given(SIZES, st.integers(1, 300), RANKS)
def test_padded_shares_are_alike_and_of_whole_blocks_and_no_smaller_ones_would_do(
    size: int, block: int, parts: int
) -> None:
    padded = grid(size, block, parts, parts, "pad")
    lengths = {share.stop - share.start + share.padding for share in padded.shares}
    assert lengths == {padded.step}
    assert padded.step % block == 0
    assert padded.step * parts >= size > (padded.step - block) * parts
    assert sum(share.padding for share in padded.shares) == padded.padding
    assert padded.fits


@given(SIZES, st.integers(1, 300), RANKS)
def test_a_cut_splits_a_block_just_where_its_neighbours_share_one(size: int, block: int, parts: int) -> None:
    assume(size % parts == 0)
    split = grid(size, block, parts, parts, "split")
    for cut, left, right in zip(split.cuts, split.shares, split.shares[1:], strict=False):
        assert left.stop == right.start == cut.at
        assert cut.splits == ((left.stop - 1) // block == right.start // block)


@given(SIZES, st.integers(1, 300), RANKS)
def test_a_split_fits_just_where_each_part_is_of_whole_blocks(size: int, block: int, parts: int) -> None:
    assume(parts > 1)
    assert grid(size, block, parts, parts, "split").fits == (size % (parts * block) == 0 or _only_the_last_is_short(
        size, block, parts))  # fmt: skip


def _only_the_last_is_short(size: int, block: int, parts: int) -> bool:
    """Equal parts that begin on blocks' edges, though the axis does not end on one."""
    return size % parts == 0 and size // parts % block == 0


@given(SIZES, st.integers(1, 300), RANKS)
def test_what_is_whole_has_no_cuts_and_knows_those_that_it_avoids(size: int, block: int, ranks: int) -> None:
    whole = grid(size, block, ranks, 1, "whole")
    assert (whole.cuts, whole.shares, whole.padding, whole.fits) == ((), (RankBlocks(0, size, 0),), 0, True)
    assert whole.even_cuts == grid(size, block, ranks, ranks, "split").cuts


@pytest.mark.parametrize(("size", "block", "ranks", "parts"), [(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 1, 0), (1, 1, 1, 2),
                                                              (1, 1, 5000, 1)])  # fmt: skip
def test_an_axis_that_cannot_be_is_refused(size: int, block: int, ranks: int, parts: int) -> None:
    with pytest.raises(ValueError, match=r"self\.size"):
        grid(size, block, ranks, parts, "split")


# --- plans ---------------------------------------------------------------------------------------------------------


def test_pro_whole_on_sixteen_ranks_has_24_blocks_and_every_second_cut_inside_one() -> None:
    found = shared_grid(plan_of(PRO, 16))
    assert found is not None
    assert (found.size, found.block, found.blocks, found.ranks, found.parts, found.way) == (
        3072,
        128,
        24,
        16,
        1,
        "whole",
    )
    assert found.even_cuts[:3] == (BlockCut(192, True), BlockCut(384, False), BlockCut(576, True))
    assert [cut.splits for cut in found.even_cuts] == [True, False] * 7 + [True]


def test_pro_split_over_sixteen_ranks_is_broken_in_the_shared_experts_and_in_routed_ones_that_must_be_as_whole() -> (
    None
):
    found, routed = sorted(
        broken_grids(plan_of(PRO, 16, shared_experts="split")), key=lambda grid: grid.module != Module.SHARED
    )
    assert (routed.module, routed.size, routed.block, routed.group) == (Module.ROUTED, 3072, 128, "MoE TP")
    assert (found.module, found.size, found.block, found.step, found.fits) == (Module.SHARED, 3072, 128, 192, False)
    assert (found.axis, found.unit, found.group) == ("shared intermediate size", "blocks", "TP")


def test_pro_padded_by_vllm_ends_in_four_ranks_of_zeros() -> None:
    found = shared_grid(plan_of(PRO, 16, engine="vllm"))
    assert found is not None
    assert (found.way, found.step, found.padding) == ("pad", 256, 1024)
    assert found.shares[11:13] == (RankBlocks(2816, 3072, 0), RankBlocks(3072, 3072, 256))


def test_pro_in_trtllm_has_eight_parts_of_three_blocks_on_two_ranks_each() -> None:
    found = shared_grid(plan_of(PRO, 16, engine="trtllm"))
    assert found is not None
    assert (found.way, found.ranks, found.parts, found.step, found.fits) == ("split", 16, 8, 384, True)


def test_flash_on_sixteen_ranks_would_have_a_block_each() -> None:
    found = shared_grid(plan_of(FLASH, 16, dp=2))
    assert found is not None
    assert (found.size, found.blocks, found.step, found.way, found.fits) == (2048, 16, 128, "split", True)


@pytest.mark.slow
def test_v3_split_over_32_ranks_breaks_in_its_shared_expert_too() -> None:
    found = broken_grids(plan_of(V3, 32, shared_experts="split"))
    assert {(one.axis, one.size, one.step) for one in found} >= {("shared intermediate size", 2048, 64)}
    assert all(not one.fits for one in found)


@pytest.mark.slow
def test_v3_on_sixteen_ranks_has_a_block_each() -> None:
    found = shared_grid(plan_of(V3, 16))
    assert found is not None
    assert (found.size, found.blocks, found.step, found.fits) == (2048, 16, 128, True)


@pytest.mark.parametrize("engine", ["sglang", "vllm", "reference", "node", "trtllm"])
@pytest.mark.parametrize("model", [PRO, FLASH, V3])
@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16])
def test_a_grids_part_is_what_the_plan_says_a_rank_holds(engine: str, model: str, tp: int) -> None:
    plan = plan_of(model, tp, engine=engine, **({"nodes": 1} if engine == "node" else {}))
    found = shared_grid(plan)
    if plan.verdict != "not verified":  # which may only have a bound
        assert (found is not None) == bool(plan.modules)
    if found is not None:
        row = next(row for row in plan.modules if row.role == "shared_expert.gate")
        assert found.step == row.rank_shape[0]
        assert found.fits
        assert found.ranks == tp


RUN = {"pro-fp4": PRO, "flash-fp4": FLASH}


def _refusals() -> list[dict[str, Any]]:
    """What SGLang's own classes said of blocks, once for each layout."""
    entries = json.loads((DATA / "sglang" / "verdicts.json").read_text())
    said = {}
    for entry in entries:
        if "quantization block_n" in entry.get("error", "") and entry["model"] in RUN and entry["sm"] == 90:
            said[entry["model"], entry["tp"], entry["ep"], entry["runner"]] = entry
    return list(said.values())


@pytest.mark.parametrize("entry", _refusals(), ids=lambda e: f"{e['model']}-tp{e['tp']}-ep{e['ep']}-{e['runner']}")
def test_a_cut_falls_inside_a_block_where_sglang_itself_refused_one(entry: dict[str, Any]) -> None:
    runner = entry["runner"] if entry["runner"] != "auto" else None
    plan = plan_of(RUN[entry["model"]], entry["tp"], ep=entry["ep"], runner=runner,
                   shared_experts="whole" if entry["shared"] else "split", gpu="h200")  # fmt: skip
    said = re.search(r"= (\d+) is not divisible by weight quantization block_n = (\d+)", entry["error"])
    assert said is not None
    first = broken_grids(plan)[0]
    assert (first.step, first.block) == (int(said[1]), int(said[2]))
    assert first.cuts[0] == BlockCut(int(said[1]), splits=True)
