"""Good parts that are not: named by a fit, looked at among the samples, relabelled, and left out of the next fit."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from backend.base.images import decode_image
from tests.api.service import BAD, FORM, IDS, fit
from tests.parts import encoded, part


def fit_with_a_bad_part(client: TestClient, language: str = "es") -> Any:
    files = [("images", (f"good_{n}.png", encoded(part(n)), "image/png")) for n in range(12)]
    files.insert(5, ("images", ("scratched.png", BAD, "image/png")))
    return client.post("/fit_ok", data=FORM, files=files, headers={"Accept-Language": language})


@pytest.mark.parametrize(("language", "words"), [("es", "veces más lejos"), ("en", "times as far")])
def test_a_fit_names_a_bad_part_among_the_good(client: TestClient, language: str, words: str) -> None:
    answer = fit_with_a_bad_part(client, language).json()
    first = answer["suspects"][0]
    assert first["filename"] == "scratched.png" and first["p_value"] < 0.05 and first["score"] > 0
    assert words in first["why"]
    assert any("scratched.png" in warning for warning in answer["warnings"])


def test_a_fit_of_good_parts_names_none(client: TestClient) -> None:
    answer = fit(client, 12).json()
    assert answer["suspects"] == [] and answer["warnings"] == []


def test_suspects_are_looked_at_relabelled_and_left_out(client: TestClient) -> None:
    fit_with_a_bad_part(client)
    found = client.get("/datasets/suspects", params=IDS).json()
    assert found["n_images"] == 13 and len(found["suspects"]) == 13
    first = found["suspects"][0]
    assert first["stands_out"] and first["in_memory"]
    heat = decode_image(base64.b64decode(first["heatmap_png_base64"])).astype(int)[:, :, 0]
    rows, columns = np.nonzero(heat >= 200)
    assert 30 <= np.median(rows) <= 66 and 24 <= np.median(columns) <= 72  # where the scratch is
    meta = client.get("/datasets/meta", params={**IDS, "label": "ok", "filename": first["filename"]}).json()
    assert meta["original_name"] == "scratched.png"

    moved = client.post("/datasets/relabel", json={**IDS, "filename": first["filename"], "from": "ok", "to": "ng"})
    assert moved.json().items() >= {"filename": first["filename"], "from": "ok", "to": "ng", **IDS}.items()
    classes = client.get("/datasets/list", params=IDS).json()["classes"]
    assert (classes["ok"]["count"], classes["ng"]["files"]) == (12, [first["filename"]])
    moved_meta = client.get("/datasets/meta", params={**IDS, "label": "ng", "filename": first["filename"]}).json()
    assert moved_meta["label"] == "ng" and moved_meta["mm_per_px"] == 0.2 and "relabelled_utc" in moved_meta
    sent = client.get("/datasets/file", params={**IDS, "label": "ng", "filename": first["filename"]}).content
    assert sent == BAD

    again = client.post("/fit_ok", data={**FORM, "use_dataset": "true"}).json()
    assert again["n_images"] == 12 and again["suspects"] == []


def test_parts_that_the_memory_has_not_seen_are_compared_too(client: TestClient) -> None:
    fit(client, 12)
    client.post("/datasets/ok/upload", data=FORM, files=[("images", ("late.png", BAD, "image/png"))])
    found = client.get("/datasets/suspects", params={**IDS, "limit": 3, "heatmap": False}).json()
    assert len(found["suspects"]) == 3 and "heatmap_png_base64" not in found["suspects"][0]
    assert (found["suspects"][0]["in_memory"], found["suspects"][0]["stands_out"]) == (False, True)


def test_with_a_shape_only_the_part_is_compared(client: TestClient) -> None:
    shape = '{"kind":"circle","cx":48,"cy":48,"r":20}'
    files = [("images", (f"{n}.png", encoded(part(n)), "image/png")) for n in range(8)]
    client.post("/fit_ok", data={**FORM, "shape": shape}, files=files)
    found = client.get("/datasets/suspects", params=IDS).json()
    heat = decode_image(base64.b64decode(found["suspects"][0]["heatmap_png_base64"]))
    assert found["n_images"] == 8 and (heat[:10] == 0).all()


def test_samples_that_cannot_be_read_are_named(client: TestClient, tmp_path: Path) -> None:
    fit(client, 8)
    broken = sorted((tmp_path / "datasets" / "Master1" / "Pattern" / "ok").glob("*.png"))[2]
    broken.write_bytes(b"not an image")
    found = client.get("/datasets/suspects", params=IDS).json()
    assert found["n_images"] == 7 and any(broken.name in warning for warning in found["warnings"])


def test_without_samples_or_without_a_memory_there_is_nothing_to_look_at(client: TestClient) -> None:
    assert client.get("/datasets/suspects", params=IDS).json()["code"] == "memory_not_found"
    fit(client, 6)
    client.request("DELETE", "/datasets/clear", params=IDS)
    assert client.get("/datasets/suspects", params=IDS).json()["suspects"] == []


def test_of_one_to_three_images_and_of_equal_ones_none_is_suspect_and_a_sentence_says_why(client: TestClient) -> None:
    for count in (1, 2, 3):
        assert fit(client, count).json()["suspects"] == []
        found = client.get("/datasets/suspects", params=IDS).json()
        assert found["suspects"] == [] and len(found["warnings"]) == 1
        client.request("DELETE", "/datasets/clear", params=IDS)
    same = [("images", (f"{n}.png", encoded(part(40), compress_level=n), "image/png")) for n in range(6)]
    assert client.post("/fit_ok", data=FORM, files=same).json()["suspects"] == []
    found = client.get("/datasets/suspects", params=IDS).json()
    assert found["suspects"] == [] and "aprende de nuevo" in found["warnings"][0]


def test_a_name_that_the_other_label_has_is_not_lost(client: TestClient, tmp_path: Path) -> None:
    fit(client, 3)
    name = client.get("/datasets/list", params=IDS).json()["classes"]["ok"]["files"][0]
    there = tmp_path / "datasets" / "Master1" / "Pattern" / "ng" / name
    there.parent.mkdir(exist_ok=True)
    there.write_bytes(BAD)
    moved = client.post("/datasets/relabel", json={**IDS, "filename": name, "from": "ok", "to": "ng"}).json()
    assert moved["filename"] != name and there.read_bytes() == BAD
    classes = client.get("/datasets/list", params=IDS).json()["classes"]
    assert classes["ng"]["files"] == sorted([name, moved["filename"]]) and classes["ok"]["count"] == 2


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"to": "ok"}, 400, "invalid_value"),
        ({"to": "scrap"}, 400, "invalid_label"),
        ({"from": "scrap"}, 400, "invalid_label"),
        ({"filename": "../../calib.json"}, 400, "invalid_filename"),
        ({"filename": "gone.png"}, 404, "sample_not_found"),
        ({"to": None}, 422, "validation_error"),
    ],
)
def test_a_relabelling_that_cannot_be_meant_is_refused(
    client: TestClient, change: dict[str, Any], status: int, code: str
) -> None:
    fit(client, 3)
    name = client.get("/datasets/list", params=IDS).json()["classes"]["ok"]["files"][0]
    body = {**IDS, "filename": name, "from": "ok", "to": "ng", **change}
    answer = client.post("/datasets/relabel", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert client.get("/datasets/list", params=IDS).json()["classes"]["ok"]["count"] == 3


def test_relabelling_by_a_form_and_back_again(client: TestClient) -> None:
    fit(client, 3)
    name = client.get("/datasets/list", params=IDS).json()["classes"]["ok"]["files"][1]
    for label, to in (("ok", "ng"), ("ng", "ok")):
        answer = client.post("/datasets/relabel", data={**IDS, "filename": name, "from": label, "to": to})
        assert answer.json()["filename"] == name
    assert client.get("/datasets/list", params=IDS).json()["classes"]["ok"]["count"] == 3
