"""The ResNet18 web API over HTTP, with a real ResNet18 (random weights where the trained ones do not matter)."""

import errno
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import save_file

from backend.app import create_app
from backend.base.config import Settings
from backend.base.images import encode_png
from backend.extractors.protocol import ExtractorOptions
from backend.extractors.resnet import DOCUMENTED, RECOMMENDED, GreyResNet
from backend.extractors.texture import TextureFeatures
from backend.patchcore import PatchCoreMemory
from backend.resnet_api.predictor import Predictor
from backend.service.images import ImageFile

Make = Callable[..., TestClient]
SIDE = 128


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet18 whose weights are random but always the same."""
    import timm

    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    return path


def plate(seed: int, *, spot: tuple[int, int] | None = None, side: int = 160) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A grey plate with grain and a ring; `spot` is the centre of a dark stain of 12 px radius."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side), 150, np.float32) + rng.normal(0, 4, (side, side)).astype(np.float32)
    picture = np.clip(image, 0, 255).astype(np.uint8)
    cv2.circle(picture, (side // 2, side // 2), side // 3, 90, 4)
    if spot is not None:
        cv2.circle(picture, spot, 12, 10, -1)
    return cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)  # type: ignore[return-value]


def png(image: Any) -> bytes:
    return encode_png(image)


GOOD = [png(plate(seed)) for seed in range(6)]
BAD = png(plate(99, spot=(60, 90)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A project-like folder with a bank built from good plates."""
    folder = tmp_path_factory.mktemp("predict")
    settings = Settings(artifacts_dir=folder / "bank", resnet_weights=str(weights), img_size=SIDE, device="cpu")
    predictor = Predictor(settings)
    files = [ImageFile.named(f"{n}.png", lambda data=data: data) for n, data in enumerate(GOOD)]  # type: ignore[misc]
    predictor.build(files, coreset_rate=0.25)
    predictor.close()
    return folder


@pytest.fixture
def make(tmp_path: Path, folder: Path, weights: Path) -> Iterator[Make]:
    """Clients of services that differ in their settings."""
    clients = []

    def build(**values: Any) -> TestClient:
        given = {
            "models_dir": tmp_path / "models",
            "artifacts_dir": folder / "bank",
            "static_dir": tmp_path / "static",
            "resnet_weights": str(weights),
            "img_size": SIDE,
            "area_min": 20,
            "device": "cpu",
            **values,
        }
        client = TestClient(create_app(Settings(**given), TextureFeatures(128)), raise_server_exceptions=True)
        client.__enter__()
        clients.append(client)
        return client

    yield build
    for client in clients:
        client.__exit__(None, None, None)


def post(client: TestClient, data: bytes = BAD, name: str = "pieza.png", **params: Any) -> Any:
    return client.post("/predict", params=params, files={"file": (name, data, "image/png")})


def test_health_gains_the_fields_of_the_resnet_system(make: Make) -> None:
    body = make(ignore_border_pct=8, roi_path=None).get("/health").json()
    assert body["status"] and body["device"] == "cpu" and body["model"] == "texture"
    assert (body["img_size"], body["knn_k"], body["ignore_border_pct"], body["roi_path"]) == (SIDE, 3, 8, None)
    assert 0 < body["threshold"] < 2


def test_a_stained_plate_is_an_anomaly_and_a_good_one_is_not(make: Make) -> None:
    client = make()
    bad, good = post(client).json(), post(client, png(plate(50))).json()
    assert bad["score"] > bad["threshold"] > good["score"]
    assert bad["is_anomaly"] is True and good["is_anomaly"] is False
    assert good["polygons"] == []
    (x, y) = np.mean(np.concatenate(bad["polygons"]), axis=0)
    assert abs(x - 60 * SIDE / 160) < 12 and abs(y - 90 * SIDE / 160) < 12
    assert bad["image_size"] == [160, 160]
    assert {"request_id", "recipe_id", "timings_ms", "warnings"} <= bad.keys()


def test_an_empty_file_and_a_text_are_refused_with_the_documents_words(make: Make) -> None:
    client = make()
    empty, text = post(client, b""), post(client, b"hello")
    assert (empty.status_code, empty.json()["error"]) == (400, "Archivo vacío.")
    assert (text.status_code, text.json()["detail"]) == (400, "No se pudo decodificar la imagen.")


