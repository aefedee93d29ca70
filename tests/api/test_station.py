"""The calls of the station's program, in its order, in its own multipart, against a live server."""

import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend.tools.demo import served
from tests.parts import FormPart, dotnet, encoded, part, picture_part, quick_settings, text_parts

IDS = {"role_id": "Master1", "roi_id": "Pattern"}
N_OK = 4


def images_with_metas(label: str, seeds: range) -> list[FormPart]:
    """`images` and `metas` parts as the station interleaves them."""
    parts = []
    for seed in seeds:
        name = f"{label}_{seed}.png"
        meta = {
            **IDS,
            "label": label,
            "filename": name,
            "angle": 12.5,
            "timestamp": "2026-01-31T12:00:00Z",
            "mm_per_px": 0.2,
            "shape_json": CIRCLE if seed % 2 else {"kind": "rect", **RECT},
            "created_at_utc": None,
            "source_path": "C:\\fotos\\pieza.png",
        }
        picture = encoded(part(seed, defect=label == "ng"))
        parts.append(FormPart("images", picture, "image/png", name))
        parts.append(FormPart("metas", json.dumps(meta).encode(), "application/json; charset=utf-8"))
    return parts


RECT = {"x": 4, "y": 4, "w": 88, "h": 88}
CIRCLE = '{"kind":"circle","cx":48,"cy":48,"r":44}'


