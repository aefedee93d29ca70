"""Inspections whose tokens stay on a torch device, here the CPU, beside those of the host's own way."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backend.base.errors import BadImage, ExtractorFault
from backend.base.images import decode_image
from backend.base.keys import ModelKey
from backend.extractors.network import NetworkFeatures
from backend.extractors.protocol import ExtractorOptions
from backend.features import build_extractor
from backend.memory import products
from backend.roi_mask import Shape
from backend.service.fitting import Fitter
from backend.service.images import ImageFile
from backend.service.inspection import Inspector
from backend.service.results import InferResult
from tests.parts import encoded, part, quick_settings

KEY = ModelKey.of("Master1", "Pattern")
CIRCLE = Shape("circle", {"cx": 80, "cy": 80, "r": 62})
Both = Callable[..., tuple[Inspector, Inspector]]


@pytest.fixture(scope="module")
def extractor() -> NetworkFeatures:
    found = build_extractor(ExtractorOptions(model_name="lite", input_size=160, runtime="torch", device="cpu"))
    assert isinstance(found, NetworkFeatures)
    return found


def jpeg(seed: int, *, height: int = 160, width: int = 160, shape: Shape | None = None, **kind: Any) -> ImageFile:
    data = encoded(part(seed, height=height, width=width, **kind), "JPEG", quality=95)
    return ImageFile(f"{seed}.jpg", lambda: data, shape)


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extractor: NetworkFeatures) -> Iterator[Both]:
    """Gives two services of one model: the first goes the host's way, the second has its rows where torch computes."""
    with ExitStack() as stack:

        def opened(files: list[ImageFile] | None = None, **given: Any) -> tuple[Inspector, Inspector]:
            settings = quick_settings(tmp_path, **{"coreset_rate": 0.5, "store_samples": False, **given})
            host, device = Inspector(settings, extractor), Inspector(settings, extractor)
            for one in (host, device):
                stack.callback(one.close)
                one.start()
            Fitter(host).fit(KEY, files or [jpeg(seed) for seed in range(3)], mm_per_px=0.1)
            with monkeypatch.context() as there:
                there.setattr(products, "device", lambda: "cpu")
                device.cache.model(KEY)
            return host, device

        yield opened


def picture(result: InferResult) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(np.frombuffer(result.heatmap, np.uint8), cv2.IMREAD_GRAYSCALE))


def compared(services: tuple[Inspector, Inspector], file: ImageFile, **given: Any) -> InferResult:
    """What both ways say, which is the same up to rounding."""
    ours, theirs = (one.infer(KEY, file, mm_per_px=0.1, **given) for one in services)
    assert ours.inspection.heat.seen is None
    assert theirs.inspection.score == pytest.approx(ours.inspection.score, rel=1e-5)
    assert theirs.inspection.stats == pytest.approx(ours.inspection.stats, rel=1e-5)
    assert theirs.heatmap_range == pytest.approx(ours.heatmap_range, rel=1e-5)
    np.testing.assert_allclose(theirs.inspection.token_map, ours.inspection.token_map, rtol=1e-5, atol=1e-6)
    assert theirs.is_anomaly == ours.is_anomaly
    assert [region.bbox for region in theirs.inspection.regions] == [region.bbox for region in ours.inspection.regions]
    if ours.heatmap:
        assert np.abs(picture(theirs).astype(int) - picture(ours)).max() <= 1
    return theirs


@pytest.mark.parametrize("size", [(160, 160), (301, 420), (1100, 1300)])
@pytest.mark.parametrize("heatmap", ["relative", "absolute", "color", "none"])
def test_they_say_the_same_of_parts_of_any_size(both: Both, size: tuple[int, int], heatmap: Any) -> None:
    height, width = size
    services = both([jpeg(seed, height=height, width=width) for seed in range(2)])
    good, bad = jpeg(8, height=height, width=width), jpeg(9, height=height, width=width, defect=True)
    score = compared(services, good, heatmap=heatmap).inspection.score
    services[0].calibrate(KEY, ok_scores=[score, 1.1 * score], mm_per_px=0.1)
    assert compared(services, good, heatmap=heatmap).is_anomaly is False
    found = compared(services, bad, heatmap=heatmap)
    assert found.is_anomaly and found.inspection.regions and found.inspection.heat.seen
