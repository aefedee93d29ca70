"""What the service says in sentences, with numbers and times written as those of the page."""

from datetime import datetime
from itertools import count
from pathlib import Path
from time import monotonic, sleep
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.parts import encoded, part
from tests.web.line import BAD, MODEL, inspected, learned
from tests.web.page import Open

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("locale", "sign"), [("es-ES", ","), ("en-GB", ".")])
def test_an_area_in_a_warning_has_the_decimal_sign_of_its_language(console: Open, locale: str, sign: str) -> None:
    desk = console(results_db="none", locale=locale)
    learned(desk.api)
    seen = inspected(desk.api, BAD)
    between = {"ok_scores": [0.1], "threshold": (seen["score"] + seen["stats"]["max"]) / 2, "area_mm2_thr": 0.01}
    assert desk.api.post("/calibrate_ng", json={**MODEL, "mm_per_px": 0.2, **between}).status_code == 200
    seen = inspected(desk.api, BAD)
    area = f"{seen['regions'][0]['area_mm2']:.4g}"
    assert seen["decision"] == "ok" and "." in area

    desk.open("inspect", **MODEL)
    desk.page.set_input_files("#parts-files", {"name": "bad.png", "mimeType": "image/png", "buffer": BAD})
    expect(desk.page.locator("#warnings")).to_contain_text(f" {area.replace('.', sign)} mm² ")
    expect(desk.page.locator("#regions li").first).to_contain_text(sign)


def test_sentences_tell_times_as_the_page_does(console: Open, tmp_path: Path) -> None:
    records = f"sqlite:///{tmp_path / 'r.db'}"
    desk = console(results_db=records, locale="es-ES", timezone="Asia/Tokyo", drift_parts=10)
    desk.api.headers["Accept-Language"] = "es"
    learned(desk.api)
    for seed in range(100, 115):
        inspected(desk.api, encoded(part(seed, height=120, width=160)))
    deadline = monotonic() + 60  # the watch takes parts in a little after they are answered
    for seed in count(115):
        image = (part(seed, height=120, width=160) * 0.6).astype(np.uint8)
        seen = inspected(desk.api, encoded(image))
        if "como al principio" in " ".join(seen["warnings"]):
            break
        assert monotonic() < deadline
        sleep(0.05)
    since = datetime.fromisoformat(desk.api.get("/drift", params=MODEL).json()["since"].replace("Z", "+00:00"))
    here = since.astimezone(ZoneInfo("Asia/Tokyo"))
    told = f"desde el {here.day}/{here.month}/{here:%y}, {here.hour}:{here:%M:%S}: ha cambiado la luz."

    desk.open(f"/history/{seen['inspection_id']}")
    expect(desk.page.locator("#hi-reasons")).to_contain_text(told)
    desk.open("inspect", **MODEL)
    desk.page.set_input_files("#parts-files", {"name": "dark.png", "mimeType": "image/png", "buffer": encoded(image)})
    expect(desk.page.locator("#warnings")).to_contain_text(told)
    assert not desk.errors
