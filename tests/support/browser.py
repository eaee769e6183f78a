"""Headless Chromium for tests of what people see. Screenshots are left in build/screenshots/."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PATIENCE_MS = 60_000  # a busy machine may be slow; nothing is decided by how fast it is
SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"


class Visitor:
    """A tab that is logged in to Airflow; its console errors and uncaught exceptions are kept in `errors`."""

    def __init__(self, context: Any, url: str, user: str, password: str) -> None:
        self.context, self.url, self.errors = context, url, []
        context.set_default_timeout(PATIENCE_MS)
        self.page = context.new_page()
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{url}/auth/login")
        self.page.fill("input[name=username]", user)
        self.page.fill("input[name=password]", password)
        self.page.click("button[type=submit]")
        self.page.get_by_role("link", name="Training", exact=True).wait_for()

    def open(self, path: str) -> Any:
        self.page.goto(f"{self.url}/{path}")
        return self.page

    def open_menu(self) -> Any:
        """The page inside Airflow, by its menu entry."""
        self.page.get_by_role("link", name="Training", exact=True).click()
        return self.frame()

    def frame(self) -> Any:
        return self.page.frame_locator("iframe[title=Training]")

    def shoot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled")


def chromium() -> str:
    """The browser; its absence fails the tests where CI is set, and skips them elsewhere."""
    found = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if found is None:
        reason = "no chromium on PATH (Debian: apt-get install chromium)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    executable = chromium()
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()
