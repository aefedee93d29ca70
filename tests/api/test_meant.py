"""What cannot be meant is refused or said, on its way in and in every answer that it touches."""

import gzip
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.api.service import FORM, GOOD, IDS, calibrate, fit, infer, until_ready
from tests.parts import encoded, part

ENGLISH = {"Accept-Language": "en"}


def warnings(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return " ".join(answer.json()["warnings"])


@pytest.mark.parametrize(
    "extra",
    [
        {"kind": "rect", "x": 1, "y": 2, "w": 30, "h": 40, "angle": 45},
        {"kind": "rect", "x": 1, "y": 2, "w": 30, "h": 40, "rotation": 0},
        {"kind": "circle", "cx": 40, "cy": 40, "r": 20, "r_inner": 10},
        {"kind": "annulus", "cx": 40, "cy": 40, "r": 20, "r_inner": 10, "inner": 3},
    ],
)
def test_a_shape_with_keys_of_another_is_refused_and_they_are_named(fitted: TestClient, extra: dict[str, Any]) -> None:
    answer = infer(fitted, headers=ENGLISH, shape=json.dumps(extra))
    assert (answer.status_code, answer.json()["code"]) == (400, "shape_unknown_keys")
    assert list(extra)[-1] in answer.json()["error"]


@pytest.mark.parametrize("sent", ["0,2", "8,3", "1_0", "1'000", "1 000"])
def test_a_number_that_a_station_mistypes_is_shown_and_a_point_is_asked_for(fitted: TestClient, sent: str) -> None:
    answer = infer(fitted, headers=ENGLISH, mm_per_px=sent)
    assert answer.status_code == 422
    assert sent in answer.json()["error"] and "point" in answer.json()["error"]


@pytest.mark.parametrize("sent", ["0.2", " 0.2 ", "2e-1", "+.2", "1."])
def test_numbers_as_stations_write_them_are_taken(fitted: TestClient, sent: str) -> None:
    assert infer(fitted, mm_per_px=sent).status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"ok_scores": [41, 38, 44] * 10}, "No score reaches the threshold"),
        ({"ok_scores": [0.0] * 30}, "threshold is 0"),
        ({"ok_scores": [0.2] * 30}, "All OK scores are equal"),
        ({"ok_scores": [0.2, 0.21] * 20, "threshold": 0.02}, "will reject good parts"),
        ({"ok_scores": [0.2, 0.21] * 20, "score_percentile": 0.99}, "may mean 99"),
        ({"ok_scores": [0.2, 0.21] * 20, "score_percentile": 5}, "may mean 95"),
        ({"ok_scores": [0.2, 0.21] * 20, "area_mm2_thr": 369}, "no region will ever be as large"),
    ],
)
def test_a_calibration_that_cannot_be_meant_says_so_and_so_does_every_inspection_under_it(
    fitted: TestClient, body: dict[str, Any], said: str
) -> None:
    sent = {**IDS, "mm_per_px": 0.2, **body}
    assert said in warnings(fitted.post("/calibrate_ng", json=sent, headers=ENGLISH))
    assert said in warnings(infer(fitted, headers=ENGLISH))
    calibrate(fitted, ok_scores=[0.2, 0.21] * 20)
    assert said not in warnings(infer(fitted, headers=ENGLISH))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"ok_scores": [True, 0.2]}, "ok_scores[0]"),
        ({"ng_scores": [0.5, False]}, "ng_scores[1]"),
        ({"mm_per_px": True}, "mm_per_px"),
        ({"threshold": True}, "threshold"),
        ({"score_percentile": True}, "score_percentile"),
        ({"area_mm2_thr": False}, "area_mm2_thr"),
        ({"max_false_reject": False}, "max_false_reject"),
    ],
)
def test_true_and_false_are_no_numbers(fitted: TestClient, body: dict[str, Any], field: str) -> None:
    answer = fitted.post("/calibrate_ng", json={**IDS, "mm_per_px": 0.2, "ok_scores": [0.2], **body}, headers=ENGLISH)
    assert answer.status_code == 422
    assert f"{field}: must be a number" in answer.json()["error"]


@pytest.mark.parametrize(
    "shape",
    [
        '{"kind": "rect", "x": 1, "x": 5, "y": 1, "w": 30, "h": 30}',
        '{"kind": "circle", "kind": "rect", "x": 1, "y": 1, "w": 30, "h": 30}',
        '{"kind": "circle", "cx": 40, "cy": 40, "r": 20, "r": 20}',
    ],
)
def test_a_shape_with_a_key_that_comes_twice_is_refused(fitted: TestClient, shape: str) -> None:
    answer = infer(fitted, headers=ENGLISH, shape=shape)
    assert (answer.status_code, answer.json()["code"]) == (400, "field_twice")


