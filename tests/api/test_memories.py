"""What a memory is fitted with decides how it measures: shapes, PATCHCORE_DISTANCE, FOREGROUND_MASK."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from backend.app import create_app
from backend.base.config import Settings
from backend.base.images import encode_png
from backend.extractors.protocol import RGB
from backend.extractors.texture import TextureFeatures
from backend.roi_mask import Shape, build_mask, token_mask


def part_image(seed: int, *, junk: bool, spot: bool = False) -> bytes:
    """A grey disc, on a background that is black or of bright junk."""
    rng = np.random.default_rng(seed)
    image = np.zeros((140, 140, 3), np.uint8)
    if junk:
        image[:] = rng.integers(0, 255, (10, 10, 3), dtype=np.uint8).repeat(14, 0).repeat(14, 1)
    cv2.circle(image, (70, 70), 46, (120, 120, 120), -1)
    if spot:
        cv2.circle(image, (80, 60), 9, (40, 40, 200), -1)
    return encode_png(image)


CIRCLE = {"kind": "circle", "cx": 70, "cy": 70, "r": 40}


def service(folder: Path, **settings: Any) -> TestClient:
    """The service on these folders, with 10×10 tokens of 14 pixels."""
    own = Settings(models_dir=folder / "m", datasets_dir=folder / "d", input_size=140, **settings)
    return TestClient(create_app(own, TextureFeatures(140)), client=("127.0.0.1", 1))


@pytest.fixture
def client(tmp_path: Path) -> Any:
    with service(tmp_path, coreset_rate=1.0) as client:
        yield client


def post(client: Any, path: str, images: list[bytes], **fields: Any) -> dict[str, Any]:
    name = "image" if path == "/infer" else "images"
    files = [(name, (f"{n}.png", data, "image/png")) for n, data in enumerate(images)]
    answer = client.post(path, data={"role_id": "r", "roi_id": "p", "mm_per_px": "0.5", **fields}, files=files)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def calibrate(client: Any) -> None:
    body = {"role_id": "r", "roi_id": "p", "mm_per_px": 0.5, "ok_scores": [0.1] * 20}
    assert client.post("/calibrate_ng", json=body).status_code == 200


def test_a_shape_at_fit_keeps_what_lies_beside_the_part_out_of_the_memory(client: Any) -> None:
    good = [part_image(n, junk=True) for n in range(3)]
    whole = post(client, "/fit_ok", good)
    part = post(client, "/fit_ok", good, shape=json.dumps(CIRCLE))
    mask = build_mask(Shape("circle", {k: float(str(v)) for k, v in CIRCLE.items() if k != "kind"}), 140, 140)
    assert mask is not None
    assert whole["n_embeddings"] == 300
    assert part["n_embeddings"] == 3 * int(token_mask(mask, (10, 10)).sum())


def test_score_then_speaks_of_the_part_alone(client: Any) -> None:
    post(client, "/fit_ok", [part_image(0, junk=False)], shape=json.dumps(CIRCLE))
    known = post(client, "/infer", [part_image(0, junk=False)], shape=json.dumps(CIRCLE))
    other = post(client, "/infer", [part_image(9, junk=False, spot=True)], shape=json.dumps(CIRCLE))
    assert known["score"] == pytest.approx(0, abs=1e-5)
    assert known["stats"]["max"] == pytest.approx(0, abs=1e-5)
    assert other["score"] > 0.2


def test_a_shape_that_is_missing_is_missed(client: Any) -> None:
    good = [part_image(n, junk=True) for n in range(3)]
    known = "solo conoce la pieza dentro de su shape"
    post(client, "/fit_ok", good[:2], shape=json.dumps(CIRCLE))
    assert not any(known in text for text in post(client, "/infer", good[:1], shape=json.dumps(CIRCLE))["warnings"])
    without = post(client, "/infer", good[:1])["warnings"]
    assert "La petición no trae máscara: se usa la del modelo." in without
    grown = post(client, "/fit_ok", good[2:], memory_fit="true")
    assert not any("otras sin él" in text for text in grown["warnings"])
    other = json.dumps({**CIRCLE, "r": 20})
    again = post(client, "/fit_ok", [part_image(7, junk=True)], memory_fit="true", shape=other)
    assert not any(known in text for text in again["warnings"])


def test_samples_bring_their_own_shapes_to_a_fit(client: Any) -> None:
    for n in range(3):
        post(client, "/datasets/ok/upload", [part_image(n, junk=True)], metas=json.dumps({"shape_json": CIRCLE}))
    fitted = post(client, "/fit_ok", [], use_dataset="true")
    assert fitted["n_images"] == 3
    assert fitted["n_embeddings"] < 300


@pytest.mark.parametrize("changed", [
    {"patchcore_distance": "mahalanobis"},
    {"foreground_mask": "pca"},
    {"patchcore_distance": "cosine", "score_map": "tokens", "patchcore_reweight": 3},
    {"token_blur": 1.0, "score_method": "max"},
])  # fmt: skip
def test_a_restart_changes_nothing(tmp_path: Path, changed: dict[str, Any]) -> None:
    probe, found = [part_image(1, junk=True, spot=True)], []
    for restarted in (False, True):
        with service(tmp_path, coreset_rate=0.3, **changed) as client:
            if not restarted:
                post(client, "/fit_ok", [part_image(n, junk=n == 1) for n in range(3)])
                calibrate(client)
            found.append(post(client, "/infer", probe))
    before, after = ({name: answer[name] for name in ("score", "threshold", "heatmap_png_base64")} for answer in found)
    assert before == after
    assert before["threshold"] == pytest.approx(0.1)


def test_a_threshold_does_not_serve_another_way_of_measuring(tmp_path: Path) -> None:
    good = [part_image(0, junk=False)]
    for changed, refit, kept in (
        ({}, False, True),
        ({"patchcore_distance": "cosine"}, True, False),
        ({"token_blur": 2.0}, False, False),
    ):
        with service(tmp_path) as client:
            post(client, "/fit_ok", good)
            calibrate(client)
        given: dict[str, Any] = changed
        with service(tmp_path, **given) as client:
            if refit:
                post(client, "/fit_ok", good)
            assert (post(client, "/infer", good)["threshold"] is not None) is kept


def test_a_memory_that_measures_otherwise_does_not_grow(tmp_path: Path) -> None:
    with service(tmp_path, patchcore_distance="cosine") as client:
        post(client, "/fit_ok", [part_image(0, junk=False)])
        answer = client.post(
            "/fit_ok",
            data={"role_id": "r", "roi_id": "p", "mm_per_px": "0.5", "memory_fit": "true"},
            files=[("images", ("1.png", part_image(1, junk=True), "image/png"))],
        )
    assert answer.status_code == 409
    assert answer.json()["code"] == "memory_mismatch"


def test_a_memory_for_each_block_is_to_be_fitted_again(tmp_path: Path) -> None:
    good = [part_image(0, junk=False)]
    with service(tmp_path, coreset_rate=1.0) as client:
        post(client, "/fit_ok", good)
        path = next((tmp_path / "m").rglob("memory.npz"))
        with np.load(path) as npz:
            arrays = dict(npz)
        width = arrays["emb"].shape[1]
        np.savez(path, **arrays, widths=np.array([width // 2, width - width // 2], np.int32))
        answer = client.post(
            "/infer",
            data={"role_id": "r", "roi_id": "p", "mm_per_px": "0.5"},
            files=[("image", ("0.png", good[0], "image/png"))],
        )
        assert answer.status_code == 500
        assert (
            "PATCHCORE_MEMORIES=separate" in answer.json()["error"]
            and "repite el aprendizaje" in answer.json()["error"]
        )
        post(client, "/fit_ok", good)
        assert post(client, "/infer", good)["score"] == pytest.approx(0, abs=1e-5)


class Failing(TextureFeatures):
    """An extractor that answers NaN once it is told to."""

    fails = False

    def extract(self, images: Sequence[RGB]) -> NDArray[np.float32]:
        rows = super().extract(images)
        return np.full_like(rows, np.nan) if self.fails else rows


def test_a_network_that_answers_nan_is_no_fault_of_the_client(tmp_path: Path) -> None:
    extractor = Failing(140)
    app = create_app(Settings(models_dir=tmp_path / "m", datasets_dir=tmp_path / "d", input_size=140), extractor)
    with TestClient(app, client=("127.0.0.1", 1), raise_server_exceptions=False) as client:
        post(client, "/fit_ok", [part_image(0, junk=False)])
        memory = next((tmp_path / "m").rglob("memory.npz")).read_bytes()
        extractor.fails = True
        for path, name in (("/infer", "image"), ("/fit_ok", "images")):
            answer = client.post(
                path,
                data={"role_id": "r", "roi_id": "p", "mm_per_px": "0.5"},
                files=[(name, ("0.png", part_image(1, junk=False), "image/png"))],
            )
            assert (answer.status_code, answer.json()["code"]) == (500, "extractor_fault"), answer.text
        assert next((tmp_path / "m").rglob("memory.npz")).read_bytes() == memory
