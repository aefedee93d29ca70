"""On what terms a calibration is made, and when one applies: for the extractor and the scoring of its scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from backend.base.errors import ThresholdAndPromise
from backend.base.messages import Notice
from backend.calib import CONFIDENCE, Basis, Decision
from backend.infer import Criteria, Scoring

LOW_PERCENTILE = 50.0


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a calibration is to be beside its scores, and where these come from.

    Attributes:
        max_false_reject: the rate of rejected good parts that is to be promised; None: the contract's rule.
        confidence: of all that is promised.
        threshold: one that whoever calibrates has chosen; None: it follows from the scores.
        note, author: kept with the calibration.
        basis: where the good scores come from.
        scored_with: what the scores were made with; None: what /infer uses.

    Raises:
        ThresholdAndPromise: both are asked for.
    """

    max_false_reject: float | None = None
    confidence: float = CONFIDENCE
    threshold: float | None = None
    note: str = ""
    author: str = ""
    basis: Basis = "given"
    scored_with: Criteria | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and self.max_false_reject is not None:
            raise ThresholdAndPromise()


def promised_values(decision: Decision, terms: Terms) -> dict[str, Any]:
    """What calib.json and the answers hold of what a threshold promises; numbers that there are not are left out."""
    promise = {name: value for name, value in asdict(decision.false_reject).items() if value is not None}
    return {
        "rule": decision.rule,
        "false_reject": {**promise, "basis": terms.basis},
        **({"misses": asdict(decision.misses)} if decision.misses else {}),
        **({"note": terms.note} if terms.note else {}),
        **({"author": terms.author} if terms.author else {}),
    }


def about_promise(decision: Decision, terms: Terms) -> list[Notice]:
    """That a promise was asked for and cannot be made, and what it would take."""
    if terms.max_false_reject is None or decision.rule == "promised":
        return []
    needed, rate = decision.false_reject.n_ok_needed, f"{100 * terms.max_false_reject:g}"
    if needed is None:
        return [Notice("promise_impossible", {"rate": rate})]
    return [Notice("promise_needs_more", {"n": needed - decision.false_reject.n_ok, "rate": rate})]


def apply_calibration(
    calibration: Mapping[str, Any] | None,
    scoring: Scoring,
    *,
    area_mm2_thr: float,
    generation: str,
    fingerprint: str,
    most: float = math.inf,
    most_mm2: float = math.inf,
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
        most, most_mm2: the highest score and the largest region that the model can give.
    """
    if calibration is None:
        return Criteria(scoring, None, area_mm2_thr), [Notice("not_calibrated")]
    area = float(calibration.get("area_mm2_thr", area_mm2_thr))
    own = replace(scoring, percentile=float(calibration.get("score_percentile", scoring.percentile)))
    calibrated = Criteria(own, float(calibration["threshold"]), area, calibration.get("good_scores"))
    if "fingerprint" not in calibration:
        return calibrated, [Notice("older_calibration")]
    if calibration["fingerprint"] != fingerprint or calibration.get("scoring") != scoring.remembered():
        return Criteria(scoring, None, area), [Notice("calibration_stale")]
    doubts = doubts_of(calibrated, most, most_mm2)
    same = calibration.get("generation") == generation
    return calibrated, [*doubts, *([] if same else [Notice("calibration_of_former_memory")])]


def doubts_of(criteria: Criteria, most: float, most_mm2: float) -> list[Notice]:
    """What about a calibration can hardly be meant; its answer says it, and each inspection under it.

    `most`, `most_mm2`: the highest score and the largest region that the model can give.
    """
    found, threshold, percentile = [], criteria.threshold, criteria.scoring.percentile
    if threshold is not None and threshold > most:
        found.append(Notice("threshold_out_of_reach", {"threshold": threshold, "most": most}))
    if threshold is not None and threshold <= 0:
        found.append(Notice("threshold_zero"))
    good = criteria.good
    if good is not None and threshold is not None and 0 < threshold < good.values[0]:
        found.append(Notice("threshold_below_good", {"threshold": threshold, "least": good.values[0]}))
    if good is not None and good.n > 1 and good.values[0] == good.values[-1]:
        found.append(Notice("scores_alike"))
    if criteria.smallest_mm2 > most_mm2:
        found.append(Notice("area_out_of_reach", {"area": criteria.smallest_mm2, "most": most_mm2}))
    if percentile < LOW_PERCENTILE and criteria.scoring.method == "percentile":
        meant = 100 * percentile if percentile <= 1 else 100 - percentile
        found.append(Notice("percentile_low", {"percentile": percentile, "meant": meant}))
    return found
