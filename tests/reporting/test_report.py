"""The HTML report: what stands in it, and that nothing from outside can get out of its place."""

import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.checkpoints.full_size import FLASH, PRO, PRO_FP8, V3, V41, inventory_of
from support.checkpoints.other_families import FAMILIES, QWEN3, write_family
from support.reports import BROKEN, HOSTILE, LAYOUTS, MADE, PADDED, RUNNING, WHOLE, page_of, plan_of, report_of
from support.servers.hub import HubServer
from typer.testing import CliRunner

import dsv4_shard
from dsv4_shard.cli import app
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import UsageError
from dsv4_shard.inspection import UnknownInspection
from dsv4_shard.inspection.known_family import DEFAULT_TPS, inspect
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.search import plan_best, search
from dsv4_shard.planning.weights import weights_of
from dsv4_shard.reporting.charts import GridChart, grid_chart, layer_chart, module_bars, rank_bars
from dsv4_shard.reporting.matrix import GridRow, grid_of
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
    assert len(page) < 120_000


@pytest.mark.slow
def test_the_same_plan_at_the_same_time_is_the_same_page_byte_by_byte() -> None:
    assert to_html(report_of(WHOLE), MADE) == page_of(WHOLE)


def test_the_head_says_commit_date_and_the_command_that_makes_the_page_again() -> None:
    words = text_of(page_of(WHOLE))
    head = words.partition("✓")[0]
    assert "Made2026-12-01 09:30 UTC by dsv4-shard" in re.sub(r"(?<=Made) ", "", head)
    assert "dsv4-shard report deepseek-ai/DeepSeek-V4-Pro --tp 16 --gpu h20-96 --nodes 2 --shared-experts whole" in head
    checkpoint, inventory = inventory_of(PRO)
    assert plan_of(PRO, WHOLE).source.config_digest in head  # a folder has no commit
    source = replace(checkpoint.source, revision="c" * 40)  # type: ignore[type-var]
    made = make_report(replace(checkpoint, source=source), inventory)
    assert "c" * 40 in text_of(to_html(made)).partition("SHA-256")[0]


