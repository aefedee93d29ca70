"""Which calibration applies: a threshold holds for the extractor and the scoring that its scores were made with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from backend.base.messages import Notice
from backend.infer import Criteria, Scoring

LOW_PERCENTILE = 50.0


def apply_calibration(
    calibration: Mapping[str, Any] | None,
    scoring: Scoring,
    *,
    area_mm2_thr: float,
    generation: str,
    fingerprint: str,
    most: float = math.inf,
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
        most: the highest score that the memory can give.
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
    alike = bool(calibration.get("ok_scores_alike"))
    doubts = doubts_of(calibrated, most=most, alike=alike)
    same = calibration.get("generation") == generation
    return calibrated, [*doubts, *([] if same else [Notice("calibration_of_former_memory")])]


def doubts_of(criteria: Criteria, *, most: float, alike: bool) -> list[Notice]:
    """What about a calibration can hardly be meant; its answer says it, and each inspection under it.

    Args:
        most: the highest score that the memory can give.
        alike: all scores of good parts were equal.
    """
    found, threshold, percentile = [], criteria.threshold, criteria.scoring.percentile
    if threshold is not None and threshold > most:
        found.append(Notice("threshold_out_of_reach", {"threshold": threshold, "most": most}))
    if threshold is not None and threshold <= 0:
        found.append(Notice("threshold_zero"))
    if alike:
        found.append(Notice("scores_alike"))
    if percentile < LOW_PERCENTILE and criteria.scoring.method == "percentile":
        meant = 100 * percentile if percentile <= 1 else 100 - percentile
        found.append(Notice("percentile_low", {"percentile": percentile, "meant": meant}))
    return found
