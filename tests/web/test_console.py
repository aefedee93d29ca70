"""The console in a real Chromium, on real parts where they lie beside the project."""

import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Page, Route, expect

from backend.base.config import Settings
from backend.extractors.texture import TextureFeatures
from backend.resnet_api.predictor import Predictor
from backend.service.images import ImageFile
from backend.tools.scenes import MM_PER_PX, Defect, brake_disc
from tests.parts import encoded, part
from tests.web.page import Console, Open, serious

pytestmark = pytest.mark.browser

MODEL = {"role_id": "Belt", "roi_id": "Cookie", "mm_per_px": "0.2"}
Pieces = dict[str, list[Path]]
FORM = {**MODEL, "heatmap": "absolute"}


@pytest.fixture
def pieces(tmp_path: Path) -> Pieces:
    """Small rendered parts: good ones to learn from, others to calibrate with, bad ones."""
    folder = tmp_path / "pieces"
    folder.mkdir()
    made: Pieces = {"learn": [], "good": [], "bad": []}
    for kind, seeds in (("learn", range(8)), ("good", range(20, 26)), ("bad", range(40, 43))):
        for seed in seeds:
            path = folder / f"{kind}_{seed}.png"
            path.write_bytes(encoded(part(seed, height=120, width=160, defect=kind == "bad")))
            made[kind].append(path)
    return made


def cookies(shared_data: Path, inside: str) -> list[Path]:
    return sorted((shared_data / "cookies" / inside).iterdir())


def resnet(shared_data: Path) -> dict[str, Any]:
    weights = str(shared_data / "weights" / "resnet18_layers1-3.safetensors")
    own = {"model_name": "resnet18", "weights": weights, "resnet_weights": weights, "input_size": 256}
    return {**own, "runtime": "torch", "precision": "fp32"}  # converting a network for OpenVINO takes longer than this


def fit(console: Console, files: list[Path]) -> None:
    console.tab("fit")
    console.page.set_input_files("#fit-files", files)
    expect(console.page.locator("#fit-count")).to_have_text(str(len(files)))
    console.page.click("#fit-go")
    expect(console.page.locator("#fit-result [data-state=ok]")).to_be_visible(timeout=90_000)


def calibrate(console: Console, good: list[Path], bad: list[Path]) -> float:
    console.tab("calibrate")
    console.page.set_input_files("#cal-ok", good)
    console.page.set_input_files("#cal-ng", bad)
    console.settled(len(good) + len(bad))
    console.page.click("#cal-go")
    notice = console.page.locator("#cal-result [data-threshold]")
    expect(notice).to_be_visible()
    console.settled(len(good) + len(bad))
    return float(notice.get_attribute("data-threshold") or "nan")


def calibrated(open_console: Open, pieces: Pieces) -> Console:
    """A console in English whose model has learned the good pieces and is calibrated with good and bad ones."""
    desk = open_console(locale="en-GB")
    desk.open("fit", **MODEL)
    fit(desk, pieces["learn"])
    calibrate(desk, pieces["good"], pieces["bad"])
    return desk