@pytest.mark.parametrize("epoch", ["", "soon", "-1", "9" * 30])
def test_a_date_that_is_none_is_not_taken(epoch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    assert f"Made{datetime.now(UTC):%Y-}" in text_of(to_html(report_of(None)))


def test_the_command_of_a_report_makes_the_same_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1796000000")
    for options in ({}, {"tp": 2, "gpu": "h200", "context": 4096}, {"gpus": 2, "gpu": "h200", "engine": "vllm,sglang"},
                    {"gpus": 3, "gpu_memory": "1MiB"}):  # fmt: skip
        made = dsv4_shard.report(folder, **options)  # type: ignore[arg-type]
        words = shlex.split(made.command)
        assert words[:3] == ["dsv4-shard", "report", str(folder)]
        again = folder.parent / "again.html"
        assert CliRunner().invoke(app, [*words[1:], "-o", str(again)]).exit_code == 0
        assert again.read_text() == made.to_html()


@pytest.mark.slow
def test_a_report_from_the_hub_has_the_commit_in_its_command(folder: Path, tmp_path: Path) -> None:
    with HubServer() as hub:
        hub.add_repo("org/model", {"main": folder})
        environment = os.environ | hub.env(tmp_path / "home")
        command = [sys.executable, "-m", "dsv4_shard", "report", "org/model", "--tp", "2", "-o", "page.html"]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
        commit = hub.head("org/model")
    words = text_of((tmp_path / "page.html").read_text())
    assert f"dsv4-shard report org/model@{commit} --tp 2" in words
    assert f"Commit{commit}" in re.sub(r"(?<=Commit) ", "", words)


def test_the_launch_commands_of_a_page_are_the_plans_with_their_environment() -> None:
    words = text_of(page_of(WHOLE))
    plan = plan_of(PRO, WHOLE)
    assert plan.launch.environment == {"SGLANG_SHARED_EXPERT_TP1": "1"}
    assert plan.reshard is not None
    for way in plan.ways:
        command, _ = way.launch.on_every_node
        assert command.startswith("SGLANG_SHARED_EXPERT_TP1=1 sglang serve")
        assert command in words
    assert "export NODE0=10.0.0.1 NODE_RANK=0" in words
    assert plan.reshard in words


@pytest.mark.slow
@pytest.mark.parametrize(("model", "request_"), [(PRO, WHOLE), (PRO, BROKEN), (FLASH, None), (V3, Request(8))])
def test_every_cell_of_the_matrix_says_what_inspect_says_of_it(model: str, request_: Request | None) -> None:
    gpu = request_.gpu if request_ else None
    matrix = inspect(*inventory_of(model), gpu=gpu).matrix
    grid = grid_of(matrix, gpu, None)
    drawn = {(cell.engine, tp): cell for row in grid.rows for tp in tps_of(row) for cell in row.cells}
    too_large = {tp for row in grid.rows for tp in tps_of(row) if row.sentence}
    assert all(cell.rule == "memory" for cell in matrix if cell.tp in too_large)
    assert {(cell.engine, cell.tp) for cell in matrix if cell.tp not in too_large} == set(drawn)
    for cell in matrix:
        if cell.tp not in too_large:
            shown = drawn[cell.engine, cell.tp]
            told = " ".join(text for number in shown.notes for text in grid.notes[number - 1])
            said = " ".join(cell.engine_says.split()) if cell.engine_says else None
            assert all(line is None or line in told for line in (*map(str, cell.changes), said))
            assert cell.rule == "memory" or cell.reason is None or cell.reason in told
            assert shown.weight == (None if cell.bytes_per_rank is None else f"{cell.bytes_per_rank / 2**30:.1f}")
    words = text_of(page_of(request_, model))
    assert all(text in words for texts in grid.notes for text in texts)


def tps_of(row: GridRow) -> list[int]:
    first, _, last = row.gpus.partition(" to ")
    return [tp for tp in DEFAULT_TPS if int(first) <= tp <= int(last or first)]


def test_without_a_gpu_no_cell_and_no_verdict_has_the_colour_of_a_verdict_that_runs() -> None:
    grid = grid_of(inspect(*inventory_of(PRO)).matrix, None, None)
    colours = {cell.verdict.colour for row in grid.rows for cell in row.cells}
    assert colours == {"unweighed", "fails"}
    heavy = next(cell for cell in grid.rows[0].cells if cell.engine == "sglang")
    assert (heavy.weight, grid.notes[heavy.notes[0] - 1]) == (
        "796.1", ("more than the largest listed GPU has (288.0 GiB)",))  # fmt: skip
    page = page_of(Request(1))
    assert 'class="verdict unweighed"' in page
    assert "Memory was not checked, because no GPU is named: 796.1 GiB per GPU, more than" in text_of(page)


def test_sizes_at_which_nothing_fits_are_one_row_and_equal_rows_are_one() -> None:
    rows = grid_of(inspect(*inventory_of(PRO), gpu="h20-96").matrix, "h20-96", None).rows
    assert [row.gpus for row in rows] == ["1 to 8", "16", "32", "64"]
    assert rows[0].sentence == "does not run: 101.9 GiB or more per GPU do not fit on NVIDIA H20 96 GB"
    unknown = grid_of(inspect(*inventory_of(PRO), gpu="mi355x").matrix, "mi355x", None)
    *others, trtllm = zip(*(row.cells for row in unknown.rows), strict=True)
    assert {cell.verdict.words for column in others for cell in column} == {"not verified"}
    assert {cell.verdict.colour for column in others for cell in column} == {"unverified"}
    assert {cell.verdict.words for cell in trtllm} == {"does not run"}


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
    [(BROKEN, "on NVIDIA H20 96 GB;"), (Request(8, gpu_memory="96GB"), "on GPU with 96GB;"),
     (Request(8), "on Hopper. Memory was not checked, because no GPU is named;")],
)  # fmt: skip
def test_the_matrix_says_of_which_gpu_it_is_also_where_the_plan_breaks(request_: Request, note: str) -> None:
    assert f"Each engine with its default options, {note}" in text_of(page_of(request_))


