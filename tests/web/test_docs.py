"""/docs in a real Chromium: what it fills in can be sent as it stands, and several images can be chosen."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.parts import encoded, part
from tests.web.page import Open

pytestmark = [pytest.mark.browser, pytest.mark.slow]

IDS = {"role_id": "Master1", "roi_id": "Pattern"}
SEVERAL = (
    "contract-fit_ok_fit_ok_post",
    "samples-upload_datasets__label__upload_post",
    "samples-send_ng_send_ng_post",
    "ResNet18-predict_batch_predict_batch_post",
)


def tried_out(page: Page, operation: str) -> str:
    """The selector of an operation that stands open with its form."""
    box = f"[id='operations-{operation}']"
    page.click(f"{box} .opblock-summary-control")
    page.click(f"{box} .try-out__btn")
    return box


def test_the_forms_of_docs_work_as_they_stand(console: Open, tmp_path: Path) -> None:
    desk = console(results_db="none")
    page = desk.page
    images = [("images", (f"{n}.png", encoded(part(n)), "image/png")) for n in range(3)]
    assert desk.api.post("/fit_ok", data={**IDS, "mm_per_px": "0.2"}, files=images).status_code == 200
    chosen = tmp_path / "chosen.png"
    chosen.write_bytes(encoded(part(9)))
    page.goto(f"{desk.api.base_url}/docs")

    box = tried_out(page, "contract-infer_infer_post")
    page.set_input_files(f"{box} input[type=file]", chosen)
    page.click(f"{box} .execute")
    answered = page.locator(f"{box} .live-responses-table")
    expect(answered).to_contain_text('"score"')
    expect(answered.locator(".response-col_status").last).to_have_text("200")
    expect(answered).not_to_contain_text("not taken into account")

    for operation in SEVERAL:
        box = tried_out(page, operation)
        page.locator(f"{box} .json-schema-form-item-add").first.click()
        page.locator(f"{box} .json-schema-form-item-add").first.click()
        expect(page.locator(f"{box} input[type=file]").nth(1)).to_be_visible()
