"""What answers say of an inspection, with a real one."""

from typing import Any

import numpy as np
import pytest

from backend.api.answers import infer_fields, inspection_fields, scored_fields
from backend.base.errors import EmptyFile
from backend.base.messages import Notice
from backend.calib import GoodScores
from backend.infer import Criteria, Heat, Inspection, Region, Roi, RoiSize
from backend.samples.scoring import Sample, Scored
from backend.service.appearance import appearance_of
from backend.service.results import InferResult, Provenance

MAP = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
FOUND = Inspection(
    score=0.7,
    stats={"max": 1.0},
    heat=Heat(MAP, Roi(RoiSize(8, 8), (8, 8)), blur_sigma=0.0),
    regions=[Region((1, 2, 3, 4), 9.0, 0.36, 0.2, [[1, 2], [3, 5]])],
)
NOTICES = [Notice("not_calibrated")]


GOOD = GoodScores.of([0.1, 0.2, 0.7, 0.8])


def judged(threshold: float | None) -> Criteria:
    return Criteria(threshold=threshold, good=None if threshold is None else GOOD)


def inferred(threshold: float | None) -> InferResult:
    return InferResult(
        inspection=FOUND,
        criteria=judged(threshold),
        heatmap=b"png",
        heatmap_range=(0.0, 1.0),
        token_shape=(8, 8),
        params={"k": 1},
        area_resolution_mm2=0.04,
        provenance=Provenance("g", "2026.1", "f", judged(threshold), None),
        timings_ms={"total": 2.0},
        warnings=NOTICES,
        appearance=appearance_of(np.zeros((8, 8, 3), np.uint8)),
    )


def scored(**given: Any) -> Scored:
    return Scored(Sample("ok", "a.png"), 0.2, **given)


@pytest.mark.parametrize(("threshold", "decision"), [(0.5, "ng"), (0.9, "ok"), (None, None)])
def test_infer_and_infer_dataset_say_the_same_of_the_same_inspection(
    threshold: float | None, decision: str | None
) -> None:
    one = infer_fields(inferred(threshold), "en")
    item = scored_fields(scored(inspection=FOUND, notices=tuple(NOTICES)), judged(threshold), "en", heatmap=True)
    shared = inspection_fields(FOUND, judged(threshold), NOTICES, "en")
    assert shared.items() <= one.items() and shared.items() <= item.items()
    assert shared.get("decision") == decision
    assert shared["warnings"][0].startswith("Not calibrated")


def test_without_a_calibration_infer_has_nulls_and_a_sample_leaves_the_fields_out() -> None:
    one = infer_fields(inferred(None), "es")
    item = scored_fields(scored(inspection=FOUND), judged(None), "es", heatmap=False)
    assert (one["threshold"], one["is_anomaly"], "decision" in one) == (None, None, False)
    assert not {"threshold", "is_anomaly", "decision", "p_value"} & item.keys()
    assert not {"p_value", "ok_as_high", "n_ok"} & one.keys()


def test_how_unusual_a_part_is_is_said_where_the_good_scores_are_known() -> None:
    one = infer_fields(inferred(0.5), "es")
    assert (one["p_value"], one["ok_as_high"], one["n_ok"]) == (0.6, 2, 4)


def test_a_region_has_its_box_in_both_ways_that_clients_read() -> None:
    (region,) = infer_fields(inferred(0.5), "es")["regions"]
    assert region["bbox"] == [region[name] for name in "xywh"] == [1, 2, 3, 4]
    assert (region["area_px"], region["area_mm2"], region["contour"]) == (9.0, 0.36, [[1, 2], [3, 5]])
    assert region["area_mm2_estimate"] == 0.2


def test_a_heatmap_is_drawn_for_a_sample_only_when_asked_for() -> None:
    with_it, without = (
        scored_fields(scored(inspection=FOUND), judged(0.5), "es", heatmap=wanted) for wanted in (True, False)
    )
    assert with_it["heatmap_png_base64"].startswith("iVBORw0K") and len(with_it["heatmap_range"]) == 2
    assert not {"heatmap_png_base64", "heatmap_range"} & without.keys()


def test_a_sample_that_could_not_be_scored_has_its_error_in_the_clients_language() -> None:
    item = scored_fields(scored(error=EmptyFile(name="a.png")), judged(0.5), "es", heatmap=True)
    assert (item["code"], item["error"], item["n_regions"]) == ("empty_file", "a.png: Archivo vacío.", 0)
    assert "score" not in item