@pytest.mark.slow
@pytest.mark.parametrize("asked", [{"gpu": "h20-96"}, {"gpu": "H20-96"}, {"gpu_memory": "96GB"}])
def test_where_the_search_finds_nothing_the_matrix_is_of_its_gpu_all_the_same(asked: dict[str, str]) -> None:
    checkpoint, inventory = inventory_of(PRO)
    found = search(checkpoint, inventory, Request(2, **asked))  # type: ignore[arg-type]
    assert found.best is None
    report = make_report(checkpoint, inventory, None, found)
    assert {cell.verdict for cell in report.inspection.matrix if cell.tp == 8} == {"does not run"}
    assert "✗ No layout" in text_of(to_html(report))


def test_of_a_gpu_whose_kernels_are_not_known_the_matrix_claims_nothing() -> None:
    matrix = inspect(*inventory_of(PRO), (8,), gpu="mi355x").matrix
    assert {cell.verdict for cell in matrix if cell.engine != "trtllm"} == {"not verified"}


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
    assert all(f"Helps: {remedy}" in words for remedy in remedies)
    assert plan.alternatives
    for alternative in plan.alternatives:
        assert f"dsv4-shard plan deepseek-ai/DeepSeek-V4-Pro {alternative.options}" in words
    assert "sglang serve" not in words
    assert "What a rank holds" not in words


def grids_of(request_: Request | None, model: str = PRO) -> list[GridChart]:
    report = report_of(request_, model)
    return [grid_chart(grid, is_placed=report.plan is not None and grid.fits) for grid in report.grids]


def test_the_grid_of_v4_pro_shows_that_24_blocks_do_not_fall_into_16() -> None:
    (grid,) = grids_of(WHOLE)
    assert [box.at for box in grid.blocks] == pytest.approx([100 * number / 24 for number in range(24)])
    assert grid.cuts == pytest.approx([100 * number / 16 for number in range(1, 16)])
    assert sum(box.kind == "cut" for box in grid.blocks) == 8
    assert [(box.kind, box.at, box.size) for box in grid.placed] == [("shared", 0, 100)]
    assert "1.5 blocks each" in grid.title


def test_the_grid_of_padded_experts_ends_in_zeros() -> None:
    (grid,) = grids_of(PADDED)
    assert [box.kind for box in grid.placed] == ["shared"] * 12 + ["padding"] * 4
    assert {round(box.size, 6) for box in grid.placed} == {100 / 16}
    assert grid.extent == 75