@pytest.mark.parametrize(
    "sent", ["٠.٢", "０.２", "0x1A", "1e400", "-0.2", "inf", "nan", "1.000,5", "0.2mm", "1/5", "2e", "0,20"]
)
def test_what_only_looks_like_a_number_is_refused(fitted: TestClient, sent: str) -> None:
    answer = infer(fitted, headers=ENGLISH, mm_per_px=sent)
    assert answer.status_code == 422 and "mm_per_px" in answer.json()["error"]


def test_one_image_or_copies_of_one_are_said_in_the_fit_and_in_every_inspection(client: TestClient) -> None:
    for count in (1, 5):
        files = [("images", (f"{n}.png", GOOD, "image/png")) for n in range(count)]
        answer = client.post("/fit_ok", data=FORM, files=files, headers=ENGLISH)
        assert "single image" in warnings(answer)
        assert "single image" in warnings(infer(client, headers=ENGLISH))
        refused = client.post("/calibrate_dataset", json=IDS, headers=ENGLISH)
        assert refused.status_code == 400
        assert "only" in refused.json()["error"] or "without it" in refused.json()["error"]
    assert "single image" not in warnings(fit(client))


@pytest.mark.parametrize("factor", [2, 4, 0.5])
def test_a_camera_that_changed_its_resolution_is_warned_of(fitted: TestClient, factor: float) -> None:
    image = part(40)
    side = round(96 * factor)
    binned = encoded(np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), np.uint8))
    assert "The ROI measures" in warnings(infer(fitted, binned, headers=ENGLISH))
    same = {**FORM, "mm_per_px": str(0.2 / factor)}
    answer = fitted.post("/infer", data=same, files={"image": ("a.png", binned, "image/png")}, headers=ENGLISH)
    assert "The ROI measures" not in warnings(answer)


def test_so_it_is_of_stored_images_and_in_what_the_memory_is_made_of(fitted: TestClient) -> None:
    """A binned image among others of the ROI has the same tokens, and would be learnt in silence."""
    image = part(40)
    binned = encoded(np.asarray(cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA), np.uint8))
    files = [("images", (f"{n}.png", data, "image/png")) for n, data in enumerate((encoded(part(41)), binned))]
    for memory_fit in ("true", "false"):
        data = {**FORM, "memory_fit": memory_fit}
        sent = files[1:] if memory_fit == "true" else files
        answer = fitted.post("/fit_ok", data=data, files=sent, headers=ENGLISH)
        assert "ROIs of 48 × 48 and of 96 × 96 pixels" in warnings(answer)
    assert fitted.post("/datasets/ng/upload", data=IDS, files=files[1:]).status_code == 200
    scored = fitted.post("/infer_dataset", json={**IDS, "labels": ["ng"]}, headers=ENGLISH).json()
    assert "The ROI measures" in " ".join(scored["items"][0]["warnings"])
    assert "The ROI measures" in warnings(fitted.post("/calibrate_dataset", json=IDS, headers=ENGLISH))


@pytest.mark.parametrize(
    ("meta", "scale", "code"),
    [
        (b'{"mm_per_px": "0.05"}', 0.05, ""),
        (b'\xef\xbb\xbf{"mm_per_px": 0.05}', 0.05, ""),
        (b'\xef\xbb\xbf[{"mm_per_px": ".05"}]', 0.05, ""),
        (b'{"mm_per_px": null, "shape_json": ""}', None, ""),
        (b'{"mm_per_px": "0,05"}', None, "metas_invalid"),
        (b'{"mm_per_px": "0.05 mm"}', None, "metas_invalid"),
        (b'{"mm_per_px": "1_0"}', None, "metas_invalid"),
        ('{"mm_per_px": "٠.٢"}'.encode(), None, "metas_invalid"),
        (b'{"mm_per_px": true}', None, "metas_invalid"),
        (b'{"mm_per_px": 1e9}', None, "metas_invalid"),
        (b'{"mm_per_px": 0.05, "mm_per_px": 0.5}', None, "field_twice"),
        (b'{"mm_per_px": 0.05', None, "metas_not_json"),
    ],
)
def test_what_an_upload_says_of_an_image_is_read_as_a_file_beside_it_is(
    client: TestClient, meta: bytes, scale: float | None, code: str
) -> None:
    files: list[Any] = [("images", ("a.png", GOOD, "image/png")), ("metas", (None, meta, "application/json"))]
    answer = client.post("/datasets/ok/upload", data=IDS, files=files, headers=ENGLISH)
    assert (answer.status_code, answer.json().get("code", "")) == (400 if code else 200, code)
    if not code:
        listed = client.get("/datasets/list", params=IDS).json()["classes"]["ok"]["files"]
        stored = client.get("/datasets/meta", params={**IDS, "label": "ok", "filename": listed[0]}).json()
        assert stored.get("mm_per_px") == scale


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd"])
@pytest.mark.parametrize("path", ["/calibrate_ng", "/infer"])
def test_a_compressed_body_is_refused_by_name(client: TestClient, path: str, encoding: str) -> None:
    answer = client.post(path, content=gzip.compress(b"{}"), headers={**ENGLISH, "Content-Encoding": encoding})
    assert (answer.status_code, answer.json()["code"]) == (415, "encoded_body")
    assert encoding in answer.json()["error"]


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/health", "/state?role_id=a&roi_id=b", "/openapi.json", "/docs"]
)
def test_head_is_answered_as_get_without_the_body(standing: tuple[TestClient, Path], path: str) -> None:
    client, _ = standing
    until_ready(client)
    got, head = client.get(path), client.head(path)
    assert head.status_code == got.status_code and head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]


