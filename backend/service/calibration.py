"""Which calibration applies: a threshold holds for the extractor and the scoring that its scores were made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from backend.base.messages import Notice
from backend.infer import Criteria, Scoring


def apply_calibration(
    calibration: Mapping[str, Any] | None,
    scoring: Scoring,
    *,
    area_mm2_thr: float,
    generation: str,
    fingerprint: str,
) -> tuple[Criteria, list[Notice]]:
    """The criteria that hold now, and what is to be said of them.

    After a refit with the same extractor and scoring the threshold still serves, with a notice; when extractor or
    scoring changed it does not. A file of the older layout says neither and is taken at its word, with a notice.

    Args:
        calibration: what calib.json holds; None: there is none.
        scoring: as the settings and the memory have it.
        area_mm2_thr: as the settings have it, for a calibration without one.
        generation: of the memory that measures.
        fingerprint: of the extractor that runs.
    """
    if calibration is None:
        return Criteria(scoring, None, area_mm2_thr), [Notice("not_calibrated")]
    area = float(calibration.get("area_mm2_thr", area_mm2_thr))
    own = replace(scoring, percentile=float(calibration.get("score_percentile", scoring.percentile)))
    calibrated = Criteria(own, float(calibration["threshold"]), area)
    if "fingerprint" not in calibration:
        return calibrated, [Notice("older_calibration")]
    if calibration["fingerprint"] != fingerprint or calibration.get("scoring") != scoring.remembered():
        return Criteria(scoring, None, area), [Notice("calibration_stale")]
    same = calibration.get("generation") == generation
    return calibrated, [] if same else [Notice("calibration_of_former_memory")]
