"""The threshold: where OK ends, from the scores of good parts and of none to a few bad ones, and what it promises.

What is promised holds for any distribution of scores: it is counted, not fitted. Good parts that will be inspected are
taken to be drawn like those that were scored.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

OVERLAP_MARGIN = 0.02
FEW_OK = 20
CONFIDENCE = 0.95
KEPT_SCORES = 10_000

Basis = Literal["held_out", "leave_one_out", "given"]
"""Where good scores come from: parts outside the fit, stored parts left out one by one, numbers that a client sent."""

Rule = Literal["percentile", "promised", "chosen"]
"""What settled a threshold: the contract's rule, a promise about good parts, or whoever calibrated."""


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it was made from. `value` and the percentiles are scores.

    `rank`: that of the good score below which the threshold cannot lie, counted from 1 at the lowest, where the rule
    settles it whatever the scores are; None where the threshold was settled without them.
    """

    value: float
    p_ok: float
    p5_ng: float | None
    ok_mean: float
    ng_mean: float | None
    overlap: bool
    rank: int | None = None


@dataclass(frozen=True)
class FalseReject:
    """The rate of good parts that a threshold rejects.

    Attributes:
        estimate: the share of the good scores that it rejects.
        upper_bound: the rate is at most this, with `confidence`.
        n_ok: good scores that say so.
        n_ok_needed: good scores with which the rate that was asked for can be promised; None where none suffice.
    """

    estimate: float
    upper_bound: float
    confidence: float
    n_ok: int
    n_ok_needed: int | None


@dataclass(frozen=True)
class Misses:
    """The rate of bad parts that a threshold passes, with an exact two-sided interval of `confidence`."""

    estimate: float
    lower_bound: float
    upper_bound: float
    confidence: float
    n_ng: int


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How a threshold is to be settled; with neither `max_false_reject` nor `threshold`, by the contract's rule.

    Attributes:
        percentile, margin: of the contract's rule; see `choose_threshold`.
        max_false_reject: the lowest threshold for which this rate can be promised; see `promised_threshold`.
        confidence: of all that is promised.
        threshold: this one.
        at_or_above: whether a part whose score is the threshold is rejected too.
    """

    percentile: float = 99.0
    margin: float = 0.0
    max_false_reject: float | None = None
    confidence: float = CONFIDENCE
    threshold: float | None = None
    at_or_above: bool = False


@dataclass(frozen=True)
class Decision:
    """A threshold and what it promises.

    Attributes:
        value: the threshold.
        rule: what settled it. `percentile` although a promise was wanted: the good scores are too few for it.
        by_rule: what the contract's rule has to say of the scores, whether it settled the threshold or not.
        misses: None without scores of bad parts.
    """

    value: float
    rule: Rule
    by_rule: Threshold
    false_reject: FalseReject
    misses: Misses | None


def decide(ok_scores: Sequence[float], ng_scores: Sequence[float], wanted: Wanted) -> Decision:
    """The threshold that is wanted, or the contract's where no number of these good scores can promise what is.

    Raises:
        ValueError: no OK score, or one that is not finite.
    """
    by_rule = choose_threshold(ok_scores, ng_scores, percentile=wanted.percentile, margin=wanted.margin)
    rule: Rule = "percentile"
    value, rank = by_rule.value, by_rule.rank
    asked = wanted.max_false_reject
    how: dict[str, Any] = {"confidence": wanted.confidence, "at_or_above": wanted.at_or_above}
    promised = None if asked is None else promised_threshold(ok_scores, asked, **how)
    if wanted.threshold is not None:
        value, rank, rule = wanted.threshold, None, "chosen"
    elif promised is not None:
        (value, rank), rule = promised, "promised"
    aim = 1.0 - wanted.percentile / 100.0 if asked is None else asked
    rejects = false_reject(ok_scores, value, rank=rank, asked=aim, **how)
    return Decision(value, rule, by_rule, rejects, misses(ng_scores, value, **how) if len(ng_scores) else None)


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
    ok, ng = _finite(ok_scores, ng_scores)
    p_ok = float(np.percentile(ok, percentile))
    rank = math.floor((ok.size - 1) * percentile / 100.0) + 1
    p5_ng = float(np.percentile(ng, 5)) if ng.size else None
    ng_mean = float(ng.mean()) if ng.size else None
    overlap = p5_ng is not None and p5_ng <= p_ok
    if p5_ng is None:
        value = p_ok * (1.0 + margin)
    else:
        value = p_ok * (1.0 + OVERLAP_MARGIN) if overlap else (p_ok + p5_ng) / 2.0
    midway = p5_ng is not None and not overlap
    return Threshold(value, p_ok, p5_ng, float(ok.mean()), ng_mean, overlap, None if midway else rank)


def promised_threshold(
    ok_scores: Sequence[float], max_false_reject: float, *, confidence: float = CONFIDENCE, at_or_above: bool = False
) -> tuple[float, int] | None:
    """The lowest threshold that rejects at most `max_false_reject` of good parts with `confidence`, and its rank.

    It is the k-th of the n good scores, for the smallest k that the bound allows; with `at_or_above`, where a part at
    the threshold is rejected too, the next number above it. None when n is below `good_scores_needed`.

    Raises:
        ValueError: no OK score, or one that is not finite.
    """
    ok, _ = _finite(ok_scores)
    low, high = 0, ok.size  # how many of the good scores may lie above: the bound rises with it
    while low < high:
        middle = (low + high) // 2
        if upper_bound(middle, ok.size, confidence) <= max_false_reject:
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return None
    rank = ok.size - (low - 1)
    value = np.partition(ok, rank - 1)[rank - 1]
    return float(np.nextafter(value, np.inf) if at_or_above else value), rank


