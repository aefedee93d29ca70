"""What an Inspector answers: verdicts, calibrations, warnings."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from backend.base.errors import ExtractorMismatch, MemoryNotFound
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.extractors.texture import TextureFeatures
from backend.roi_mask import Shape
from backend.service.fitting import Fitter
from backend.service.inspection import Inspector
from backend.service.models import ModelCache
from tests.parts import good_files, image_file, part, quick_settings, tree

KEY = ModelKey.of("Master1", "Pattern")
GOOD, BAD = image_file(part(50)), image_file(part(51, defect=True))


class Other(TextureFeatures):
    """The same numbers under another name: what a different extractor looks like to a memory."""

    def __init__(self, fingerprint: str = "other") -> None:
        super().__init__(112)
        self.fingerprint = fingerprint


def opened(root: Path, extractor: Any = None, **given: Any) -> Inspector:
    inspector = Inspector(quick_settings(root, **given), extractor)
    inspector.start()
    return inspector


@pytest.fixture
def inspector(tmp_path: Path) -> Iterator[Inspector]:
    inspector = opened(tmp_path, coreset_rate=0.5)
    yield inspector
    inspector.close()


def codes(notices: list[Notice]) -> set[str]:
    return {notice.code for notice in notices}


def calibrated(inspector: Inspector, **given: Any) -> Any:
    scores = [inspector.infer(KEY, image_file(part(n)), mm_per_px=0.2).inspection.score for n in range(30, 36)]
    return inspector.calibrate(KEY, **{"ok_scores": scores, "mm_per_px": 0.2, **given})


def test_a_fitted_model_tells_good_from_bad_and_where(inspector: Inspector) -> None:
    fitted = Fitter(inspector).fit(KEY, good_files(6), mm_per_px=0.2)
    assert fitted.token_shape == (8, 8) and fitted.coreset_size == 192
    assert fitted.metadata["n_embeddings"] == 384 and fitted.metadata["n_images"] == 6
    assert fitted.metadata["coreset_rate_applied"] == 0.5
    assert [image["name"] for image in fitted.metadata["images"]] == [f"good_{n}.png" for n in range(6)]
    calibrated(inspector, area_mm2_thr=0.1)
    good = inspector.infer(KEY, GOOD, mm_per_px=0.2)
    bad = inspector.infer(KEY, BAD, mm_per_px=0.2)
    assert bad.inspection.score > 1.5 * good.inspection.score
    assert bad.is_anomaly is True and bad.threshold is not None
    region = bad.inspection.regions[0]
    x, y, w, h = region.bbox
    assert x < 48 < x + w and y < 50 < y + h
    assert region.area_mm2 == pytest.approx(region.area_px * 0.04)


def test_before_a_fit_there_is_no_memory(inspector: Inspector) -> None:
    for call in (
        lambda: inspector.infer(KEY, GOOD, mm_per_px=1),
        lambda: inspector.calibrate(KEY, ok_scores=[0.1], mm_per_px=1),
    ):
        with pytest.raises(MemoryNotFound):
            call()
    assert not inspector.store.folder(KEY).exists()


def test_without_a_calibration_there_is_no_verdict(inspector: Inspector) -> None:
    Fitter(inspector).fit(KEY, good_files(), mm_per_px=1)
    result = inspector.infer(KEY, BAD, mm_per_px=1)
    assert result.threshold is None and result.is_anomaly is None and result.inspection.regions == []
    assert codes(result.warnings) == {"not_calibrated"}


def test_a_memory_of_another_extractor_is_refused_and_kept(tmp_path: Path, inspector: Inspector) -> None:
    Fitter(inspector).fit(KEY, good_files(), mm_per_px=1)
    before = tree(tmp_path / "models")
    second = opened(tmp_path, Other())
    for call in (
        lambda: second.infer(KEY, GOOD, mm_per_px=1),
        lambda: second.calibrate(KEY, ok_scores=[0.1], mm_per_px=1),
    ):
        with pytest.raises(ExtractorMismatch, match=f"key={KEY}"):
            call()
    second.close()
    assert tree(tmp_path / "models") == before


def older(inspector: Inspector, dim: int | None = None) -> None:
    """Leave memory.npz and calib.json as the older layout has them."""
    Fitter(inspector).fit(KEY, good_files(), mm_per_px=1)
    emb = inspector.store.load_memory(KEY).emb[:, :dim]
    folder = inspector.store.folder(KEY)
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    np.savez(folder / "memory.npz", emb=emb, token_h=8, token_w=8, metadata='{"coreset_rate": 0.02}')
    (folder / "calib.json").write_text('{"threshold": 0.3, "p99_ok": 0.3, "p5_ng": null, "area_mm2_thr": 0.5}')


def test_artefacts_of_the_older_layout_score_with_warnings(inspector: Inspector) -> None:
    Fitter(inspector).fit(KEY, good_files(), mm_per_px=1)
    now = inspector.infer(KEY, BAD, mm_per_px=1).inspection.score
    older(inspector)
    result = inspector.infer(KEY, BAD, mm_per_px=1)
    assert result.inspection.score == pytest.approx(now)
    assert result.threshold == 0.3 and result.is_anomaly is True
    assert codes(result.warnings) == {"older_memory", "older_calibration"}
    assert result.params["area_mm2_thr"] == 0.5 and result.params["model_version"] == ""
    assert codes(inspector.calibrate(KEY, ok_scores=[0.1, 0.11] * 10, mm_per_px=1).warnings) == {"older_memory"}
    assert codes(inspector.infer(KEY, BAD, mm_per_px=1).warnings) == {"older_memory"}


def test_an_older_memory_of_another_width_is_refused(inspector: Inspector) -> None:
    older(inspector, dim=50)
    with pytest.raises(ExtractorMismatch, match="theirs=50 dims, "):
        inspector.infer(KEY, BAD, mm_per_px=1)


def stretched(seed: int, width: int, **kind: Any) -> Any:
    """A part of 96×96 pixels, brought to another width."""
    return cv2.resize(part(seed, **kind), (width, 96), interpolation=cv2.INTER_AREA)


def test_crops_of_any_proportion_are_one_model_under_a_square_aspect(tmp_path: Path) -> None:
    inspector = opened(tmp_path, coreset_rate=0.5, input_aspect="square")
    files = [image_file(stretched(n, width)) for n, width in enumerate((60, 96, 130, 192, 80, 150))]
    assert Fitter(inspector).fit(KEY, files, mm_per_px=0.2).token_shape == (8, 8)
    scores = [inspector.infer(KEY, image_file(stretched(30 + n, 70 + 20 * n)), mm_per_px=0.2) for n in range(6)]
    inspector.calibrate(KEY, ok_scores=[found.inspection.score for found in scores], mm_per_px=0.2, area_mm2_thr=0.1)
    bad = image_file(stretched(51, 192, defect=True))  # from (64, 48) to (128, 54) in its own pixels
    result = inspector.infer(KEY, bad, mm_per_px=0.2)
    region = result.inspection.regions[0]
    x, y, w, h = region.bbox
    assert x < 96 < x + w and y < 51 < y + h and x + w <= 192 and w > h
    assert region.area_mm2 == pytest.approx(region.area_px * 0.04) and codes(result.warnings) == set()
    beside = replace(bad, shape=Shape("rect", {"x": 0, "y": 60, "w": 192, "h": 36}))
    masked = inspector.infer(KEY, beside, mm_per_px=0.2).inspection
    assert masked.anomaly_map.shape == (96, 192) and not masked.anomaly_map[:60].any() and masked.anomaly_map[60:].all()
    inspector.close()


@pytest.mark.parametrize(("dtype", "share"), [("float16", 0.5), ("int8", 0.27)])
def test_a_memory_in_fewer_digits_takes_less_and_scores_the_same(
    inspector: Inspector, tmp_path: Path, dtype: Any, share: float
) -> None:
    short = opened(tmp_path / "short", coreset_rate=0.5, memory_dtype=dtype)
    found = []
    for own in (inspector, short):
        Fitter(own).fit(KEY, good_files(6), mm_per_px=0.2)
        own.cache = ModelCache(own.store, cache_mb=100, knn_backend="auto")  # what is read from the file
        memory = own.cache.model(KEY).memory
        scores = [own.infer(KEY, file, mm_per_px=0.2).inspection.score for file in (GOOD, BAD)]
        found.append((memory.rows.nbytes, scores, own.store.stamp(KEY)))
    (whole, scores, stamp), (less, others, smaller) = found
    assert less <= share * whole + 1000 and others == pytest.approx(scores, rel=5e-3) and others != scores
    assert stamp is not None and smaller is not None and smaller[1] < stamp[1]
    grown = Fitter(short).grow(KEY, [image_file(part(20), "new.png")], mm_per_px=0.2)
    assert grown.coreset_size > 192 and short.cache.model(KEY).stored.rows.nbytes < share * whole * 1.3 + 1000
    short.close()


def test_warnings_of_a_calibration(inspector: Inspector) -> None:
    Fitter(inspector).fit(KEY, good_files(), mm_per_px=1)
    assert codes(inspector.calibrate(KEY, ok_scores=[0.1, 0.11] * 10, mm_per_px=1).warnings) == set()
    few = inspector.calibrate(KEY, ok_scores=[0.4], ng_scores=[0.3], mm_per_px=1, score_percentile=95)
    assert codes(few.warnings) == {"few_ok_scores", "scores_overlap", "percentile_changed"}
    assert few.values["threshold"] == pytest.approx(0.408)


def test_warnings_of_an_inspection(tmp_path: Path) -> None:
    inspector = opened(tmp_path, max_coreset=10, coreset_rate=1)
    assert codes(Fitter(inspector).fit(KEY, good_files(), mm_per_px=0.2).warnings) == {"coreset_capped"}
    inspector.calibrate(KEY, ok_scores=[0.1], mm_per_px=0.2)
    resized = image_file(part(3, height=96, width=120))
    assert codes(inspector.infer(KEY, resized, mm_per_px=0.3).warnings) == {"roi_resized", "mm_per_px_differs"}
    huge = image_file(np.zeros((3500, 3500, 3), np.uint8))
    result = inspector.infer(KEY, huge, mm_per_px=0.2)
    assert codes(result.warnings) == {"image_downscaled", "roi_size_differs"}
    assert result.inspection.anomaly_map.size <= 12_100_000
    inspector.close()


def test_recipes_do_not_borrow_from_each_other(inspector: Inspector) -> None:
    Fitter(inspector).fit(KEY, good_files(), mm_per_px=1)
    night = ModelKey.of("Master1", "Pattern", "night")
    with pytest.raises(MemoryNotFound):
        inspector.infer(night, GOOD, mm_per_px=1)
    Fitter(inspector).fit(night, good_files(), mm_per_px=1)
    inspector.calibrate(night, ok_scores=[0.2], mm_per_px=1)
    assert inspector.infer(KEY, GOOD, mm_per_px=1).threshold is None


@pytest.mark.parametrize("scale", ["relative", "absolute", "color", "none"])
def test_the_heatmap_has_the_size_of_the_roi(inspector: Inspector, scale: Any) -> None:
    Fitter(inspector).fit(KEY, good_files(2, height=70, width=100), mm_per_px=1)
    result = inspector.infer(KEY, image_file(part(4, height=70, width=100)), mm_per_px=1, heatmap=scale)
    assert result.heatmap_range[1] > result.heatmap_range[0] >= 0
    if scale == "none":
        assert result.heatmap == b""
    else:
        picture = cv2.imdecode(np.frombuffer(result.heatmap, np.uint8), cv2.IMREAD_UNCHANGED)
        assert picture is not None and picture.shape == ((70, 100, 3) if scale == "color" else (70, 100))


def test_an_empty_calibration_is_refused(inspector: Inspector, tmp_path: Path) -> None:
    Fitter(inspector).fit(KEY, good_files(), mm_per_px=1)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="finite"):
        inspector.calibrate(KEY, ok_scores=[float("nan")], mm_per_px=1)
    assert tree(tmp_path) == before
