"""The station's view: what the line posts, as it comes."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.parts import encoded, part
from tests.web.line import BAD, GOOD, MODEL, inspected, learned
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

    page.get_by_text("enseñarle al modelo esta falsa alarma").click()
    expect(page.locator("#hi-title")).to_have_text("Pieza bad-2")
    expect(page.locator("#hi-teach")).to_be_visible()
    page.go_back()
    expect(page.locator("#st-part")).to_contain_text("bad-2")

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


def test_parts_without_a_verdict_are_counted_too(console: Open, tmp_path: Path) -> None:
    desk = console(results_db=f"sqlite:///{tmp_path / 'r.db'}", locale="en-GB")
    images = [("images", (f"{seed}.png", encoded(part(seed, height=120, width=160)))) for seed in range(8)]
    assert desk.api.post("/fit_ok", data=MODEL, files=images).status_code == 200
    desk.open("station")
    expect(desk.page.locator("#st-empty")).to_be_visible()
    for number in range(3):
        inspected(desk.api, GOOD, part_id=f"part-{number}")
    expect(desk.page.locator("#st-verdict[data-decision=none]")).to_be_visible()
    expect(desk.page.locator("#st-counts > div:visible")).to_have_text(
        ["Parts this shift3", "OK0", "NG0", "No verdict3", "Good parts–"]
    )


def test_pictures_of_new_parts_take_the_places_of_old_ones(console: Open, tmp_path: Path) -> None:
    desk = console(results_db=f"sqlite:///{tmp_path / 'r.db'}", locale="en-GB")
    learned(desk.api)
    page = desk.page
    for number in range(20):
        inspected(desk.api, GOOD, part_id=f"old-{number}")
    desk.open("station")
    expect(page.locator("#st-recent li")).to_have_count(20)
    page.evaluate("() => { window.first = [...document.querySelectorAll('#st-recent canvas, #st-trend svg')]; }")
    for number in range(25):
        inspected(desk.api, BAD if number % 5 == 4 else GOOD, part_id=f"new-{number}")
    expect(page.locator("#st-recent li").first).to_contain_text("new-24")
    names = page.locator("#st-recent .name").all_inner_texts()
    assert names == [f"new-{number}" for number in range(24, 4, -1)]
    assert page.evaluate("() => window.first.every((node) => node.isConnected)"), "no canvas is made anew"
    expect(page.locator("#st-recent canvas:not([width='1'])")).to_have_count(20)
    asked = [call for call in desk.calls if call.endswith("/overlay")]
    assert len(asked) <= 20 + 25, "no picture is asked for twice"


def test_a_service_that_keeps_no_inspections_says_so(console: Open) -> None:
    desk = console(results_db="none", locale="en-GB")
    desk.open("station")
    expect(desk.page.locator("#st-off")).to_have_text(
        "This service keeps no inspections, so there is nothing to see here."
    )
    desk.tab("history")
    expect(desk.page.locator("#hi-trouble")).to_be_visible()


def test_what_is_inspected_in_the_console_is_no_part_of_the_line(console: Open, tmp_path: Path) -> None:
    desk = console(results_db=f"sqlite:///{tmp_path / 'r.db'}", locale="es-ES")
    learned(desk.api)
    page = desk.page
    desk.open("station")
    expect(page.locator("#st-counts dd").first).to_have_text("2")
    desk.open("inspect", **MODEL)
    page.set_input_files("#parts-files", {"name": "by-hand.png", "mimeType": "image/png", "buffer": BAD})
    desk.settled(1)
    inspected(desk.api, GOOD, part_id="4711", station_id="A")
    desk.tab("station")
    expect(page.locator("#st-part")).to_contain_text("4711")
    expect(page.locator("#st-counts dd").first).to_have_text("3")
    desk.tab("inspect")
    page.set_input_files("#parts-files", {"name": "again.png", "mimeType": "image/png", "buffer": BAD})
    desk.settled(2)
    desk.tab("station")
    inspected(desk.api, GOOD, part_id="4712")
    expect(page.locator("#st-recent .name")).to_have_text(["4712", "4711", "part.png", "part.png"])
    expect(page.locator("#st-counts dd").first).to_have_text("4")

    page.click("details:has(#st-station) > summary")
    page.fill("#st-station", "console")
    page.press("#st-station", "Tab")
    expect(page.locator("#st-recent .name")).to_have_text(["again.png", "by-hand.png"])
    desk.tab("history")
    expect(page.locator("#hi-list .record")).to_have_count(6)
    expect(page.locator("#hi-list .record:has-text('console') strong")).to_have_text(["again.png", "by-hand.png"])
    assert not desk.errors


@pytest.mark.parametrize("width", [390, 800, 1280, 1920])
def test_the_last_twenty_are_seen_at_once(console: Open, tmp_path: Path, width: int) -> None:
    desk = console(results_db=f"sqlite:///{tmp_path / 'r.db'}", locale="es-ES", width=width)
    learned(desk.api)
    for number in range(20):
        inspected(desk.api, BAD if number % 7 == 3 else GOOD, part_id=str(4700 + number))
    page = desk.page
    desk.open("station")
    thumbs = page.locator("#st-recent canvas:not([width='1'])")
    expect(thumbs).to_have_count(20)
    boxes = [box for one in thumbs.all() if (box := one.bounding_box())]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] > 40 for box in boxes)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    names = page.locator("#st-recent .name").all()
    assert all(one.evaluate("node => node.scrollWidth <= node.clientWidth") for one in names), "a number is cut"
    if width >= 1280:
        assert max(box["y"] + box["height"] for box in boxes) <= 900, "all of them without scrolling"