def infer(console: Console, path: Path, **more: str) -> dict[str, Any]:
    answer = console.api.post(
        "/infer", data={**FORM, **more}, files={"image": (path.name, path.read_bytes(), "image/png")}
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def areas(page: Page) -> list[float]:
    return [float(area.get_attribute("data-area") or "nan") for area in page.locator("#regions li").all()]


def test_a_broken_cookie_is_learned_calibrated_inspected_and_masked(console: Open, shared_data: Path) -> None:
    desk = console(width=1440, **resnet(shared_data))
    page = desk.page
    desk.open("fit", **MODEL)
    fit(desk, cookies(shared_data, "train/good"))
    expect(page.locator("#state")).to_contain_text("Aprendido")

    good, cracks = cookies(shared_data, "test/good"), cookies(shared_data, "test/crack")
    threshold = calibrate(desk, good[:8], cracks[:3])
    expect(page.locator("#state")).to_contain_text("Calibrado")
    scores = [infer(desk, path)["score"] for path in (*good[:8], *cracks[:3])]
    rejected, missed = (np.array(scores[:8]) > threshold).sum(), (np.array(scores[8:]) <= threshold).sum()
    expect(page.locator("#cal-reject")).to_contain_text(f"{rejected} de 8")
    expect(page.locator("#cal-miss")).to_contain_text(f"{missed} de 3")
    api = desk.api.post(
        "/calibrate_ng",
        json={
            "role_id": "Belt",
            "roi_id": "Cookie",
            "mm_per_px": 0.2,
            "ok_scores": scores[:8],
            "ng_scores": scores[8:],
        },
    )
    assert api.json()["threshold"] == pytest.approx(threshold, abs=1e-9)
    desk.picture("cookie-calibrate")

    desk.tab("inspect")
    page.set_input_files("#parts-files", [cracks[14]])
    desk.settled(12)
    expected = infer(desk, cracks[14])
    assert expected["decision"] == "ng" and expected["regions"], "the picture that the README shows"
    expect(page.locator("#verdict[data-decision=ng]")).to_contain_text("NG")
    assert desk.value("#gauge .score") == expected["score"]
    assert desk.value("#gauge .limit") == expected["threshold"] == threshold
    assert areas(page) == [region["area_mm2"] for region in expected["regions"]]
    desk.picture("cookie")

    before = len(desk.calls)
    desk.set_range("#threshold", expected["score"] * 1.02)
    expect(page.locator("#verdict[data-decision=look]")).to_contain_text("que mirar")
    assert sum(areas(page)) < sum(region["area_mm2"] for region in expected["regions"])
    expect(page.locator("#changed")).to_be_visible()
    page.check("input[name=mode][value='0']", force=True)
    expect(page.locator("#verdict[data-decision=ng]")).to_be_visible()
    asked = [call for call in desk.calls[before:] if call != "GET health"]  # which it looks at every 20 s
    assert asked == [], "the threshold moves without asking the server"

    page.check("input[name=kind][value=annulus]", force=True)
    box = page.locator("#stage").bounding_box()
    assert box is not None
    centre = (box["x"] + box["width"] / 2 + 40, box["y"] + box["height"] / 2 + 40)
    page.mouse.move(*centre)
    page.mouse.down()
    page.mouse.move(centre[0] + 60, centre[1], steps=4)
    page.mouse.move(centre[0] + 130, centre[1], steps=4)
    page.mouse.up()
    desk.settled(12)
    drawn = {name: float(page.input_value(f"#shape-{name}")) for name in ("cx", "cy", "r", "r_inner")}
    height, width = np.asarray(cv2.imread(str(cracks[14]))).shape[:2]
    scale = min(box["width"] / width, box["height"] / height)
    assert drawn["r"] == pytest.approx(130 / scale, abs=2 / scale)
    assert drawn["cx"] == pytest.approx(width / 2 + 40 / scale, abs=2 / scale)
    masked = infer(desk, cracks[14], shape=json.dumps({"kind": "annulus", **drawn}))
    expect(page.locator("#gauge .score")).to_have_attribute("data-value", str(masked["score"]))
    assert areas(page) == [region["area_mm2"] for region in masked["regions"]]
    desk.picture("cookie-annulus")

    page.fill("#shape-r_inner", "20")
    page.press("#shape-r_inner", "Enter")
    typed = infer(desk, cracks[14], shape=json.dumps({"kind": "annulus", **drawn, "r_inner": 20}))
    expect(page.locator("#gauge .score")).to_have_attribute("data-value", str(typed["score"]))
    assert not desk.errors


@pytest.mark.slow
def test_a_rusty_disc_is_told_with_its_ring_as_the_mask(console: Open, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)

    def render(name: str, defect: Defect = "") -> Path:
        path = tmp_path / f"{name}.png"
        path.write_bytes(encoded(brake_disc(rng, defect=defect).image))
        return path

    learn, good = [render(f"learn_{n}") for n in range(8)], [render(f"good_{n}") for n in range(5)]
    rusty, known = render("disc_0413", "rust"), render("disc_0398", "rust")
    desk = console(locale="en-GB", input_size=448)
    page = desk.page
    desk.open("fit", role_id="Line2", roi_id="BrakeDisc", mm_per_px=str(MM_PER_PX))
    fit(desk, learn)
    desk.tab("inspect")
    page.set_input_files("#parts-files", rusty)
    desk.settled(1)
    page.check("input[name=kind][value=annulus]", force=True)
    ring = brake_disc(rng).shape
    for name in ("cx", "cy", "r_inner", "r"):
        page.fill(f"#shape-{name}", str(ring[name]))
        page.press(f"#shape-{name}", "Tab")
    desk.tab("calibrate")
    page.set_input_files("#cal-ok", good)
    page.set_input_files("#cal-ng", known)
    desk.settled(7)
    page.fill("#cal-area", "60")
    page.click("#cal-go")
    expect(page.locator("#cal-result [data-threshold]")).to_be_visible()
    desk.settled(7)
    desk.tab("inspect")
    page.locator("#parts .part", has_text="disc_0413").click()
    expect(page.locator("#verdict[data-decision=ng]")).to_contain_text("Bad part")
    assert len(areas(page)) >= 1 and min(areas(page)) >= 60
    expect(page.locator("#warnings li")).to_have_count(0)
    desk.picture("console")


def test_the_resnet_tab_shows_what_predict_answers(console: Open, shared_data: Path, tmp_path: Path) -> None:
    own = resnet(shared_data)
    settings = Settings(artifacts_dir=tmp_path / "artifacts", resnet_weights=own["resnet_weights"])
    predictor = Predictor(settings)
    learn = cookies(shared_data, "train/good")[:12]
    predictor.build([ImageFile.named(path.name, path.read_bytes) for path in learn], coreset_rate=0.01)
    predictor.close()

    desk = console(resnet_weights=own["resnet_weights"], area_min=20)
    page = desk.page
    desk.open("resnet")
    crack, good = cookies(shared_data, "test/crack")[5], cookies(shared_data, "test/good")[0]
    page.set_input_files("#rn-files", [crack, good])
    expect(page.locator("#rn-list .part")).to_have_count(2)
    expect(page.locator("#rn-list .part[data-decision=busy]")).to_have_count(0)

    def predict(**params: Any) -> dict[str, Any]:
        files = {"file": (crack.name, crack.read_bytes(), "image/jpeg")}
        return dict(desk.api.post("/predict", params=params, files=files).json())

    expected = predict()
    assert desk.value("#rn-gauge .score") == expected["score"]
    assert desk.value("#rn-gauge .limit") == expected["threshold"]
    decision = "ng" if expected["is_anomaly"] else "ok"
    expect(page.locator(f"#rn-verdict[data-decision={decision}]")).to_be_visible()
    desk.picture("cookie-resnet18")

    page.check("input[name=rn-mode][value=sensitive]", force=True)
    expect(page.locator("#rn-gauge .limit")).to_have_attribute(
        "data-value", str(predict(mode="sensitive")["threshold"])
    )
    expect(page.locator("#rn-verdict[data-decision=ng]")).to_be_visible()
    for kind in ("heat", "mask", "outlines"):
        page.check(f"input[name=rn-show][value={kind}]", force=True)
        expect(page.locator(f"input[name=rn-show][value={kind}]")).to_be_checked()
    assert any(call.startswith("GET static/overlays/") and call.endswith("_mask.png") for call in desk.calls)
    page.fill("#rn-thr", "1.5")
    page.press("#rn-thr", "Tab")
    expect(page.locator("#rn-gauge .limit")).to_have_attribute("data-value", "1.5")
    expect(page.locator("#rn-verdict[data-decision=ok]")).to_be_visible()
    expect(page.locator("#rn-config")).to_have_attribute("data-status", "ready")
    expect(page.locator("#rn-config")).to_contain_text(desk.api.get("/config").json()["embedding_version"])
    desk.picture("cookie-resnet18-outlines")
    assert not desk.errors


def test_regions_drawn_by_the_page_are_those_the_server_would_give(console: Open, pieces: Pieces) -> None:
    desk = console()
    desk.open("fit", **MODEL)
    fit(desk, pieces["learn"])
    calibrate(desk, pieces["good"], pieces["bad"])
    desk.tab("inspect")
    bad = pieces["bad"][0].name
    desk.page.locator("#parts .part", has_text=bad).click()
    wanted = infer(desk, pieces["bad"][0])["score"] * 0.97
    desk.set_range("#threshold", wanted)
    moved = float(desk.page.input_value("#threshold"))
    drawn = areas(desk.page)
    crafted = {"role_id": "Belt", "roi_id": "Cookie", "mm_per_px": 0.2, "ok_scores": [moved]}
    assert desk.api.post("/calibrate_ng", json=crafted).json()["threshold"] == pytest.approx(moved)
    served = [region["area_mm2"] for region in infer(desk, pieces["bad"][0])["regions"]]
    assert len(drawn) == len(served) > 0
    np.testing.assert_allclose(drawn, served, rtol=0.08)


def test_moving_the_line_counts_what_would_be_rejected_and_missed(console: Open, pieces: Pieces) -> None:
    desk = console()
    desk.open("fit", **MODEL)
    fit(desk, pieces["learn"])
    calibrate(desk, pieces["good"], pieces["bad"])
    good = sorted(infer(desk, path)["score"] for path in pieces["good"])
    line = desk.page.locator("#cal-line")
    desk.set_range("#cal-line", (good[2] + good[3]) / 2)
    put = float(line.input_value())
    expect(desk.page.locator("#cal-reject")).to_contain_text(f"{sum(score > put for score in good)} de 6")
    expect(desk.page.locator("#cal-miss")).to_contain_text("0 de 3")
    line.focus()
    line.press("End")
    expect(desk.page.locator("#cal-reject")).to_contain_text("0 de 6")
    expect(desk.page.locator("#cal-miss")).to_contain_text("3 de 3")


# Where a spot is on the screen. It is a stroke without length and has no box of its own, which Playwright asks for.
SPOT = """spot => {
  spot.ownerSVGElement.scrollIntoView({ block: "center", behavior: "instant" });
  const { x, y } = spot.getPointAtLength(0).matrixTransform(spot.getScreenCTM());
  return { x, y };
}"""


def test_a_part_is_looked_at_closely_and_beside_a_good_one(console: Open, pieces: Pieces) -> None:
    desk = calibrated(console, pieces)
    page = desk.page
    desk.set_range("#cal-line", desk.value("#gauge .limit") * 3)
    expect(page.locator("#cal-wrong li")).to_have_count(3)
    expect(page.locator("#cal-wrong li").first).to_contain_text("would slip through")
    place = page.locator("#histogram .spot.ng").first.evaluate(SPOT)
    page.mouse.click(place["x"], place["y"])
    expect(page.locator("#inspect")).to_be_visible()
    expect(page.locator("#parts [aria-pressed=true] .name")).to_contain_text("bad_")
    page.click("#mode label:has([value='0'])")
    expect(page.locator("#legend-limit")).to_be_visible()

    page.select_option("#parts-order", "score")
    expect(page.locator("#parts .name").first).to_contain_text("bad_")
    page.select_option("#parts-only", "ng")
    expect(page.locator("#parts .part")).to_have_count(3)
    stage = page.locator("#stage")
    expect(stage).to_have_attribute("data-zoom", "1.00")
    page.locator("#regions button").first.click()
    expect(page.locator("#nearest figure")).to_have_count(2)
    expect(page.locator("#nearest")).to_contain_text("Distance between the two")
    stage.focus()
    for _ in range(3):
        page.keyboard.press("+")
    expect(stage).not_to_have_attribute("data-zoom", "1.00")
    seen, box = stage.screenshot(), stage.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4, steps=4)
    page.mouse.up()
    assert stage.screenshot() != seen, "the zoomed picture is pulled"
    page.keyboard.press("0")
    expect(stage).to_have_attribute("data-zoom", "1.00")
    assert not serious(page)

    page.context.set_offline(True)
    page.set_input_files("#parts-files", pieces["good"][:2])
    page.select_option("#parts-only", "failed")
    expect(page.locator("#retry")).to_have_text("Try the failed ones again: 2")
    page.context.set_offline(False)
    page.select_option("#parts-only", "")
    page.locator("#retry").click()
    desk.settled(11)
    expect(page.locator("#parts .part[data-decision=failed]")).to_have_count(0)
    assert not desk.errors


