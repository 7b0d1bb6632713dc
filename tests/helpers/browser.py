"""A real browser for tests of pages: headless Chromium through playwright, or a reason to skip."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, started once for all pages of a module."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no Chromium here; apt-get install -y --no-install-recommends chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page opened from a file, with all that it asked for and all that it complained about."""

    def __init__(self, browser: Any, path: Path, *, width: int = 1000, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.goto(path.parent.as_uri() + "/" + path.name)

    def unfold(self) -> None:
        self.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")

    def column(self, i: int, table: int = 0) -> list[str]:
        """The texts of a column of a table, of the rows that show."""
        cells = self.page.locator("table").nth(table).locator(f"tbody tr:visible > :nth-child({i + 1})")
        return cells.all_inner_texts()

    def look(self, expression: str) -> Any:
        return self.page.evaluate(expression)

    def quiet(self) -> bool:
        """Whether nothing was asked for but files and what is inline, and nothing was complained about."""
        away = [url for url in self.requests if not url.startswith(("file:", "data:"))]
        assert (away, self.complaints) == ([], [])
        return True
