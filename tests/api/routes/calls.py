"""What the tests of these routes send, and the answers that they expect to be good."""

from typing import Any

from fastapi.testclient import TestClient

from tests.parts import encoded, part

IDS = {"role_id": "Master1", "roi_id": "Pattern"}
FIT = {**IDS, "mm_per_px": "0.2"}


def images(*seeds: int, defect: bool = False) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("images", (f"{seed}.png", encoded(part(seed, defect=defect)), "image/png")) for seed in seeds]


def upload(client: TestClient, *seeds: int, label: str = "ok", **fields: str) -> dict[str, Any]:
    answer = client.post(
        f"/datasets/{label}/upload", data={**IDS, **fields}, files=images(*seeds, defect=label == "ng")
    )
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def fit(client: TestClient, *seeds: int, **fields: str) -> dict[str, Any]:
    answer = client.post("/fit_ok", data={**FIT, **fields}, files=images(*seeds))
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def fit_and_calibrate(client: TestClient) -> None:
    """A model of twelve good parts, calibrated with them and with three known bad ones."""
    fit(client, *range(12))
    upload(client, 50, 51, 52, label="ng")
    assert client.post("/calibrate_dataset", json=IDS).status_code == 200