TIFF = io.BytesIO()
Image.fromarray(plate(3)).save(TIFF, "TIFF", save_all=True, append_images=[Image.fromarray(plate(4))])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png(plate(3))[:-20], "cut off"),
        (png(plate(3)).replace(b"IEND", b"IENE"), "checksum"),
        (cv2.imencode(".jpg", plate(3))[1].tobytes()[:-40] + b"\xff\xd9", "damaged"),
        (b"hello", "none of these formats"),
    ],
)
def test_why_an_image_is_not_read_is_said_beside_the_documents_words(make: Make, data: bytes, said: str) -> None:
    client = make()
    english = {"Accept-Language": "en"}
    answer = client.post("/predict", files={"file": ("a", data)}, headers=english)
    assert answer.status_code == 400 and said in answer.json()["reason"]
    (item,) = client.post("/predict/batch", files=[("files", ("a", data))], headers=english).json()["items"]
    assert said in item["reason"]


@pytest.mark.parametrize(
    ("data", "said"),
    [(TIFF.getvalue(), "several frames"), (png(plate(3).astype(np.uint16) * 16), "12 bits")],
)
def test_what_is_said_of_an_image_is_in_the_prediction(make: Make, data: bytes, said: str) -> None:
    answer = make().post("/predict", files={"file": ("a", data)}, headers={"Accept-Language": "en"}).json()
    assert said in " ".join(answer["warnings"])


def test_modes_scale_the_threshold_and_thr_overrides_them(make: Make) -> None:
    client = make(threshold=0.5)
    answers = {mode: post(client, mode=mode).json() for mode in ("sensitive", "strict")}
    assert answers["sensitive"]["threshold"] == pytest.approx(0.4)
    assert answers["strict"]["threshold"] == pytest.approx(0.6)
    assert post(client, mode="strict", thr=0.123).json()["threshold"] == 0.123
    assert post(client, thr="", mode="").json()["threshold"] == 0.5, "an empty field of a form says nothing"
    assert post(client, mode="wild").status_code == 422
    assert post(client, thr="nan").status_code == 422


def test_the_same_score_is_an_anomaly_when_sensitive_and_not_when_strict(make: Make) -> None:
    score = post(make(), save_vis=False).json()["score"]
    client = make(threshold=score)
    assert post(client, mode="sensitive").json()["is_anomaly"] is True
    assert post(client, mode="strict").json()["is_anomaly"] is False
    assert post(client).json()["is_anomaly"] is False, "a score at the threshold is not over it"


def test_a_stain_in_the_ignored_border_does_not_count(make: Make) -> None:
    stained = png(plate(98, spot=(12, 12)))
    everywhere, inner = make(area_min=0), make(area_min=0, ignore_border_pct=30)
    whole, inside = post(everywhere, stained).json(), post(inner, stained).json()
    assert inside["score"] < whole["score"]
    points = np.array([point for polygon in inside["polygons"] for point in polygon])
    assert points.min() >= round(0.3 * SIDE) and points.max() < SIDE - round(0.3 * SIDE)


def test_a_mask_picture_limits_the_score_and_an_empty_one_is_ignored(make: Make, tmp_path: Path) -> None:
    right = np.zeros((64, 64), np.uint8)
    right[:, 48:] = 255
    (tmp_path / "right.png").write_bytes(png(right))
    (tmp_path / "none.png").write_bytes(png(np.zeros((64, 64), np.uint8)))
    whole = post(make()).json()["score"]
    assert post(make(roi_path=str(tmp_path / "right.png"))).json()["score"] < whole
    assert post(make(roi_path=str(tmp_path / "none.png"))).json()["score"] == whole
    missing = post(make(roi_path=str(tmp_path / "absent.png")))
    assert (missing.status_code, missing.json()["code"]) == (503, "roi_unreadable")


@pytest.mark.parametrize("kind", ["grey", "bgra"])
def test_grey_and_transparent_images_score_as_the_same_colour_image(make: Make, kind: str) -> None:
    client = make()
    image = plate(99, spot=(60, 90))
    other = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY if kind == "grey" else cv2.COLOR_BGR2BGRA)
    assert post(client, png(other)).json()["score"] == pytest.approx(post(client).json()["score"], abs=1e-6)


def test_three_pictures_are_left_and_served(make: Make) -> None:
    client = make()
    body = post(client).json()
    for kind in ("overlay", "heat", "mask"):
        assert re.fullmatch(rf"/static/overlays/pieza-[0-9a-f]{{16}}_{kind}\.png", body[f"{kind}_url"])
        served = client.get(body[f"{kind}_url"])
        assert served.status_code == 200 and served.headers["content-type"] == "image/png"
        assert served.headers["x-content-type-options"] == "nosniff"
        picture = cv2.imdecode(np.frombuffer(served.content, np.uint8), cv2.IMREAD_UNCHANGED)
        assert picture is not None and picture.shape[:2] == (SIDE, SIDE)


