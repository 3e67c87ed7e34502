"""The report in a real browser: at three widths, in both colour schemes, on paper, and without a network."""

import itertools
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from support.browser import CHROMIUM, chromium
from support.checkpoints.full_size import FLASH, PRO, V41, inventory_of
from support.checkpoints.other_families import FAMILIES, QWEN3, write_family
from support.reports import BROKEN, HOSTILE, PADDED, WHOLE, page_of, plan_of, report_of

from dsv4_shard.checkpoint.reader import read_unknown
from dsv4_shard.engines.deployment import Request
from dsv4_shard.opening import open_source
from dsv4_shard.planning.search import plan_best, search
from dsv4_shard.reporting.charts import module_bars
from dsv4_shard.reporting.colours import KINDS, VERDICTS
from dsv4_shard.reporting.page import to_html
from dsv4_shard.reporting.report import make_report, make_unknown_report

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH: install Debian's chromium, or Chrome"),
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
]
WIDTHS = (390, 768, 1280)
PAGES: dict[str, tuple[str, Request | None]] = {
    "whole": (PRO, WHOLE),
    "broken": (PRO, BROKEN),
    "padded": (PRO, PADDED),
    "groups": (FLASH, Request(16, gpu="h20-96")),
    "large": (PRO, Request(8, gpu="h20-96")),
    "unweighed": (PRO, Request(1)),
    "unverified": (PRO, Request(8, gpu="mi355x")),
    "engram": (V41, Request(4, engine="reference")),
    "checkpoint": (PRO, None),
}
SEARCHED = {"found": Request(16, gpu="h20-96"), "nothing": Request(4, gpu="h20-96")}
EVERY_PAGE = (*PAGES, *SEARCHED, "unknown")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("reports")
    made = {name: page_of(request, model) for name, (model, request) in PAGES.items()}
    checkpoint, inventory = inventory_of(PRO)
    for name, asked in SEARCHED.items():
        found = search(checkpoint, inventory, asked)
        plan = plan_best(checkpoint, inventory, found) if found.best else None
        made[name] = to_html(make_report(checkpoint, inventory, plan, found))
    qwen = read_unknown(open_source(str(write_family(folder / "qwen", *FAMILIES[QWEN3]))))
    made["unknown"] = to_html(make_unknown_report(qwen))
    for name, page in made.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return folder


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page whose complaints and requests are kept, and must be none but for its own file."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    yield page
    assert complaints == []
    assert all(url.startswith("file://") and url.endswith(".html") for url in requests), requests
    context.close()


def until(page: Any, condition: Any) -> None:
    """Wait for a condition: Playwright's own waiting asks the page to compile text, which its policy forbids."""
    for _ in range(500):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(20)
    pytest.fail(f"never came true: {condition}")


def shown(page: Any, path: Any, width: int = 1280, scheme: str = "light") -> Any:
    """Open a report."""
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(path.as_uri())
    return page


