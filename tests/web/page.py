"""A page of the console, as the tests drive it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Request, expect


@dataclass
class Console:
    """A page of the console and the service behind it."""

    page: Page
    api: httpx.Client
    calls: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("request", self._request)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if "Content Security Policy" in m.text else None)

    def _request(self, request: Request) -> None:
        self.calls.append(f"{request.method} {request.url.split('/', 3)[3].split('?')[0]}")

    def open(self, tab: str, **model: str) -> None:
        query = "&".join(f"{name}={value}" for name, value in model.items())
        self.page.goto(f"{self.api.base_url}/?{query}#{tab}")

    def tab(self, name: str) -> None:
        self.page.click(f"#tab-{name}")

    def go(self, view: str) -> None:
        """Open a view by its address, as a link that was sent would."""
        self.page.evaluate("view => { location.hash = `#/${view}`; }", view)

    def value(self, selector: str) -> float:
        """The number behind a text on the page."""
        return float(self.page.locator(selector).get_attribute("data-value") or "nan")

    def settled(self, parts: int) -> None:
        """Wait until so many parts are inspected."""
        expect(self.page.locator("#parts .part")).to_have_count(parts)
        expect(self.page.locator("#parts .part[data-decision=busy]")).to_have_count(0)

    def picture(self, name: str) -> Path | None:
        """A screenshot in the folder that SCREENSHOTS names, if any."""
        folder = os.environ.get("SCREENSHOTS")
        if not folder:
            return None
        Path(folder).mkdir(parents=True, exist_ok=True)
        path = Path(folder) / f"{name}.png"
        self.page.screenshot(path=path)
        return path

    def set_range(self, selector: str, value: float) -> None:
        """Move a slider as a hand would: the value changes and the page is told."""
        self.page.locator(selector).evaluate(
            "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }",
            value,
        )


Open = Callable[..., Console]


def serious(page: Page) -> list[dict[str, Any]]:
    """What axe-core finds that is serious or critical."""
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [violation for violation in found if violation["impact"] in {"serious", "critical"}]