def test_names_cannot_escape_overwrite_or_pile_up(make: Make, tmp_path: Path) -> None:
    client = make(max_overlays=3)
    first = post(client, name="../../../../etc/passwd.png").json()["overlay_url"]
    again = [post(client, name="../../../../etc/passwd.png").json()["overlay_url"] for _ in range(4)]
    assert len({first, *again}) == 5
    kept = sorted(path.name for path in (tmp_path / "static" / "overlays").iterdir())
    assert len(kept) == 9 and all(name.startswith("passwd-") for name in kept)
    assert client.get(first).status_code == 404
    assert client.get(again[-1]).status_code == 200


def test_without_pictures_the_answer_is_json_alone(make: Make, tmp_path: Path) -> None:
    body = post(make(save_vis=False)).json()
    assert body["overlay_url"] is None and body["heat_url"] is None and body["mask_url"] is None
    assert body["polygons"], "polygons are part of the JSON"
    assert not (tmp_path / "static").exists()


def test_without_a_bank_the_answer_says_how_to_build_one(make: Make, tmp_path: Path) -> None:
    client = make(artifacts_dir=tmp_path / "nothing")
    answer = post(client)
    assert answer.status_code == 503
    assert answer.json()["error"].startswith("No existe memory bank: ")
    assert client.get("/config").json()["status"] == "absent"
    assert client.get("/health").json()["threshold"] == 0.35


def test_without_weights_the_answer_names_the_setting(make: Make, tmp_path: Path) -> None:
    answer = post(make(resnet_weights=str(tmp_path / "absent.safetensors")))
    assert (answer.status_code, answer.json()["code"]) == (503, "resnet_unavailable")
    assert "RESNET_WEIGHTS" in answer.json()["error"]


def test_a_batch_answers_each_file_and_keeps_going_past_a_bad_one(make: Make) -> None:
    client = make()
    files = [
        ("files", (name, data, "image/png")) for name, data in (("a.png", BAD), ("b.png", b"?"), ("c.png", GOOD[0]))
    ]
    body = client.post("/predict/batch", files=files).json()
    assert (body["n_total"], body["n_errors"], body["n_anomalies"]) == (3, 1, 1)
    assert [item["filename"] for item in body["items"]] == ["a.png", "b.png", "c.png"]
    assert body["items"][0]["score"] == post(client).json()["score"]
    assert body["items"][1]["code"] == "unreadable_upload"


