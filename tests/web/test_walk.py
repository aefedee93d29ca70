"""What a newcomer does from the first part to the certificate, by what the page offers next."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.parts import encoded, part
from tests.web.line import inspected
from tests.web.page import Open

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    ("locale", "width", "none", "missing"),
    [
        ("en-GB", 1280, "0 of 10 (0 %)", "Good parts still missing to promise what was asked: 289."),
        pytest.param(
            *("es-ES", 1920, "0 de 10 (0 %)", "Piezas buenas que faltan para prometer lo pedido: 289."),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_newcomer_goes_from_the_first_part_to_the_certificate(
    console: Open, tmp_path: Path, locale: str, width: int, none: str, missing: str
) -> None:
    def files(*seeds: int, defect: bool = False) -> list[Path]:
        paths = [tmp_path / f"{seed}.png" for seed in seeds]
        for seed, path in zip(seeds, paths, strict=True):
            path.write_bytes(encoded(part(seed, defect=defect)))
        return paths

    records = f"sqlite:///{tmp_path / 'r.db'}"
    desk = console(results_db=records, keep_images="all", coreset_rate=0.25, locale=locale, width=width)
    page = desk.page
    page.goto(f"{desk.api.base_url}/")
    expect(page.locator("#tab-fit")).to_have_attribute("aria-selected", "true")
    page.fill("#role", "Belt")
    page.fill("#roi", "Cookie")
    page.set_input_files("#fit-files", files(*range(12)))
    expect(page.locator("#fit-count")).to_have_text("12")
    page.click("#fit-go")
    page.locator("#fit-result .primary").click()

    page.set_input_files("#cal-ok", files(*range(20, 30)))
    page.set_input_files("#cal-ng", files(50, 51, 52, defect=True))
    desk.settled(13)
    expect(page.locator("#cal-reject")).to_have_text(none)
    page.select_option("#cal-target", "0.01")
    page.click("#cal-go")
    expect(page.locator("#cal-result .promise")).to_contain_text(missing)
    expect(page.locator("#cal-result .notice")).to_be_in_viewport()
    expect(page.locator("#cal-go")).to_be_enabled()  # all parts are scored by the new threshold

    desk.tab("station")
    stained = part(70)
    stained[53:71, 21:39] = (90, 90, 90)
    inspected(desk.api, encoded(part(60)), part_id="4710")
    seen = inspected(desk.api, encoded(stained), part_id="4711")
    expect(page.locator("#st-part")).to_contain_text("4711")
    expect(page.locator("#st-verdict")).to_have_attribute("data-decision", "ng")

    desk.tab("history")
    page.fill("#hi-part_id", "4711")
    page.press("#hi-part_id", "Enter")
    expect(page.locator("#hi-list .record")).to_have_count(1)
    expect(page.locator("#hi-list .record")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#hi-title")).to_be_focused()
    expect(page.locator("#hi-title")).to_contain_text("4711")
    page.click("#hi-review button[value=good]")
    expect(page.locator("#hi-judged")).not_to_be_empty()
    page.click("#hi-teach")
    expect(page.locator("#hi-lesson h2")).to_be_in_viewport()
    page.locator("#hi-lesson .primary").click()
    expect(page.locator("#hi-lesson .notice")).to_be_in_viewport()
    assert inspected(desk.api, encoded(stained))["decision"] == "ok"

    page.locator("#hi-lesson a").click()
    expect(page.locator("#he-versions li")).to_have_count(3)  # in use, before it was taught, before it was calibrated
    page.locator("#he-versions li button[data-changes]").first.click()
    page.click("#ask-yes")
    expect(page.locator("#he-said")).not_to_be_empty()
    expect(page.locator("#he-said")).to_be_in_viewport()
    assert inspected(desk.api, encoded(stained))["score"] == seen["score"]

    few = {"role_id": "Belt", "roi_id": "Cookie", "parts": 6, "trials": 3}
    page.route("**/certify", lambda route: route.continue_(post_data=few))
    page.click("#he-certify")
    with page.expect_popup() as opened:
        page.click("#he-paper")
    expect(opened.value.locator("body")).to_contain_text("Belt/Cookie")
    for paper in (opened.value, page):
        assert paper.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    assert not desk.errors