def test_a_press_on_what_is_listed_is_a_click_though_the_list_changes_meanwhile(console: Open, pieces: Pieces) -> None:
    desk = calibrated(console, pieces)
    page = desk.page
    desk.tab("inspect")
    press(page, "#parts li:has-text('bad_40') button")
    desk.set_range("#threshold", desk.value("#gauge .limit") * 3)
    expect(page.locator("#parts .part[data-decision=ng]")).to_have_count(0)
    page.mouse.up()
    expect(page.locator("#parts [aria-pressed=true] .name")).to_have_text("bad_40.png")

    page.click("#mode label:has([value='0'])")
    press(page, "#regions button >> nth=0")
    desk.set_range("#opacity", 20)
    expect(page.locator("#opacity-out")).to_have_text("20 %")
    page.mouse.up()
    expect(page.locator("#nearest figure")).to_have_count(2)

    desk.tab("calibrate")
    desk.set_range("#cal-line", desk.value("#gauge .limit") * 3)
    press(page, "#cal-wrong button >> nth=1")
    name = page.locator("#cal-wrong .name").nth(1).inner_text()
    page.set_input_files("#cal-ok", pieces["learn"][2:3])
    expect(page.locator("#cal-ok-n")).to_contain_text(str(len(pieces["good"]) + 1))
    page.mouse.up()
    expect(page.locator("#parts [aria-pressed=true] .name")).to_have_text(name)
    assert not desk.errors


def test_what_is_focused_keeps_the_focus_while_answers_come(console: Open, pieces: Pieces) -> None:
    desk = calibrated(console, pieces)
    page = desk.page
    desk.tab("inspect")
    page.locator("#parts .part").nth(2).focus()
    desk.set_range("#threshold", desk.value("#gauge .limit") * 3)
    expect(page.locator("#parts .part[data-decision=ng]")).to_have_count(0)
    expect(page.locator("#parts .part").nth(2)).to_be_focused()
    page.locator("#parts .part").first.click()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#parts .part").nth(1)).to_be_focused()


def test_a_list_moves_what_changes_its_place_and_nothing_else(console: Open) -> None:
    desk = console()
    desk.open("inspect")
    moved = desk.page.evaluate(
        """async () => {
          const { fill, el } = await import("/web/dom.js");
          const list = document.body.appendChild(el("ol"));
          const put = (names) => fill(list, [...names], (name) => name, (name) => el("li", { textContent: name }));
          const told = [];
          new MutationObserver((all) => told.push(...all)).observe(list, { childList: true });
          const found = [];
          for (const names of ["ABCDE", "BCDEA", "EBCDA", "BD", "DXB"]) {
            put(names);
            await null;
            const moved = new Set(told.splice(0).flatMap((one) => [...one.addedNodes]).map((node) => node.textContent));
            found.push([list.textContent, [...moved].sort().join("")]);
          }
          return found;
        }"""
    )
    assert [names for names, _ in moved] == ["ABCDE", "BCDEA", "EBCDA", "BD", "DXB"]
    assert moved[1][1] == "A", "one that sinks"
    assert moved[2][1] == "E", "one that rises"


