"""Two services, as on two machines, on one models and one datasets folder and one PostgreSQL: they say the same."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import httpx
import numpy as np
import pytest

from backend.assurance.reference import FEWEST
from backend.assurance.watch import FILE
from tests.faults.service import form, post_calibration, post_fit, post_infer, running
from tests.parts import encoded, part
from tests.records.postgres import Server

ROI = "Pattern"
IDS = {"role_id": "Master1", "roi_id": ROI}
BAD = encoded(part(90, defect=True))


class Machines(NamedTuple):
    """Two clients, each of a service of its own."""

    one: httpx.Client
    other: httpx.Client


@pytest.fixture
def machines(tmp_path: Path, postgres: Server) -> Iterator[Machines]:
    url = postgres.database()
    own = {
        "BDI_RESULTS_DB": url,
        "IMAGES_DIR": str(tmp_path / "images"),
        "KEEP_IMAGES": "all",
        "DRIFT_PARTS": str(FEWEST),
    }
    english = {"Accept-Language": "en"}
    with (
        running(tmp_path, **own) as first,
        running(tmp_path, **own) as second,
        httpx.Client(base_url=first.url, timeout=60, headers=english) as one,
        httpx.Client(base_url=second.url, timeout=60, headers=english) as other,
    ):
        yield Machines(one, other)
    postgres.drop(url)


def score(client: httpx.Client, image: bytes = BAD) -> tuple[float, float | None]:
    answer = post_infer(client, ROI, image).json()
    return answer["score"], answer["threshold"]


def fitted(client: httpx.Client, *seeds: int) -> str:
    answer = post_fit(client, ROI, tuple(encoded(part(seed)) for seed in seeds))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["generation"])


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.05)


def test_what_one_restores_or_teaches_the_other_serves_at_once(machines: Machines) -> None:
    one, other = machines
    generation = fitted(one, *range(12))
    assert post_calibration(one, ROI, 0.3).status_code == 200
    before = score(one)
    assert score(other) == before
    fitted(other, 30, 31, 32)
    assert score(one) == score(other) != before
    for client in (one, other):
        assert client.get("/versions", params=IDS).json()["versions"][0]["generation"] == generation
    done = one.post(f"/versions/{generation}/restore", json={**IDS, "author": "Ana"})
    assert done.status_code == 200, done.text
    assert score(other) == score(one) == before

    stained = part(70)
    cv2.circle(stained, (30, 62), 9, (90, 90, 90), -1)
    seen = post_infer(other, ROI, encoded(stained)).json()
    assert seen["is_anomaly"]
    lesson = {**IDS, "inspection_ids": [seen["inspection_id"]], "force": True}
    told = one.post("/teach", json=lesson)  # an inspection of the other machine
    assert told.status_code == 200, told.text
    assert score(other, encoded(stained)) == score(one, encoded(stained))
    assert score(other, encoded(stained))[0] < seen["score"]
    listed = [client.get("/versions", params=IDS).json() for client in machines]
    assert listed[0]["current"]["generation"] == listed[1]["current"]["generation"] == told.json()["generation"]
    assert other.post(f"/versions/{generation}/restore", json=IDS).status_code == 200
    assert score(one, encoded(stained)) == (seen["score"], seen["threshold"])


def drift(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/drift", params=IDS)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return {name: value for name, value in found.items() if name != "request_id"}


def agreed(machines: Machines) -> dict[str, Any]:
    """What both say, once each has taken in its own parts."""
    for client in machines:
        drift(client)
    one, other = map(drift, machines)
    assert one == other
    return one


def test_the_parts_of_both_are_one_sequence_whose_drift_both_tell(machines: Machines, tmp_path: Path) -> None:
    one, other = machines
    fitted(one, *range(FEWEST + 4))
    post_calibration(one, ROI, 5.0)
    until(lambda: (tmp_path / "models" / IDS["role_id"] / ROI / FILE).exists())
    for seed in range(200, 200 + FEWEST, 4):
        for n, client in enumerate((one, other, one, other)):
            post_infer(client, ROI, encoded(part(seed + n)))
        if seed == 204:
            assert (agreed(machines)["state"], agreed(machines)["learnt"]) == ("learning", 8)
    assert agreed(machines)["state"] == "steady"
    for seed in range(300, 310):
        dark = np.asarray(part(seed) * 0.8, np.uint8)
        post_infer(machines[seed % 2], ROI, encoded(dark))
    found = agreed(machines)
    assert (found["state"], found["cause"], found["evidence"]["parts"]) == ("drift", "light", 10)
    line = 'bdi_drift{cause="light",recipe_id="default",roi_id="Pattern",role_id="Master1"} 1.0'
    for client in machines:
        assert line in client.get("/metrics").text


def golden_of(client: httpx.Client) -> tuple[dict[str, list[str]], bool]:
    """What /readyz names, and whether /metrics counts one flip."""
    line = 'bdi_golden_flips{recipe_id="default",roi_id="Pattern",role_id="Master1"} 1.0'
    named: dict[str, list[str]] = client.get("/readyz").json()["golden"]
    return named, line in client.get("/metrics").text


def test_a_flip_that_one_sees_is_named_by_the_other_until_it_is_taken_back(machines: Machines) -> None:
    one, other = machines
    fitted(one, *range(8))
    files = [("images", ("bad.png", BAD, "image/png"))]
    (name,) = one.post("/datasets/ng/upload", data=form(ROI), files=files).json()["files"]
    assert one.post("/calibrate_dataset", json=IDS).status_code == 200
    assert other.post("/datasets/golden", json={**IDS, "filename": name}).status_code == 200
    assert golden_of(one) == golden_of(other) == ({}, False)
    assert post_calibration(other, ROI, 5.0).status_code == 200
    assert golden_of(other) == golden_of(one) == ({f"Master1/{ROI}": [name]}, True)
    kept = one.get("/versions", params=IDS).json()["versions"][0]["version"]
    assert one.post(f"/versions/{kept}/restore", json=IDS).status_code == 200
    assert golden_of(other) == golden_of(one) == ({}, False)