class Station:
    """The station's client: every call with its headers, checked for 200 and for who answered."""

    def __init__(self, client: httpx.Client, recipe: str | None) -> None:
        self.client = client
        self.recipe = recipe or "default"
        self.headers = {"X-Recipe-Id": recipe} if recipe else {}

    def call(self, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
        request_id = uuid.uuid4().hex
        headers = {**self.headers, "X-Request-Id": request_id, **kwargs.pop("headers", {})}
        response = self.client.request(method, path, headers=headers, **kwargs)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        assert (answer["request_id"], answer["recipe_id"]) == (request_id, self.recipe)
        return answer

    def post(self, path: str, fields: dict[str, str], parts: Sequence[FormPart] = ()) -> dict[str, Any]:
        headers, body = dotnet([*text_parts(fields), *parts])
        return self.call("POST", path, content=body, headers=headers)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(quick_settings(tmp_path_factory.mktemp("station"))) as client:
        del client.headers["Accept-Language"]
        yield client


def no_nulls(value: Any, path: str = "") -> None:
    assert value is not None, path
    for name, inner in (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    ):
        no_nulls(inner, f"{path}/{name}")


@pytest.mark.parametrize("recipe", [None, "rojo-2"])
def test_the_stations_calls_in_its_order(live: httpx.Client, recipe: str | None) -> None:
    station = Station(live, recipe)
    key = {**IDS, "model_key": "Pattern"} | ({"recipe_id": recipe} if recipe else {})
    paths = ("/state", "/datasets/ok/upload", "/datasets/list", "/calibrate_dataset", "/infer_dataset", "/fit_ok")
    assert all(live.options(path).status_code != 404 for path in paths)
    assert live.options("/no_such_route").status_code == 404

    health = station.call("GET", "/health")
    assert {"status", "device", "model", "version"} <= health.keys()
    state = station.call("GET", "/state", params=key)
    assert (state["memory_fitted"], state["calib_present"], state["model_key"]) == (False, False, "Pattern")
    assert (state["role_id"], state["roi_id"], isinstance(state["status"], str)) == ("Master1", "Pattern", True)

    station.post("/datasets/ok/upload", key, images_with_metas("ok", range(N_OK)))
    station.post("/datasets/ng/upload", key, images_with_metas("ng", range(100, 102)))
    classes = station.call("GET", "/datasets/list", params=key)["classes"]
    assert (classes["ok"]["count"], classes["ng"]["count"]) == (N_OK, 2)
    assert classes["ok"]["meta"] == dict.fromkeys(classes["ok"]["files"], True)

    first = {**key, "label": "ok", "filename": classes["ok"]["files"][0]}
    sent = live.get("/datasets/file", params=first, headers=station.headers)
    assert (sent.content, sent.headers["content-type"]) == (encoded(part(0)), "image/png")
    meta = station.call("GET", "/datasets/meta", params=first)
    assert (meta["angle"], meta["mm_per_px"], meta["shape_json"]) == (12.5, 0.2, {"kind": "rect", **RECT})
    assert (meta["width"], meta["height"], meta["shape"]["kind"]) == (96, 96, "rect")
    assert live.get("/datasets/thumb", params=first, headers=station.headers).headers["content-type"] == "image/jpeg"

    fitted = station.post("/fit_ok", {**key, "mm_per_px": "0.2", "memory_fit": "false", "use_dataset": "true"})
    assert (fitted["n_images"], fitted["token_shape"]) == (N_OK, [8, 8])
    request = {**key, "score_percentile": 99, "area_mm2_thr": 1.0, "default_mm_per_px": None, "require_ng": True}
    calibrated = station.call("POST", "/calibrate_dataset", json=request)
    no_nulls(calibrated)
    assert (calibrated["status"], calibrated["n_ok"], calibrated["n_ng"]) == ("ok", N_OK, 2)
    assert calibrated["score_percentile"] == 99
    assert isinstance(calibrated["score_percentile"], int)

    wanted: dict[str, Any] = {**key, "labels": ["ok", "ng"], "include_heatmap": True, "default_mm_per_px": None}
    scored = station.call("POST", "/infer_dataset", json=wanted)
    no_nulls(scored)
    assert (scored["status"], scored["n_total"], scored["n_errors"]) == ("ok", N_OK + 2, 0)
    assert [item["decision"] for item in scored["items"]] == ["ok"] * N_OK + ["ng"] * 2
    assert all(item["heatmap_png_base64"] and item["n_regions"] >= 1 for item in scored["items"][N_OK:])
    assert {"x", "y", "w", "h", "area_px", "area_mm2"} <= scored["items"][-1]["regions"][0].keys()

    bad = picture_part("image", 200, defect=True)
    inspected = station.post("/infer", {**key, "mm_per_px": "0.2", "shape": CIRCLE}, [bad])
    assert inspected["decision"] == "ng"
    state = station.call("GET", "/state", params=key)
    assert (state["memory_fitted"], state["calib_present"]) == (True, True)

    assert station.call("DELETE", "/datasets/file", params=first)["deleted"] is True
    gone = live.get("/datasets/file", params=first, headers=station.headers)
    assert (gone.status_code, gone.json()["code"]) == (404, "sample_not_found")
    assert station.call("DELETE", "/datasets/clear", params={**key, "label": "ok"})["cleared"] == N_OK - 1
    assert station.call("GET", "/datasets/list", params=key)["classes"]["ok"] == {"count": 0, "files": [], "meta": {}}


def test_a_recipe_without_its_own_artefacts_does_not_borrow_anothers(live: httpx.Client) -> None:
    station = Station(live, None)
    ids = {"role_id": "Master1", "roi_id": "Alone"}
    station.post("/datasets/ok/upload", ids, images_with_metas("ok", range(N_OK)))
    station.post("/fit_ok", {**ids, "mm_per_px": "0.2", "use_dataset": "true"})
    other = Station(live, "azul")
    assert other.call("GET", "/state", params=ids)["memory_fitted"] is False
    assert other.call("GET", "/datasets/list", params=ids)["classes"]["ok"]["count"] == 0
    headers, body = dotnet([*text_parts({**ids, "mm_per_px": "0.2"}), picture_part("image", 1)])
    refused = live.post("/infer", content=body, headers=headers | {"X-Recipe-Id": "azul"})
    assert (refused.status_code, "Memoria no encontrada" in refused.json()["error"]) == (400, True)


def test_what_was_uploaded_lies_on_disk_as_the_station_would_export_it(tmp_path: Path) -> None:
    with served(quick_settings(tmp_path)) as client:
        Station(client, None).post("/datasets/ng/upload", IDS, images_with_metas("ng", range(1)))
    (image,) = (tmp_path / "datasets" / "Master1" / "Pattern" / "ng").glob("SAMPLE_*.png")
    assert image.read_bytes() == encoded(part(0, defect=True))
    meta = json.loads(image.with_suffix(".json").read_text("utf-8"))
    known = {"role_id", "roi_id", "mm_per_px", "shape", "timestamp_utc", "source", "sha256", "width", "height"}
    assert known | {"angle", "timestamp", "shape_json"} <= meta.keys()
