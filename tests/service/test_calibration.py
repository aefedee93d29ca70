"""A threshold holds for what its scores were made with."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.extractors.texture import TextureFeatures
from backend.service.fitting import Fitter
from backend.service.inspection import Inspector
from tests.parts import good_files, image_file, part, quick_settings

KEY = ModelKey.of("Master1", "Pattern")
GOOD, BAD = image_file(part(50)), image_file(part(51, defect=True))


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


class Other(TextureFeatures):
    """The same numbers under another name: what a different extractor looks like to a memory."""

    def __init__(self, fingerprint: str = "other") -> None:
        super().__init__(112)
        self.fingerprint = fingerprint


def test_calib_json_is_bound_to_what_it_was_made_for(inspector: Inspector) -> None:
    fitted = Fitter(inspector).fit(KEY, good_files(), mm_per_px=1)
    inspector.calibrate(KEY, ok_scores=[0.2, 0.3], ng_scores=[0.5], mm_per_px=0.5, area_mm2_thr=2, score_percentile=95)
    written = json.loads((inspector.store.folder(KEY) / "calib.json").read_text("utf-8"))
    assert written["generation"] == fitted.metadata["generation"]
    assert written["scoring"] == {"method": "percentile", "blur_sigma": 1.0, "k": 1}
    assert written["fingerprint"] == fitted.metadata["fingerprint"]
    assert written["threshold"] == pytest.approx((np.percentile([0.2, 0.3], 95) + 0.5) / 2)
    result = inspector.infer(KEY, BAD, mm_per_px=1)
    assert result.params["score_percentile"] == 95 and result.params["area_mm2_thr"] == 2
    assert result.threshold == written["threshold"]


def test_after_a_refit_the_threshold_serves_with_a_warning(inspector: Inspector) -> None:
    Fitter(inspector).fit(KEY, good_files(), mm_per_px=1)
    inspector.calibrate(KEY, ok_scores=[0.2], mm_per_px=1)
    assert codes(inspector.infer(KEY, GOOD, mm_per_px=1).warnings) == set()
    Fitter(inspector).fit(KEY, good_files(4), mm_per_px=1)
    result = inspector.infer(KEY, GOOD, mm_per_px=1)
    assert result.threshold == 0.2 and codes(result.warnings) == {"calibration_of_former_memory"}


@pytest.mark.parametrize("change", [{"score_method": "max"}, {"blur_sigma": 2.0}, {"patchcore_knn_k": 2}])
def test_another_way_of_scoring_makes_the_threshold_stale(tmp_path: Path, change: dict[str, Any]) -> None:
    first = opened(tmp_path)
    Fitter(first).fit(KEY, good_files(), mm_per_px=1)
    first.calibrate(KEY, ok_scores=[0.2], mm_per_px=1, score_percentile=90)
    first.close()
    second = opened(tmp_path, **change)
    result = second.infer(KEY, GOOD, mm_per_px=1)
    second.close()
    assert result.threshold is None and result.is_anomaly is None
    assert codes(result.warnings) == {"calibration_stale"}
    assert result.params["score_percentile"] == 99


def test_a_calibration_of_another_extractor_is_stale(tmp_path: Path) -> None:
    first = opened(tmp_path)
    Fitter(first).fit(KEY, good_files(), mm_per_px=1)
    first.calibrate(KEY, ok_scores=[0.2], mm_per_px=1)
    first.close()
    second = opened(tmp_path, Other())
    Fitter(second).fit(KEY, good_files(), mm_per_px=1)
    result = second.infer(KEY, GOOD, mm_per_px=1)
    second.close()
    assert result.threshold is None and codes(result.warnings) == {"calibration_stale"}
