"""The history: a part is found, explained, reviewed and sent on as an address."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.parts import encoded, part
from tests.web.line import BAD, GOOD, MODEL, inspected, learned
from tests.web.page import Open, serious

pytestmark = pytest.mark.browser


def test_from_a_complaint_to_since_when(console: Open, tmp_path: Path) -> None:
    desk = console(results_db=f"sqlite:///{tmp_path / 'r.db'}", keep_images="all", locale="es-ES")
    learned(desk.api)
    for number in range(60):
        inspected(desk.api, BAD if number % 20 == 7 else GOOD, part_id=str(4700 + number), batch_id="L1")
    page = desk.page
    desk.open("history")
    expect(page.locator("#hi-list .record")).to_have_count(50)
    page.click("#hi-more")
    expect(page.locator("#hi-list .record")).to_have_count(62)  # the two of the calibration too
    page.select_option("#hi-decision", "ng")
    expect(page.locator("#hi-list .record")).to_have_count(3)
    assert not serious(page)
    page.click("#hi-reset")
    page.fill("#hi-part_id", "4711")
    page.press("#hi-part_id", "Enter")
    expect(page.locator("#hi-list .record")).to_have_count(1)
    page.click("#hi-list .record")
    expect(page.locator("#hi-title")).to_have_text("Pieza 4711")
    expect(page.locator("#hi-picture[src^=blob]")).to_be_visible()
    expect(page.locator("#hi-reasons li").first).to_contain_text(re.compile(r"puntuó 0,\d{4}"))
    expect(page.locator("#hi-trend .chosen")).to_have_count(1)
    drawn = page.get_attribute("#hi-picture", "src") or ""
    with page.expect_response("**/inspections/*/image"):
        page.uncheck("#hi-heat")
    expect(page.locator("#hi-picture")).not_to_have_attribute("src", drawn)
    expect(page.locator("#hi-picture")).to_have_js_property("naturalWidth", 160)
    assert not serious(page)

    page.fill("#hi-reviewer", "Marta")
    page.fill("#hi-note", "<b>arañazo</b>")
    page.click("#hi-review button[value=bad]")
    expect(page.locator("#hi-reviews li")).to_contain_text("Es mala")
    expect(page.locator("#hi-reviews li")).to_contain_text("<b>arañazo</b>")
    page.click("#hi-sample-ng")
    expect(page.locator("#hi-sampled")).to_contain_text("Guardada como")
    desk.picture("history")

    address = page.url
    page.click("#hi-alike")
    expect(page.locator("#hi-list .record").first).to_contain_text("4700")
    page.go_back()
    expect(page.locator("#hi-title")).to_have_text("Pieza 4711")
    page.click("#hi-back")
    expect(page.locator("#hi-list .record")).to_contain_text("Revisión: Es mala")
    page.go_back()
    page.reload()
    expect(page.locator("#hi-reviews li")).to_contain_text("Marta")
    assert page.url == address
    page.click("#hi-next")
    expect(page.locator("#hi-title")).to_have_text("Pieza 4712")
    page.goto(f"{desk.api.base_url}/#/history/none-such")
    expect(page.locator("#hi-trouble")).to_contain_text("none-such")
    assert not desk.errors


def test_a_false_alarm_is_taught_after_what_it_changes_is_shown_and_taken_back(console: Open, tmp_path: Path) -> None:
    desk = console(results_db=f"sqlite:///{tmp_path / 'r.db'}", keep_images="all", locale="en-GB", coreset_rate=0.25)
    sent = [("images", (f"{seed}.png", encoded(part(seed)))) for seed in range(12)]
    assert desk.api.post("/fit_ok", data=MODEL, files=sent).status_code == 200
    bad = [("images", (f"{seed}.png", encoded(part(seed, defect=True)))) for seed in (50, 51, 52)]
    assert desk.api.post("/datasets/ng/upload", data=MODEL, files=bad).status_code == 200
    assert desk.api.post("/calibrate_dataset", json={"role_id": "Belt", "roi_id": "Cookie"}).status_code == 200
    stained = part(70)
    stained[53:71, 21:39] = (90, 90, 90)
    seen = inspected(desk.api, encoded(stained), part_id="4711")
    assert seen["is_anomaly"]

    page = desk.page
    desk.open(f"/history/{seen['inspection_id']}")
    page.click("#hi-teach")
    expect(page.locator("#hi-lesson h2")).to_have_text("This is what would happen")
    expect(page.locator("#hi-lesson li").first).to_contain_text("afterwards OK")
    assert not serious(page)
    desk.picture("teach")
    page.locator("#hi-lesson").get_by_role("button", name="Teach it").click()
    expect(page.locator("#hi-lesson .notice")).to_contain_text("Taught.")
    assert not inspected(desk.api, encoded(stained))["is_anomaly"]
    page.locator("#hi-lesson").get_by_text("Take it back").click()
    expect(page.locator("#hi-lesson")).to_contain_text("as it was")
    assert inspected(desk.api, encoded(stained))["score"] == seen["score"]
    assert not desk.errors
