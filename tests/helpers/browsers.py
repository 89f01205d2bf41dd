"""A browser without a window for tests of pages; and what a page must not call."""

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def require_browser(*packages: str) -> str:
    """The program of a browser: $CHROMIUM, or one of `NAMES` on PATH.

    Without one, or without one of the packages, the test is skipped; in continuous integration
    (CI=true) it fails, so that it cannot be forgotten there.
    """
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if found and not missing:
        return found
    reason = (
        f"{', '.join(missing)} is not installed: pip install -r requirements-dev.txt"
        if missing
        else f"no browser: set $CHROMIUM, or put one of {', '.join(NAMES)} on PATH"
    )
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def open_browser(program: str) -> Iterator:
    """A browser of Playwright with an empty profile, which is removed afterwards."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def local_context(browser, address: str, called: list[str]):
    """A user's window, which reaches `address` alone; other addresses go to `called`."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})

    def decide(route):
        if route.request.url.startswith(address):
            return route.continue_()
        called.append(route.request.url)
        return route.abort()

    context.route("**/*", decide)
    return context
