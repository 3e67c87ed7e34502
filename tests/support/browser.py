"""A real Chromium, headless, for what a page does only in one: layout, clipboard, policy."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
"""Chromium asks for things of its own accord; none of that belongs to the page."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, for as long as the block runs."""
    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()  # Chromium has no sandbox for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*_QUIET, *sandbox])
        try:
            yield browser
        finally:
            browser.close()