def test_a_model_whose_name_differs_in_case_alone_is_refused_before_anything_is_written(
    fitted: TestClient, tmp_path: Path
) -> None:
    before = sorted(path.name for path in tmp_path.rglob("*"))
    files = [("images", ("a.png", GOOD, "image/png"))]
    answer = fitted.post("/fit_ok", data={**FORM, "role_id": "MASTER1"}, files=files, headers=ENGLISH)
    assert (answer.status_code, answer.json()["code"]) == (409, "id_twin")
    assert "Master1" in answer.json()["error"]
    upload = fitted.post("/datasets/ok/upload", data={**IDS, "roi_id": "pattern"}, files=files, headers=ENGLISH)
    assert upload.status_code == 409
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


POLYGON = {"mm_per_px": 0.2, "shape": {"kind": "polygon", "points": [[0, 0], [9, 0], [9, 9]]}}


def test_sidecars_that_are_not_understood_are_named_wherever_samples_are_used(client: TestClient) -> None:
    files: list[Any] = [("images", (f"{n}.png", encoded(part(n)), "image/png")) for n in range(3)]
    metas: list[Any] = [("metas", (None, json.dumps(POLYGON)))] * 3
    assert client.post("/datasets/ok/upload", data=IDS, files=files + metas).status_code == 200
    fitted = client.post("/fit_ok", data={**FORM, "use_dataset": "true"}, headers=ENGLISH)
    assert "polygon" in warnings(fitted)
    assert "polygon" in warnings(client.post("/calibrate_dataset", json=IDS, headers=ENGLISH))
    items = client.post("/infer_dataset", json=IDS, headers=ENGLISH).json()["items"]
    assert all("polygon" in " ".join(item["warnings"]) for item in items)


@pytest.mark.parametrize(
    ("written", "read", "said"),
    [("0.4", 0.4, ""), (" .4 ", 0.4, ""), ("0,4", 0.2, "(0,4)"), ("wide", 0.2, "(wide)"), (-1, 0.2, "(-1)")],
)
def test_a_number_as_text_in_a_folder_is_read_or_named(
    fitted: TestClient, tmp_path: Path, written: Any, read: float, said: str
) -> None:
    folder = next((tmp_path / "datasets").rglob("ok")).parent / "ng"
    folder.mkdir(exist_ok=True)
    (folder / "part.png").write_bytes(GOOD)
    (folder / "part.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"mm_per_px": written}).encode())
    (item,) = fitted.post("/infer_dataset", json={**IDS, "labels": ["ng"]}, headers=ENGLISH).json()["items"]
    assert item["mm_per_px"] == read
    assert said in " ".join(item["warnings"])


def test_names_that_a_route_does_not_have_are_said(fitted: TestClient) -> None:
    images = [("images", ("a.png", GOOD, "image/png"))]
    one = {"image": images[0][1]}
    sent: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/fit_ok", {"data": {**FORM, "odd": "1"}, "files": images}),
        ("POST", "/infer", {"data": {**FORM, "odd": "1"}, "files": one}),
        ("POST", "/infer?odd=1", {"data": FORM, "files": one}),
        ("POST", "/infer", {"data": FORM, "files": {**one, "odd": images[0][1]}}),
        ("POST", "/calibrate_ng", {"json": {**IDS, "mm_per_px": 0.2, "ok_scores": [0.2, 0.21], "odd": None}}),
        ("POST", "/datasets/ok/upload", {"data": {**IDS, "odd": "1"}, "files": images}),
        ("POST", "/send_ng", {"data": {**IDS, "odd": "1"}, "files": images}),
        ("POST", "/calibrate_dataset", {"json": {**IDS, "odd": 1}}),
        ("POST", "/calibrate_dataset", {"data": {**IDS, "odd": "1"}}),
        ("POST", "/infer_dataset", {"json": {**IDS, "odd": [1]}}),
        ("GET", "/inspections?odd=1", {}),
        ("GET", "/inspections/summary?odd=1", {}),
        ("GET", "/state?role_id=Master1&roi_id=Pattern&odd=1", {}),
        ("GET", "/datasets/list?role_id=Master1&roi_id=Pattern&odd=1", {}),
        ("DELETE", "/datasets/clear?role_id=Master1&roi_id=Pattern&label=ng&odd=1", {}),
    ]
    assert fit(fitted, 6).status_code == 200
    for method, path, body in sent:
        said = warnings(fitted.request(method, path, headers=ENGLISH, **body))
        assert "not taken into account: odd." in said, (method, path)


