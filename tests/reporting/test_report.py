"""The HTML report: what stands in it, and that nothing from outside can get out of its place."""

import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from support.checkpoints.full_size import FLASH, PRO, V3, V41, inventory_of
from support.reports import BROKEN, HOSTILE, LAYOUTS, PADDED, WHOLE, charts_of, page_of, plan_of

from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import UsageError
from dsv4_shard.inspection.known_family import inspect
from dsv4_shard.models.roles import Module
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.search import plan_best, search
from dsv4_shard.planning.weights import weights_of
from dsv4_shard.reporting.page import to_html
from dsv4_shard.reporting.report import make_report
from dsv4_shard.text.units import gib, size


class _Text(HTMLParser):
    """What a reader sees, scripts and styles apart; and every attribute that could ask for something."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.hidden = 0
        self.asks: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in ("script", "style")
        self.asks += [(name, value) for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)


def text_of(page: str) -> str:
    parser = _Text()
    parser.feed(page)
    return re.sub(r"\s+", " ", "".join(parser.words))


@pytest.mark.slow
@pytest.mark.parametrize("request_", [WHOLE, BROKEN, PADDED, None])
def test_a_page_is_one_file_that_names_no_other_and_stays_small(request_: Request | None) -> None:
    page = page_of(request_)
    parser = _Text()
    parser.feed(page)
    assert parser.asks == []
    assert not re.search(r"@import|url\(", page.partition("</style>")[0])
    assert len(page) < 400_000


@pytest.mark.slow
def test_the_same_plan_is_the_same_page_byte_by_byte() -> None:
    report = make_report(*inventory_of(PRO), plan_of(PRO, WHOLE))
    assert to_html(report) == page_of(WHOLE)


def test_the_launch_commands_of_a_page_are_the_plans_with_their_environment() -> None:
    words = text_of(page_of(WHOLE))
    plan = plan_of(PRO, WHOLE)
    assert plan.launch.environment == {"SGLANG_SHARED_EXPERT_TP1": "1"}
    assert plan.reshard is not None
    for command in plan.launch.commands:
        assert f"SGLANG_SHARED_EXPERT_TP1=1 {command}" in words
    assert plan.reshard in words


@pytest.mark.slow
@pytest.mark.parametrize(("model", "request_"), [(PRO, WHOLE), (PRO, BROKEN), (FLASH, None), (V3, Request(8))])
def test_every_cell_of_the_matrix_says_what_inspect_says_of_it(model: str, request_: Request | None) -> None:
    words = text_of(page_of(request_, model))
    gpu = request_.gpu if request_ else None
    for cell in inspect(*inventory_of(model), gpu=gpu).matrix:
        for line in (cell.reason, cell.engine_says, *map(str, cell.changes)):
            assert line is None or line in words


def test_a_cell_weighs_what_the_plan_of_its_layout_weighs() -> None:
    cells = {(cell.engine, cell.tp): cell for cell in inspect(*inventory_of(PRO), (8, 16, 32)).matrix}
    for engine, tp in (("sglang", 8), ("vllm", 16), ("reference", 8), ("trtllm", 16)):
        totals = plan_of(PRO, Request(tp, engine=engine)).totals
        assert totals is not None
        draft = totals.draft_bytes_per_rank if engine == "reference" else 0
        assert cells[engine, tp].bytes_per_rank == totals.target_bytes_per_rank_max + draft
    assert cells["sglang", 32].how == "--tp 32 --dp 2"
    totals = plan_of(PRO, Request(32, dp=2)).totals
    assert totals is not None
    assert cells["sglang", 32].bytes_per_rank == totals.target_bytes_per_rank_max
    assert cells["reference", 32].bytes_per_rank is None


@pytest.mark.slow
def test_with_a_gpu_the_matrix_looks_at_its_memory() -> None:
    cells = {(cell.engine, cell.tp): cell for cell in inspect(*inventory_of(PRO), gpu="h20-96").matrix}
    assert cells["sglang", 8].verdict == "does not run"
    assert cells["sglang", 8].rule == "memory"
    assert "NVIDIA H20 96 GB has 95.0 GiB" in str(cells["sglang", 8].reason)
    assert cells["sglang", 16].verdict == "runs with changes"
    assert inspect(*inventory_of(PRO), (8,)).matrix[0].verdict == "runs"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "note"),
    [(BROKEN, "on GPUs of h20-96."), (Request(8, gpu_memory="96GB"), "on GPUs of 96GB."),
     (Request(8), "on Hopper; memory is not looked at.")],
)  # fmt: skip
def test_the_matrix_says_of_which_gpu_it_is_also_where_the_plan_breaks(request_: Request, note: str) -> None:
    assert f"With each engine's own choices {note}" in text_of(page_of(request_))


@pytest.mark.slow
@pytest.mark.parametrize("asked", [{"gpu": "h20-96"}, {"gpu": "H20-96"}, {"gpu_memory": "96GB"}])
def test_where_the_search_finds_nothing_the_matrix_is_of_its_gpu_all_the_same(asked: dict[str, str]) -> None:
    checkpoint, inventory = inventory_of(PRO)
    found = search(checkpoint, inventory, Request(2, **asked))  # type: ignore[arg-type]
    assert found.best is None
    report = make_report(checkpoint, inventory, None, found)
    assert {cell.verdict for cell in report.inspection.matrix if cell.tp == 8} == {"does not run"}
    assert "Nothing" in text_of(to_html(report))


def test_of_a_gpu_whose_kernels_are_not_known_the_matrix_claims_nothing() -> None:
    assert {cell.verdict for cell in inspect(*inventory_of(PRO), (8,), gpu="mi355x").matrix} == {"not verified"}


def test_a_gpu_that_means_nothing_is_refused() -> None:
    with pytest.raises(UsageError):
        inspect(*inventory_of(PRO), (8,), gpu="h2000")


def test_a_plan_that_breaks_says_the_engines_own_words_and_the_nearest_that_run() -> None:
    page, plan = page_of(BROKEN), plan_of(PRO, BROKEN)
    words = text_of(page)
    assert "Does not run" in words
    first = "First stop, in construction: SGLang refuses it: ValueError: Weight output_partition_size = 192 is not "
    assert first in words
    assert "Would follow in loading: SGLang has stopped by then" in words
    remedies = [remedy for breach in plan.breaches for remedy in breach.remedies]
    assert remedies
    assert all(f"Way out: {remedy}" in words for remedy in remedies)
    assert plan.alternatives
    for alternative in plan.alternatives:
        assert f"dsv4-shard plan deepseek-ai/DeepSeek-V4-Pro {alternative.options}" in words
    assert "sglang serve" not in words
    assert charts_of(page)["ranks"] is None


def test_the_grid_of_v4_pro_shows_that_24_blocks_do_not_fall_into_16() -> None:
    (grid,) = charts_of(page_of(WHOLE))["grids"]
    assert len(grid["blocks"]) == 24
    assert [at for at, _ in grid["cuts"]] == [192 * number for number in range(1, 16)]
    assert [inside for _, inside in grid["cuts"]] == [True, False] * 7 + [True]
    assert sum(split for *_, split in grid["blocks"]) == 8
    assert grid["shares"] == [[0, 3072, 0]]


def test_the_grid_of_padded_experts_ends_in_zeros() -> None:
    (grid,) = charts_of(page_of(PADDED))["grids"]
    assert [stop - start for start, stop, _ in grid["shares"]] == [256] * 12 + [0] * 4
    assert [padding for *_, padding in grid["shares"]] == [0] * 12 + [256] * 4


def test_without_a_plan_the_grid_is_drawn_for_every_tp_that_would_cut() -> None:
    grids = charts_of(page_of(None))["grids"]
    assert [grid["title"] for grid in grids] == [f"cut evenly over TP {tp}" for tp in (2, 4, 8, 16, 32, 64)]
    assert [any(split for *_, split in grid["blocks"]) for grid in grids] == [False] * 3 + [True] * 3
    assert not any(grid["shares"] for grid in grids)  # nothing is placed


def test_a_bar_stands_for_each_rank_and_adds_up_to_the_gpus_memory() -> None:
    ranks = charts_of(page_of(WHOLE))["ranks"]
    assert [bar["label"] for bar in ranks["bars"]] == [f"rank {number}" for number in range(16)]
    for bar in ranks["bars"]:
        assert sum(bar[kind] for kind, _ in ranks["kinds"]) == ranks["capacity"] == 97285 << 20


@pytest.mark.slow
def test_of_many_ranks_those_that_are_alike_have_one_bar() -> None:
    page = page_of(Request(1, dp=128, ep=128, engine="vllm", nodes=16))
    assert [bar["label"] for bar in charts_of(page)["ranks"]["bars"]] == ["ranks 0-127"]


def test_the_map_has_every_layer_and_colours_what_breaks() -> None:
    drawn = charts_of(page_of(BROKEN))["map"]
    assert len(drawn["rows"]) == 63
    broken = [column["title"] for column in drawn["columns"] if column["kind"] == "breaks"]
    assert broken == ["routed experts: a rule breaks", "shared experts: a rule breaks"]


def test_the_table_of_the_map_tells_the_draft_model_by_itself_and_no_bytes_of_what_breaks() -> None:
    def rows(request_: Request) -> list[list[str]]:
        table = page_of(request_).partition("<th>module</th><th>placement</th>")[2].partition("</table>")[0]
        return [re.findall("<td.*?>(.*?)</td>", row) for row in table.split("<tr>")[1:]]

    plan = plan_of(PRO, WHOLE)
    routed = [row for row in plan.modules if row.module is Module.ROUTED]
    for part, is_mtp in (("target", False), ("draft", True)):
        due: Counter[str] = Counter()
        for row in routed:
            due[row.placement] += row.bytes_per_rank * (row.part_of == part)
        shown = [row for row in rows(WHOLE) if row[0] == "routed experts" and ("MTP" in row[3]) is is_mtp]
        assert sorted(row[4] for row in shown) == sorted(map(size, due.values()))
    assert {row[4] for row in rows(BROKEN) if row[0] == "shared experts"} == {"–"}


@pytest.mark.slow
def test_what_the_search_found_stands_beside_its_best() -> None:
    checkpoint, inventory = inventory_of(PRO)
    found = search(checkpoint, inventory, Request(16, gpu="h20-96"))
    words = text_of(to_html(make_report(checkpoint, inventory, plan_best(checkpoint, inventory, found), found)))
    assert "Layouts that run on 16 h20-96 GPUs" in words
    assert f"{len(found.layouts) - 12} more are in" in words


@pytest.mark.slow
@pytest.mark.parametrize(("model", "request_"), LAYOUTS)
def test_every_engine_and_family_has_its_page_with_the_numbers_of_its_plan(model: str, request_: Request) -> None:
    plan, page = plan_of(model, request_), page_of(request_, model)
    charts, words = charts_of(page), text_of(page)
    assert ("Does not run" in words) is not plan.feasible
    assert bool(charts["ranks"]) is plan.feasible
    if plan.totals is not None:
        assert f"Whole on every rank{gib(plan.totals.replicated_bytes_per_rank)}" in words
        kinds = [kind for kind, _ in charts["ranks"]["kinds"] if kind != "free"]
        deployment = choose(inventory_of(model)[1], request_).deployment
        heaviest = max(sum(bar[kind] for kind in kinds) for bar in charts["ranks"]["bars"])
        assert heaviest == weights_of(plan.totals, deployment)
    drawn = charts["map"]
    assert drawn["rows"][0] == "model"
    assert all(0 <= row < len(drawn["rows"]) and column < len(drawn["columns"]) for row, column, *_ in drawn["cells"])


@pytest.mark.slow
def test_of_a_family_that_no_engine_is_known_for_nothing_is_drawn_but_its_blocks() -> None:
    page = page_of(Request(4), V41)
    charts = charts_of(page)
    assert charts["map"] is charts["ranks"] is None
    assert "Does not run" in text_of(page) or "Not verified" in text_of(page)


@pytest.mark.slow
def test_a_hostile_name_stays_text_everywhere() -> None:
    checkpoint, inventory = inventory_of(FLASH)
    page = to_html(make_report(checkpoint, inventory, plan_of(FLASH, Request(4), HOSTILE)))
    assert page.count("<script") == 3
    assert "<img" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "x</script><script>alert(1)</script>" in text_of(page)
    assert "{{7*7}}" in text_of(page)


def test_only_the_pages_own_scripts_may_run() -> None:
    page = page_of(WHOLE)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert policy[1].startswith("default-src 'none'; ")
    assert re.findall(r"script-src ([^;]*)", policy[1])[0].count("sha256-") == 2
    assert "unsafe-inline" not in re.findall(r"script-src ([^;]*)", policy[1])[0]
