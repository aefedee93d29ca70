"""JPEGs that are larger than the extractor needs: decoded smaller, and told of in the sender's pixels."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.base.decoding import ImageOptions
from backend.base.images import decode_image, encode_png, image_header
from backend.base.keys import ModelKey
from backend.extractors.texture import TextureFeatures
from backend.infer import RoiSize
from backend.roi_mask import Shape
from backend.samples.collector import Collector
from backend.samples.scoring import Sample, SampleScorer
from backend.service.calibration import Terms
from backend.service.fitting import Fitter
from backend.service.images import ImageFile, prepare_image
from backend.service.inspection import Inspector
from backend.service.jobs import Job
from backend.service.results import InferResult
from tests.parts import encoded, part, quick_settings

KEY = ModelKey.of("Master1", "Large")
EXTRACTOR = TextureFeatures(112)
WHOLE = ImageOptions(scaled=False)
SHAPE = Shape("circle", {"cx": 250, "cy": 240, "r": 200})
BGR = NDArray[np.uint8]


def jpeg_file(image: BGR, name: str, **kind: Any) -> ImageFile:
    data = encoded(image, "JPEG", **{"quality": 92, **kind})
    return ImageFile(name, lambda: data)


def large(seed: int, **kind: Any) -> ImageFile:
    return jpeg_file(part(seed, height=480, width=500, **kind), f"{seed}.jpg")


GOOD, BAD = [large(seed) for seed in range(3)], large(9, defect=True)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Inspector]]:
    """Services that share one folder of models."""
    with ExitStack() as stack:

        def begin(**given: Any) -> Inspector:
            own = Inspector(quick_settings(tmp_path, **{"coreset_rate": 0.5, "store_samples": False, **given}))
            stack.callback(own.close)
            return own

        yield begin


def inspected(inspector: Inspector, file: ImageFile = BAD, key: ModelKey = KEY) -> InferResult:
    return inspector.infer(key, file, mm_per_px=0.1)


def test_the_extractor_gets_nearly_the_pixels_of_a_full_decode() -> None:
    scaled, whole = (prepare_image(GOOD[0], EXTRACTOR, options=options) for options in (None, WHOLE))
    assert scaled.size == whole.size == RoiSize(480, 500) and scaled.grid == whole.grid
    apart = np.abs(scaled.pixels.astype(int) - whole.pixels)
    assert 0 < apart.mean() < 1.0


def test_an_image_without_twice_the_pixels_to_spare_is_decoded_whole() -> None:
    for side, spared in ((447, False), (448, True)):
        file = jpeg_file(part(1, height=side, width=side), "exact.jpg")
        scaled, whole = (prepare_image(file, EXTRACTOR, options=options).pixels for options in (None, WHOLE))
        assert np.array_equal(scaled, whole) != spared


def test_what_is_said_of_a_part_is_said_in_the_senders_pixels(opened: Callable[..., Inspector]) -> None:
    found = {}
    for scaled in (False, True):
        inspector = opened(jpeg_scaled=scaled, area_mm2_thr=0.1)
        learnt = [replace(file, shape=SHAPE) for file in GOOD]
        Fitter(inspector).fit(KEY, learnt, mm_per_px=0.1)
        threshold = 0.8 * inspected(inspector).inspection.score
        inspector.calibrate(KEY, ok_scores=[0.1], mm_per_px=0.1, terms=Terms(threshold=threshold))
        found[scaled] = inspected(inspector)
        model = inspector.cache.model(KEY).stored
        assert model.metadata["roi_px"] == [480, 500] and model.metadata["jpeg_scaled"] is scaled
    whole, ours = found[False].inspection, found[True].inspection
    assert ours.roi.size == RoiSize(480, 500) and ours.roi.shape == SHAPE
    assert ours.score == pytest.approx(whole.score, rel=0.02) and ours.score != whole.score
    assert image_header(found[True].heatmap) == (".png", 500, 480)
    (region, *_), (expected, *_) = ours.regions, whole.regions
    np.testing.assert_allclose(region.bbox, expected.bbox, atol=6)
    assert region.area_mm2 == pytest.approx(expected.area_mm2, rel=0.1)
    assert region.area_mm2 == pytest.approx(region.area_px * 0.01)


def test_a_model_reads_images_as_those_of_its_fit_were_whatever_is_set_later(opened: Callable[..., Inspector]) -> None:
    scores = []
    for scaled in (False, True):
        inspector = opened(jpeg_scaled=scaled)
        Fitter(inspector).fit(KEY, GOOD, mm_per_px=0.1)
        scores.append(inspected(inspector).inspection.score)
        for later in (False, True):
            assert inspected(opened(jpeg_scaled=later)).inspection.score == scores[-1]
    assert scores[0] != scores[1]


def test_a_model_of_an_earlier_release_scores_as_it_did(opened: Callable[..., Inspector]) -> None:
    inspector = opened(jpeg_scaled=False)
    Fitter(inspector).fit(KEY, GOOD, mm_per_px=0.1)
    before = inspected(inspector)
    stored = inspector.store.load_memory(KEY)
    earlier = {name: value for name, value in stored.metadata.items() if name != "jpeg_scaled"}
    with inspector.store.writing(KEY):
        inspector.store.save_memory(KEY, replace(stored, metadata=earlier))
    now = opened()
    assert "jpeg_scaled" not in now.cache.model(KEY).stored.metadata
    after = inspected(now)
    assert after.inspection.score == before.inspection.score and after.heatmap == before.heatmap
    grown = Fitter(now).grow(KEY, [large(30)], mm_per_px=0.1)
    assert grown.metadata["jpeg_scaled"] is False
    other = opened(jpeg_scaled=False, models_dir=now.settings.models_dir.parent / "others")
    Fitter(other).fit(KEY, GOOD, mm_per_px=0.1)
    Fitter(other).grow(KEY, [large(30)], mm_per_px=0.1)
    assert inspected(other).inspection.score == inspected(now).inspection.score


def test_a_memory_that_is_made_again_reads_its_samples_as_the_fit_read_them(tmp_path: Path) -> None:
    settings = quick_settings(tmp_path, coreset_rate=0.5)
    with closing(Collector(settings)) as collector:
        collector.fit(KEY, GOOD, mm_per_px=0.1)
        rows = collector.inspector.cache.model(KEY).memory.emb
        names = collector.samples.names(KEY, "ok")
        assert {collector.samples.read(KEY, "ok", name) for name in names} == {file.read() for file in GOOD}
        scorer = SampleScorer(collector.inspector, collector.samples, KEY, default_mm_per_px=0.1)
        (sample,) = scorer.run([Sample("ok", names[1])], Job())
        (file,) = [one for one in GOOD if one.read() == collector.samples.read(KEY, "ok", names[1])]
        assert sample.inspection
        assert sample.inspection.score == inspected(collector.inspector, file).inspection.score
    with closing(Collector(settings.model_copy(update={"jpeg_scaled": False}))) as later:
        later.rebuilder.rebuild(KEY, replace=True)
        np.testing.assert_array_equal(later.inspector.cache.model(KEY).memory.emb, rows)


@pytest.mark.slow
@pytest.mark.parametrize(("megapixels", "input_size"), [(4, 448), (4, 224), (2, 224)])
def test_scores_are_those_of_a_full_decode_to_half_a_percent(
    shared_data: Path, tmp_path: Path, megapixels: int, input_size: int
) -> None:
    weights = shared_data / "weights" / "resnet18_layers1-3.safetensors"
    network = {"model_name": "resnet18", "weights": str(weights), "input_size": input_size, "device": "cpu"}
    cookies = shared_data / "cookies"
    learnt, good, bad = (
        [enlarged(path, megapixels) for path in sorted((cookies / kind).glob("*.jpg"))[:n]]
        for kind, n in (("train/good", 12), ("test/good", 6), ("test/crack", 6))
    )
    settings = quick_settings(tmp_path, store_samples=False, **network)
    with closing(Inspector(settings)) as inspector:
        Fitter(inspector).fit(KEY, learnt, mm_per_px=0.1)
        scaled, whole = (
            [inspected(inspector, way(file)).inspection.score for file in good + bad] for way in (replace, as_png)
        )
    assert scaled != whole
    np.testing.assert_allclose(scaled, whole, rtol=0.005)


def as_png(file: ImageFile) -> ImageFile:
    """All the pixels of a JPEG, as a PNG."""
    data = encode_png(decode_image(file.read()))
    return replace(file, read=lambda: data)


def enlarged(path: Path, megapixels: int) -> ImageFile:
    """The image of a file with so many pixels, as a JPEG."""
    image = decode_image(path.read_bytes())
    factor = (1e6 * megapixels / (image.shape[0] * image.shape[1])) ** 0.5
    large = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    return jpeg_file(np.asarray(large, np.uint8), path.name)
