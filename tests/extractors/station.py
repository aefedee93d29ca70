"""What a service answers with an extractor, whether torch is installed or not."""

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from backend.app import create_app
from backend.base.bundle import npy_bytes, write_bundle
from tests.api.routes.calls import FIT, IDS, fit
from tests.parts import encoded, part, quick_settings


def scored(root: Path, **settings: Any) -> tuple[str, str, float]:
    """Name and fingerprint of the extractor, and the score of a bad part, of a service that learns two good ones."""
    with TestClient(create_app(quick_settings(root, results_db="none", **settings))) as client:
        fit(client, 0, 1)
        files = {"image": ("roi.png", encoded(part(9, defect=True)), "image/png")}
        score = client.post("/infer", data=FIT, files=files).json()["score"]
        return (
            client.get("/health").json()["model"],
            client.get("/manifest", params=IDS).json()["memory"]["fingerprint"],
            score,
        )


def small_network() -> bytes:
    """A .bdix of 16 kB, made without torch: the mean colours of cells of 16 px, and eight mixtures of them."""
    import openvino
    from openvino import opset13 as op

    weights = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    pixels = op.parameter([1, -1, -1, 3], np.uint8, name="pixels")
    channels = op.transpose(op.convert(pixels, "f32"), np.array([0, 3, 1, 2]))
    cells = op.avg_pool(channels, [16, 16], [0, 0], [0, 0], [16, 16], exclude_pad=True)
    rows = op.transpose(op.reshape(cells, np.array([1, 3, -1]), special_zero=False), np.array([0, 2, 1]))
    mixed = op.matmul(rows, op.constant(weights), transpose_a=False, transpose_b=False)
    model = openvino.Model([op.normalize_l2(mixed, np.array([2]), 1e-12, "add")], [pixels], "small")
    picture = np.random.default_rng(1).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    tokens = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(picture[None])[0]
    about = {
        "model_name": "small", "fingerprint": "small", "patch": 16, "dim": 8, "reach": 1.0,
        "mean": [0.5] * 3, "std": [0.5] * 3, "way": {"blocks": [3, 5]},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "network.xml"
        openvino.save_model(model, xml, compress_to_fp16=False)
        network = {"network.xml": xml.read_bytes(), "network.bin": xml.with_suffix(".bin").read_bytes()}
    file = io.BytesIO()
    write_bundle(file, "bdix", about, {**network, "picture.npy": npy_bytes(picture), "tokens.npy": npy_bytes(tokens)})
    return file.getvalue()
