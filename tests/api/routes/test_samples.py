"""Samples over HTTP: what is stored, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.app import create_app
from backend.base.images import decode_image
from tests.api.routes.calls import FIT, IDS, fit, images, upload
from tests.parts import encoded, part, quick_settings, tree


def test_what_a_fit_is_sent_is_kept_and_what_it_does_is_recorded(client: TestClient, tmp_path: Path) -> None:
    fit(client, 0, 1)
    listing = client.get("/datasets/list", params=IDS).json()["classes"]
    assert (listing["ok"]["count"], listing["ng"]["count"]) == (2, 0)
    name = listing["ok"]["files"][0]
    meta = client.get("/datasets/meta", params={**IDS, "label": "ok", "filename": name}).json()
    assert (meta["source"], meta["mm_per_px"], meta["original_name"]) == ("fit_ok", 0.2, "0.png")
    (line,) = (tmp_path / "datasets/Master1/Pattern/history.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["event"] == "fit"


def test_with_store_samples_off_nothing_is_kept_but_what_is_uploaded(tmp_path: Path) -> None:
    with TestClient(create_app(quick_settings(tmp_path, store_samples=False))) as client:
        fit(client, 0, 1)
        sent = client.post("/send_ng", data=IDS, files=images(5, defect=True)).json()
        assert (sent["saved"], sent["files"], len(sent["warnings"])) == (0, [], 1)
        assert not (tmp_path / "datasets").exists()
        assert upload(client, 3)["saved"] == 1


def test_bad_parts_are_sent_and_stored_once(client: TestClient) -> None:
    first = client.post("/send_ng", data={**IDS, "mm_per_px": "0.3"}, files=images(5, 6, defect=True)).json()
    again = client.post("/send_ng", data=IDS, files=images(6, 7, defect=True)).json()
    assert (first["saved"], again["saved"], again["duplicates"], again["label"]) == (2, 1, 1, "ng")
    assert again["files"][0] == first["files"][1]


def test_an_image_under_both_labels_is_pointed_out(client: TestClient) -> None:
    upload(client, 1)
    answer = client.post("/datasets/ng/upload", data=IDS, files=images(1)).json()
    assert "other label" in answer["warnings"][0]


CUT = encoded(part(3))[:300]
BAD: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "label": ("POST", "/datasets/good/upload", {"data": IDS, "files": images(9)}, 400, "invalid_label"),
    "no images": ("POST", "/datasets/ok/upload", {"data": IDS}, 400, "no_images"),
    "half broken": (
        "POST",
        "/datasets/ok/upload",
        {"data": IDS, "files": [*images(9), ("images", ("cut.png", CUT, "image/png"))]},
        400,
        "broken_images",
    ),
    "broken ng": ("POST", "/send_ng", {"data": IDS, "files": {"images": ("a.png", b"x")}}, 400, "broken_images"),
    "too few metas": (
        "POST",
        "/datasets/ok/upload",
        {"data": {**IDS, "metas": "{}"}, "files": images(8, 9)},
        400,
        "metas_mismatch",
    ),
    "metas no JSON": (
        "POST",
        "/datasets/ok/upload",
        {"data": {**IDS, "metas": "{"}, "files": images(9)},
        400,
        "metas_not_json",
    ),
    "recipe last": (
        "POST",
        "/datasets/ok/upload",
        {"data": {**IDS, "recipe_id": "last"}, "files": images(9)},
        400,
        "invalid_recipe",
    ),
    "role": ("GET", "/datasets/list", {"params": {"role_id": "../x", "roi_id": "a"}}, 400, "invalid_id"),
    "path": (
        "GET",
        "/datasets/file",
        {"params": {**IDS, "label": "ok", "filename": "../x.png"}},
        400,
        "invalid_filename",
    ),
    "path meta": (
        "GET",
        "/datasets/meta",
        {"params": {**IDS, "label": "ok", "filename": "a/x.png"}},
        400,
        "invalid_filename",
    ),
    "path thumb": (
        "GET",
        "/datasets/thumb",
        {"params": {**IDS, "label": "ok", "filename": "a\\x.png"}},
        400,
        "invalid_filename",
    ),
    "path delete": (
        "DELETE",
        "/datasets/file",
        {"params": {**IDS, "label": "ok", "filename": "/x.png"}},
        400,
        "invalid_filename",
    ),
    "unknown file": (
        "DELETE",
        "/datasets/file",
        {"params": {**IDS, "label": "ok", "filename": "x.png"}},
        404,
        "sample_not_found",
    ),
    "clear label": ("DELETE", "/datasets/clear", {"params": {**IDS, "label": "all"}}, 400, "invalid_label"),
    "clear unknown": (
        "DELETE",
        "/datasets/clear",
        {"params": {"role_id": "No", "roi_id": "such"}},
        404,
        "dataset_not_found",
    ),
    "clear recipe": ("DELETE", "/datasets/clear", {"params": {**IDS, "recipe_id": "none"}}, 404, "dataset_not_found"),
    "delete unknown": ("DELETE", "/models/No/such", {}, 400, "memory_not_found"),
    "delete id": ("DELETE", "/models/CON/such", {}, 400, "invalid_id"),
    "infer nothing": ("POST", "/infer_dataset", {"json": {"role_id": "No", "roi_id": "such"}}, 400, "memory_not_found"),
    "infer label": ("POST", "/infer_dataset", {"json": {**IDS, "labels": ["good"]}}, 400, "invalid_label"),
    "calibrate fields": (
        "POST",
        "/calibrate_dataset",
        {"json": {**IDS, "score_percentile": 0}},
        422,
        "validation_error",
    ),
    "calibrate half": (
        "POST",
        "/calibrate_dataset",
        {"json": {**IDS, "score_percentile": 99.5}},
        422,
        "validation_error",
    ),
    "calibrate body": ("POST", "/calibrate_dataset", {"content": b"{"}, 400, "bad_form"),
    "calibrate list": ("POST", "/calibrate_dataset", {"json": []}, 422, "validation_error"),
    "calibrate ng": ("POST", "/calibrate_dataset", {"json": {**IDS, "require_ng": True}}, 400, "ng_required"),
    "grow scale": (
        "POST",
        "/fit_ok",
        {"data": {**IDS, "mm_per_px": "0.4", "memory_fit": "true"}, "files": images(9)},
        409,
        "memory_mismatch",
    ),
    "few samples": (
        "POST",
        "/fit_ok",
        {"data": {**FIT, "recipe_id": "new", "use_dataset": "true"}},
        400,
        "not_enough_samples",
    ),
    "progress": ("GET", "/progress/nobody", {}, 404, "progress_not_found"),
}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Path]]:
    folder = tmp_path_factory.mktemp("fitted")
    with TestClient(create_app(quick_settings(folder))) as client:
        fit(client, 0, 1, 2)
        yield client, folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_4xx_and_nothing_changes(fitted: tuple[TestClient, Path], case: str) -> None:
    client, folder = fitted
    method, path, given, status, code = BAD[case]
    before = tree(folder)
    answer = client.request(method, path, **given)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert {"error", "trace", "code", "request_id", "detail"} == answer.json().keys()
    assert tree(folder) == before


def test_the_broken_images_of_an_upload_are_named(client: TestClient) -> None:
    files = [*images(9), ("images", ("cut.png", CUT, "image/png")), ("images", ("empty.png", b"", "image/png"))]
    error = client.post("/datasets/ok/upload", data=IDS, files=files).json()["error"]
    assert "cut.png" in error and "empty.png" in error and "9.png" not in error


def test_a_conflict_names_both_values(client: TestClient) -> None:
    fit(client, 0)
    answer = client.post("/fit_ok", data={**FIT, "mm_per_px": "0.4", "memory_fit": "true"}, files=images(1))
    assert "0.2" in answer.json()["error"] and "0.4" in answer.json()["error"]


def test_a_thumb_is_small(client: TestClient) -> None:
    name = upload(client, 0)["files"][0]
    where = {**IDS, "label": "ok", "filename": name}
    thumb = client.get("/datasets/thumb", params={**where, "size": 32})
    assert decode_image(thumb.content).shape == (32, 32, 3)
    assert client.get("/datasets/thumb", params={**where, "size": 5000}).status_code == 422