STATIONS = {**FORM, "model_key": "Pattern", "recipe_id": "default"}


def test_what_the_station_sends_with_everything_is_no_unknown_name(fitted: TestClient) -> None:
    files = {"image": ("a.png", GOOD, "image/png")}
    more = {"shape": '{"kind":"circle","cx":48,"cy":48,"r":40}', "heatmap": "none", "part_id": "7"}
    answers = [
        fitted.post("/infer", data={**STATIONS, **more}, files=files, headers=ENGLISH),
        fitted.post("/calibrate_ng", json={**STATIONS, "mm_per_px": 0.2, "ok_scores": [0.2]}, headers=ENGLISH),
        fitted.get("/datasets/list", params={**IDS, "model_key": "Pattern", "recipe_id": "default"}, headers=ENGLISH),
    ]
    assert not [text for answer in answers for text in [warnings(answer)] if "not taken into account" in text]


@pytest.mark.parametrize("name", ["role_id", "roi_id", "mm_per_px", "shape", "heatmap", "recipe_id", "part_id"])
def test_a_single_value_that_comes_twice_is_refused_and_named(unchanged: TestClient, name: str) -> None:
    """Even where both are the same: it is not known which one was meant."""
    value = {**FORM, "heatmap": "none", "shape": "null"}.get(name, "x")
    fields = [(key, (None, sent)) for key, sent in {**FORM, name: value}.items()] + [(name, (None, value))]
    answer = unchanged.post("/infer", files=[*fields, ("image", ("a.png", GOOD, "image/png"))], headers=ENGLISH)
    assert (answer.status_code, answer.json()["code"]) == (400, "field_twice")
    assert answer.json()["error"].startswith(name)


TWICE = '{"role_id":"Master1","roi_id":"Pattern","roi_id":"Other","mm_per_px":0.2,"ok_scores":[0.2]}'


@pytest.mark.parametrize(
    ("method", "path", "body", "name"),
    [
        ("POST", "/calibrate_ng", TWICE, "roi_id"),
        ("POST", "/calibrate_dataset", TWICE, "roi_id"),
        ("POST", "/infer_dataset", TWICE, "roi_id"),
        ("POST", "/datasets/relabel", '{"to":"ok","to":"ng"}', "to"),
        ("POST", "/inspections/1-1/review", '{"verdict":"good","verdict":"bad"}', "verdict"),
        ("POST", "/predict?thr=0.2&thr=0.4", "", "thr"),
        ("POST", "/predict/batch?mode=strict&mode=sensitive", "", "mode"),
        ("GET", "/state?role_id=Master1&role_id=Other&roi_id=Pattern", None, "role_id"),
        ("GET", "/inspections?decision=ok&decision=ng", None, "decision"),
        ("DELETE", "/datasets/clear?role_id=Master1&roi_id=Pattern&label=ok&label=ng", None, "label"),
    ],
)
def test_so_is_one_in_json_or_in_a_query(
    unchanged: TestClient, method: str, path: str, body: str | None, name: str
) -> None:
    headers = {**ENGLISH, "Content-Type": "application/json"}
    answer = unchanged.request(method, path, content=body, headers=headers if body else ENGLISH)
    assert (answer.status_code, answer.json()["code"]) == (400, "field_twice"), answer.text
    assert answer.json()["error"].startswith(name)


def test_fields_with_room_for_several_values_take_them(fitted: TestClient) -> None:
    labels = [("role_id", "Master1"), ("roi_id", "Pattern"), ("labels", "ok"), ("labels", "ng")]
    answer = fitted.post("/infer_dataset", files=[(name, (None, value)) for name, value in labels])
    assert answer.json()["n_total"] == 3, answer.text