def test_a_page_of_a_former_version_asks_to_be_loaded_again(console: Open) -> None:
    desk = console()
    newer = 'import { ofLater } from "./dom.js"; export const open = ofLater;'
    desk.page.route("**/web/health.js*", lambda route: route.fulfill(body=newer, content_type="text/javascript"))
    desk.open("health", **MODEL)
    expect(desk.page.locator("#alerts, #he-trouble").get_by_text("recarga la página").first).to_be_visible()


def test_what_only_looks_like_a_time_stays_as_it_is(console: Open) -> None:
    desk = console()
    desk.open("inspect")
    times = "async (text) => (await import('/web/records.js')).localTimes(text)"
    named = "2026-01-31T12.00.00Z 2026-01-31T12:00:00Z.png: ya"
    assert desk.page.evaluate(times, named) == named
    assert "T" not in desk.page.evaluate(times, "2026-01-31T12:00:00Z.")


def press(page: Page, what: str) -> None:
    """Put the pointer's button down on what is shown, and leave it there."""
    page.locator(what).scroll_into_view_if_needed()
    box = page.locator(what).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()


def test_the_scale_stands_still_while_the_line_is_pulled_over_its_end(console: Open, pieces: Pieces) -> None:
    desk = console()
    desk.open("fit", **MODEL)
    fit(desk, pieces["learn"])
    calibrate(desk, pieces["good"], pieces["bad"])
    line = desk.page.locator("#cal-line")
    scale = [line.get_attribute(end) for end in ("min", "max")]
    box = line.bounding_box()
    assert box is not None
    reach = (float(line.input_value()) - float(scale[0] or 0)) / (float(scale[1] or 0) - float(scale[0] or 0))
    middle = box["y"] + box["height"] / 2
    desk.page.mouse.move(box["x"] + 12 + (box["width"] - 24) * reach, middle)
    desk.page.mouse.down()
    for step in range(12):
        desk.page.mouse.move(box["x"] + box["width"] + step, middle)
    desk.page.mouse.up()
    assert [line.get_attribute(end) for end in ("min", "max")] == scale
    assert float(line.input_value()) == pytest.approx(float(scale[1] or 0), rel=1e-3)
    expect(desk.page.locator("#cal-miss")).to_contain_text("3 de 3")


def test_a_first_visit_starts_where_parts_are_learned(console: Open, pieces: Pieces) -> None:
    desk = console()
    desk.page.goto(f"{desk.api.base_url}/")
    expect(desk.page.locator("#tab-fit")).to_have_attribute("aria-selected", "true")
    files = [("images", (path.name, path.read_bytes(), "image/png")) for path in pieces["learn"]]
    assert desk.api.post("/fit_ok", data=MODEL, files=files).status_code == 200
    desk.page.goto("about:blank")
    desk.page.goto(f"{desk.api.base_url}/")
    expect(desk.page.locator("#role")).to_have_value("Belt")
    expect(desk.page.locator("#tab-inspect")).to_have_attribute("aria-selected", "true")


def test_a_window_too_low_for_it_all_opens_at_the_top(console: Open) -> None:
    desk = console(width=800)
    desk.page.set_viewport_size({"width": 800, "height": 600})
    for address in ("/#inspect", "/"):
        desk.page.goto("about:blank")
        desk.page.goto(f"{desk.api.base_url}{address}")
        expect(desk.page.locator("#service")).to_have_attribute("data-state", "ok")
        assert desk.page.evaluate("() => [scrollY, document.documentElement.scrollHeight > innerHeight]")[0] == 0


def test_after_a_new_fit_the_parts_on_the_page_are_scored_again(console: Open, pieces: Pieces) -> None:
    desk = console()
    page = desk.page
    desk.open("fit", **MODEL)
    fit(desk, pieces["learn"])
    calibrate(desk, pieces["good"], pieces["bad"])
    former = infer(desk, pieces["bad"][0])["score"]
    desk.tab("fit")
    page.click("#fit-clear")
    page.set_input_files("#fit-files", pieces["bad"])
    page.check("input[name=fit-how][value=replace]", force=True)
    page.click("#fit-go")
    page.click("#ask-yes")
    expect(page.locator("#fit-result")).to_contain_text("Imágenes: 3.")
    desk.settled(9)
    scores = {path: infer(desk, path)["score"] for path in (*pieces["good"], *pieces["bad"])}
    assert scores[pieces["bad"][0]] < former
    desk.tab("calibrate")
    with page.expect_request("**/calibrate_ng") as asked:
        page.click("#cal-go")
    sent = asked.value.post_data_json or {}
    assert sorted(sent["ok_scores"]) == sorted(scores[path] for path in pieces["good"])
    assert sorted(sent["ng_scores"]) == sorted(scores[path] for path in pieces["bad"])


def n_images(console: Console) -> int:
    model = {"role_id": "Belt", "roi_id": "Cookie"}
    return int(console.api.get("/manifest", params=model).json()["memory"]["n_images"])


def test_more_images_are_added_and_what_is_learned_is_replaced_only_when_asked(console: Open, pieces: Pieces) -> None:
    desk = console()
    page = desk.page
    desk.open("fit", **MODEL)
    expect(page.locator("#fit-how")).to_be_hidden()
    fit(desk, pieces["learn"])
    assert n_images(desk) == 8
    page.click("#fit-clear")
    expect(page.locator("#fit-how")).to_be_visible()
    page.set_input_files("#fit-files", pieces["good"][:3])
    expect(page.locator("#fit-hint")).to_contain_text("Se añadirán a lo que Belt/Cookie ya ha aprendido")
    page.click("#fit-go")
    expect(page.locator("#fit-result [data-state=ok]")).to_be_visible()
    assert n_images(desk) == 11

    expect(page.locator("#fit-go")).to_be_disabled()
    expect(page.locator("#fit-hint")).to_contain_text("ya ha aprendido estas imágenes")
    page.set_input_files("#fit-files", pieces["good"][3:5])
    expect(page.locator("#fit-hint")).to_contain_text("Nuevas: 2.")
    page.click("#fit-go")
    expect(page.locator("#fit-result")).to_contain_text("Imágenes: 13.")
    assert n_images(desk) == 13

    desk.tab("health")
    page.locator("#he-versions li").nth(1).get_by_text("Recuperar").click()
    page.click("#ask-yes")
    expect(page.locator("#he-said")).to_contain_text("Recuperada")
    assert n_images(desk) == 11
    desk.tab("fit")
    expect(page.locator("#fit-hint")).to_contain_text("Nuevas: 5.")
    expect(page.locator("#fit-go")).to_be_enabled()

    page.check("input[name=fit-how][value=replace]", force=True)
    expect(page.locator("#fit-hint")).to_contain_text("Sustituirán")
    page.click("#fit-go")
    expect(page.locator("#ask")).to_contain_text("Belt/Cookie")
    page.click("#ask-no")
    expect(page.locator("#ask")).to_be_hidden()
    assert n_images(desk) == 11
    page.click("#fit-go")
    page.click("#ask-yes")
    expect(page.locator("#fit-result")).to_contain_text("Imágenes: 5.")
    assert n_images(desk) == 5


