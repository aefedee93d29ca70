"""Two services, as on two machines, on one models and one datasets folder and one PostgreSQL: they say the same."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from backend.assurance.reference import FEWEST
from backend.assurance.watch import FILE
from tests.faults.service import form, post_calibration, post_fit, post_infer, running
from tests.parts import encoded, part
from tests.records.postgres import Server

BAD = encoded(part(90, defect=True))


@dataclass(frozen=True)
class Machines:
    """Two clients, each of a service of its own; `root` holds the folders that they share."""

    one: httpx.Client
    other: httpx.Client
    root: Path

    def __iter__(self) -> Iterator[httpx.Client]:
        return iter((self.one, self.other))


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, postgres: Server) -> Iterator[Machines]:
    """Each test has a roi_id of its own."""
    root, url = tmp_path_factory.mktemp("machines"), postgres.database()
    own: dict[str, Any] = {
        "BDI_RESULTS_DB": url,
        "IMAGES_DIR": str(root / "images"),
        "KEEP_IMAGES": "all",
        "DRIFT_PARTS": str(FEWEST),
    }
    english = {"Accept-Language": "en"}
    with (
        running(root, workers=1, **own) as first,
        running(root, workers=1, **own) as second,
        httpx.Client(base_url=first.url, timeout=60, headers=english) as one,
        httpx.Client(base_url=second.url, timeout=60, headers=english) as other,
    ):
        yield Machines(one, other, root)
    postgres.drop(url)


def ids(roi: str) -> dict[str, str]:
    return {"role_id": "Master1", "roi_id": roi}


def score(client: httpx.Client, roi: str, image: bytes = BAD) -> tuple[float, float | None]:
    answer = post_infer(client, roi, image).json()
    return answer["score"], answer["threshold"]


def fitted(client: httpx.Client, roi: str, *seeds: int) -> str:
    answer = post_fit(client, roi, tuple(encoded(part(seed)) for seed in seeds))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["generation"])


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.05)


def test_what_one_restores_or_teaches_the_other_serves_at_once(machines: Machines) -> None:
    (one, other), roi = machines, "Restored"
    generation = fitted(one, roi, *range(12))
    assert post_calibration(one, roi, 0.3).status_code == 200
    before = score(one, roi)
    assert score(other, roi) == before
    fitted(other, roi, 30, 31, 32)
    assert score(one, roi) == score(other, roi) != before
    for client in (one, other):
        assert client.get("/versions", params=ids(roi)).json()["versions"][0]["generation"] == generation
    done = one.post(f"/versions/{generation}/restore", json={**ids(roi), "author": "Ana"})
    assert done.status_code == 200, done.text
    assert score(other, roi) == score(one, roi) == before

    stained = part(70)
    cv2.circle(stained, (30, 62), 9, (90, 90, 90), -1)
    seen = post_infer(other, roi, encoded(stained)).json()
    assert seen["is_anomaly"]
    lesson = {**ids(roi), "inspection_ids": [seen["inspection_id"]], "force": True}
    told = one.post("/teach", json=lesson)  # an inspection of the other machine
    assert told.status_code == 200, told.text
    assert score(other, roi, encoded(stained)) == score(one, roi, encoded(stained))
    assert score(other, roi, encoded(stained))[0] < seen["score"]
    listed = [client.get("/versions", params=ids(roi)).json() for client in machines]
    assert listed[0]["current"]["generation"] == listed[1]["current"]["generation"] == told.json()["generation"]
    assert other.post(f"/versions/{generation}/restore", json=ids(roi)).status_code == 200
    assert score(one, roi, encoded(stained)) == (seen["score"], seen["threshold"])


def drift(client: httpx.Client, roi: str) -> dict[str, Any]:
    answer = client.get("/drift", params=ids(roi))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return {name: value for name, value in found.items() if name != "request_id"}


def agreed(machines: Machines, roi: str) -> dict[str, Any]:
    """What both say, once each has taken in its own parts."""
    for client in machines:
        drift(client, roi)
    one, other = (drift(client, roi) for client in machines)
    assert one == other
    return one


def test_the_parts_of_both_are_one_sequence_whose_drift_both_tell(machines: Machines) -> None:
    (one, other), roi = machines, "Drifting"
    fitted(one, roi, *range(FEWEST + 4))
    post_calibration(one, roi, 5.0)
    until(lambda: (machines.root / "models" / "Master1" / roi / FILE).exists())
    for seed in range(200, 200 + FEWEST, 4):
        for n, client in enumerate((one, other, one, other)):
            post_infer(client, roi, encoded(part(seed + n)))
        if seed == 204:
            assert (agreed(machines, roi)["state"], agreed(machines, roi)["learnt"]) == ("learning", 8)
    assert agreed(machines, roi)["state"] == "steady"
    for seed in range(300, 310):
        dark = np.asarray(part(seed) * 0.8, np.uint8)
        post_infer((one, other)[seed % 2], roi, encoded(dark))
    found = agreed(machines, roi)
    assert (found["state"], found["cause"], found["evidence"]["parts"]) == ("drift", "light", 10)
    line = 'bdi_drift{cause="light",recipe_id="default",roi_id="Drifting",role_id="Master1"} 1.0'
    for client in machines:
        assert line in client.get("/metrics").text


def golden_of(client: httpx.Client) -> tuple[dict[str, list[str]], bool]:
    """What /readyz names, and whether /metrics counts one flip."""
    line = 'bdi_golden_flips{recipe_id="default",roi_id="Golden",role_id="Master1"} 1.0'
    named: dict[str, list[str]] = client.get("/readyz").json()["golden"]
    return named, line in client.get("/metrics").text


def test_a_flip_that_one_sees_is_named_by_the_other_until_it_is_taken_back(machines: Machines) -> None:
    (one, other), roi = machines, "Golden"
    fitted(one, roi, *range(8))
    files = [("images", ("bad.png", BAD, "image/png"))]
    (name,) = one.post("/datasets/ng/upload", data=form(roi), files=files).json()["files"]
    assert one.post("/calibrate_dataset", json=ids(roi)).status_code == 200
    assert other.post("/datasets/golden", json={**ids(roi), "filename": name}).status_code == 200
    assert golden_of(one) == golden_of(other) == ({}, False)
    assert post_calibration(other, roi, 5.0).status_code == 200
    assert golden_of(other) == golden_of(one) == ({f"Master1/{roi}": [name]}, True)
    kept = one.get("/versions", params=ids(roi)).json()["versions"][0]["version"]
    assert one.post(f"/versions/{kept}/restore", json=ids(roi)).status_code == 200
    assert golden_of(other) == golden_of(one) == ({}, False)
