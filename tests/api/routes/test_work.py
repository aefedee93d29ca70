"""Long work over HTTP: scoring and calibrating what is stored, its progress, and clients that leave."""

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
from backend.extractors.texture import TextureFeatures
from backend.tools.demo import served
from tests.api.routes.calls import FIT, IDS, fit, images, upload
from tests.parts import dotnet, encoded, part, picture_part, quick_settings, text_parts, tree


def test_a_fit_grows_the_memory_when_asked(client: TestClient) -> None:
    first = fit(client, 0, 1)
    grown = fit(client, 1, 2, memory_fit="true")
    again = fit(client, 0, 1, 2, memory_fit="true")
    assert (grown["n_images"], grown["n_embeddings"]) == (3, 3 * 64)
    assert grown["coreset_size"] > first["coreset_size"]
    assert (again["generation"], again["n_embeddings"]) == (grown["generation"], grown["n_embeddings"])
    assert fit(client, 4)["n_images"] == 1


def test_augmented_views_are_seeded_and_belong_to_their_image(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("first", "second", "seed")}
    memories = []
    for name, folder in folders.items():
        app = create_app(quick_settings(folder, augment_rotation_deg=5, augment_jitter=0.1, seed=name == "seed"))
        with TestClient(app) as client:
            assert fit(client, 0, 1)["n_embeddings"] == 2 * 2 * 64
            assert client.get("/manifest", params=IDS).json()["memory"]["n_images"] == 2
        memories.append(app.state.inspector.store.load_memory(next(iter(app.state.inspector.store.keys()))))
    assert set(memories[0].image_ids.tolist()) <= {-1, 0, 1}
    np.testing.assert_array_equal(memories[0].emb, memories[1].emb)
    assert not np.array_equal(memories[0].emb, memories[2].emb)


def test_a_form_serves_where_json_does(client: TestClient) -> None:
    fit(client, 0, 1, 2)
    calibrated = client.post("/calibrate_dataset", data={**IDS, "score_percentile": "95", "default_mm_per_px": ""})
    assert (calibrated.status_code, calibrated.json()["score_percentile"]) == (200, 95)
    headers, body = dotnet(text_parts({**IDS, "labels": "ok", "include_heatmap": "false"}))
    scored = client.post("/infer_dataset", content=body, headers=headers).json()
    assert (scored["n_total"], "heatmap_png_base64" in scored["items"][0]) == (3, False)


def test_scores_of_samples_are_those_of_infer(client: TestClient) -> None:
    fit(client, 0, 1, 2)
    upload(client, 7, label="ng", mm_per_px="0.2")
    client.post("/calibrate_dataset", json=IDS)
    (item,) = client.post("/infer_dataset", json={**IDS, "labels": "ng"}).json()["items"]
    inferred = client.post("/infer", data=FIT, files={"image": ("7.png", encoded(part(7, defect=True)))}).json()
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
    with served(quick_settings(tmp_path), SlowFeatures(112)) as client:
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
        request = f"POST {path} HTTP/1.1\r\nHost: {url.host}\r\n{head}\r\n"
        connection.sendall(request.encode() + body)
        until(started)


def progress_of(client: httpx.Client, request_id: str) -> dict[str, Any]:
    body: dict[str, Any] = client.get(f"/progress/{request_id}").json()
    return body


def test_a_client_that_goes_away_cancels_its_fit_and_the_old_model_stays(slow: httpx.Client, tmp_path: Path) -> None:
    slow.post("/fit_ok", data=FIT, files=images(0)).raise_for_status()
    before = tree(tmp_path)
    parts = [picture_part("images", n) for n in range(1, 60)]
    for fields in ({}, {"memory_fit": "true"}):
        headers, body = dotnet([*text_parts(FIT | fields), *parts])
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
    assert tree(tmp_path) == before


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
