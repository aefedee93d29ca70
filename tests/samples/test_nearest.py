"""Where a part differs, the stored good part is found that comes nearest there."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from backend.app import create_app
from tests.api.service import FORM, IDS, client_of
from tests.parts import quick_settings

BOX = {"x": "60", "y": "40", "w": "20", "h": "20"}


def png(tone: int, spot: tuple[int, int] | None = None) -> bytes:
    """A grey part with noise; `spot`: a brighter square at (x, y)."""
    pixels = np.random.default_rng(tone).normal(tone, 4, (112, 112, 3))
    if spot:
        x, y = spot
        pixels[y : y + 16, x : x + 16] = 250
    return cv2.imencode(".png", np.clip(pixels, 0, 255).astype(np.uint8))[1].tobytes()


@pytest.fixture
def client(tmp_path: Path) -> Any:
    with client_of(create_app(quick_settings(tmp_path, coreset_rate=1.0))) as opened:
        yield opened


def asked(client: TestClient, image: bytes, **more: str) -> dict[str, Any]:
    answer = client.post("/nearest", data={**FORM, **BOX, **more}, files={"image": ("part.png", image, "image/png")})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_the_good_part_with_the_same_spot_is_shown_at_its_spot(client: TestClient) -> None:
    made = {"plain": png(90), "spotted": png(92, (20, 80)), "dark": png(30)}
    images = [("images", (f"{name}.png", data, "image/png")) for name, data in made.items()]
    assert client.post("/fit_ok", data=FORM, files=images).status_code == 200
    found = asked(client, png(94, (62, 42)))["nearest"]
    sample = client.get("/datasets/file", params={**IDS, "label": found["label"], "filename": found["filename"]})
    assert sample.content == made["spotted"]
    assert abs(found["x"] + found["w"] / 2 - 28) <= 16 and abs(found["y"] + found["h"] / 2 - 88) <= 16
    assert (found["w"], found["h"]) == (20, 20) and found["distance"] < 1
    assert asked(client, png(94, (62, 42)), x="500", y="500")["nearest"], "a place beyond the edge is its nearest one"


def test_only_the_part_is_looked_at_where_a_shape_says_where_it_is(client: TestClient) -> None:
    shape = json.dumps({"kind": "circle", "cx": 56, "cy": 56, "r": 36})
    images = [("images", ("spotted.png", png(92, (0, 0)), "image/png"))]
    assert client.post("/fit_ok", data={**FORM, "shape": shape}, files=images).status_code == 200
    for box in (BOX, {"x": "0", "y": "0", "w": "90", "h": "90"}):
        found = asked(client, png(94, (62, 42)), shape=shape, **{**box, "w": "2", "h": "2"} if box is BOX else box)
        x, y = found["nearest"]["x"] + found["nearest"]["w"] / 2, found["nearest"]["y"] + found["nearest"]["h"] / 2
        assert np.hypot(x - 56, y - 56) < 36 + 10, "the spot beside the part is not shown"


def test_a_part_whose_images_are_gone_says_so(client: TestClient) -> None:
    images = [("images", ("plain.png", png(90), "image/png"))]
    assert client.post("/fit_ok", data=FORM, files=images).status_code == 200
    assert client.delete("/datasets/clear", params=IDS).status_code == 200
    answer = asked(client, png(94, (62, 42)))
    assert answer["nearest"] is None
    assert any("guardadas" in warning for warning in answer["warnings"])


def test_a_place_that_cannot_be_is_refused(client: TestClient) -> None:
    images = [("images", ("plain.png", png(90), "image/png"))]
    assert client.post("/fit_ok", data=FORM, files=images).status_code == 200
    sent = {"image": ("part.png", png(90), "image/png")}
    for wrong in ({"w": "0"}, {"x": "-1"}, {"h": "nan"}, {"y": "oben"}):
        answer = client.post("/nearest", data={**FORM, **BOX, **wrong}, files=sent)
        assert answer.status_code in {400, 422}, answer.text
