"""The library of a model: what is stored, what stands out, and what becomes of it."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Route, expect

from tests.parts import encoded, part
from tests.web.line import MODEL
from tests.web.page import Open, serious

pytestmark = pytest.mark.browser

KEY = {"role_id": "Belt", "roi_id": "Cookie"}
PLAIN = {"results_db": "none", "coreset_rate": 0.25}


def test_a_bad_part_among_the_good_is_found_and_made_bad(console: Open, tmp_path: Path) -> None:
    desk = console(locale="es-ES", **PLAIN)
    images = [
        ("images", (f"{'rayada' if seed == 12 else seed}.png", encoded(part(seed, defect=seed == 12))))
        for seed in range(13)
    ]
    assert desk.api.post("/fit_ok", data=MODEL, files=images).status_code == 200
    page = desk.page
    desk.open("samples", **MODEL)
    expect(page.locator("#sa-ok li")).to_have_count(13)
    expect(page.locator("#sa-ok img[src^=blob]").first).to_be_visible()
    page.click("#sa-suspects")
    suspect = page.locator("#sa-ok li").first
    expect(suspect).to_have_class("suspect")
    expect(suspect).to_contain_text("veces más lejos")
    assert not serious(page)
    desk.picture("samples")
    suspect.get_by_text("Pasar a defectuosa").click()
    expect(page.locator("#sa-ng li")).to_have_count(1)
    expect(page.locator("#sa-ok li")).to_have_count(12)
    delete = page.locator("#sa-ng li").get_by_text("Borrar", exact=True)
    delete.click()
    page.locator("#sa-ng li").get_by_text("Deshacer").click()
    expect(delete).to_be_visible()
    delete.click()
    page.click("#tab-history")  # what was deleted is gone once nobody can undo it any more
    page.click("#tab-samples")
    expect(page.locator("#sa-ng li")).to_have_count(0)
    assert desk.api.get("/datasets/list", params=KEY).json()["classes"]["ng"]["count"] == 0
    page.click("#sa-again")
    page.click("#ask-yes")
    expect(page.locator("#sa-said")).to_contain_text("Imágenes: 12.")
    assert not desk.errors


def test_a_fit_names_what_stands_out_and_learns_again_without_it(console: Open, tmp_path: Path) -> None:
    paths = []
    for seed in range(13):
        paths.append(tmp_path / f"{'bad' if seed == 12 else 'good'}_{seed}.png")
        paths[-1].write_bytes(encoded(part(seed, defect=seed == 12)))
    desk = console(locale="en-GB", **PLAIN)
    page = desk.page
    desk.open("fit", **MODEL)
    page.set_input_files("#fit-files", paths)
    expect(page.locator("#fit-count")).to_have_text("13")
    page.click("#fit-go")
    expect(page.locator("#fit-suspects li").first).to_contain_text("bad_12.png")
    expect(page.locator("#fit-suspects li canvas").first).to_be_visible()
    page.click("#fit-without")
    page.click("#ask-yes")
    expect(page.locator("#fit-count")).to_have_text("12")
    expect(page.locator("#fit-result")).to_contain_text("Images: 12.")
    assert desk.api.get("/manifest", params=KEY).json()["memory"]["n_images"] == 12
    assert not desk.errors


def test_parts_that_are_dropped_before_the_models_are_listed_are_inspected(console: Open, tmp_path: Path) -> None:
    listings: list[Route] = []
    desk = console(results_db="none")
    learn = [("images", (f"{seed}.png", encoded(part(seed)))) for seed in range(4)]
    assert desk.api.post("/fit_ok", data=MODEL, files=learn).status_code == 200
    (tmp_path / "9.png").write_bytes(encoded(part(9)))
    desk.page.route(re.compile("/models"), lambda route: listings.append(route))
    desk.open("calibrate", **MODEL)
    desk.page.set_input_files("#cal-ok", tmp_path / "9.png")
    desk.page.wait_for_timeout(200)
    assert listings
    for listing in listings:
        listing.continue_()
    desk.page.unroute(re.compile("/models"))
    desk.settled(1)
    assert not desk.errors


def test_a_target_is_promised_or_the_missing_parts_are_counted(console: Open, tmp_path: Path) -> None:
    desk = console(locale="es-ES", results_db="none")
    learn = [("images", (f"{seed}.png", encoded(part(seed, height=120, width=160)))) for seed in range(8)]
    assert desk.api.post("/fit_ok", data=MODEL, files=learn).status_code == 200
    good = []
    for seed in range(20, 30):
        good.append(tmp_path / f"{seed}.png")
        good[-1].write_bytes(encoded(part(seed, height=120, width=160)))
    page = desk.page
    desk.open("calibrate", **MODEL)
    page.set_input_files("#cal-ok", good)
    desk.settled(10)
    page.select_option("#cal-target", "0.01")
    page.click("#cal-go")
    expect(page.locator("#cal-result .promise")).to_contain_text(
        "Piezas buenas que faltan para prometer lo pedido: 289."
    )
    desk.picture("calibrate")
    page.select_option("#cal-target", "0.1")
    page.click("#cal-stored")
    expect(page.locator("#cal-result")).to_contain_text("Piezas buenas: 8.")
    assert not desk.errors