def test_a_good_part_with_a_region_is_amber(console: Open, pieces: Pieces) -> None:
    desk = console(area_mm2_thr=0.05)
    desk.open("fit", **MODEL)
    fit(desk, pieces["learn"])
    score = infer(desk, pieces["good"][0])["score"]
    body = {"role_id": "Belt", "roi_id": "Cookie", "mm_per_px": 0.2, "area_mm2_thr": 0.05, "ok_scores": [score * 1.01]}
    assert desk.api.post("/calibrate_ng", json=body).status_code == 200
    answer = infer(desk, pieces["good"][0])
    assert answer["decision"] == "ok" and answer["regions"], "a percentile lies below the highest values"
    desk.tab("inspect")
    desk.page.set_input_files("#parts-files", pieces["good"][:1])
    desk.settled(1)
    n = len(answer["regions"])
    words = "Con una región que mirar" if n == 1 else f"Con {n} regiones que mirar"
    expect(desk.page.locator("#verdict[data-decision=look]")).to_contain_text(words)
    expect(desk.page.locator("#parts .part[data-decision=look] b")).to_have_text("OK, mirar")
    desk.picture("console-look")


def test_the_list_says_what_the_verdict_says_wherever_the_line_is(console: Open, pieces: Pieces) -> None:
    desk = console(area_mm2_thr=0.05)
    page = desk.page
    desk.open("fit", **MODEL)
    fit(desk, pieces["learn"])
    scores = [infer(desk, path)["score"] for path in pieces["good"][:3]]
    body = {"role_id": "Belt", "roi_id": "Cookie", "mm_per_px": 0.2, "area_mm2_thr": 0.05, "ok_scores": scores}
    assert desk.api.post("/calibrate_ng", json={**body, "threshold": 1.5 * max(scores)}).status_code == 200
    desk.tab("inspect")
    page.set_input_files("#parts-files", pieces["good"][:3])
    desk.settled(3)
    expect(page.locator("#parts .part[data-decision=ok]")).to_have_count(3)
    desk.set_range("#threshold", max(scores) * 1.001)
    expect(page.locator("#parts .part[data-decision=look]")).to_have_count(3)  # those that are not shown, too
    for n in range(3):
        page.locator("#parts .part").nth(n).click()
        expect(page.locator("#verdict[data-decision=look]")).to_be_visible()
    inks = page.locator("#parts .part b").evaluate_all("all => all.map((one) => getComputedStyle(one).color)")
    assert {*inks} == {page.locator("#verdict").evaluate("box => getComputedStyle(box).color")}
    desk.set_range("#threshold", min(scores) * 0.9)
    expect(page.locator("#parts .part[data-decision=ng]")).to_have_count(3)
    assert not desk.errors


def test_until_one_is_set_the_line_stands_where_good_ends(console: Open, pieces: Pieces) -> None:
    desk = console()
    page = desk.page
    desk.open("fit", **MODEL)
    fit(desk, pieces["learn"])
    desk.tab("calibrate")
    page.set_input_files("#cal-ok", pieces["good"])
    desk.settled(6)
    expect(page.locator("#cal-reject")).to_contain_text("0 de 6")
    page.click("#cal-go")
    expect(page.locator("#cal-result .notice")).to_be_in_viewport()
    said = page.locator("#cal-value").inner_text()
    page.reload()
    expect(page.locator("#cal-value")).to_have_text(said)


def test_the_steps_follow_the_good_scores_of_the_calibration(console: Open, pieces: Pieces) -> None:
    desk = console()
    page = desk.page
    desk.open("fit", **MODEL)
    fit(desk, pieces["learn"])
    threshold = calibrate(desk, pieces["good"], [])
    desk.tab("inspect")
    scores = [infer(desk, path)["score"] for path in pieces["good"]]
    spread = float(np.percentile(scores, 99)) - float(np.mean(scores))
    page.check("input[name=mode][value='-1']", force=True)
    assert desk.value("#gauge .limit") == pytest.approx(threshold - spread, rel=1e-3)
    assert page.locator("#parts .part[data-decision=ng]").count() > 0
    page.check("input[name=mode][value='1']", force=True)
    assert desk.value("#gauge .limit") == pytest.approx(threshold + spread, rel=1e-3)
    assert page.locator("#parts .part[data-decision=ng]").count() == 0


def test_millimetres_are_those_that_the_model_was_fitted_with(console: Open, pieces: Pieces) -> None:
    desk = console()
    files = [("images", (path.name, path.read_bytes(), "image/png")) for path in pieces["learn"][:3]]
    desk.api.post("/fit_ok", data={**MODEL, "mm_per_px": "0.35"}, files=files)
    desk.page.goto(f"{desk.api.base_url}/#inspect")
    expect(desk.page.locator("#mm")).to_have_value("0.35")


def test_a_tab_that_is_closed_during_a_fit_warns(console: Open, pieces: Pieces) -> None:
    desk = console()
    page = desk.page
    desk.open("fit", **MODEL)
    leaves = "() => dispatchEvent(new Event('beforeunload', {cancelable: true}))"
    assert page.evaluate(leaves)
    held: list[Route] = []
    page.route("**/fit_ok", lambda route: held.append(route))
    page.set_input_files("#fit-files", pieces["learn"])
    page.click("#fit-go")
    expect(page.locator("#fit-cancel")).to_be_visible()
    assert not page.evaluate(leaves)
    held[0].continue_()
    expect(page.locator("#fit-result [data-state=ok]")).to_be_visible()
    assert page.evaluate(leaves)


def test_folders_are_dropped_with_what_is_in_them(console: Open) -> None:
    desk = console()
    desk.open("fit", **MODEL)
    names = desk.page.evaluate(
        """async () => {
          const { dropped } = await import("/web/dom.js");
          const file = (name) => ({ name, isFile: true, file: (done) => done(new File(["x"], name)) });
          const folder = (name, children) => ({
            name, isDirectory: true,
            createReader: () => {
              const left = [children.slice(0, 2), children.slice(2), []];
              return { readEntries: (done) => done(left.shift() ?? []) };
            },
          });
          const parts = [file("b.png"), file("._b.png"), file("a.png"), folder("in", [file("c.png")])];
          parts.push(folder("@eaDir", [file("t.png")]));
          const entries = [folder("good", parts), file("d.png")];
          const transfer = { files: [], items: entries.map((entry) => ({ webkitGetAsEntry: () => entry })) };
          return (await dropped(transfer)).map((one) => one.name);
        }"""
    )
    assert names == ["a.png", "b.png", "c.png", "d.png"]