BOXES = """
() => [...document.querySelectorAll('body *')]
  .filter((element) => element.checkVisibility() && element.getClientRects().length > 0)
  .map((element) => [element.tagName, element.className, element.textContent.slice(0, 40),
                     element.getBoundingClientRect().toJSON(), element.scrollWidth - element.clientWidth])
"""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", EVERY_PAGE)
def test_nothing_is_wider_than_the_screen_nor_scrolls_aside(page: Any, pages: Any, name: str, width: int) -> None:
    shown(page, pages / f"{name}.html", width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.evaluate(BOXES)
    assert len(boxes) > 40
    for tag, kind, text, box, beyond in boxes:
        assert box["left"] >= 0, (tag, kind, text)
        assert box["right"] <= width + 0.5, (tag, kind, text)
        assert beyond <= 8 or tag in INLINE, (tag, kind, text)


INLINE = ("SPAN", "B", "I", "SMALL", "SUP", "CODE", "Q", "BR")
"""Elements without a width of their own: what contains them is measured."""

TABLE = """
(selector) => [...document.querySelectorAll(selector)].map((cell) => {
  const range = document.createRange(); range.selectNodeContents(cell);
  const text = range.getBoundingClientRect(), box = cell.getBoundingClientRect();
  return [cell.textContent.trim().slice(0, 40), text.left - box.left, box.right - text.right, box.width];
})
"""


@pytest.mark.parametrize("width", WIDTHS)
def test_the_cells_of_the_matrix_are_equally_wide_and_hold_their_text(page: Any, pages: Any, width: int) -> None:
    for name in ("whole", "unweighed", "unverified", "engram", "found"):
        shown(page, pages / f"{name}.html", width)
        cells = page.evaluate(TABLE, ".matrix td:not([colspan]), .matrix thead th:not(.gpus)")
        widths = [cell_width for *_, cell_width in cells]
        assert max(widths) - min(widths) < 1
        assert min(widths) > 70
        assert all(left > -0.5 and right > -0.5 for _, left, right, _ in cells), cells


def test_a_search_on_a_phone_shows_weights_and_tokens_of_each_layout(page: Any, pages: Any) -> None:
    shown(page, pages / "found.html", 390)
    rows = page.locator(".layouts tbody tr:nth-child(odd)")
    assert rows.count() == 12
    for row in rows.all():
        for name in ("weights GiB", "tokens, million"):
            cell = row.locator(f"td[data-name='{name}']")
            assert cell.bounding_box()["x"] + cell.bounding_box()["width"] <= 390
            assert cell.evaluate("(cell) => getComputedStyle(cell, '::before').content") == f'"{name} "'
    assert page.locator(".layouts .command button").count() == 12


@pytest.mark.parametrize("width", WIDTHS)
def test_the_bars_of_modules_are_as_long_as_their_bytes(page: Any, pages: Any, width: int) -> None:
    shown(page, pages / "padded.html", width)
    bars = module_bars(plan_of(PRO, PADDED))
    drawn = page.evaluate("""[...document.querySelectorAll('.modules .bar')].map((bar) => [
      bar.getBoundingClientRect().width,
      [...bar.children].reduce((sum, box) => sum + box.getBoundingClientRect().width, 0)])""")
    assert len(drawn) == len(bars)
    assert min(full for full, _ in drawn) > 100
    for bar, (full, length) in zip(bars, drawn, strict=True):
        assert length == pytest.approx((bar.width + bar.padding) / 100 * full, abs=2)  # none is thinner than a pixel


@pytest.mark.parametrize("width", WIDTHS)
def test_blocks_and_parts_fill_the_axis_and_cuts_stand_where_ranks_meet(page: Any, pages: Any, width: int) -> None:
    shown(page, pages / "whole.html", width)
    axis = page.locator(".axis").first
    full = axis.bounding_box()
    cuts = axis.locator(".cut").evaluate_all("(cuts) => cuts.map((cut) => cut.getBoundingClientRect().x + 1)")
    assert cuts == pytest.approx([full["x"] + full["width"] * number / 16 for number in range(1, 16)], abs=1)
    boxes = axis.locator(".box").evaluate_all("(boxes) => boxes.map((box) => box.getBoundingClientRect().toJSON())")
    assert len(boxes) == 24
    assert all(right["left"] == pytest.approx(left["right"], abs=1) for left, right in itertools.pairwise(boxes))
    shown(page, pages / "groups.html", width)
    assert page.locator(".axis .box.k-cut").count() == 8
    for name in ("groups", "whole", "padded"):
        shown(page, pages / f"{name}.html", width)
        for row in page.locator(".numbers").all():
            numbers = row.locator("span").evaluate_all(
                "(all) => all.map((one) => one.getBoundingClientRect().toJSON())"
            )
            assert all(left["right"] < right["left"] for left, right in itertools.pairwise(numbers))


def test_the_layer_axis_is_titled_and_every_group_of_columns_has_a_label(page: Any, pages: Any) -> None:
    for width in WIDTHS:
        shown(page, pages / "whole.html", width)
        labels = page.locator(".layers .labels").all_inner_texts()
        assert [labels[0].strip(), labels[2].strip()] == ["model", "MTP 0"]
        assert page.locator(".layers .title").inner_text() == "layer"
        ticks = page.locator(".layers .labels i").evaluate_all(
            "(ticks) => ticks.map((tick) => tick.getBoundingClientRect().toJSON())"
        )
        assert all(left["right"] < right["left"] for left, right in itertools.pairwise(ticks))


def test_the_button_copies_the_command_exactly(page: Any, pages: Any) -> None:
    shown(page, pages / "whole.html")
    expected = [report_of(WHOLE).command]
    for way in plan_of(PRO, WHOLE).ways:
        expected += [way.prepare] if way.prepare else []
        expected += ["pip install dsv4-shard"] if way.launch.needs_plugin else []
        expected += ["export NODE0=10.0.0.1 NODE_RANK=0", way.launch.on_every_node[0]]
        expected += [way.launch.draft_options]
    assert len(expected) == 14
    buttons = page.get_by_role("button", name="Copy")
    for number, command in enumerate(expected):
        button = page.locator(".command button").nth(number)
        button.click()
        until(page, f"document.querySelectorAll('.command button')[{number}].textContent === 'Copied'")
        assert page.evaluate("navigator.clipboard.readText()") == command
    until(page, "[...document.querySelectorAll('.command button')].every((b) => b.textContent === 'Copy')")
    assert buttons.count() == len(expected)


def test_the_button_copies_also_where_a_page_has_no_clipboard(page: Any, pages: Any) -> None:
    page.add_init_script("Object.defineProperty(Navigator.prototype, 'clipboard', {get: () => undefined})")
    shown(page, pages / "whole.html")
    page.locator(".command button").first.click()
    until(page, "document.querySelector('.command button').textContent === 'Copied'")
    assert page.evaluate("getSelection().toString()") == report_of(WHOLE).command


def test_paper_shows_what_the_screen_folds(page: Any, pages: Any) -> None:
    shown(page, pages / "found.html")
    folded = "[...document.querySelectorAll('details')].filter((part) => !part.open).length"
    assert page.evaluate(folded) > 0
    page.pdf()
    assert page.evaluate(folded) == 0


def test_the_two_schemes_have_their_own_colours_and_paper_has_those_of_light(page: Any, pages: Any) -> None:
    backgrounds = {}
    for scheme in ("light", "dark"):
        shown(page, pages / "whole.html", scheme=scheme)
        backgrounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == backgrounds["light"]
    assert backgrounds["light"] != backgrounds["dark"]


COLOURS = """
const channels = (colour) => {
  const numbers = colour.match(/[0-9.]+(e-?[0-9]+)?/g).map(Number);
  return colour.startsWith('color(srgb') ? numbers.slice(0, 3).map((part) => 255 * part) : numbers.slice(0, 3);
};
const isClear = (colour) => colour.endsWith(', 0)') || colour.endsWith('/ 0)');
const light = (colour) => channels(colour).map((part) => part / 255)
  .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (!isClear(colour)) return colour;
  }
};
"""

CONTRAST = f"""() => {{ {COLOURS}
  return [...document.querySelectorAll('body *')]
    .filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()))
    .filter((element) => !['SCRIPT', 'STYLE'].includes(element.tagName))
    .map((element) => {{
      const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
      return [element.tagName, element.textContent.slice(0, 40), (a + 0.05) / (b + 0.05)];
    }});
}}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(page: Any, pages: Any, scheme: str) -> None:
    for name in EVERY_PAGE:
        shown(page, pages / f"{name}.html", scheme=scheme)
        measured = page.evaluate(CONTRAST)
        assert len(measured) > 40
        for tag, text, ratio in measured:
            assert ratio >= 4.5, (name, tag, text)  # WCAG 2.2, 1.4.3 (AA)


FILLS = f"""() => {{ {COLOURS}
  return [...document.querySelectorAll('.box, .legend i')]
    .map((box) => [box.className.match(/k-([a-z]+)/)[1], getComputedStyle(box).backgroundColor,
                   getComputedStyle(box).backgroundImage])
    .filter(([kind]) => !['free', 'padding'].includes(kind))
    .map(([kind, fill, image]) => [kind, image === 'none' ? channels(fill) : null]);
}}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_colour_has_one_meaning_on_all_pages(page: Any, pages: Any, scheme: str) -> None:
    expected = {colour.name: rgb(getattr(colour, scheme)) for colour in (*KINDS, *VERDICTS)}
    expected["cut"] = expected["fails"]
    seen: set[str] = set()
    for name in EVERY_PAGE:
        shown(page, pages / f"{name}.html", scheme=scheme)
        for kind, fill in page.evaluate(FILLS):
            assert fill == expected[kind], (name, kind)
            seen.add(kind)
        legend = page.locator(".legend:not(.signs) li").evaluate_all(
            "(items) => items.map((item) => [item.firstChild.className, item.textContent])"
        )
        assert len({kind for kind, _ in legend}) == len({words for _, words in legend})
        for verdict in page.locator(".verdict").all():
            colour = verdict.evaluate(f"(element) => {{ {COLOURS} return channels(getComputedStyle(element).color); }}")
            kind = next(word for word in verdict.get_attribute("class").split() if word != "verdict")
            assert kind == "unweighed" or colour == expected[kind]
    assert seen == {colour.name for colour in KINDS} | {"cut"}


def rgb(colour: str) -> list[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_different_meaning_can_be_told_apart(scheme: str) -> None:
    colours = [(colour.name, rgb(getattr(colour, scheme))) for colour in (*KINDS, *VERDICTS)]
    assert len({colour.meaning for colour in (*KINDS, *VERDICTS)}) == len(colours)
    for (one, a), (other, b) in itertools.combinations(colours, 2):
        assert sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 > 40, (one, other)


def test_red_is_for_what_fails_and_what_is_not_verified_is_neutral(page: Any, pages: Any) -> None:
    red = "[class~=fails], [class~=v-fails], [class~=k-cut]"
    shown(page, pages / "unverified.html")
    no_code = page.locator(".matrix td.v-fails").count()
    outside = "found => found.filter(one => !one.closest('.matrix, .legend')).map(one => one.outerHTML)"
    assert page.locator(red).evaluate_all(outside) == []
    assert page.locator(".verdict").inner_text().startswith("? Not verified")
    assert page.locator(".matrix td").count() == page.locator(".matrix td.v-unverified").count() + no_code > no_code
    shown(page, pages / "unweighed.html")
    assert page.locator("[class~=runs], [class~=v-runs], [class~=changes], [class~=v-changes]").count() == 0
    shown(page, pages / "broken.html")
    assert page.locator(".verdict.fails").inner_text() == "✗ Does not run"


@pytest.mark.parametrize("name", EVERY_PAGE)
def test_on_paper_all_is_there_but_the_buttons(page: Any, pages: Any, name: str) -> None:
    shown(page, pages / f"{name}.html", PAPER)
    words = page.locator("body").inner_text().replace("Copy", "").split()
    page.emulate_media(media="print")
    assert not page.locator(".command button").first.is_visible()
    assert page.locator("body").inner_text().split() == words
    assert page.locator(".box").evaluate_all("(boxes) => boxes.every((box) => box.checkVisibility())")
    for tag, kind, text, box, beyond in page.evaluate(BOXES):
        assert 0 <= box["left"] <= box["right"] <= PAPER + 0.5, (tag, kind, text)
        assert beyond <= 8 or tag in INLINE, (tag, kind, text)
    assert page.pdf(format="A4").startswith(b"%PDF")


PAPER = 718
"""Width in pixels of A4 between Chromium's margins."""


def test_without_scripts_all_but_copying_is_there(browser: Any, pages: Any) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto((pages / "whole.html").as_uri())
    assert page.locator(".matrix tbody tr").count() == 4
    assert page.locator(".axis .box").first.bounding_box()["height"] > 10
    assert "SGLANG_SHARED_EXPERT_TP1=1 sglang serve" in page.locator("main").inner_text()


def test_the_pages_own_policy_lets_nothing_out_and_no_other_script_run(browser: Any, pages: Any) -> None:
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    page = browser.new_page()
    page.goto((pages / "whole.html").as_uri())
    outcome = page.evaluate(f"fetch('{address}/fetch').then(() => 'sent', () => 'refused')")
    page.evaluate(
        f"const image = new Image(); image.src = '{address}/image'; document.body.append(image);"
        "const script = document.createElement('script'); script.textContent = 'window.ran = true';"
        "document.body.append(script);"
    )
    page.wait_for_timeout(300)
    server.shutdown()
    assert outcome == "refused"
    assert asked == []
    assert page.evaluate("window.ran") is None


def test_a_hostile_name_runs_nothing(page: Any, pages: Any) -> None:
    path = pages / "hostile.html"
    report = make_report(*inventory_of(FLASH), plan_of(FLASH, Request(4), HOSTILE))
    path.write_text(to_html(report), encoding="utf-8")
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    shown(page, path)
    assert "alert(1)" in page.locator("h1").inner_text() or "alert(1)" in page.locator("header").inner_text()
