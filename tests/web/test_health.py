"""The health of a model: its versions, golden samples, drift and certificate on one page."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.parts import encoded, part
from tests.web.line import MODEL, inspected, learned
from tests.web.page import Open, serious

pytestmark = pytest.mark.browser

KEY = {"role_id": "Belt", "roi_id": "Cookie"}


def sent(*seeds: int, defect: bool = False) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (f"{n}.png", encoded(part(n, height=120, width=160, defect=defect)))) for n in seeds]


def test_the_page_for_an_auditor_says_how_a_model_is(console: Open, tmp_path: Path) -> None:
    desk = console(results_db=f"sqlite:///{tmp_path / 'r.db'}", locale="en-GB")
    page = desk.page
    desk.open("health", **MODEL)
    expect(page.locator("#he-none")).to_contain_text("There is no model yet")
    learned(desk.api)
    desk.api.post("/datasets/ng/upload", data=MODEL, files=sent(60, 61, defect=True))
    for seed in range(70, 76):
        inspected(desk.api, encoded(part(seed, height=120, width=160)))
    told = {"memory_fit": "true", "author": "Marta", "note": "parts of <b>batch 12</b>"}
    assert desk.api.post("/fit_ok", data={**MODEL, **told}, files=sent(8, 9)).status_code == 200

    page.click("#tab-samples")
    page.locator("#sa-ng li").first.get_by_text("Make golden").click()
    expect(page.locator("#sa-ng li.marked")).to_contain_text("must get NG")
    desk.tab("health")
    checks = page.locator("#he-checks li")
    expect(checks.nth(0)).to_contain_text("Images: 10.")
    expect(checks.nth(1)).to_have_attribute("data-state", "warn")  # calibrated before it grew
    expect(checks.nth(2)).to_contain_text("Still learning what good parts look like")
    expect(checks.nth(3)).to_contain_text("1 of 1")
    expect(page.locator("#he-golden li")).to_contain_text("✓ NG")
    expect(page.locator("#he-days .band")).to_have_count(1)
    expect(page.locator("#he-versions li")).to_have_count(3)
    expect(page.locator("#he-versions li").first).to_contain_text("parts of <b>batch 12</b>")
    assert not serious(page)
    desk.picture("health")

    former = page.locator("#he-versions li").nth(1)
    former.get_by_text("Compare").click()
    expect(page.locator("#he-compared")).to_contain_text("Samples: 12.")
    former.get_by_text("Restore").click()
    page.fill("#ask-note", "the new batch was bad")
    page.click("#ask-yes")
    expect(page.locator("#he-said")).to_contain_text("is restored")
    expect(checks.nth(0)).to_contain_text("Images: 8.")
    expect(page.locator("#he-versions")).to_contain_text("the new batch was bad")
    assert desk.api.get("/manifest", params=KEY).json()["memory"]["n_images"] == 8

    threshold = {"ok_scores": [1.0], "threshold": 9.0}
    assert desk.api.post("/calibrate_ng", json={**MODEL, "mm_per_px": 0.2, **threshold}).status_code == 200
    page.click("#he-run")
    expect(page.locator("#he-golden li[data-state=bad]")).to_contain_text("Now OK")
    expect(checks.nth(3)).to_have_attribute("data-state", "bad")
    page.locator("#he-golden").get_by_text("No longer golden").click()
    expect(page.locator("#he-golden li")).to_have_count(0)
    assert not desk.errors


@pytest.mark.slow
def test_a_certificate_is_made_and_opened_from_the_page(console: Open, tmp_path: Path) -> None:
    desk = console(results_db="none", locale="es-ES")
    learned(desk.api)
    page = desk.page
    desk.open("health", **MODEL)
    expect(page.locator("#he-days-figure")).to_be_hidden()
    expect(page.locator("#he-paper")).to_be_hidden()
    page.route("**/certify", lambda route: route.continue_(post_data={**KEY, "parts": 6, "trials": 3}))
    page.click("#he-certify")
    expect(page.locator("#he-certificate-progress progress")).to_be_visible()
    expect(page.locator("#he-certificate div").first).to_contain_text("Hecho")
    with page.expect_popup() as opened:
        page.click("#he-paper")
    expect(opened.value.locator("body")).to_contain_text("Belt/Cookie")
    page.emulate_media(media="print")
    expect(page.locator("#he-checks")).to_be_visible()
    expect(page.locator("#he-certify")).to_be_hidden()
    assert not desk.errors
