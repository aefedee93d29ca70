"""A real Chromium in front of a real service."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from backend.base.config import Settings
from backend.extractors.protocol import Extractor
from backend.tools.demo import served
from tests.web.page import Console, Open

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

expect.set_options(timeout=60_000)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def console(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens consoles on services that differ in their settings: console(locale=…, width=…, **settings)."""
    with ExitStack() as stack:

        def build(
            *,
            locale: str = "es-ES",
            scheme: str = "light",
            width: int = 1280,
            timezone: str | None = None,
            extractor: Extractor | None = None,
            **given: Any,
        ) -> Console:
            own = {
                "model_name": "texture",
                "input_size": 112,
                "models_dir": tmp_path / "models",
                "datasets_dir": tmp_path / "datasets",
                "artifacts_dir": tmp_path / "artifacts",
                "static_dir": tmp_path / "static",
            }
            api = stack.enter_context(served(Settings(**{**own, **given}), extractor))
            context = browser.new_context(
                locale=locale,
                color_scheme=scheme,  # type: ignore[arg-type]
                viewport={"width": width, "height": 900},
                timezone_id=timezone,
            )
            stack.callback(context.close)
            opened = Console(context.new_page(), api)
            opened.watch()
            return opened

        yield build
