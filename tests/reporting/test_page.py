"""The report in a real browser: at three widths, in both colour schemes, on paper, and without a network."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from support.browser import CHROMIUM, chromium
from support.checkpoints.full_size import FLASH, inventory_of
from support.reports import BROKEN, HOSTILE, PADDED, WHOLE, charts_of, page_of, plan_of

from dsv4_shard.engines.deployment import Request
from dsv4_shard.reporting.page import to_html
from dsv4_shard.reporting.report import make_report

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH: install Debian's chromium, or Chrome"),
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
]
WIDTHS = (390, 768, 1280)
PAGES = {"whole": WHOLE, "broken": BROKEN, "padded": PADDED, "checkpoint": None}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("reports")
    for name, request in PAGES.items():
        (folder / f"{name}.html").write_text(page_of(request), encoding="utf-8")
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
    """Open a report, and wait until its charts are drawn."""
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(path.as_uri())
    until(page, "[...document.querySelectorAll('[data-chart]')].every((figure) => figure.firstChild)")
    return page


BOXES = """
() => [...document.querySelectorAll('h1, h2, p, li, dl, pre, button, summary, figure > svg, .matrix td')]
  .filter((element) => element.offsetParent !== null || element.ownerSVGElement !== undefined)
  .map((element) => [element.tagName, element.textContent.slice(0, 40), element.getBoundingClientRect().toJSON()])
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_the_screen(page: Any, pages: Any, name: str, width: int, scheme: str) -> None:
    shown(page, pages / f"{name}.html", width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.evaluate(BOXES)
    assert len(boxes) > 20
    for tag, text, box in boxes:
        assert box["left"] >= 0, (tag, text)
        assert box["right"] <= width, (tag, text)


@pytest.mark.parametrize("width", WIDTHS)
def test_charts_draw_every_number_that_stands_in_the_page(page: Any, pages: Any, width: int) -> None:
    shown(page, pages / "padded.html", width)
    charts = charts_of(page_of(PADDED))
    drawn = {chart: page.locator(f"[data-chart={chart}] svg rect").count() for chart in ("map", "ranks", "grid")}
    (grid,) = charts["grids"]
    assert drawn["map"] == len(charts["map"]["cells"])
    assert drawn["ranks"] == sum(
        bar[kind] > 0 for bar in charts["ranks"]["bars"] for kind, _ in charts["ranks"]["kinds"]
    )
    filled = sum((stop > start) + (padding > 0) for start, stop, padding in grid["shares"])
    assert drawn["grid"] == len(grid["blocks"]) + filled
    assert page.locator("[data-chart=grid] svg line").count() >= len(grid["cuts"])


def test_the_labels_of_charts_stay_within_them(page: Any, pages: Any) -> None:
    for width in WIDTHS:
        shown(page, pages / "whole.html", width)
        for text, left, right in page.evaluate(
            "[...document.querySelectorAll('figure svg text')].map((text) => {"
            " const box = text.getBoundingClientRect(); return [text.textContent, box.left, box.right]; })"
        ):
            assert left >= 0, (width, text)
            assert right <= width, (width, text)


def test_charts_are_drawn_again_when_the_window_changes(page: Any, pages: Any) -> None:
    shown(page, pages / "whole.html", 1280)
    before = page.locator("[data-chart=map] svg").bounding_box()
    page.set_viewport_size({"width": 390, "height": 900})
    until(page, "document.querySelector('[data-chart=map] svg').getBoundingClientRect().width < 390")
    after = page.locator("[data-chart=map] svg").bounding_box()
    assert before["width"] > 900
    assert after["height"] == pytest.approx(before["height"])  # drawn anew: a picture made smaller would be lower


def test_the_button_copies_the_command_exactly(page: Any, pages: Any) -> None:
    shown(page, pages / "whole.html")
    expected = [plan_of("DeepSeek-V4-Pro", WHOLE).reshard]
    expected += [f"SGLANG_SHARED_EXPERT_TP1=1 {line}" for line in plan_of("DeepSeek-V4-Pro", WHOLE).launch.commands]
    buttons = page.get_by_role("button", name="Copy")
    for number, command in enumerate(expected):
        button = page.locator(".command button").nth(number)
        button.click()
        until(page, f"document.querySelectorAll('.command button')[{number}].textContent === 'Copied'")
        assert page.evaluate("navigator.clipboard.readText()") == command
    until(page, "[...document.querySelectorAll('.command button')].every((b) => b.textContent === 'Copy')")
    assert buttons.count() == len(expected) + 1  # and the options of the draft model


def test_the_button_copies_also_where_a_page_has_no_clipboard(page: Any, pages: Any) -> None:
    page.add_init_script("Object.defineProperty(Navigator.prototype, 'clipboard', {get: () => undefined})")
    shown(page, pages / "whole.html")
    page.locator(".command button").first.click()
    until(page, "document.querySelector('.command button').textContent === 'Copied'")
    assert page.evaluate("getSelection().toString()") == plan_of("DeepSeek-V4-Pro", WHOLE).reshard


def test_the_two_schemes_have_their_own_colours_and_paper_has_those_of_light(page: Any, pages: Any) -> None:
    backgrounds = {}
    for scheme in ("light", "dark"):
        shown(page, pages / "whole.html", scheme=scheme)
        backgrounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == backgrounds["light"]
    assert backgrounds["light"] != backgrounds["dark"]


CONTRAST = """
() => {
  const light = (rgb) => rgb.match(/[0-9.]+/g).slice(0, 3).map(Number).map((part) => part / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!colour.endsWith(', 0)')) return colour;
    }
  };
  return [...document.querySelectorAll('h1, h2, p, b, dt, dd, small, td, th, code, button, summary, q, li, .faint')]
    .map((element) => {
      const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
      return [element.tagName, element.textContent.slice(0, 40), (a + 0.05) / (b + 0.05)];
    });
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(page: Any, pages: Any, scheme: str) -> None:
    for name in PAGES:
        shown(page, pages / f"{name}.html", scheme=scheme)
        for tag, text, ratio in page.evaluate(CONTRAST):
            assert ratio >= 4.5, (tag, text)  # WCAG 2.2, 1.4.3 (AA)


def test_on_paper_the_charts_stand_and_the_buttons_do_not(page: Any, pages: Any) -> None:
    shown(page, pages / "whole.html")
    page.emulate_media(media="print")
    assert not page.locator(".command button").first.is_visible()
    assert page.locator("figure svg").count() == 3
    before = page.locator("[data-chart=map] svg").get_attribute("width")
    page.evaluate("""addEventListener('beforeprint', () => {
      window.printed = document.querySelector('[data-chart=map] svg').getAttribute('width');
    })""")
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert page.evaluate("window.printed") == "680"  # as wide as A4, so that words are not made smaller
    until(page, f"document.querySelector('[data-chart=map] svg').getAttribute('width') === '{before}'")


def test_without_scripts_all_but_the_charts_is_there(browser: Any, pages: Any) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto((pages / "whole.html").as_uri())
    assert page.locator(".matrix tbody tr").count() == 7
    assert "SGLANG_SHARED_EXPERT_TP1=1 sglang serve" in page.locator("main").inner_text()
    page.locator("summary").first.click()
    assert page.locator("details table").first.is_visible()


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