def test_the_dimension_that_fails_is_drawn_where_it_has_no_blocks() -> None:
    (grid,) = grids_of(Request(16, gpu="h20-96"), FLASH)
    assert (
        grid.sentence == "Attention: o_groups 8 over attention TP 16 is 0.5 each: 8 of 15 cuts fall inside one of them."
    )
    assert [box.kind for box in grid.blocks] == ["cut"] * 8
    assert len(grid.cuts) == 15
    assert [label for _, label in grid.rank_numbers] == [str(rank) for rank in range(16)]
    assert grid.unit_numbers == tuple((12.5 * (number + 0.5), str(number)) for number in range(8))
    assert grid.placed == ()
    broken = grids_of(BROKEN)
    assert [("1.5 blocks each" in grid.title, "1.5 multiples each" in grid.title) for grid in broken] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "request_"), [
    (PRO, Request(7, engine="vllm", ep=7)), (PRO, Request(48)), (PRO, Request(4096)), (V3, Request(3)),
    (FLASH, Request(64)), (V41, Request(32, engine="reference")), (PRO_FP8, Request(16)),
])  # fmt: skip
def test_every_division_that_fails_is_drawn_with_its_numbers(model: str, request_: Request) -> None:
    report = report_of(request_, model)
    assert report.plan is not None
    assert not report.plan.feasible
    failing = {check.arithmetic for check in report.plan.checks if not check.holds}
    drawn = {(grid.axis, grid.size, grid.group, grid.ranks) for grid in report.grids}
    due = {
        (check.size_name, check.size, check.parts_name, check.parts)
        for check in report.plan.checks
        if not check.holds and any(str(breach).endswith(check.arithmetic) for breach in report.plan.breaches)
    }
    assert due <= drawn
    assert due
    assert failing
    for grid in grids_of(request_, model):
        assert all(-1e-6 <= box.at <= box.at + box.size <= 100 + 1e-6 for box in (*grid.blocks, *grid.placed))


def test_without_a_plan_the_grid_is_that_of_the_first_tp_that_cuts_inside_a_block() -> None:
    (grid,) = grids_of(None)
    assert grid.title == "cut evenly over TP 16: 1.5 blocks each; above: ranks, below: blocks"
    assert grid.placed == ()  # nothing is placed


def test_equal_ranks_have_one_bar_that_adds_up_to_the_gpus_memory() -> None:
    report = report_of(WHOLE)
    (bar,) = rank_bars(report.ranks, 97285 << 20)
    assert bar.title == "all 16 ranks"
    assert bar.boxes[-1].kind == "free"
    assert sum(box.size for box in bar.boxes) == pytest.approx(100)
    assert bar.capacity == 100
    assert "all 16 ranks: 56.4 GiB of weights, 38.6 GiB free of 95.0 GiB" in text_of(page_of(WHOLE))


@pytest.mark.slow
def test_ranks_that_differ_have_a_bar_each_and_weights_that_are_short_go_beyond_the_memory() -> None:
    uneven = report_of(Request(1, dp=5, ep=5, engine="vllm", gpu="b300"))
    assert [bar.title for bar in rank_bars(uneven.ranks, None)] == ["ranks 0-3", "rank 4"]
    large = report_of(Request(8, gpu="h20-96"))
    assert large.plan is not None
    assert large.plan.memory is not None
    (bar,) = rank_bars(large.ranks, large.plan.memory.capacity)
    assert bar.total.endswith("7.4 GiB short")
    assert bar.capacity is not None
    assert bar.capacity < 100


@pytest.mark.slow
@pytest.mark.parametrize(("model", "request_"), RUNNING)
def test_the_bars_of_modules_have_the_plans_numbers_at_true_lengths_and_the_draft_apart(
    model: str, request_: Request
) -> None:
    plan = plan_of(model, request_)
    assert plan.totals is not None
    bars = module_bars(plan)
    held: Counter[tuple[str, str]] = Counter()
    for row in plan.modules:
        if row.part_of == "target":
            held[row.module, row.placement] += row.bytes_per_rank
    due = sorted((*held.values(), *filter(None, [plan.totals.other_target_bytes_per_rank])), reverse=True)
    target = [bar for bar in bars if bar.kind != "draft"]
    assert [bar.size for bar in target] == [gib(nbytes) for nbytes in due]
    most = max(*due, plan.totals.draft_bytes_per_rank)
    assert [bar.width + bar.padding for bar in target] == pytest.approx([100 * nbytes / most for nbytes in due])
    assert [bar.size for bar in bars if bar.kind == "draft"] == [gib(plan.totals.draft_bytes_per_rank)]
    assert bars[-1].kind == "draft"


