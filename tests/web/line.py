"""A line that posts parts to the service while a page of the console looks on."""

from typing import Any

import httpx

from tests.parts import encoded, part

MODEL = {"role_id": "Belt", "roi_id": "Cookie", "mm_per_px": "0.2"}
GOOD, BAD = (encoded(part(seed, height=120, width=160, defect=defect)) for seed, defect in ((50, False), (51, True)))


def learned(api: httpx.Client) -> None:
    """Fit a small model and calibrate it, so that GOOD passes and BAD does not."""
    images = [("images", (f"{seed}.png", encoded(part(seed, height=120, width=160)))) for seed in range(8)]
    assert api.post("/fit_ok", data=MODEL, files=images).status_code == 200
    good, bad = (inspected(api, image)["score"] for image in (GOOD, BAD))
    threshold = {"ok_scores": [good], "threshold": (good + bad) / 2}
    answer = api.post("/calibrate_ng", json={**MODEL, "mm_per_px": 0.2, **threshold})
    assert answer.status_code == 200, answer.text


def inspected(api: httpx.Client, image: bytes, **ids: str) -> dict[str, Any]:
    """The answer of /infer."""
    sent = {"image": ("part.png", image, "image/png")}
    answer = api.post("/infer", data={**MODEL, "heatmap": "none", **ids}, files=sent)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())
