"""Samples, models and long work over HTTP."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from backend.app import create_app
from backend.base.images import decode_image
from backend.extractors.texture import TextureFeatures
from backend.samples.recorder import DebugFolder
from backend.tools.demo import served
from tests.station import dotnet_form, part, small_settings

IDS = {"role_id": "Master1", "roi_id": "Pattern"}
FIT = {**IDS, "mm_per_px": "0.2"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(small_settings(tmp_path))) as client:
        client.headers["Accept-Language"] = "en"
        yield client


def images(*seeds: int, bad: bool = False) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("images", (f"{seed}.png", part(seed, bad=bad), "image/png")) for seed in seeds]


def upload(client: TestClient, *seeds: int, label: str = "ok", **fields: str) -> dict[str, Any]:
    answer = client.post(f"/datasets/{label}/upload", data={**IDS, **fields}, files=images(*seeds, bad=label == "ng"))
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def fit(client: TestClient, *seeds: int, **fields: str) -> dict[str, Any]:
    answer = client.post("/fit_ok", data={**FIT, **fields}, files=images(*seeds))
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def on_disk(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


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
    with TestClient(create_app(small_settings(tmp_path, store_samples=False))) as client:
        fit(client, 0, 1)
        sent = client.post("/send_ng", data=IDS, files=images(5, bad=True)).json()
        assert (sent["saved"], sent["files"], len(sent["warnings"])) == (0, [], 1)
        assert not (tmp_path / "datasets").exists()
        assert upload(client, 3)["saved"] == 1


def test_bad_parts_are_sent_and_stored_once(client: TestClient) -> None:
    first = client.post("/send_ng", data={**IDS, "mm_per_px": "0.3"}, files=images(5, 6, bad=True)).json()
    again = client.post("/send_ng", data=IDS, files=images(6, 7, bad=True)).json()
    assert (first["saved"], again["saved"], again["duplicates"], again["label"]) == (2, 1, 1, "ng")
    assert again["files"][0] == first["files"][1]


def test_an_image_under_both_labels_is_pointed_out(client: TestClient) -> None:
    upload(client, 1)
    answer = client.post("/datasets/ng/upload", data=IDS, files=images(1)).json()
    assert "other label" in answer["warnings"][0]


CUT = part(3)[:300]
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
    with TestClient(create_app(small_settings(folder))) as client:
        fit(client, 0, 1, 2)
        yield client, folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_4xx_and_nothing_changes(fitted: tuple[TestClient, Path], case: str) -> None:
    client, folder = fitted
    method, path, given, status, code = BAD[case]
    before = on_disk(folder)
    answer = client.request(method, path, **given)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert {"error", "trace", "code", "request_id", "detail"} == answer.json().keys()
    assert on_disk(folder) == before


def test_the_broken_images_of_an_upload_are_named(client: TestClient) -> None:
    files = [*images(9), ("images", ("cut.png", CUT, "image/png")), ("images", ("empty.png", b"", "image/png"))]
    error = client.post("/datasets/ok/upload", data=IDS, files=files).json()["error"]
    assert "cut.png" in error and "empty.png" in error and "9.png" not in error


def test_a_conflict_names_both_values(client: TestClient) -> None:
    fit(client, 0)
    answer = client.post("/fit_ok", data={**FIT, "mm_per_px": "0.4", "memory_fit": "true"}, files=images(1))
    assert "0.2" in answer.json()["error"] and "0.4" in answer.json()["error"]


def test_a_fit_grows_the_memory_when_asked(client: TestClient) -> None:
    first = fit(client, 0, 1)
    grown = fit(client, 1, 2, memory_fit="true")
    again = fit(client, 0, 1, 2, memory_fit="true")
    assert (grown["n_images"], grown["n_embeddings"]) == (3, 3 * 64)
    assert grown["coreset_size"] > first["coreset_size"]
    assert (again["generation"], again["n_embeddings"]) == (grown["generation"], grown["n_embeddings"])
    assert fit(client, 4)["n_images"] == 1


def test_a_form_serves_where_json_does(client: TestClient) -> None:
    fit(client, 0, 1, 2)
    calibrated = client.post("/calibrate_dataset", data={**IDS, "score_percentile": "95", "default_mm_per_px": ""})
    assert (calibrated.status_code, calibrated.json()["score_percentile"]) == (200, 95)
    body, headers = dotnet_form({**IDS, "labels": "ok", "include_heatmap": "false"}, [])
    scored = client.post("/infer_dataset", content=body, headers=headers).json()
    assert (scored["n_total"], "heatmap_png_base64" in scored["items"][0]) == (3, False)


def test_scores_of_samples_are_those_of_infer(client: TestClient) -> None:
    fit(client, 0, 1, 2)
    upload(client, 7, label="ng", mm_per_px="0.2")
    client.post("/calibrate_dataset", json=IDS)
    (item,) = client.post("/infer_dataset", json={**IDS, "labels": "ng"}).json()["items"]
    inferred = client.post("/infer", data=FIT, files={"image": ("7.png", part(7, bad=True))}).json()
    shared = ("score", "threshold", "is_anomaly", "decision", "regions", "stats")
    assert [item[name] for name in shared] == [inferred[name] for name in shared]
    left_out = client.post("/infer_dataset", json={**IDS, "labels": ["ok"], "leave_one_out": True}).json()["items"]
    flattered = client.post("/infer_dataset", json={**IDS, "labels": ["ok"]}).json()["items"]
    assert all(a["score"] > b["score"] for a, b in zip(left_out, flattered, strict=True))


def test_a_sample_that_cannot_be_scored_is_an_error_of_its_own(client: TestClient, tmp_path: Path) -> None:
    fit(client, 0, 1, 2)
    files = client.get("/datasets/list", params=IDS).json()["classes"]["ok"]["files"]
    (tmp_path / "datasets/Master1/Pattern/ok" / files[1]).write_bytes(b"gone bad")
    answer = client.post("/infer_dataset", json=IDS).json()
    assert (answer["status"], answer["n_total"], answer["n_errors"]) == ("ok", 3, 1)
    bad = answer["items"][1]
    assert (bad["filename"], bad["code"], "score" in bad) == (files[1], "unreadable_image", False)
    assert files[1] in bad["error"]


@pytest.mark.parametrize(
    "how", [{"json": {**IDS, "stream": True}}, {"json": IDS, "headers": {"Accept": "application/x-ndjson"}}]
)
def test_items_come_one_a_line_when_streamed(client: TestClient, how: dict[str, Any]) -> None:
    fit(client, 0, 1, 2)
    answer = client.post("/infer_dataset", **how)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    *items, summary = [json.loads(line) for line in answer.text.splitlines()]
    assert [item["filename"] for item in items] == client.get("/datasets/list", params=IDS).json()["classes"]["ok"][
        "files"
    ]
    assert (summary["status"], summary["n_total"], summary["n_errors"]) == ("ok", 3, 0)
    progress = client.get(f"/progress/{answer.headers['x-request-id']}").json()
    assert (progress["state"], progress["stage"], progress["done"], progress["total"]) == ("done", "score", 3, 3)


def test_the_manifest_and_the_list_of_models_say_what_there_is(client: TestClient) -> None:
    empty = client.get("/manifest", params=IDS).json()
    assert (empty["memory_fitted"], empty["calib_present"], "memory" in empty) == (False, False, False)
    fit(client, 0, 1, 2)
    fit(client, 5, recipe_id="red")
    client.post("/calibrate_dataset", json=IDS)
    upload(client, 8)
    found = client.get("/manifest", params=IDS).json()
    assert (found["memory"]["n_images"], found["memory"]["fingerprint"]) == (3, found["extractor"]["fingerprint"])
    assert found["samples"] == {"ok": 4, "ng": 0, "ok_in_memory": 3, "ok_not_in_memory": 1}
    assert found["stale"] == {"memory": False, "calibration": False, "reasons": []}
    fit(client, 8, memory_fit="true")
    stale = client.get("/manifest", params=IDS).json()["stale"]
    assert (stale["calibration"], len(stale["reasons"])) == (True, 1)
    models = client.get("/models").json()["models"]
    assert [(m["recipe_id"], m["n_images"], m["calib_present"]) for m in models] == [
        ("default", 4, True),
        ("red", 1, False),
    ]
    assert client.delete("/models/Master1/Pattern", params={"recipe_id": "red"}).json()["deleted"] is True
    assert [m["recipe_id"] for m in client.get("/models").json()["models"]] == ["default"]
    assert client.get("/datasets/list", params={**IDS, "recipe_id": "red"}).json()["classes"]["ok"]["count"] == 1


def test_with_contract_only_there_are_no_samples_routes(tmp_path: Path) -> None:
    with TestClient(create_app(small_settings(tmp_path, contract_only=True))) as client:
        for path in ("/state", "/datasets/list", "/models", "/manifest", "/progress/x"):
            assert client.get(path, params=IDS).status_code == 404
        assert fit(client, 0)["n_images"] == 1


def test_a_thumb_is_small(client: TestClient) -> None:
    name = upload(client, 0)["files"][0]
    where = {**IDS, "label": "ok", "filename": name}
    thumb = client.get("/datasets/thumb", params={**where, "size": 32})
    assert decode_image(thumb.content).shape == (32, 32, 3)
    assert client.get("/datasets/thumb", params={**where, "size": 5000}).status_code == 422


class SlowFeatures(TextureFeatures):
    """Takes its time, as a network would, and stops while its gate is shut."""

    gate = threading.Event()
    gate.set()

    def extract(self, images: Any) -> NDArray[np.float32]:
        sleep(0.05)
        assert self.gate.wait(60)
        return super().extract(images)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[httpx.Client]:
    with served(small_settings(tmp_path), SlowFeatures(112)) as client:
        yield client
    SlowFeatures.gate.set()


def until(condition: Any, seconds: float = 60) -> None:
    give_up = monotonic() + seconds
    while not condition():
        assert monotonic() < give_up, "it did not happen in time"
        sleep(0.02)


def abandon(url: httpx.URL, path: str, body: bytes, headers: dict[str, str], started: Any) -> None:
    """Send a request, wait for `started`, and hang up."""
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection((url.host, url.port)) as connection:
        request = f"POST {path} HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: {len(body)}\r\n{head}\r\n"
        connection.sendall(request.encode() + body)
        until(started)


def progress_of(client: httpx.Client, request_id: str) -> dict[str, Any]:
    body: dict[str, Any] = client.get(f"/progress/{request_id}").json()
    return body


def test_a_client_that_goes_away_cancels_its_fit_and_the_old_model_stays(slow: httpx.Client, tmp_path: Path) -> None:
    slow.post("/fit_ok", data=FIT, files=images(0)).raise_for_status()
    before = on_disk(tmp_path)
    parts = [("images", f"{n}.png", part(n), "image/png") for n in range(1, 60)]
    body, headers = dotnet_form(FIT, parts)
    for fields in ({}, {"memory_fit": "true"}):
        body, headers = dotnet_form(FIT | fields, parts)
        headers["X-Request-Id"] = f"leaver{len(fields)}"
        abandon(
            slow.base_url,
            "/fit_ok",
            body,
            headers,
            lambda i=headers["X-Request-Id"]: progress_of(slow, i).get("done", 0) > 1,
        )
        until(lambda i=headers["X-Request-Id"]: progress_of(slow, i)["state"] == "cancelled")
        assert progress_of(slow, headers["X-Request-Id"])["done"] < 59
    assert on_disk(tmp_path) == before


def test_a_client_that_leaves_a_stream_stops_the_scoring(slow: httpx.Client) -> None:
    slow.post("/fit_ok", data=FIT, files=images(*range(40))).raise_for_status()
    headers = {"X-Request-Id": "reader"}
    with slow.stream("POST", "/infer_dataset", json={**IDS, "stream": True}, headers=headers) as answer:
        assert json.loads(next(answer.iter_lines()))["label"] == "ok"
    until(lambda: progress_of(slow, "reader")["state"] == "cancelled")
    assert progress_of(slow, "reader")["done"] < 40


def test_progress_is_told_in_events_and_in_a_poll(slow: httpx.Client) -> None:
    def fit_twenty() -> None:
        sent: dict[str, Any] = {"data": FIT, "files": images(*range(20)), "headers": {"X-Request-Id": "followed"}}
        httpx.post(slow.base_url.join("/fit_ok"), **sent, timeout=120).raise_for_status()

    SlowFeatures.gate.clear()
    fitting = threading.Thread(target=fit_twenty)
    fitting.start()
    until(lambda: slow.get("/progress/followed").status_code == 200, 60)
    with slow.stream("GET", "/progress/followed", headers={"Accept": "text/event-stream"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        SlowFeatures.gate.set()
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    fitting.join(60)
    assert {"request_id", "state", "stage", "done", "total", "eta_s", "elapsed_s"} == events[-1].keys()
    extracting = [event for event in events if event["stage"] == "extract"]
    assert [event["done"] for event in extracting] == sorted(event["done"] for event in extracting)
    assert any(0 < event["done"] < 20 and event["eta_s"] > 0 for event in extracting)
    assert (events[-1]["state"], progress_of(slow, "followed")["state"]) == ("done", "done")
    slow.post("/fit_ok", data=FIT, headers={"X-Request-Id": "empty"})
    assert progress_of(slow, "empty")["state"] == "failed"


def test_heatmaps_are_kept_for_debugging_and_bounded(tmp_path: Path) -> None:
    settings = small_settings(tmp_path, debug_heatmaps=True, debug_dir=tmp_path / "debug", debug_max_files=3)
    with TestClient(create_app(settings)) as client:
        fit(client, 0, 1)
        for _ in range(5):
            client.post("/infer", data={**FIT, "heatmap": "none"}, files={"image": ("pieza.png", part(7, bad=True))})
    pictures = sorted((tmp_path / "debug").glob("*.png"))
    assert len(pictures) == len(list((tmp_path / "debug").glob("*.json"))) == 3
    assert decode_image(pictures[0].read_bytes()).shape == (112, 112, 3)
    assert json.loads(pictures[0].with_suffix(".json").read_text("utf-8"))["score"] > 0.1
    assert "Master1_Pattern_pieza.png" in pictures[0].name
    DebugFolder(tmp_path / "debug", 1).write("../x", pictures[0].read_bytes(), {})
    assert [path.parent for path in tmp_path.rglob("*x.png")] == [tmp_path / "debug"]


def test_augmented_views_are_seeded_and_belong_to_their_image(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("first", "second", "seed")}
    memories = []
    for name, folder in folders.items():
        app = create_app(small_settings(folder, augment_rotation_deg=5, augment_jitter=0.1, seed=name == "seed"))
        with TestClient(app) as client:
            assert fit(client, 0, 1)["n_embeddings"] == 2 * 2 * 64
            assert client.get("/manifest", params=IDS).json()["memory"]["n_images"] == 2
        memories.append(app.state.inspector.store.load_memory(next(iter(app.state.inspector.store.keys()))))
    assert set(memories[0].image_ids.tolist()) <= {-1, 0, 1}
    np.testing.assert_array_equal(memories[0].emb, memories[1].emb)
    assert not np.array_equal(memories[0].emb, memories[2].emb)