def test_the_axis_of_layers_is_titled_and_what_is_no_layer_is_named() -> None:
    report = report_of(WHOLE)
    chart = layer_chart(report.layers)
    assert [group.title for group in chart.groups] == ["model", "layer", "MTP 0"]
    layers = chart.groups[1]
    assert len(layers.columns) == 61
    assert [label for _, label in layers.ticks] == ["0", "10", "20", "30", "40", "50", "60"]
    tallest = max(sum(box.size for box in column.boxes) for group in chart.groups for column in group.columns)
    assert tallest == pytest.approx(100)


@pytest.mark.slow
def test_what_the_search_found_stands_beside_its_best() -> None:
    checkpoint, inventory = inventory_of(PRO)
    found = search(checkpoint, inventory, Request(16, gpu="h20-96"))
    words = text_of(to_html(make_report(checkpoint, inventory, plan_best(checkpoint, inventory, found), found)))
    assert "Layouts on 16 × NVIDIA H20 96 GB" in words
    assert f"{len(found.layouts) - 12} more layouts:" in words
    for row in found.layouts[:12]:
        assert f"dsv4-shard plan {checkpoint.source.label} {row.options}" in words


@pytest.mark.slow
@pytest.mark.parametrize(("model", "request_"), LAYOUTS)
def test_every_engine_and_family_has_its_page_with_the_numbers_of_its_plan(model: str, request_: Request) -> None:
    plan, page = plan_of(model, request_), page_of(request_, model)
    words = text_of(page)
    assert ("✗ Does not run" in words) is not plan.feasible
    assert ("What a rank holds" in words) is plan.feasible
    if plan.totals is not None:
        deployment = choose(inventory_of(model)[1], request_).deployment
        assert f"{gib(weights_of(plan.totals, deployment))} of weights" in words
        draft = plan.totals.draft_bytes_per_rank
        assert f"MTP draft model{gib(draft)} {size(draft)}beside the target model" in words


@pytest.mark.slow
def test_of_a_family_that_no_engine_is_known_for_nothing_is_drawn_but_its_blocks() -> None:
    page = page_of(Request(4), V41)
    assert "? Not verified" in text_of(page)
    assert 'class="verdict unverified"' in page
    assert 'class="verdict fails"' not in page


def test_an_unknown_family_has_a_report_of_what_it_holds_and_what_divides(tmp_path: Path) -> None:
    folder, page = write_family(tmp_path / "qwen", *FAMILIES[QWEN3]), tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(folder), "-o", str(page)])
    assert done.exit_code == 0, done.output
    assert "Qwen3 MoE, a family that is not known" in " ".join(done.output.split())
    words = text_of(page.read_text())
    inspection = dsv4_shard.inspect(folder)
    assert isinstance(inspection, UnknownInspection)
    assert inspection.not_known in words
    (gate,) = (row for row in inspection.quantized if row.template.endswith("gate_proj.weight"))
    rows = next(axis for axis in gate.axes if axis.cut)
    units = "".join(f"{share.units_per_rank:g}{'' if share.whole else ' ✗'}" for share in rows.shares)
    assert f"{gate.template}: rows {rows.size:,} in blocks of 128{units}" in words
    assert "1.5 ✗" in units
    refused = CliRunner().invoke(app, ["report", str(folder), "--tp", "8", "-o", str(tmp_path / "none.html")])
    assert refused.exit_code == 3
    assert f"dsv4-shard report {folder}" in " ".join(refused.output.split())
    assert not (tmp_path / "none.html").exists()


@pytest.mark.slow
def test_a_hostile_name_stays_text_everywhere() -> None:
    checkpoint, inventory = inventory_of(FLASH)
    page = to_html(make_report(checkpoint, inventory, plan_of(FLASH, Request(4), HOSTILE)))
    assert page.count("<script") == 1
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
    assert re.findall(r"script-src ([^;]*)", policy[1])[0].count("sha256-") == 1
    assert "unsafe-inline" not in re.findall(r"script-src ([^;]*)", policy[1])[0]
