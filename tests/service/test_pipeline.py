"""From an image file to its inspection."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.base.errors import (
    BadImage,
    Cancelled,
    MaskEmpty,
    TokenGridMismatch,
)
from backend.base.keys import ModelKey
from backend.infer import Criteria, Scoring
from backend.roi_mask import Shape, build_mask, token_mask
from backend.service.fitting import Fitter
from backend.service.images import ImageFile
from backend.service.inspection import Inspector
from backend.service.jobs import Job
from backend.service.pipeline import Pipeline
from tests.parts import good_files, image_file, part, quick_settings

KEY = ModelKey.of("Master1", "Pattern")
GOOD, BAD = image_file(part(50)), image_file(part(51, defect=True))


def opened(root: Path, **given: Any) -> Inspector:
    inspector = Inspector(quick_settings(root, **given))
    inspector.start()
    return inspector


@pytest.fixture
def inspector(tmp_path: Path) -> Iterator[Inspector]:
    inspector = opened(tmp_path, coreset_rate=0.5)
    Fitter(inspector).fit(KEY, good_files(), mm_per_px=1)
    yield inspector
    inspector.close()


def pipeline_of(inspector: Inspector, criteria: Criteria | None = None) -> Pipeline:
    return Pipeline(inspector.host.queue(), inspector.cache.model(KEY), criteria or Criteria())


def run(pipeline: Pipeline, file: ImageFile, mm_per_px: float = 1.0) -> Any:
    return pipeline.run(file, mm_per_px=mm_per_px, job=Job())[1]


def test_its_steps_are_the_whole_of_it(inspector: Inspector) -> None:
    pipeline = pipeline_of(inspector, Criteria(threshold=0.2, area_mm2_thr=0.5))
    image, roi = pipeline.prepare(BAD, 0.2)
    tokens = pipeline.queue.submit(image.pixels, bulk=True).result()
    stepwise, whole = pipeline.judge(tokens, roi), run(pipeline, BAD, 0.2)
    np.testing.assert_array_equal(stepwise.anomaly_map, whole.anomaly_map)
    np.testing.assert_array_equal(stepwise.token_map, whole.token_map)
    assert (stepwise.score, stepwise.stats, stepwise.regions) == (whole.score, whole.stats, whole.regions)
    assert whole.regions and all(region.area_mm2 >= 0.5 for region in whole.regions)
    assert whole.regions[0].area_mm2 == pytest.approx(whole.regions[0].area_px * 0.04)


def test_it_is_how_an_inspector_inspects(inspector: Inspector) -> None:
    found, result = run(pipeline_of(inspector), BAD), inspector.infer(KEY, BAD, mm_per_px=1)
    assert found.score == result.inspection.score and result.threshold is None
    np.testing.assert_array_equal(found.anomaly_map, result.inspection.anomaly_map)


def test_its_stages_are_told_in_order(inspector: Inspector) -> None:
    marks: list[str] = []
    pipeline_of(inspector).run(GOOD, mm_per_px=1, job=Job(), mark=marks.append)
    assert marks == ["decode", "forward", "knn", "post"]


def test_tokens_are_made_once_and_judged_by_any_criteria(inspector: Inspector) -> None:
    pipeline = pipeline_of(inspector)
    image, roi = pipeline.prepare(BAD, 1)
    tokens = pipeline.queue.submit(image.pixels).result()
    scored = {}
    for method in ("percentile", "max", "top_mean", "power_mean"):
        own = replace(pipeline, criteria=Criteria(Scoring(method=method)))
        scored[method] = own.judge(tokens, roi).score
    assert scored["percentile"] == pytest.approx(inspector.infer(KEY, BAD, mm_per_px=1).inspection.score)
    assert scored["max"] > scored["top_mean"] > scored["percentile"]
    assert scored["max"] > scored["power_mean"] > 0.75 * scored["max"]


@pytest.mark.parametrize("size", [(96, 97), (97, 96), (95, 96), (97, 97), (95, 95), (192, 192)])
def test_an_roi_a_pixel_larger_or_smaller_still_infers(inspector: Inspector, size: tuple[int, int]) -> None:
    file = image_file(part(9, height=size[0], width=size[1]))
    image, found = pipeline_of(inspector).run(file, mm_per_px=1, job=Job())
    assert image.grid == found.token_map.shape == (8, 8) and found.anomaly_map.shape == size


@pytest.mark.parametrize("size", [(28, 200), (200, 28), (40, 600), (37, 411), (96, 160)])
@pytest.mark.parametrize("change", [(1, 0), (-1, 0), (0, 1), (0, -1), (1, -1)])
def test_a_pixel_more_or_less_never_matters_however_long_the_roi(
    tmp_path: Path, size: tuple[int, int], change: tuple[int, int]
) -> None:
    height, width = max(28, size[0] + change[0]), max(28, size[1] + change[1])
    inspector = opened(tmp_path, input_size=448)
    fitted = Fitter(inspector).fit(KEY, good_files(1, height=size[0], width=size[1]), mm_per_px=1)
    result = inspector.infer(KEY, image_file(part(9, height=height, width=width)), mm_per_px=1)
    assert result.token_shape == fitted.token_shape
    inspector.close()


def test_another_grid_is_refused_with_both_grids(inspector: Inspector) -> None:
    with pytest.raises(TokenGridMismatch, match=r"got=\(5, 11\), expected=\(8, 8\)"):
        run(pipeline_of(inspector), image_file(part(1, height=96, width=192)))


def test_what_cannot_be_inspected_never_reaches_the_queue(inspector: Inspector) -> None:
    pipeline = pipeline_of(inspector)
    pipeline.queue.close()  # what it refuses from here on would be another error
    with pytest.raises(BadImage):
        run(pipeline, ImageFile.named("x.png", lambda: b"no image"))
    with pytest.raises(MaskEmpty):
        run(pipeline, replace(GOOD, shape=Shape("circle", {"cx": 500, "cy": 500, "r": 3})))


def test_a_cancelled_job_gets_no_inspection(inspector: Inspector) -> None:
    job = Job()
    job.cancel()
    with pytest.raises(Cancelled):
        pipeline_of(inspector).run(GOOD, mm_per_px=1, job=job)


def test_the_shape_is_in_the_senders_pixels(inspector: Inspector) -> None:
    pipeline = pipeline_of(inspector)
    away = replace(BAD, shape=Shape("rect", {"x": 0, "y": 0, "w": 20, "h": 20}))
    assert run(pipeline, away).score < 0.7 * run(pipeline, BAD).score
    with pytest.raises(MaskEmpty, match="width=96, height=96"):
        run(pipeline, replace(BAD, shape=Shape("circle", {"cx": 500, "cy": 500, "r": 3})))
    huge = image_file(np.zeros((4000, 4000, 3), np.uint8))
    with pytest.raises(MaskEmpty, match="width=4000, height=4000"):
        run(pipeline, replace(huge, shape=Shape("circle", {"cx": 5000, "cy": 500, "r": 3})))


def test_a_memory_of_the_part_alone_is_not_asked_about_what_lies_beside_it(tmp_path: Path) -> None:
    shape = Shape("circle", {"cx": 48, "cy": 48, "r": 30})
    inspector = opened(tmp_path, coreset_rate=1.0)
    odd = part(7)
    odd[:12, :12] = 255
    file = replace(image_file(odd), shape=shape)
    mask = build_mask(shape, 96, 96)
    assert mask is not None
    inside = token_mask(mask, (8, 8))
    for shapes in (True, False):
        files = [replace(file, shape=shape if shapes else None) for file in good_files()]
        Fitter(inspector).fit(KEY, files, mm_per_px=1)
        distances = run(pipeline_of(inspector), file).token_map
        assert bool(distances[~inside].max() <= distances[inside].max()) is shapes
        assert bool(distances[0, 0] in distances[inside]) is shapes
    inspector.close()
