"""The inspection that stays on one device, which bench_gpu.py times, beside the service's own steps, on the CPU."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from backend.base.decoding import decode
from backend.extractors.network import NetworkFeatures
from backend.extractors.protocol import ExtractorOptions, prepare
from backend.features import build_extractor
from backend.infer import Criteria, Roi, RoiSize, heatmap_png, heatmap_range, inspect
from backend.patchcore import PatchCoreMemory
from tests.parts import encoded, part

pytest.importorskip("torchvision")


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(160, 160), (301, 420)])
def test_pixels_that_stay_on_a_device_give_what_the_service_gives(height: int, width: int, tmp_path: Path) -> None:
    from tests.benchmarks.on_device import OnDevice

    options = ExtractorOptions(model_name="lite", input_size=160, runtime="torch", device="cpu", precision="fp32")
    extractor = build_extractor(options)
    assert isinstance(extractor, NetworkFeatures)
    learnt = [decode(encoded(part(seed, height=height, width=width), "JPEG", quality=95)).pixels for seed in range(2)]
    grid = extractor.grid(height, width)
    rows = extractor.extract([prepare(image, grid, extractor.patch) for image in learnt])
    memory = PatchCoreMemory.build(np.concatenate(list(rows)), 0.2)

    data = encoded(part(9, height=height, width=width, defect=True), "JPEG", quality=95)
    found = OnDevice(extractor, memory.emb)(data)
    tokens = extractor.extract([prepare(decode(data).pixels, grid, extractor.patch)])[0]
    expected = inspect(tokens, memory, Roi(RoiSize(height, width), grid), Criteria())
    np.testing.assert_allclose(found.token_map, expected.token_map, atol=0.01)
    assert found.score == pytest.approx(expected.score, rel=0.01)
    png = heatmap_png(expected, "relative", *heatmap_range(expected, "relative", None))
    grey = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert grey is not None
    assert np.abs(grey.astype(int) - found.heatmap).max() <= 4
