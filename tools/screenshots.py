"""The screenshots of docs/how-to/report.md, taken anew from reports on DeepSeek-V4-Pro's real headers.

    python tools/screenshots.py

No test compares them: other fonts give other pictures. tests/reporting/test_page.py says how a report must look.
"""

from typing import Literal, NamedTuple

import search_path  # noqa: F401 - first, for what is imported from the repository
from support.browser import chromium
from support.paths import ROOT
from support.reports import BROKEN, PADDED, WHOLE, page_of

from dsv4_shard.engines.deployment import Request

IMAGES = ROOT / "docs" / "images"


class Shot(NamedTuple):
    """A part of a page: from the top of one element to that of another, or to the end of the window."""

    name: str
    request: Request
    width: int
    height: int
    scheme: Literal["light", "dark"]
    start: str = "h1"


SHOTS = (
    Shot("report", WHOLE, 1080, 1180, "light"),
    Shot("report-ranks", WHOLE, 1080, 1240, "dark", "h2:has-text('What a rank holds')"),
    Shot("report-broken", BROKEN, 1080, 1190, "light"),
    Shot("report-matrix", WHOLE, 1080, 900, "light", "h2:has-text('What runs')"),
    Shot("report-phone", PADDED, 390, 1250, "dark", "h2:has-text('Blocks and cuts')"),
)


def main() -> None:
    """Take all of them."""
    IMAGES.mkdir(exist_ok=True)
    with chromium() as browser:
        for shot in SHOTS:
            page = browser.new_page(viewport={"width": shot.width, "height": shot.height}, color_scheme=shot.scheme)
            page.set_content(page_of(shot.request))
            page.locator(shot.start).evaluate("(element) => scrollTo(0, element.offsetTop - 8)")
            page.wait_for_timeout(300)
            page.screenshot(path=IMAGES / f"{shot.name}.png")
            page.close()


if __name__ == "__main__":
    main()
