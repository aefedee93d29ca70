"""A model that is downloaded as one file and dropped on the console of another station."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.api.service import calibrate, fit
from tests.parts import encoded, part
from tests.web.page import Open, serious

pytestmark = pytest.mark.browser
IDS = {"role_id": "Master1", "roi_id": "Pattern"}


def test_a_model_is_downloaded_and_taken_in_under_another_name(console: Open, tmp_path: Path) -> None:
    desk = console(locale="en-GB", results_db="none", coreset_rate=0.25)
    assert fit(desk.api, count=4).status_code == 200 and calibrate(desk.api).status_code == 200
    name = desk.api.get("/datasets/list", params=IDS).json()["classes"]["ok"]["files"][0]
    assert desk.api.post("/datasets/golden", json={**IDS, "filename": name}).status_code == 200
    page = desk.page
    desk.open("fit", **IDS)
    page.click("#moving summary")
    with page.expect_download() as downloading:
        page.click("#pack-go")
    assert downloading.value.suggested_filename == "Master1_Pattern.bdim"
    file = tmp_path / "line.bdim"
    downloading.value.save_as(file)

    page.set_input_files("#unpack-file", file)
    expect(page.locator("#ask")).to_contain_text("Master1/Pattern")
    page.click("#ask-no")
    page.select_option("#pick", "")
    page.fill("#role", IDS["role_id"])
    page.fill("#roi", "Line 2")
    page.locator("#roi").blur()
    page.check("#unpack-here")
    page.set_input_files("#unpack-file", file)
    expect(page.locator("#moving-said")).to_contain_text("Master1/Line 2 is in place")
    expect(page.locator("#moving-said")).to_contain_text("score to the last bit")
    expect(page.locator("#state")).to_contain_text("Calibrated")
    assert not serious(page)
    desk.picture("moving")
    files = {"image": ("roi.png", encoded(part(41, defect=True)), "image/png")}
    scores = [
        desk.api.post("/infer", data={**IDS, "roi_id": roi, "mm_per_px": "0.2"}, files=files).json()["score"]
        for roi in ("Pattern", "Line 2")
    ]
    assert scores[0] == scores[1]

    file.write_bytes(file.read_bytes()[:-1])
    page.set_input_files("#unpack-file", file)
    expect(page.locator("#alerts")).to_contain_text("line.bdim is not taken, it is damaged or cut off")
    assert not desk.errors
