"""PART_ALONE over HTTP: what a station sends and reads."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient

pytest.importorskip("torch", reason="needs torch, which a station's installation leaves out")

from backend.app import create_app
from backend.extractors.protocol import Extractor
from backend.extractors.texture import TextureFeatures
from backend.extractors.weights import write_random_weights
from backend.features import DinoV2Features
from tests.parts import encoded, part, quick_settings

CIRCLE = {"kind": "circle", "cx": 48, "cy": 48, "r": 26}
RING = {"kind": "annulus", "cx": 48, "cy": 48, "r": 47, "r_inner": 34}
IDS = {"role_id": "Master1", "roi_id": "Pattern", "mm_per_px": "0.1"}
DIFFERS = "covers another area than the model's"


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> DinoV2Features:
    name = "vit_tiny_patch16_224"
    path = write_random_weights(name, tmp_path_factory.mktemp("tiny") / "w.safetensors", np.random.default_rng(0))
    return DinoV2Features(model_name=name, weights=str(path), input_size=96, device="cpu", blocks=(0, 1))


def service(folder: Path, extractor: Extractor, **settings: Any) -> TestClient:
    own = quick_settings(folder, **{"coreset_rate": 0.5, "part_alone": True, **settings})
    return TestClient(create_app(own, extractor), client=("127.0.0.1", 1), headers={"Accept-Language": "en"})


@pytest.fixture
def client(tmp_path: Path, vit: DinoV2Features) -> Iterator[TestClient]:
    with service(tmp_path, vit) as client:
        yield client


def post(client: TestClient, path: str, images: list[bytes], **fields: Any) -> Any:
    files = [("image" if path == "/infer" else "images", (f"{n}.png", data)) for n, data in enumerate(images)]
    given = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in fields.items()}
    return client.post(path, data={**IDS, **given}, files=files)


GOOD = [encoded(part(seed)) for seed in range(6)]


def test_a_model_of_the_part_alone_is_fitted_grown_calibrated_and_inspected(client: TestClient) -> None:
    fitted = post(client, "/fit_ok", GOOD[:4], shape=CIRCLE).json()
    assert fitted["n_embeddings"] < 4 * 36
    assert post(client, "/fit_ok", GOOD[4:], memory_fit="true").status_code == 200
    memory = client.get("/manifest", params=IDS).json()["memory"]
    assert memory["part_alone"] is True and memory["fingerprint"].endswith("/part")
    calibrated = client.post("/calibrate_dataset", json={**IDS, "mm_per_px": 0.1})
    assert calibrated.status_code == 200, calibrated.text
    bad = part(51, defect=True)
    beside = bad.copy()
    cv2.circle(beside, (0, 0), 12, (0, 0, 255), -1)  # farther from the circle than a cell
    one, other = (post(client, "/infer", [encoded(image)], heatmap="absolute").json() for image in (bad, beside))
    assert one["threshold"] == calibrated.json()["threshold"]
    for field in ("score", "regions", "stats", "heatmap_png_base64"):
        assert one[field] == other[field]
    assert not any(DIFFERS in warning for warning in one["warnings"])


def test_a_shape_of_another_area_is_followed_and_told_of(client: TestClient) -> None:
    post(client, "/fit_ok", GOOD, shape=CIRCLE)
    own = post(client, "/infer", GOOD[:1], shape=CIRCLE).json()
    assert not any(DIFFERS in warning for warning in own["warnings"])
    other = post(client, "/infer", GOOD[:1], shape=RING).json()
    assert any(DIFFERS in warning for warning in other["warnings"])


def test_stored_samples_are_scored_as_images_that_are_sent(client: TestClient) -> None:
    post(client, "/fit_ok", GOOD, shape=CIRCLE)
    bad = encoded(part(51, defect=True))
    post(client, "/datasets/ng/upload", [bad])
    items = client.post("/infer_dataset", json={**IDS, "labels": ["ng"], "default_mm_per_px": 0.1}).json()["items"]
    assert [item["score"] for item in items] == [post(client, "/infer", [bad]).json()["score"]]


def test_an_extractor_that_cannot_refuses_in_a_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    with service(tmp_path, TextureFeatures(112)) as client:
        refused = post(client, "/fit_ok", GOOD, shape=CIRCLE)
        assert refused.status_code == 400 and refused.json()["code"] == "part_not_alone"
        assert "PART_ALONE=0" in refused.json()["error"]
        assert post(client, "/infer", GOOD[:1]).json()["code"] == "memory_not_found"
        assert post(client, "/fit_ok", GOOD).status_code == 200


def test_an_image_without_a_shape_is_refused_where_no_shape_stands_in(client: TestClient) -> None:
    for number, shape in enumerate((CIRCLE, RING, CIRCLE)):
        metas = json.dumps({"shape_json": shape})
        assert post(client, "/datasets/ok/upload", GOOD[number : number + 1], metas=metas).status_code == 200
    assert post(client, "/fit_ok", [], use_dataset="true").status_code == 200
    assert client.get("/manifest", params=IDS).json()["memory"]["part_alone"] is True
    refused = post(client, "/infer", GOOD[:1])
    assert refused.status_code == 400 and refused.json()["code"] == "shape_needed"
    assert post(client, "/infer", GOOD[:1], shape=RING).status_code == 200
