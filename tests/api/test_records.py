"""The record over HTTP: verdicts are recorded before they are answered, found, explained, reviewed and exported."""

import asyncio
import base64
import csv
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from backend.api.security import key_id
from backend.app import create_app
from backend.records.database import Database
from tests.api.service import BAD, FORM, GOOD, IDS, calibrate, client_of, fit, infer, served
from tests.faults.service import running
from tests.parts import encoded, part, quick_settings
from tests.records.made import faults

WHO: dict[str, Any] = {"part_id": "P 77", "batch_id": "L3", "station_id": "north", "operator": "Ana María"}


def settings_of(tmp_path: Path, **given: Any) -> Any:
    own = {"coreset_rate": 0.5, "results_db": f"sqlite:///{tmp_path / 'inspections.db'}", "keep_images": "all"}
    return quick_settings(tmp_path, **{**own, **given})


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[TestClient]:
    """A service with a calibrated model that keeps everything."""
    with client_of(create_app(settings_of(tmp_path))) as client:
        assert fit(client).status_code == 200
        assert calibrate(client, ok_scores=[0.2] * 30).status_code == 200
        yield client


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One for tests that leave it as it was, or need not care."""
    with client_of(create_app(settings_of(tmp_path_factory.mktemp("shared")))) as client:
        assert fit(client).status_code == 200
        yield client


def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path / 'inspections.db'}")


def get(client: TestClient, path: str, **query: Any) -> Any:
    answer = client.get(path, params=query, headers={"Accept-Language": "en"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_verdict_is_found_again_with_all_that_was_answered(recorded: TestClient, tmp_path: Path) -> None:
    answer = infer(recorded, BAD, headers={"X-Request-Id": "request 1"}, **WHO).json()
    found = get(recorded, f"/inspections/{answer['inspection_id']}")
    for name in ("score", "threshold", "decision", "regions", "stats", "token_shape", "role_id", "roi_id", "recipe_id"):
        assert found[name] == answer[name], name
    assert {name: found[name] for name in WHO} == WHO
    assert found["request_id"] == "request 1" and found["source"] == "infer"
    assert found["image"] == {**found["image"], "filename": "roi.png", "bytes": len(BAD), "kept": True}
    assert len(found["warnings"]) == len(answer["warnings"]) and found["reviews"] == []
    assert found["model_version"] != ""
    assert found["scoring"]["method"] == "percentile" and found["calibration"]["n_ok"] == 30
    score, threshold = f"{answer['score']:.4f}", f"{answer['threshold']:.4f}"
    assert found["reasons"][0] == f"NG: it scored {score}, and the threshold is {threshold}."
    assert found["p_value"] == answer["p_value"] == pytest.approx(1 / 31)
    assert found["reasons"][1] == "Good parts of the calibration that score at least as high: 0 of 30."
    assert any(reason.startswith("Regions that reach the threshold: ") for reason in found["reasons"])
    assert faults(database(tmp_path)) == []


def test_the_reasons_are_in_the_readers_language(shared: TestClient) -> None:
    name = infer(shared).json()["inspection_id"]
    told = shared.get(f"/inspections/{name}", headers={"Accept-Language": "es"}).json()["reasons"]
    assert told[0].startswith("Sin veredicto: puntuó")


CIRCLE = '{"kind": "circle", "cx": 48, "cy": 48, "r": 30}'


def files_of_all_kinds(seed: int, **kind: Any) -> dict[str, bytes]:
    """A part in each format that stations send, of 8 and of 16 bits."""
    image = part(seed, **kind)
    deep = image[:, :, 1].astype(np.uint16) * 257 + 3
    ok, tiff16 = cv2.imencode(".tif", image.astype(np.uint16) * 251)
    assert ok
    return {
        "part.png": encoded(image),
        "part.jpg": encoded(image, "JPEG", quality=87),
        "part.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "grey.png": encoded(image[:, :, 1]),
        "grey16.png": encoded(deep),
        "grey16.tif": encoded(deep, "TIFF"),
        "colour16.tif": tiff16.tobytes(),
    }


def is_repeated(client: TestClient, name: str, image: bytes) -> bool:
    """Whether what is kept of an inspection gives its score, to the last bit, and its regions."""
    found = get(client, f"/inspections/{name}")
    stored = client.get(f"/inspections/{name}/image").content
    form: dict[str, Any] = {"mm_per_px": str(found["mm_per_px"])}
    form |= {"shape": json.dumps(found["shape"])} if "shape" in found else {}
    again = infer(client, stored, **form).json()
    return (stored, again["score"], again["regions"]) == (image, found["score"], found["regions"])


def test_a_stored_image_inspected_again_scores_the_same_to_the_last_bit(recorded: TestClient) -> None:
    for seed, defect in ((40, False), (41, True)):
        for filename, image in files_of_all_kinds(seed, defect=defect).items():
            forms: list[dict[str, Any]] = [{}, {"shape": CIRCLE, "mm_per_px": "0.05"}]
            for form in forms:
                answer = infer(recorded, image, **form).json()
                stored = get(recorded, f"/inspections/{answer['inspection_id']}")
                assert stored["score"] == answer["score"], filename
                assert is_repeated(recorded, answer["inspection_id"], image), (filename, form)


def test_samples_are_inspected_again_with_the_same_score(recorded: TestClient) -> None:
    images = files_of_all_kinds(41, defect=True)
    for filename, image in images.items():
        meta = json.dumps({**IDS, "filename": filename, "mm_per_px": 0.07, "shape_json": json.loads(CIRCLE)})
        parts: list[Any] = [("images", (filename, image)), ("metas", ("meta.json", meta, "application/json"))]
        assert recorded.post("/datasets/ng/upload", data=IDS, files=parts).status_code == 200
    items = recorded.post("/infer_dataset", json={**IDS, "labels": ["ng"]}).json()["items"]
    assert len(items) == len(images)
    for item in items:
        kept = recorded.get("/datasets/file", params={**IDS, "label": "ng", "filename": item["filename"]}).content
        found = get(recorded, f"/inspections/{item['inspection_id']}")
        assert (found["mm_per_px"], found["score"]) == (0.07, item["score"])
        assert is_repeated(recorded, item["inspection_id"], kept), item["filename"]


def test_the_overlay_is_drawn_over_the_image_or_over_a_plain_ground(recorded: TestClient, tmp_path: Path) -> None:
    names = [infer(recorded, BAD).json()["inspection_id"]]
    with client_of(create_app(settings_of(tmp_path, keep_images="none"))) as client:
        names.append(infer(client, BAD).json()["inspection_id"])
        missing = client.get(f"/inspections/{names[1]}/image")
        assert missing.status_code == 200  # its content was kept with the first
        other = infer(client, GOOD).json()["inspection_id"]
        missing = client.get(f"/inspections/{other}/image", headers={"Accept-Language": "en"})
        assert missing.status_code == 404 and missing.json()["code"] == "image_not_kept"
        names.append(other)
    for name in names:
        answer = recorded.get(f"/inspections/{name}/overlay")
        assert answer.headers["content-type"] == "image/png"
        picture = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None and picture.shape == (96, 96, 3)
        smaller = recorded.get(f"/inspections/{name}/overlay", params={"width": 48, "format": "jpeg"})
        assert smaller.headers["content-type"] == "image/jpeg"
        picture = cv2.imdecode(np.frombuffer(smaller.content, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None and picture.shape == (48, 48, 3)
    refused = recorded.get(f"/inspections/{names[0]}/overlay", params={"format": "gif"})
    assert refused.status_code == 400 and "format" in refused.json()["error"]


def test_lists_are_filtered_ordered_and_turned(recorded: TestClient) -> None:
    for image, station in ((GOOD, "a"), (BAD, "a"), (GOOD, "b")):
        infer(recorded, image, station_id=station, part_id=f"part {station}")
    first = get(recorded, "/inspections", limit=2)
    assert [item["station_id"] for item in first["items"]] == ["b", "a"]
    last = get(recorded, "/inspections", limit=2, cursor=first["next_cursor"])
    assert [item["decision"] for item in last["items"]] == ["ok"] and last["next_cursor"] is None
    assert get(recorded, "/inspections", order="score")["items"][0]["decision"] == "ng"
    assert len(get(recorded, "/inspections", decision="ng", station_id="a")["items"]) == 1
    assert len(get(recorded, "/inspections", part_id="part a")["items"]) == 2
    infer(recorded, GOOD)
    others = get(recorded, "/inspections", except_station_id="a")["items"]
    assert [item.get("station_id") for item in others] == [None, "b"]
    assert get(recorded, "/inspections", until="2020-01-01")["items"] == []
    assert get(recorded, "/inspections", role_id="nobody")["items"] == []


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("/inspections", {"since": "yesterday"}, "since"),
        ("/inspections", {"until": "2026-02-30"}, "until"),
        ("/inspections", {"cursor": "nonsense"}, "cursor"),
        ("/inspections", {"limit": "0"}, "limit"),
        ("/inspections", {"limit": "1001"}, "limit"),
        ("/inspections", {"limit": "many"}, "limit"),
        ("/inspections", {"limit": "²"}, "limit"),
        ("/inspections", {"limit": "0000000000100000"}, "limit"),
        ("/inspections", {"limit": "0" * 11 + "1" + "0" * 5000}, "limit"),
        ("/inspections", {"order": "random"}, "order"),
        ("/inspections", {"decision": "maybe"}, "decision"),
        ("/inspections", {"reviewed": "perhaps"}, "reviewed"),
        ("/inspections", {"min_score": "high"}, "min_score"),
        ("/inspections", {"part_id": "nul\0"}, "part_id"),
        ("/inspections", {"station_id": "x" * 129}, "station_id"),
        ("/inspections", {"except_station_id": "x" * 129}, "except_station_id"),
        ("/inspections", {"max_score": "nan"}, "max_score"),
        ("/inspections/summary", {"bucket": "week"}, "bucket"),
        ("/inspections/summary", {"tz": "Europe/Atlantis"}, "tz"),
        ("/inspections/summary", {"part_id": "P"}, "part_id"),
        ("/inspections/summary", {"since": "0001-01-01T00:00:00+23:59"}, "since"),
        ("/inspections/summary", {"until": "9999-12-31T23:59:59-23:59"}, "until"),
        ("/inspections/export", {"since": "soon"}, "since"),
        ("/inspections/stream", {"min_score": "x"}, "min_score"),
    ],
)
def test_a_parameter_that_cannot_be_meant_is_a_400_that_names_it(
    shared: TestClient, path: str, query: dict[str, str], field: str
) -> None:
    answer = shared.get(path, params=query)
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == "invalid_value" and answer.json()["error"].startswith(f"{field}: ")


def test_of_a_jpeg_that_was_decoded_smaller_everything_is_kept_at_its_own_size(recorded: TestClient) -> None:
    good, bad = (encoded(part(n, height=480, width=500, defect=n > 6), "JPEG", quality=92) for n in (6, 7))
    ids: dict[str, Any] = {**IDS, "roi_id": "Large"}
    learnt = recorded.post("/fit_ok", data={**FORM, **ids}, files=[("images", ("good.jpg", good, "image/jpeg"))])
    assert learnt.status_code == 200
    assert get(recorded, "/manifest", **ids)["memory"]["jpeg_scaled"] is True
    answer = infer(recorded, bad, **ids)
    assert answer.status_code == 200
    heatmap = cv2.imdecode(np.frombuffer(base64.b64decode(answer.json()["heatmap_png_base64"]), np.uint8), 0)
    assert heatmap is not None and heatmap.shape == (480, 500)
    name = answer.json()["inspection_id"]
    item = get(recorded, f"/inspections/{name}")
    assert (item["height"], item["width"]) == (480, 500)
    assert recorded.get(f"/inspections/{name}/image").content == bad
    overlay = cv2.imdecode(np.frombuffer(recorded.get(f"/inspections/{name}/overlay").content, np.uint8), 1)
    assert overlay is not None and overlay.shape == (480, 500, 3)


@pytest.mark.parametrize("what", ["", "/image", "/overlay"])
@pytest.mark.parametrize("name", ["0badf00d-1", "nonsense", "' OR 1=1"])
def test_an_unknown_inspection_is_a_404(shared: TestClient, what: str, name: str) -> None:
    answer = shared.get(f"/inspections/{name}{what}")
    assert answer.status_code == 404 and answer.json()["code"] == "inspection_not_found"


@pytest.mark.parametrize("field", ["part_id", "batch_id", "station_id", "operator"])
@pytest.mark.parametrize("text", ["x" * 129, "tab\there", "line\nbreak", "nul\0", "ends so\n", "\x1f"])
def test_ids_that_cannot_be_meant_are_refused_before_anything_is_inspected(
    shared: TestClient, field: str, text: Any
) -> None:
    before = get(shared, "/inspections/summary")["total"]["n"]
    answer = infer(shared, **{field: text})
    assert answer.status_code == 400 and answer.json()["error"].startswith(f"{field}: ")
    assert get(shared, "/inspections/summary")["total"]["n"] == before


def test_ids_of_128_characters_of_any_script_are_taken(shared: TestClient) -> None:
    text = "检" * 128
    name = infer(shared, part_id=f"  {text}  ", operator=" ").json()["inspection_id"]
    found = get(shared, f"/inspections/{name}")
    assert found["part_id"] == text and "operator" not in found


def test_people_review_and_the_last_word_counts(recorded: TestClient, tmp_path: Path) -> None:
    name = infer(recorded, BAD).json()["inspection_id"]
    said = {"defect": "scratch", "note": "seen by hand\nno scratch <b>", "reviewer": "Luis"}
    assert recorded.post(f"/inspections/{name}/review", json={"verdict": "bad"}).status_code == 200
    answer = recorded.post(f"/inspections/{name}/review", json={"verdict": "good", **said})
    assert answer.status_code == 200, answer.text
    found = get(recorded, f"/inspections/{name}")
    assert [one["verdict"] for one in found["reviews"]] == ["bad", "good"]
    assert {name: found["reviews"][1][name] for name in said} == said
    assert found["review"] == "good" and found["decision"] == "ng"
    total = get(recorded, "/inspections/summary")["total"]
    assert (total["n"], total["false_alarms"], total["misses"], total["reviewed"]) == (1, 1, 0, 1)
    assert get(recorded, "/inspections", reviewed="false")["items"] == []
    assert faults(database(tmp_path)) == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"verdict": "perfect"}, "verdict"),
        ({"verdict": ""}, "verdict"),
        ({"verdict": "good", "note": "x" * 2001}, "note"),
        ({"verdict": "good", "reviewer": "bell\a"}, "reviewer"),
        ({"verdict": "good", "defect": "x" * 129}, "defect"),
    ],
)
def test_a_review_that_cannot_be_meant_is_refused(shared: TestClient, body: dict[str, str], field: str) -> None:
    name = infer(shared).json()["inspection_id"]
    answer = shared.post(f"/inspections/{name}/review", json=body)
    assert answer.status_code == 400 and answer.json()["error"].startswith(f"{field}: ")
    assert get(shared, f"/inspections/{name}")["reviews"] == []


def test_a_review_of_nothing_is_a_404(shared: TestClient) -> None:
    assert shared.post("/inspections/0badf00d-1/review", json={"verdict": "good"}).status_code == 404


def test_an_image_of_the_record_becomes_a_sample(recorded: TestClient) -> None:
    name = infer(recorded, BAD, shape='{"kind": "rect", "x": 0, "y": 0, "w": 90, "h": 90}').json()["inspection_id"]
    answer = recorded.post(f"/inspections/{name}/sample", json={"label": "ng"})
    assert answer.status_code == 200 and answer.json()["saved"] == 1
    (file,) = answer.json()["files"]
    query = {**IDS, "label": "ng", "filename": file}
    assert recorded.get("/datasets/file", params=query).content == BAD
    meta = recorded.get("/datasets/meta", params=query).json()
    assert meta["inspection_id"] == name and meta["mm_per_px"] == 0.2 and meta["shape"]["kind"] == "rect"
    again = recorded.post(f"/inspections/{name}/sample", json={"label": "ng"}).json()
    assert again["saved"] == 0
    assert recorded.post(f"/inspections/{name}/sample", json={"label": "x"}).status_code == 400


def test_samples_that_are_scored_are_recorded_with_their_source(recorded: TestClient, tmp_path: Path) -> None:
    body = {**IDS, "labels": ["ok"], "batch_id": "recheck"}
    whole = recorded.post("/infer_dataset", json=body).json()
    streamed = recorded.post("/infer_dataset", json={**body, "stream": True}).text
    items = [*whole["items"], *map(json.loads, streamed.splitlines()[:-1])]
    assert len({item["inspection_id"] for item in items}) == len(items) == 6
    for item in items:
        found = get(recorded, f"/inspections/{item['inspection_id']}")
        assert (found["source"], found["batch_id"], found["score"]) == ("infer_dataset", "recheck", item["score"])
    bad = recorded.post("/infer_dataset", json={**body, "operator": "\a"})
    assert bad.status_code == 400 and bad.json()["error"].startswith("operator: ")
    assert faults(database(tmp_path)) == []


def test_what_stations_inspect_is_exported_as_csv(recorded: TestClient) -> None:
    names = [infer(recorded, image, operator="=cmd()").json()["inspection_id"] for image in (GOOD, BAD)]
    answer = recorded.get("/inspections/export")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["inspection_id"] for row in rows] == names
    assert {row["operator"] for row in rows} == {"'=cmd()"}


def test_the_stream_carries_the_verdicts_of_other_workers_within_a_second(tmp_path: Path) -> None:
    one, other = (create_app(settings_of(tmp_path)) for _ in range(2))
    with (
        served(one) as here,
        served(other) as there,
        httpx.Client(base_url=f"http://127.0.0.1:{there}", timeout=30) as client,
    ):
        assert fit(client).status_code == 200
        infer(client)
        seen: list[tuple[float, dict[str, Any]]] = []
        ready, last = threading.Event(), []

        def watch() -> None:
            others = f"http://127.0.0.1:{here}/inspections/stream?except_station_id=b"
            with httpx.stream("GET", others, timeout=30) as events:
                ready.set()
                for line in events.iter_lines():
                    if line.startswith("data: "):
                        seen.append((time.monotonic(), json.loads(line[6:])))
                    if line.startswith("id: "):
                        last.append(line[4:])
                        if len(seen) == 2:
                            return

        watcher = threading.Thread(target=watch)
        watcher.start()
        ready.wait(10)
        time.sleep(0.5)
        sent = []
        for _ in range(2):
            infer(client, station_id="b")
            name = infer(client, station_id="a").json()["inspection_id"]
            sent.append((time.monotonic(), name))
        watcher.join(20)
        assert [item["inspection_id"] for _, item in seen] == [name for _, name in sent]
        assert max(came - went for (came, _), (went, _) in zip(seen, sent, strict=True)) < 1.0
        missed = infer(client).json()["inspection_id"]
        headers = {"Last-Event-ID": last[-1]}
        with httpx.stream("GET", f"http://127.0.0.1:{here}/inspections/stream", headers=headers, timeout=30) as events:
            data = next(line for line in events.iter_lines() if line.startswith("data: "))
        assert json.loads(data[6:])["inspection_id"] == missed


def test_a_stream_that_somebody_reads_does_not_keep_the_service_from_stopping(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        with httpx.stream("GET", f"{service.url}/inspections/stream", timeout=30) as events:
            lines = events.iter_lines()
            assert next(lines) == "retry: 500"
            started = time.monotonic()
            service.process.terminate()
            with suppress(httpx.TransportError):
                list(lines)
        service.process.wait(20)
        assert time.monotonic() - started < 10  # and not the thirty seconds that a fit is given


def test_without_a_record_an_answer_is_as_it_was(tmp_path: Path) -> None:
    with client_of(create_app(settings_of(tmp_path, results_db="none"))) as client:
        fit(client)
        answer = infer(client, **WHO).json()
        assert "inspection_id" not in answer and answer["warnings"] == [answer["warnings"][0]]
        for path in ("/inspections", "/inspections/summary", "/inspections/export", "/inspections/x"):
            refused = client.get(path)
            assert refused.status_code == 404 and refused.json()["code"] == "records_off"
    assert not (tmp_path / "inspections.db").exists()


def test_with_the_contract_alone_verdicts_are_recorded_and_answers_are_as_they_were(tmp_path: Path) -> None:
    with client_of(create_app(settings_of(tmp_path, contract_only=True))) as client:
        fit(client)
        plain = infer(client, **WHO).json()
        assert "inspection_id" not in plain
        assert client.get("/inspections").status_code == 404
    with client_of(create_app(settings_of(tmp_path))) as client:
        (item,) = get(client, "/inspections")["items"]
        assert item["score"] == plain["score"] and item["part_id"] == WHO["part_id"]


def test_keys_that_read_may_list_and_not_review(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, api_keys=("admin",), api_keys_read=("reader",))
    with client_of(create_app(settings)) as client:
        client.headers["X-API-Key"] = "admin"
        fit(client)
        client.headers["X-API-Key"] = "reader"
        name = infer(client).json()["inspection_id"]
        found = get(client, f"/inspections/{name}")
        assert found["key_id"] == key_id(httpx.Headers({"x-api-key": "reader"}))  # type: ignore[arg-type]
        assert "reader" not in json.dumps(found)
        for path in ("review", "sample"):
            refused = client.post(f"/inspections/{name}/{path}", json={"verdict": "good", "label": "ok"})
            assert refused.status_code == 403 and refused.json()["code"] == "read_only_key"
        client.headers["X-API-Key"] = "admin"
        assert client.post(f"/inspections/{name}/review", json={"verdict": "good"}).status_code == 200
        assert get(client, f"/inspections/{name}")["reviews"][0]["key_id"] != found["key_id"]
        del client.headers["X-API-Key"]
        assert client.get("/inspections").status_code == 401


def test_nobodys_name_is_in_the_log_or_the_metrics(
    recorded: TestClient, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    name = infer(recorded, **WHO).json()["inspection_id"]
    recorded.post(f"/inspections/{name}/review", json={"verdict": "bad", "note": "Ana saw it", "reviewer": "Luis P."})
    get(recorded, f"/inspections/{name}")
    said = caplog.text + "".join(capfd.readouterr()) + recorded.get("/metrics").text
    for secret in ("Ana", "Luis", "P 77", "north"):
        assert secret not in said


def test_a_database_that_cannot_be_written_is_a_warning_or_where_it_is_required_a_503(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"no database at all" * 100)
    url = f"sqlite:///{tmp_path / 'broken.db'}"
    for required, status in ((False, 200), (True, 503)):
        with client_of(create_app(settings_of(tmp_path, results_db=url, results_required=required))) as client:
            fit(client)
            answer = infer(client, headers={"Accept-Language": "en"})
            assert answer.status_code == status, answer.text
            if required:
                assert answer.json()["code"] == "not_recorded" and answer.headers["retry-after"] == "5"
            else:
                assert "inspection_id" not in answer.json()
                assert any(text.startswith("This verdict was not recorded") for text in answer.json()["warnings"])
            listed = client.get("/inspections")
            assert listed.status_code == 503 and listed.json()["code"] == "records_unavailable"


def test_a_client_that_left_has_no_verdict_recorded(tmp_path: Path) -> None:
    app = create_app(settings_of(tmp_path))
    with served(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        fit(client)
        infer(client)

        async def leave() -> None:
            body = {"data": FORM, "files": {"image": ("roi.png", GOOD)}}
            async with httpx.AsyncClient(base_url=str(client.base_url)) as hasty:
                task = asyncio.ensure_future(hasty.post("/infer", **body))  # type: ignore[arg-type]
                await asyncio.sleep(0.001)
                task.cancel()

        with ThreadPoolExecutor(1) as pool:  # the browser's tests leave a loop running in this thread
            pool.submit(asyncio.run, leave()).result()
        time.sleep(0.5)
        assert len(client.get("/inspections").json()["items"]) in {1, 2}  # 2: it was answered before it left


def test_a_start_with_newer_tables_is_refused_with_a_sentence(tmp_path: Path) -> None:
    own = database(tmp_path)
    from backend.records.upgrading import bring_up

    bring_up(own)
    with own.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    from backend.base.errors import RecordsRefused

    with pytest.raises(RecordsRefused), client_of(create_app(settings_of(tmp_path))):
        pass


@pytest.mark.parametrize("place", ["[" * 30_000, '{"1": null}', "nonsense", '{"99999999999": 1}'])
def test_a_stream_goes_on_from_now_where_its_place_is_none(tmp_path: Path, place: str) -> None:
    app = create_app(settings_of(tmp_path))
    with served(app) as port:
        url, headers = f"http://127.0.0.1:{port}/inspections/stream", {"Last-Event-ID": place}
        with httpx.stream("GET", url, headers=headers, timeout=30) as events:
            assert events.status_code == 200 and next(events.iter_lines()) == "retry: 500"
