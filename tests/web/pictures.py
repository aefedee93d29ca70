"""Every view of the console, photographed in both languages, light and dark, at several widths, to be looked at.

    python -m tests.web.pictures FOLDER                          # 800, 1280 and 1920 px wide
    python -m tests.web.pictures FOLDER --views station --widths 390 1280

A service has learned, calibrated, inspected, drifted from a version and made a certificate of rendered parts. FOLDER
gets a picture of each view, and for each view and width a sheet of the four: Spanish above, dark on the right.
"""

from __future__ import annotations

import argparse
import itertools
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import httpx
import numpy as np
from playwright.sync_api import Browser, Page, expect, sync_playwright

from backend.base.config import Settings
from backend.base.images import encode_png
from backend.evaluation.pictures import sheet
from backend.resnet_api.predictor import Predictor
from backend.service.images import ImageFile
from backend.tools.demo import served
from tests.conftest import SHARED_DATA
from tests.parts import encoded, part
from tests.web.conftest import ARGUMENTS, CHROMIUM
from tests.web.page import Console

KEY = {"role_id": "Master1", "roi_id": "Disc"}
MODEL = {**KEY, "mm_per_px": "0.2"}
WEIGHTS = SHARED_DATA / "weights" / "resnet18_layers1-3.safetensors"
VIEWS = ("fit", "calibrate", "inspect", "samples", "health", "station", "history", "record", "resnet", "key")
LEAST_HEIGHT = 900


class Parts:
    """Rendered parts as files, no two alike."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made = 0

    def some(self, name: str, count: int, *, bad: bool = False) -> list[Path]:
        paths = [self.folder / f"{name}_{n:02d}.png" for n in range(count)]
        for path in paths:
            self._made += 1
            path.write_bytes(encoded(part(self._made, height=240, width=320, defect=bad)))
        return paths


def checked(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def upload(paths: list[Path]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (path.name, path.read_bytes())) for path in paths]


def seen_by(api: httpx.Client, path: Path, **ids: str) -> dict[str, Any]:
    sent = {"image": (path.name, path.read_bytes())}
    return checked(api.post("/infer", data={**MODEL, **ids, "heatmap": "none"}, files=sent))


def lived_in(api: httpx.Client, parts: Parts) -> str:
    """Give the service a model with a past; the inspection that has the most to tell."""
    checked(api.post("/fit_ok", data={**MODEL, "author": "Marta"}, files=upload(parts.some("learn", 10))))
    checked(api.post("/datasets/ng/upload", data=MODEL, files=upload(parts.some("bad", 3, bad=True))))
    checked(api.post("/calibrate_dataset", json=KEY))
    again = {**MODEL, "memory_fit": "true", "author": "Marta", "note": "lote 12"}
    checked(api.post("/fit_ok", data=again, files=upload(parts.some("more", 3))))
    checked(api.post("/calibrate_dataset", json=KEY))
    scores = [seen_by(api, path)["score"] for path in (*parts.some("one", 1), *parts.some("other", 1, bad=True))]
    between = {**KEY, "mm_per_px": 0.2, "ok_scores": scores[:1], "threshold": sum(scores) / 2}
    checked(api.post("/calibrate_ng", json=between))
    listed = checked(api.get("/datasets/list", params=KEY))["classes"]
    for label in ("ok", "ng"):
        checked(api.post("/datasets/golden", json={**KEY, "filename": listed[label]["files"][0], "author": "Marta"}))
    checked(api.post("/certify", json={**KEY, "parts": 5, "trials": 3}))
    told = ""
    seen = [*parts.some("seen", 22), *parts.some("seen_bad", 4, bad=True)]
    for n, path in enumerate(seen):
        ids = {"part_id": str(4700 + n), "batch_id": "L-12", "station_id": "Línea 1", "operator": "Marta"}
        found = seen_by(api, path, **ids)
        if found["decision"] == "ng":
            told = found["inspection_id"]
    reviewed = {"verdict": "bad", "defect": "grieta", "note": "Se ve a simple vista.", "reviewer": "Marta"}
    checked(api.post(f"/inspections/{told}/review", json=reviewed))
    return told


def banked(settings: Settings) -> bool:
    """Build the second system's bank where its weights lie beside the project."""
    if not WEIGHTS.exists():
        return False
    predictor = Predictor(settings)
    learn = sorted((SHARED_DATA / "cookies" / "train" / "good").iterdir())[:12]
    predictor.build([ImageFile.named(path.name, path.read_bytes) for path in learn], coreset_rate=0.01)
    predictor.close()
    return True


@dataclass
class Given:
    """What is photographed, where the pictures go, and what the views are shown with."""

    folder: Path
    views: list[str]
    widths: list[int]
    inspection: str
    good: list[Path]
    bad: list[Path]


