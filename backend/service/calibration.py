"""Which calibration applies: a threshold holds for the extractor and the scoring that its scores were made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    doubts = [Notice(doubt["code"], doubt["values"]) for doubt in calibration.get("doubts", ())]
    same = calibration.get("generation") == generation
    return calibrated, [*doubts, *([] if same else [Notice("calibration_of_former_memory")])]


def doubts_of(
    threshold: float, ok_scores: Sequence[float], percentile: float, scoring: Scoring, most: float
) -> list[Notice]:
    """What about a calibration can hardly be meant; its answer says it, and each inspection under it.

    Args:
        most: the highest score that the memory can give.
    """
    found = []
    if threshold > most:
        found.append(Notice("threshold_out_of_reach", {"threshold": threshold, "most": most}))
    if threshold <= 0:
        found.append(Notice("threshold_zero"))
    if len(ok_scores) > 1 and min(ok_scores) == max(ok_scores):
        found.append(Notice("scores_alike"))
    if percentile < LOW_PERCENTILE and scoring.method == "percentile":
        meant = 100 * percentile if percentile <= 1 else 100 - percentile
        found.append(Notice("percentile_low", {"percentile": percentile, "meant": meant}))
    return found