def test_a_failure_is_followed_by_a_look_at_the_service(console: Open, pieces: Pieces) -> None:
    desk = console()
    page = desk.page
    desk.open("fit", **MODEL)
    fit(desk, pieces["learn"][:3])
    page.route("**/health", lambda route: route.abort())
    page.route("**/infer", lambda route: route.abort())
    desk.tab("inspect")
    page.set_input_files("#parts-files", pieces["good"][:1])
    expect(page.locator("#service")).to_have_attribute(
        "data-state", "bad", timeout=15_000
    )  # it looks every 20 s anyway
    expect(page.locator("#state li")).to_have_count(0)
    expect(page.locator("#verdict[data-decision=failed]")).to_contain_text("No inspeccionada")
    page.unroute("**/health")
    expect(page.locator("#service")).to_have_attribute("data-state", "ok")
    expect(page.locator("#state")).to_contain_text("Aprendido")


def test_no_text_of_the_console_names_a_route() -> None:
    web = Path(__file__).resolve().parents[2] / "backend" / "web"
    texts = re.findall(r'"([^"\n]+)"', (web / "i18n.js").read_text("utf-8").split("const kept")[0])
    assert len(texts) > 200
    assert not [text for text in texts if re.search(r"/[a-z]+_[a-z]+|[a-z]-[a-z0-9_-]+\]", text)]


def test_a_calibration_waits_for_the_scores_of_a_new_mask(console: Open, pieces: Pieces) -> None:
    desk = console()
    page = desk.page
    desk.open("fit", **MODEL)
    fit(desk, pieces["learn"])
    calibrate(desk, pieces["good"], pieces["bad"])
    held: list[Route] = []
    open_again = False
    page.route("**/infer", lambda route: route.continue_() if open_again else held.append(route))
    desk.tab("inspect")
    page.check("input[name=kind][value=circle]", force=True)
    desk.tab("calibrate")
    expect(page.locator("#cal-ok-n")).to_have_text("Puntuadas: 0. Por puntuar: 6")
    expect(page.locator("#cal-go")).to_be_disabled()
    open_again = True
    for route in held:
        route.continue_()
    expect(page.locator("#cal-go")).to_be_enabled()
    expect(page.locator("#cal-ok-n")).to_have_text("Puntuadas: 6")


def test_a_mask_that_cannot_be_leaves_nothing_of_the_former_answer(console: Open, pieces: Pieces) -> None:
    desk = console()
    page = desk.page
    desk.open("fit", **MODEL)
    fit(desk, pieces["learn"])
    calibrate(desk, pieces["good"], pieces["bad"])
    desk.tab("inspect")
    page.locator("#parts .part[data-decision=ng]").first.click()
    page.check("input[name=kind][value=annulus]", force=True)
    desk.settled(9)
    page.fill("#shape-r_inner", "999")
    page.press("#shape-r_inner", "Tab")
    expect(page.locator("#alerts")).to_contain_text("r_inner")
    expect(page.locator("#verdict[data-decision=failed]")).to_be_visible()
    expect(page.locator("#regions li")).to_have_count(0)
    page.fill("#shape-r_inner", "10")
    page.press("#shape-r_inner", "Tab")
    expect(page.locator("#gauge .score")).to_be_visible()
    expect(page.locator("#alerts .notice")).to_have_count(0)
    assert not desk.errors


def test_files_that_are_no_images_are_named(console: Open, pieces: Pieces, tmp_path: Path) -> None:
    notes, empty, tiff = (tmp_path / name for name in ("notes.txt", "empty.png", "part.tif"))
    notes.write_text("hello")
    empty.write_bytes(b"")
    cv2.imwrite(str(tiff), part(60, height=120, width=160))
    desk = console()
    page = desk.page
    desk.open("fit", **MODEL)
    fit(desk, pieces["learn"])
    desk.tab("inspect")
    page.set_input_files("#parts-files", [notes, empty, tiff, pieces["good"][0]])
    desk.settled(3)
    expect(page.locator("#alerts")).to_contain_text("notes.txt")
    expect(page.locator("#alerts")).to_contain_text("empty.png")
    page.locator("#parts .part", has_text="empty.png").click()
    sentence = page.locator("#alerts .notice", has_text="empty.png").get_attribute("data-text")
    assert sentence
    expect(page.get_by_text(sentence)).to_have_count(1)
    page.locator("#alerts .notice", has_text="empty.png").get_by_role("button").click()
    expect(page.locator("#warnings")).to_have_text(sentence)
    page.locator("#parts .part", has_text="part.tif").click()
    expect(page.locator("#warnings")).to_contain_text("El navegador no sabe mostrar este formato")
    page.locator("#parts .part", has_text=pieces["good"][0].name).click()
    expect(page.locator("#warnings")).not_to_contain_text("El navegador no sabe")

    page.set_input_files("#parts-files", [empty])
    expect(page.locator("#alerts .notice")).to_have_attribute("data-text", sentence)
    desk.tab("samples")
    expect(page.locator("#alerts .notice")).to_have_count(0)
    desk.tab("inspect")
    expect(page.locator("#warnings")).to_have_text(sentence)


@pytest.mark.slow
def test_long_words_of_a_degraded_service_stay_inside_the_window(console: Open, pieces: Pieces) -> None:
    desk = console(width=800, model_name="vit_small_patch14_dinov2.lvd142m", weights="nowhere/" + "w" * 60 + ".pth")
    page = desk.page
    desk.open("fit", **MODEL)
    expect(page.locator("#service")).to_contain_text("degradado")
    expect(page.locator("#state")).to_contain_text("Degradado")
    fit(desk, pieces["learn"])
    calibrate(desk, pieces["good"], pieces["bad"])
    page.focus("#service-why")
    page.keyboard.press("Enter")
    expect(page.locator("#service-reason")).to_contain_text("WEIGHTS")
    for tab in ("fit", "calibrate", "inspect"):
        desk.tab(tab)
        sizes = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
        assert sizes[0] <= sizes[1], f"{tab} is wider than the window"
    expect(page.locator("#warnings")).to_contain_text("degradado")