def shown(desk: Console, view: str, given: Given) -> None:
    """Bring the page to a view that has something in it."""
    page = desk.page
    if view == "key":
        desk.go("inspect")
        page.evaluate("() => document.getElementById('key').showModal()")
        return
    desk.go(f"history/{given.inspection}" if view == "record" else view)
    panel = "history" if view == "record" else view
    expect(page.locator(f"#{panel}")).to_be_visible()
    if view == "fit" and page.locator("#fit-count").inner_text() == "0":
        page.set_input_files("#fit-files", given.good)
    if view == "calibrate" and not page.locator("#histogram svg").count():
        page.set_input_files("#cal-ok", given.good)
        page.set_input_files("#cal-ng", given.bad)
        desk.settled(len(given.good) + len(given.bad))
        page.select_option("#cal-target", "0.01")
        page.click("#cal-stored")
        expect(page.locator("#cal-result .promise")).to_be_visible()
    if view == "inspect":
        page.locator("#parts .part[data-decision=ng]").first.click()
        page.locator("#regions button").first.click()
        expect(page.locator("#nearest figure").first).to_be_visible()
    if view == "samples":
        expect(page.locator("#sa-ok li").first).to_be_visible()
    if view == "health":
        expect(page.locator("#he-checks li").first).to_be_visible()
    if view == "history":
        expect(page.locator("#hi-list .record").first).to_be_visible()
    if view == "record":
        expect(page.locator("#hi-reasons li").first).to_be_visible()
    if view == "resnet" and not page.locator("#rn-list .part").count():
        cookies = SHARED_DATA / "cookies" / "test"
        page.set_input_files("#rn-files", [sorted((cookies / kind).iterdir())[0] for kind in ("crack", "good")])
        expect(page.locator("#rn-list .part")).to_have_count(2)
        expect(page.locator("#rn-list .part[data-decision=busy]")).to_have_count(0)


def photographed(desk: Console, given: Given, name: str) -> None:
    for view, width in itertools.product(["calibrate", *given.views], given.widths):
        desk.page.set_viewport_size({"width": width, "height": max(LEAST_HEIGHT, width * 9 // 16)})
        shown(desk, view, given)
        if view in {"samples", "health"}:  # their pictures are loaded when they come in sight
            for image in desk.page.locator(f"#{view} img").all():
                image.scroll_into_view_if_needed()
                expect(image).to_have_attribute("src", re.compile("^blob:"))
            desk.page.evaluate("() => scrollTo(0, 0)")
        desk.page.wait_for_timeout(1500 if view == "station" else 500)
        if view in given.views:
            desk.page.screenshot(path=given.folder / f"{view}-{width}-{name}.png", full_page=view != "key")
        if view == "key":
            desk.page.evaluate("() => document.getElementById('key').close()")


def side_by_side(given: Given, view: str, width: int) -> None:
    """Put a view's four pictures on one sheet."""
    paths = sorted(given.folder.glob(f"{view}-{width}-??-*.png"), reverse=True)
    four = [np.asarray(cv2.imread(str(path)), np.uint8) for path in paths]
    tallest = max(len(picture) for picture in four)
    even = [np.pad(one, ((0, tallest - len(one)), (0, 0), (0, 0)), constant_values=128) for one in four]
    (given.folder / f"sheet-{view}-{width}.png").write_bytes(encode_png(sheet(even, columns=2)))


def opened(browser: Browser, api: httpx.Client) -> Iterator[tuple[str, Console]]:
    for locale, scheme in itertools.product(("es-ES", "en-GB"), ("light", "dark")):
        context = browser.new_context(locale=locale, color_scheme=cast(Any, scheme))
        page: Page = context.new_page()
        desk = Console(page, api)
        desk.watch()
        page.goto(f"{api.base_url}/?role_id={KEY['role_id']}&roi_id={KEY['roi_id']}#/calibrate")
        expect(page.locator("#service[data-state=ok]")).to_be_visible()
        yield f"{locale[:2]}-{scheme}", desk
        assert not desk.errors, desk.errors
        context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=list(VIEWS))
    parser.add_argument("--widths", nargs="+", type=int, default=[800, 1280, 1920])
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        root = Path(scratch)
        settings = Settings(
            model_name="texture",
            input_size=224,
            models_dir=root / "models",
            datasets_dir=root / "datasets",
            artifacts_dir=root / "artifacts",
            static_dir=root / "static",
            results_db=f"sqlite:///{root / 'inspections.db'}",
            keep_images="all",
            resnet_weights=str(WEIGHTS) if WEIGHTS.exists() else "",
            min_free_mb=0,
        )
        views = [view for view in asked.views if view != "resnet" or banked(settings)]
        parts = Parts(root)
        with served(settings) as api:
            inspection = lived_in(api, parts)
            good, bad = parts.some("good", 6), parts.some("worse", 2, bad=True)
            given = Given(asked.folder, views, asked.widths, inspection, good, bad)
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            for name, desk in opened(browser, api):
                photographed(desk, given, name)
            browser.close()
    for view, width in itertools.product(given.views, given.widths):
        side_by_side(given, view, width)


if __name__ == "__main__":
    main()