def test_config_tells_what_is_loaded(make: Make, folder: Path) -> None:
    client = make(threshold=0.7)
    post(client)
    body = client.get("/config").json()
    assert (body["status"], body["threshold"], body["embedding_version"]) == ("ready", 0.7, RECOMMENDED)
    assert body["memory_bank"]["n_images"] == len(GOOD)
    assert body["memory_bank"]["rows"] == round(0.25 * len(GOOD) * (SIDE // 8) ** 2)
    assert body["memory_bank"]["dim"] == 384


def test_a_bank_of_the_documents_layout_loads_and_is_read_as_the_document_says(
    make: Make, weights: Path, tmp_path: Path
) -> None:
    artifacts = tmp_path / "theirs"
    artifacts.mkdir()
    theirs = GreyResNet(ExtractorOptions(weights=str(weights), input_size=SIDE, device="cpu"), DOCUMENTED)
    grey = [cv2.resize(plate(seed)[:, :, 0], (SIDE, SIDE), interpolation=cv2.INTER_AREA) for seed in range(3)]
    rows = theirs.extract([np.repeat(g[:, :, None], 3, axis=2) for g in grey]).reshape(-1, 384)
    np.savez(artifacts / "memory_bank_core.npz", anything=rows * 3)
    (artifacts / "config.json").write_text(json.dumps({"threshold": 0.42, "embedding_version": DOCUMENTED}))
    client = make(artifacts_dir=artifacts)
    body = post(client, GOOD[0]).json()
    assert body["threshold"] == 0.42
    assert body["warnings"] == []
    expected = PatchCoreMemory(rows).distances(rows[: len(rows) // 3], 3)
    heat = cv2.resize(expected.reshape(16, 16), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    assert body["score"] == pytest.approx(float(heat.max()), abs=1e-4)


def test_a_new_bank_is_served_without_a_restart(make: Make, folder: Path, tmp_path: Path) -> None:
    artifacts = tmp_path / "moving"
    artifacts.mkdir()
    for name in ("memory_bank_core.npz", "config.json"):
        (artifacts / name).write_bytes((folder / "bank" / name).read_bytes())
    client = make(artifacts_dir=artifacts)
    before = post(client).json()["threshold"]
    config = json.loads((artifacts / "config.json").read_text())
    (artifacts / "config.json").write_text(json.dumps({**config, "threshold": before / 2}))
    assert post(client).json()["threshold"] == pytest.approx(before / 2)
    (artifacts / "config.json").write_text(json.dumps({**config, "threshold": before / 3}), "utf-8-sig")
    assert post(client).json()["threshold"] == pytest.approx(before / 3), "as Notepad saves it"


@pytest.mark.parametrize(("name", "data"), [("memory_bank_core.npz", b"PK nonsense"), ("config.json", b"[1]")])
def test_damaged_artefacts_are_named(make: Make, folder: Path, tmp_path: Path, name: str, data: bytes) -> None:
    for kept in ("memory_bank_core.npz", "config.json"):
        (tmp_path / kept).write_bytes((folder / "bank" / kept).read_bytes())
    (tmp_path / name).write_bytes(data)
    client = make(artifacts_dir=tmp_path)
    answer = post(client)
    assert (answer.status_code, answer.json()["code"]) == (500, "artifact_damaged")
    assert name in answer.json()["error"]


def test_a_bank_of_another_width_is_refused(make: Make, tmp_path: Path, rng: np.random.Generator) -> None:
    np.savez(tmp_path / "memory_bank_core.npz", bank=rng.normal(size=(40, 100)).astype(np.float32))
    answer = post(make(artifacts_dir=tmp_path))
    assert (answer.status_code, answer.json()["code"]) == (503, "bank_mismatch")


def test_contract_only_leaves_it_all_out(make: Make) -> None:
    client = make(contract_only=True)
    for path in ("/predict", "/predict/batch"):
        assert client.post(path).status_code == 404
    for path in ("/", "/config", "/web/app.js", "/static/overlays/x.png"):
        assert client.get(path).status_code == 404
    assert "img_size" not in client.get("/health").json()


def test_a_prediction_waits_for_inspections_but_not_for_ever(folder: Path, weights: Path) -> None:
    turns = iter([True, True, False])
    asked: list[bool] = []

    def busy() -> bool:
        asked.append(next(turns, False))
        return asked[-1]

    settings = Settings(
        artifacts_dir=folder / "bank", resnet_weights=str(weights), img_size=SIDE, save_vis=False, device="cpu"
    )
    predictor = Predictor(settings, busy)
    predictor.predict(ImageFile.named("a.png", lambda: BAD))
    assert asked == [True, True, False]
    predictor.close()


def test_the_threshold_is_the_99th_percentile_of_leave_one_out_scores(folder: Path, weights: Path) -> None:
    settings = Settings(artifacts_dir=folder / "bank", resnet_weights=str(weights), img_size=SIDE, device="cpu")
    predictor = Predictor(settings)
    about = json.loads((folder / "bank" / "config.json").read_text())
    with np.load(folder / "bank" / "memory_bank_core.npz") as npz:
        rows, src = npz["memory_bank"], npz["src"]
    extractor = GreyResNet(ExtractorOptions(weights=str(weights), input_size=SIDE, device="cpu"), RECOMMENDED)
    scores = []
    for number in range(len(GOOD)):
        grey = cv2.resize(plate(number)[:, :, 0], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        tokens = extractor.extract([np.repeat(grey[:, :, None], 3, axis=2)])[0]
        others = rows[src != number]
        nearest = np.sort(np.linalg.norm(tokens[:, None] - others[None], axis=2), axis=1)[:, :3].mean(axis=1)
        grid = nearest.reshape(16, 16).astype(np.float32)
        scores.append(float(cv2.resize(grid, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR).max()))
    assert about["threshold"] == pytest.approx(float(np.percentile(scores, 99)), abs=1e-4)
    predictor.close()


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [(errno.ENOSPC, 507, "disk_full"), (errno.EROFS, 503, "store_read_only"), (errno.EIO, 503, "storage_failed"),
     (errno.EMFILE, 503, "storage_failed")],
)  # fmt: skip
def test_pictures_that_cannot_be_written_say_why(
    make: Make, monkeypatch: pytest.MonkeyPatch, number: int, status: int, code: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    client = make()
    assert post(client).status_code == 200
    monkeypatch.setattr(os, "fsync", fail)
    answer = post(client)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
