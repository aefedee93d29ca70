"""Predictions of the ResNet18 web API are recorded as inspections are."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.resnet_api.test_routes import BAD, GOOD, SIDE, folder, make, weights

__all__ = ["folder", "make", "weights"]
Make = Callable[..., TestClient]


@pytest.fixture
def client(make: Make, tmp_path: Path) -> TestClient:
    return make(results_db=f"sqlite:///{tmp_path / 'inspections.db'}", keep_images="all")


def test_a_prediction_is_recorded_with_its_source_and_drawn_again(client: TestClient) -> None:
    data = {"part_id": "P 1", "operator": "Ana"}
    answer = client.post("/predict?thr=0.01", files={"file": ("plate.png", BAD)}, data=data).json()
    found = client.get(f"/inspections/{answer['inspection_id']}", headers={"Accept-Language": "en"}).json()
    assert (found["source"], found["role_id"], found["roi_id"]) == ("predict", "resnet18", "predict")
    assert (found["score"], found["threshold"], found["decision"]) == (answer["score"], 0.01, "ng")
    assert (found["part_id"], found["operator"], len(found["generation"])) == ("P 1", "Ana", 32)
    polygon, contour = np.array(answer["polygons"][0]), np.array(found["regions"][0]["contour"])
    np.testing.assert_allclose(contour, polygon * 160 / SIDE, atol=0.5)
    assert " px (" in " ".join(found["reasons"]) and "mm²" not in " ".join(found["reasons"])
    assert client.get(f"/inspections/{answer['inspection_id']}/image").content == BAD
    overlay = client.get(f"/inspections/{answer['inspection_id']}/overlay").content
    picture = cv2.imdecode(np.frombuffer(overlay, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None and picture.shape == (160, 160, 3)


def test_each_image_of_a_batch_is_recorded_and_what_is_no_image_is_not(client: TestClient) -> None:
    files = [("files", ("0.png", GOOD[0])), ("files", ("x.png", b"no image")), ("files", ("1.png", GOOD[1]))]
    items = client.post("/predict/batch", files=files, data={"batch_id": "L7"}).json()["items"]
    assert ["inspection_id" in item for item in items] == [True, False, True]
    listed = client.get("/inspections", params={"batch_id": "L7"}).json()["items"]
    assert [one["inspection_id"] for one in listed] == [items[2]["inspection_id"], items[0]["inspection_id"]]


def test_ids_are_checked_before_anything_is_predicted(client: TestClient) -> None:
    for path, field in (("/predict", "file"), ("/predict/batch", "files")):
        answer = client.post(path, files={field: ("0.png", GOOD[0])}, data={"station_id": "x" * 129})
        assert answer.status_code == 400 and answer.json()["error"].startswith("station_id: ")
    assert client.get("/inspections").json()["items"] == []


def test_without_a_record_the_answer_is_as_it_was(make: Make) -> None:
    answer = make(results_db="none").post("/predict", files={"file": ("plate.png", GOOD[0])}).json()
    assert "inspection_id" not in answer and answer["score"] > 0
