"""What the views say when something is the matter with the service, and that they recover by themselves."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.benchmarks.bench_records import fill
from tests.faults.service import Running, running, running_at
from tests.records.postgres import Server, binaries
from tests.web.line import BAD, GOOD, MODEL, inspected, learned
from tests.web.page import Console, Open, serious

pytestmark = pytest.mark.browser

VIEWS = ("fit", "calibrate", "inspect", "samples", "health", "station", "history")
# Which element tells of trouble, and which of being well again.
TROUBLE = {"samples": "#sa-trouble", "health": "#he-trouble", "station": "#st-alarm", "history": "#hi-trouble"}
WELL = {"samples": "#sa-ok li", "health": "#he-checks li", "station": "#st-recent li", "history": "#hi-list .record"}


def test_views_recover_by_themselves_from_a_service_that_was_gone(console: Open, tmp_path: Path) -> None:
    desk = console(results_db=f"sqlite:///{tmp_path / 'r.db'}", locale="en-GB")
    learned(desk.api)
    inspected(desk.api, GOOD, part_id="4711")
    page = desk.page
    desk.open("station", **MODEL)
    expect(page.locator(WELL["station"]).first).to_be_visible()
    page.context.set_offline(True)
    for view, trouble in TROUBLE.items():
        desk.tab(view)
        expect(page.locator(trouble)).to_contain_text(re.compile("no connection to the service", re.IGNORECASE))
    expect(page.locator("#service")).to_have_attribute("data-state", "bad")
    page.context.set_offline(False)
    expect(page.locator(WELL["history"]).first).to_be_visible()  # the view that is open, without a click
    expect(page.locator(TROUBLE["history"])).to_be_hidden()
    for view, well in WELL.items():
        desk.tab(view)
        expect(page.locator(well).first).to_be_visible()
        expect(page.locator(TROUBLE[view])).to_be_hidden()
    assert not desk.errors


def test_views_of_an_empty_service_say_where_to_begin(console: Open, tmp_path: Path) -> None:
    desk = console(results_db=f"sqlite:///{tmp_path / 'r.db'}", locale="en-GB")
    page = desk.page
    said = {
        "samples": ("#sa-none", "no stored images"),
        "health": ("#he-none", "There is no model yet"),
        "station": ("#st-empty", "The line has sent no part yet"),
        "history": ("#hi-none", "No part has been inspected yet"),
    }
    desk.open("fit", **MODEL)
    for view, (box, words) in said.items():
        desk.tab(view)
        expect(page.locator(box)).to_contain_text(words)
        assert not serious(page), view
    assert not desk.errors
    assert not page.locator("#alerts .notice").count()


def test_no_view_is_wider_than_a_phone(console: Open, tmp_path: Path) -> None:
    desk = console(results_db=f"sqlite:///{tmp_path / 'r.db'}", locale="es-ES", width=390)
    for known in ({}, MODEL):
        if known:
            learned(desk.api)
        for view in VIEWS:
            desk.open(f"/{view}", **known)
            expect(desk.page.locator("#service")).to_have_attribute("data-state", "ok")
            expect(desk.page.locator(f"#{view}")).to_be_visible()
            assert desk.page.evaluate("() => document.documentElement.scrollWidth") <= 390, (view, known)


def test_a_wrong_key_is_asked_for_again_and_the_view_goes_on(console: Open, tmp_path: Path) -> None:
    desk = console(results_db=f"sqlite:///{tmp_path / 'r.db'}", locale="en-GB", api_keys=("right",))
    desk.api.headers["X-API-Key"] = "right"
    learned(desk.api)
    page = desk.page
    for view in ("health", "history"):
        page.goto("about:blank")
        page.goto(f"{desk.api.base_url}/?role_id=Belt&roi_id=Cookie#/{view}")
        expect(page.locator("#key")).to_be_visible()
        page.fill("#key-value", "wrong")
        page.press("#key-value", "Enter")
        expect(page.locator("#key-refused")).to_be_visible()
        page.fill("#key-value", "right")
        page.press("#key-value", "Enter")
        expect(page.locator(WELL[view]).first).to_be_visible()
        expect(page.locator("#key")).to_be_hidden()
        page.evaluate("() => sessionStorage.clear()")
    assert not desk.errors


@pytest.fixture
def looking(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(locale="en-GB", viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


@contextmanager
def opened(page: Page, service: Running, view: str) -> Iterator[Console]:
    with httpx.Client(base_url=service.url, timeout=60) as api:
        desk = Console(page, api)
        desk.watch()
        desk.open(view, **MODEL)
        yield desk


@pytest.mark.slow
def test_every_view_survives_a_service_that_is_killed_and_started_again(looking: Page, tmp_path: Path) -> None:
    with running(tmp_path) as service, opened(looking, service, "station") as desk:
        learned(desk.api)
        inspected(desk.api, GOOD, part_id="4711")
        expect(looking.locator("#st-part")).to_contain_text("4711")
        service.process.kill()
        service.process.wait()
        expect(looking.locator("#st-alarm")).to_contain_text("No connection")
        for view in ("samples", "health", "history"):
            desk.tab(view)
            expect(looking.locator(TROUBLE[view])).to_be_visible()
        with running_at(service.port, tmp_path):
            for view in ("history", "samples", "health", "station"):
                expect(looking.locator(WELL["history"]).first).to_be_visible() if view == "history" else desk.tab(view)
                expect(looking.locator(WELL[view]).first).to_be_visible()
            inspected(desk.api, BAD, part_id="4712")
            expect(looking.locator("#st-part")).to_contain_text("4712")
            expect(looking.locator("#st-alarm")).to_be_hidden()
    assert not desk.errors


@pytest.mark.slow
def test_fifty_thousand_records_are_searched_and_shown(looking: Page, tmp_path: Path) -> None:
    fill(f"sqlite:///{tmp_path / 'inspections.db'}", 50_000)
    with running(tmp_path) as service, opened(looking, service, "history") as desk:
        expect(looking.locator("#hi-list .record")).to_have_count(50)
        begun = time.monotonic()
        looking.fill("#hi-part_id", "part 4711")
        looking.press("#hi-part_id", "Enter")
        expect(looking.locator("#hi-list .record")).to_have_count(2)
        assert time.monotonic() - begun < 5
        looking.locator("#hi-list .record").first.click()
        expect(looking.locator("#hi-trend .dot").nth(20)).to_be_attached()
        looking.go_back()
        looking.click("#hi-reset")
        looking.select_option("#hi-decision", "ng")
        for page in range(1, 4):
            expect(looking.locator("#hi-list .record")).to_have_count(50 * page)
            looking.click("#hi-more")
        desk.tab("station")
        expect(looking.locator("#st-recent li")).to_have_count(20)
        assert not desk.errors


@pytest.mark.slow
@pytest.mark.skipif(binaries() is None, reason="needs PostgreSQL (Debian: apt-get install postgresql)")
def test_two_workers_on_postgresql_while_a_second_client_posts(looking: Page, tmp_path: Path) -> None:
    with (
        Server() as server,
        running(tmp_path, workers=2, BDI_RESULTS_DB=server.database(), KEEP_IMAGES="all") as service,
        opened(looking, service, "station") as desk,
    ):
        learned(desk.api)
        stop = threading.Event()

        def line() -> None:
            with httpx.Client(base_url=service.url, timeout=60) as api:
                n = 0
                while not stop.is_set():
                    inspected(api, BAD if n % 5 == 0 else GOOD, part_id=f"P{n}", station_id="A")
                    n += 1
                    stop.wait(0.1)

        posting = threading.Thread(target=line)
        posting.start()
        try:
            expect(looking.locator("#st-part")).to_contain_text("P12 ")
            for view in VIEWS:
                desk.tab(view)
                if view in WELL:
                    expect(looking.locator(WELL[view]).first).to_be_visible()
            looking.fill("#hi-part_id", "P5")
            looking.press("#hi-part_id", "Enter")
            expect(looking.locator("#hi-list .record")).to_have_count(1)
            looking.click("#hi-list .record")
            looking.click("#hi-review button[value=good]")
            expect(looking.locator("#hi-reviews li")).to_contain_text("It is good")
            looking.locator("#hi-regions button").first.click()
            expect(looking.locator("#hi-nearest figure")).to_have_count(2)
            desk.tab("station")
            expect(looking.locator("#st-recent li")).to_have_count(20)
        finally:
            stop.set()
            posting.join()
        assert not desk.errors