def false_reject(
    ok_scores: Sequence[float],
    threshold: float,
    *,
    rank: int | None = None,
    asked: float | None = None,
    confidence: float = CONFIDENCE,
    at_or_above: bool = False,
) -> FalseReject:
    """What the good scores say of the share of good parts that `threshold` rejects.

    The bound is distribution-free. A threshold at the k-th of n good scores rejects a share that is Beta(n + 1 − k, k)
    for continuous scores, and a smaller one where scores tie (Wilks 1941, Determination of sample sizes for setting
    tolerance limits). A threshold that was settled without the scores has the same bound with k = n − the number of
    scores that it rejects (Clopper and Pearson 1934).

    Args:
        threshold: a part with a score above it is rejected.
        rank: k, where the threshold lies at or above the k-th good score by the rule that chose it.
        asked: the rate that `n_ok_needed` speaks of.
        at_or_above: whether a part with a score at the threshold is rejected too.

    Raises:
        ValueError: no OK score, or one that is not finite.
    """
    ok, _ = _finite(ok_scores)
    rejected = int(np.count_nonzero(ok >= threshold if at_or_above else ok > threshold))
    above = rejected if rank is None else max(rejected, ok.size - rank)
    return FalseReject(
        estimate=rejected / ok.size,
        upper_bound=upper_bound(above, ok.size, confidence),
        confidence=confidence,
        n_ok=ok.size,
        n_ok_needed=None if asked is None else good_scores_needed(asked, confidence),
    )


def misses(
    ng_scores: Sequence[float], threshold: float, *, confidence: float = CONFIDENCE, at_or_above: bool = False
) -> Misses:
    """What the scores of bad parts say of the share of them that `threshold` passes.

    The interval is Clopper and Pearson's: each end is exact with half of what `confidence` leaves over.

    Raises:
        ValueError: no NG score, or one that is not finite.
    """
    ng, _ = _finite(ng_scores)
    missed = int(np.count_nonzero(ng < threshold if at_or_above else ng <= threshold))
    each = (1.0 + confidence) / 2.0
    low = 1.0 - upper_bound(ng.size - missed, ng.size, each)
    return Misses(missed / ng.size, low, upper_bound(missed, ng.size, each), confidence, ng.size)


def upper_bound(found: int, n: int, confidence: float) -> float:
    """The largest rate that leaves `found` or fewer of n a chance of 1 − `confidence` (Clopper and Pearson 1934)."""
    return 1.0 if found >= n else float(betaincinv(found + 1, n - found, confidence))


def good_scores_needed(max_false_reject: float, confidence: float = CONFIDENCE) -> int | None:
    """The least number of good scores with which `max_false_reject` can be promised; None when no number suffices.

    With none of n above the threshold the bound is 1 − (1 − confidence)^(1/n).
    """
    if not 0.0 < max_false_reject < 1.0:
        return None
    n = max(1, math.ceil(math.log1p(-confidence) / math.log1p(-max_false_reject)) - 1)
    while upper_bound(0, n, confidence) > max_false_reject:  # the logarithms round; the bound itself decides
        n += 1
    return n


@dataclass(frozen=True)
class GoodScores:
    """The good scores of a calibration, kept to say how unusual a part is.

    `values`: ascending; every `step`-th of the `n` scores, counted down from the highest.
    """

    values: Sequence[float]
    n: int
    step: int = 1

    @classmethod
    def of(cls, ok_scores: Sequence[float], limit: int = KEPT_SCORES) -> GoodScores:
        """All the scores, or at most `limit` of them evenly by rank where there are more."""
        ordered = sorted(ok_scores, reverse=True)
        step = max(1, math.ceil(len(ordered) / limit))
        return cls(ordered[::step][::-1], len(ordered), step)

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> GoodScores:
        """What `as_dict` wrote.

        Raises:
            ValueError, KeyError, TypeError: it is not that.
        """
        values, n, step = kept["values"], kept["n"], kept["step"]
        if not (isinstance(values, list) and all(map(math.isfinite, values)) and values == sorted(values)):
            raise ValueError("the good scores are not finite numbers, the lowest first")
        if not 0 < len(values) <= n <= len(values) * step:
            raise ValueError(f"{len(values)} good scores, each {step}-th, are not {n}")
        return cls(values, n, step)

    def as_dict(self) -> dict[str, Any]:
        """For a calibration's file."""
        return asdict(self)

    def as_high(self, score: float) -> int:
        """How many of the good scores are at least `score`; where not all were kept, at most one step too many."""
        return min(self.n, (len(self.values) - bisect_left(self.values, score)) * self.step)

    def p_value(self, score: float) -> float:
        """How likely a good part scores at least `score`: (1 + good scores as high) / (n + 1).

        A good part's p-value is at most α with a probability of at most α, whatever the distribution (Vovk, Gammerman
        and Shafer 2005, Algorithmic Learning in a Random World, section 2.2, conformal p-values).
        """
        return (1 + self.as_high(score)) / (self.n + 1)


def _finite(
    ok_scores: Sequence[float], ng_scores: Sequence[float] = ()
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ok, ng = np.asarray(ok_scores, np.float64), np.asarray(ng_scores, np.float64)
    if ok.size == 0 or not (np.isfinite(ok).all() and np.isfinite(ng).all()):
        raise ValueError("a threshold needs at least one score, and finite scores only")
    return ok, ng