def test_a_button_that_cannot_be_pressed_does_not_light_up(console: Open) -> None:
    desk = console(scheme="dark")
    desk.open("fit", **MODEL)
    look = (
        "() => { const s = getComputedStyle(document.getElementById('fit-go')); return [s.backgroundColor, s.filter]; }"
    )
    before = desk.page.evaluate(look)
    desk.page.locator("#fit-go").hover(force=True)
    assert desk.page.locator("#fit-go").is_disabled() and desk.page.evaluate(look) == before


def test_the_page_knows_a_model_before_anything_is_inspected(console: Open, pieces: Pieces) -> None:
    desk = console()
    files = [("images", (path.name, path.read_bytes(), "image/png")) for path in pieces["learn"]]
    desk.api.post("/fit_ok", data=MODEL, files=files)
    desk.open("inspect")
    expect(desk.page.locator("#role")).to_have_value("Belt")
    expect(desk.page.locator("#state")).to_contain_text("Sin calibrar")
    scores = [infer(desk, path)["score"] for path in pieces["good"]]
    given = {"role_id": "Belt", "roi_id": "Cookie", "mm_per_px": 0.2, "ok_scores": scores}
    assert desk.api.post("/calibrate_ng", json=given).status_code == 200
    desk.page.reload()
    expect(desk.page.locator("#state")).to_contain_text("Calibrado")
    expect(desk.page.locator("#state")).not_to_contain_text("caducada")
    desk.api.post("/fit_ok", data=MODEL, files=files[:5])
    desk.page.reload()
    expect(desk.page.locator("#state")).to_contain_text("Calibración caducada")
    expect(desk.page.locator("#roi")).to_be_hidden()
    desk.page.select_option("#pick", label="Otro o nuevo…")
    desk.page.fill("#role", "Belt")
    desk.page.fill("#roi", "Another")
    desk.page.press("#roi", "Tab")
    expect(desk.page.locator("#state")).to_contain_text("Sin aprender")


def test_before_the_fit_the_page_says_what_to_do(console: Open, pieces: Pieces) -> None:
    desk = console()
    desk.open("inspect", **MODEL)
    desk.page.set_input_files("#parts-files", pieces["bad"][:1])
    expect(desk.page.locator("#alerts")).to_contain_text("Aquí no se ha aprendido nada todavía")
    expect(desk.page.locator("#state")).to_contain_text("Sin aprender")
    expect(desk.page.locator("#verdict[data-decision=failed]")).to_be_visible()


def test_without_a_calibration_there_is_a_score_and_no_verdict(console: Open, pieces: Pieces) -> None:
    desk = console()
    desk.open("fit", **MODEL)
    fit(desk, pieces["learn"])
    desk.tab("inspect")
    desk.page.set_input_files("#parts-files", pieces["bad"][:1])
    desk.settled(1)
    expect(desk.page.locator("#verdict[data-decision=none]")).to_contain_text("Falta calibrar")
    assert desk.value("#gauge .score") == infer(desk, pieces["bad"][0])["score"]
    expect(desk.page.locator("#threshold")).to_be_disabled()


class Held(TextureFeatures):
    """The weight-free extractor, which stops at its tenth picture until it is let go."""

    def __init__(self) -> None:
        super().__init__(112)
        self.gate, self.seen = threading.Event(), 0

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.seen += len(images)
        if self.seen >= 10:
            assert self.gate.wait(120)
        return super().extract(images)


def test_a_cancelled_fit_leaves_no_memory(console: Open, pieces: Pieces) -> None:
    extractor, files = Held(), [*pieces["learn"], *pieces["good"]]
    desk = console(extractor=extractor)
    desk.open("fit", **MODEL)
    desk.page.set_input_files("#fit-files", files)
    expect(desk.page.locator("#fit-count")).to_have_text("14")
    desk.page.click("#fit-go")
    expect(desk.page.locator("#fit-bar[value]")).to_be_visible()
    expect(desk.page.locator("#fit-stage")).to_contain_text("/14")
    desk.page.click("#fit-cancel")
    expect(desk.page.locator("#fit-result")).to_contain_text("Cancelado")
    expect(desk.page.locator("#fit-go")).to_be_enabled()
    extractor.gate.set()
    answer = desk.api.post("/infer", data=FORM, files={"image": ("a.png", files[0].read_bytes(), "image/png")})
    assert answer.json()["code"] == "memory_not_found"


def test_a_picture_pasted_from_the_clipboard_is_taken(console: Open) -> None:
    desk = console()
    desk.open("fit", **MODEL)
    desk.page.evaluate(
        """() => new Promise((done) => {
          const canvas = document.createElement("canvas");
          canvas.width = canvas.height = 64;
          canvas.toBlob((blob) => {
            const data = new DataTransfer();
            data.items.add(new File([blob], "image.png", {type: "image/png"}));
            dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
            done();
          });
        })"""
    )
    expect(desk.page.locator("#fit-count")).to_have_text("1")


