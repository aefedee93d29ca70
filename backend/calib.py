"""The threshold: where OK ends, from the scores of good parts and of none to a few bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

OVERLAP_MARGIN = 0.02
FEW_OK = 20


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it was made from. `value` and the percentiles are scores."""

    value: float
    p_ok: float
    p5_ng: float | None
    ok_mean: float
    ng_mean: float | None
    overlap: bool


def choose_threshold(
    ok_scores: Sequence[float],
    ng_scores: Sequence[float] = (),
    *,
    percentile: float = 99,
    margin: float = 0.0,
) -> Threshold:
    """Threshold from scores of OK parts and, if there are any, of NG parts.

    P is the `percentile` of the OK scores. Without NG the threshold is P·(1 + margin). With NG it lies midway between
    P and the 5th percentile of NG; when that is not above P the two overlap and the threshold is P·1.02.

    Raises:
        ValueError: no OK score, or one that is not finite.
    """
    ok = np.asarray(ok_scores, dtype=np.float64)
    ng = np.asarray(ng_scores, dtype=np.float64)
    if ok.size == 0 or not (np.isfinite(ok).all() and np.isfinite(ng).all()):
        raise ValueError("choose_threshold needs at least one OK score, and finite scores only")
    p_ok = float(np.percentile(ok, percentile))
    if ng.size == 0:
        return Threshold(p_ok * (1.0 + margin), p_ok, None, float(ok.mean()), None, False)
    p5_ng = float(np.percentile(ng, 5))
    overlap = p5_ng <= p_ok
    value = p_ok * (1.0 + OVERLAP_MARGIN) if overlap else (p_ok + p5_ng) / 2.0
    return Threshold(value, p_ok, p5_ng, float(ok.mean()), float(ng.mean()), overlap)
