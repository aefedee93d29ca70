"""The station's view: what the line posts, as it comes."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.web.line import BAD, GOOD, inspected, learned
from tests.web.page import Open, serious

pytestmark = pytest.mark.browser


def test_the_station_shows_each_part_that_the_line_posts(console: Open, tmp_path: Path) -> None:
    desk = console(results_db=f"sqlite:///{tmp_path / 'r.db'}", locale="es-ES")
    learned(desk.api)
    page = desk.page
    desk.open("station")
    expect(page.locator("#st-verdict")).to_have_attribute("data-decision", "none")

    inspected(desk.api, GOOD, part_id="4711", station_id="A")
    expect(page.locator("#st-part")).to_contain_text("4711 · Belt / Cookie")
    expect(page.locator("#st-verdict")).not_to_have_attribute("data-decision", "ng")
    expect(page.locator("#st-picture[data-id]")).to_be_visible()
    for number in range(3):
        inspected(desk.api, BAD, part_id=f"bad-{number}", station_id="A")
    expect(page.locator("#st-part")).to_contain_text("bad-2")
    expect(page.locator("#st-verdict[data-decision=ng]")).to_contain_text("NG")
    expect(page.locator("#st-alarm")).to_have_text("NG seguidos: 3.")
    expect(page.locator("#st-counts .ng dd")).to_have_text("3")
    expect(page.locator("#st-trend .ng")).to_have_count(3)
    assert not serious(page)

    page.keyboard.press("x")
    expect(page.locator("#st-said")).to_contain_text("bad-2")
    newest = desk.api.get("/inspections", params={"part_id": "bad-2"}).json()["items"][0]["inspection_id"]
    assert [one["verdict"] for one in desk.api.get(f"/inspections/{newest}").json()["reviews"]] == ["good"]

    for number in range(30):
        inspected(desk.api, GOOD, part_id=f"more-{number}", station_id="B")
    expect(page.locator("#st-recent li").first).to_contain_text("more-29")
    expect(page.locator("#st-recent li")).to_have_count(20)
    expect(page.locator("#st-alarm")).to_be_hidden()
    page.click("details:has(#st-station) > summary")
    page.fill("#st-station", "A")
    page.press("#st-station", "Tab")
    expect(page.locator("#st-part")).to_contain_text("bad-2")
    expect(page.locator("#st-counts dd").first).to_have_text("4")
    desk.picture("station")
    assert not desk.errors


def test_a_service_that_keeps_no_inspections_says_so(console: Open) -> None:
    desk = console(results_db="none", locale="en-GB")
    desk.open("station")
    expect(desk.page.locator("#st-off")).to_have_text(
        "This service keeps no inspections, so there is nothing to see here."
    )
    desk.tab("history")
    expect(desk.page.locator("#hi-trouble")).to_be_visible()