def test_the_shell_needs_no_key_and_asks_for_one(console: Open, pieces: Pieces) -> None:
    desk = console(api_keys=("open-sesame",))
    for path, status in (("/", 200), ("/web/app.js", 200), ("/health", 401), ("/config", 401), ("/static/x.png", 401)):
        assert desk.api.get(path).status_code == status, path
    desk.open("fit", **MODEL)
    page = desk.page
    expect(page.locator("#key")).to_be_visible()
    expect(page.locator("#key-refused")).to_be_hidden()
    page.fill("#key-value", "wrong")
    page.press("#key-value", "Enter")
    expect(page.locator("#key-refused")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#key")).to_be_hidden()
    asked = desk.calls.count("GET health")
    while desk.calls.count("GET health") < asked + 2:
        page.wait_for_timeout(100)
    expect(page.locator("#key")).to_be_hidden()
    page.reload()
    expect(page.locator("#key")).to_be_visible()
    page.fill("#key-value", "open-sesame")
    page.press("#key-value", "Enter")
    expect(page.locator("#key")).to_be_hidden()
    expect(page.locator("#service")).to_have_attribute("data-state", "ok")
    fit(desk, pieces["learn"])
    page.click("#key-change")
    page.click("#key-forget")
    expect(page.locator("#key")).to_be_visible()
    page.fill("#key-value", "open-sesame")
    page.press("#key-value", "Enter")
    expect(page.locator("#service")).to_have_attribute("data-state", "ok")
    kept = page.evaluate("() => [sessionStorage.getItem('api-key'), JSON.stringify(localStorage)]")
    assert kept[0] == "open-sesame" and "open-sesame" not in kept[1]


def test_who_may_only_read_is_offered_nothing_else(console: Open, pieces: Pieces) -> None:
    desk = console(api_keys=("all",), api_keys_read=("look",), locale="en-GB")
    desk.api.headers["X-API-Key"] = "all"
    images = [("images", (path.name, path.read_bytes(), "image/png")) for path in pieces["learn"]]
    assert desk.api.post("/fit_ok", data=MODEL, files=images).status_code == 200
    page = desk.page
    page.add_init_script("sessionStorage.setItem('api-key', 'look')")
    desk.open("fit", **MODEL)
    expect(page.locator("#reader")).to_have_text("Read only")
    expect(page.locator("#inspect")).to_be_visible()
    expect(page.locator("#tab-fit")).to_be_hidden()
    page.set_input_files("#parts-files", pieces["good"][:1])
    desk.settled(1)
    for tab in ("calibrate", "samples", "health", "station", "history"):
        desk.tab(tab)
        expect(page.locator(f"#{tab}")).to_be_visible()
        expect(page.locator(f"#{tab} [data-changes]:visible")).to_have_count(0)
    expect(page.locator("#cal-target")).to_be_hidden()
    desk.tab("samples")
    expect(page.locator("#sa-ok li")).to_have_count(8)
    desk.tab("calibrate")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#tab-history")).to_be_focused()
    assert not desk.errors


@pytest.mark.parametrize(("locale", "words"), [("es-MX", "Inspección de piezas"), ("en-GB", "Part inspection")])
def test_the_page_speaks_the_browsers_language(console: Open, locale: str, words: str) -> None:
    desk = console(locale=locale)
    desk.open("inspect")
    expect(desk.page.locator("h1")).to_have_text(words)
    assert desk.page.evaluate("() => document.documentElement.lang") == locale[:2]
    desk.page.click("#language")
    expect(desk.page.locator("h1")).not_to_have_text(words)


def test_every_text_is_there_in_both_languages() -> None:
    web = Path(__file__).resolve().parents[2] / "backend" / "web"
    texts = (web / "i18n.js").read_text("utf-8")
    source = "".join(path.read_text("utf-8") for path in web.glob("*"))
    used = set(re.findall(r'(?:data-t="|data-t-label="|\bt\(")(\w+)"', source))
    missing = {key for key in used if f"\n  {key}: [" not in texts}
    assert not missing and len(used) > 60


def test_all_of_it_works_by_keyboard(console: Open, pieces: Pieces) -> None:
    desk = console()
    page = desk.page
    desk.open("fit", **MODEL)
    page.focus("#tab-fit")
    for name in ("calibrate", "inspect", "samples", "health", "station", "history", "fit"):
        page.keyboard.press("ArrowRight")
        expect(page.locator(f"#tab-{name}")).to_be_focused()
        expect(page.locator(f"#{name}")).to_be_visible()
    fit(desk, pieces["learn"])
    calibrate(desk, pieces["good"], pieces["bad"])
    desk.tab("inspect")
    threshold = desk.value("#gauge .limit")
    page.focus("#threshold")
    page.keyboard.press("ArrowRight")
    assert desk.value("#gauge .limit") > threshold
    page.focus("input[name=kind][value='']")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#shape-w")).to_be_visible()
    page.locator("#parts .part").first.focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#parts .part").nth(1)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#parts .part").nth(1)).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_nothing_is_cut_off(console: Open, pieces: Pieces, scheme: str) -> None:
    desk = console(scheme=scheme)
    desk.open("fit", **MODEL)
    fit(desk, pieces["learn"][:3])
    desk.tab("inspect")
    desk.page.set_input_files("#parts-files", pieces["bad"])
    desk.settled(3)
    for width in (800, 1280, 1920):
        desk.page.set_viewport_size({"width": width, "height": 900})
        for tab in ("fit", "calibrate", "inspect", "samples", "health", "station", "history", "resnet"):
            desk.go(tab)
            expect(desk.page.locator(f"#{tab}")).to_be_visible()
            sizes = desk.page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
            assert sizes[0] <= sizes[1], f"{tab} is wider than the window of {width} px"
            desk.picture(f"console-{tab}-{width}-{scheme}")


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_nothing_serious(console: Open, pieces: Pieces, scheme: str) -> None:
    desk = console(scheme=scheme)
    desk.open("fit", **MODEL)
    fit(desk, pieces["learn"])
    found = {"fit": serious(desk.page)}
    calibrate(desk, pieces["good"], pieces["bad"])
    found["calibrate"] = serious(desk.page)
    desk.tab("inspect")
    desk.page.check("input[name=kind][value=annulus]", force=True)
    desk.settled(9)
    found["inspect"] = serious(desk.page)
    desk.page.locator("#parts .part[data-decision=ng]").first.click()
    found["inspect ng"] = serious(desk.page)
    desk.go("resnet")
    desk.page.set_input_files("#rn-files", pieces["bad"][:1])
    expect(desk.page.locator("#alerts")).to_contain_text("No existe memory bank")
    found["resnet"] = serious(desk.page)
    assert not {tab: [(v["id"], v["nodes"][0]["html"]) for v in worst] for tab, worst in found.items() if worst}


def test_the_page_is_light_and_its_policy_strict(console: Open) -> None:
    desk = console()
    sent: list[int] = []
    network = desk.page.context.new_cdp_session(desk.page)
    network.send("Network.enable")
    network.on("Network.loadingFinished", lambda done: sent.append(done["encodedDataLength"]))
    desk.open("inspect")
    expect(desk.page.locator("#service")).to_have_attribute("data-state", "ok")
    desk.page.wait_for_load_state("networkidle")
    assert len(sent) > 15 and sum(sent) < 100_000, "headers and answers of the service included"
    assert desk.api.get("/web/app.css").headers["content-encoding"] == "gzip"
    for path in ("/", "/web/app.js", "/web/app.css"):
        headers = desk.api.get(path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
        assert "unsafe" not in headers["content-security-policy"] and policy["frame-ancestors"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
    html = desk.api.get("/").text
    assert " style=" not in html and "<style" not in html and " on" not in html.replace(" only", "")
    assert html.count("<script") == 1 and "http" not in html
    blocked = desk.page.evaluate(
        """() => new Promise((done) => {
          addEventListener("securitypolicyviolation", (event) => done(event.violatedDirective));
          const script = document.createElement("script");
          script.textContent = "window.broken = 1";
          document.body.append(script);
        })"""
    )
    assert blocked.startswith("script-src") and not desk.page.evaluate("() => window.broken")


def test_only_the_shells_own_files_are_public(console: Open) -> None:
    api = console(api_keys=("k",)).api
    for path in ("/web/../app.py", "/web/%2e%2e/app.py", "/web/..%2fconfig.py", "/web//etc/passwd", "/web/"):
        assert api.get(path).status_code in {401, 404, 405}, path
