"""How likely a defect of some size is found: a hit/miss curve, and the size that is found nine times out of ten.

The logistic model of the logarithm of size (MIL-HDBK-1823A, appendix G; ASTM E2862). The bounds are the outermost of
all curves that the likelihood ratio does not rule out (Cheng and Iles 1988, One-sided confidence bands for cumulative
distribution functions). Pure: numbers in, numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import expit, log_expit, logit
from scipy.stats import chi2

Array = NDArray[np.float64]

POD = 0.9
CONFIDENCE = 0.95
_FLATTEST, _STEEPEST = 0.05, 100.0  # slopes, in logits per unit of ln(size)
_SUREST = 30.0  # logits


@dataclass(frozen=True)
class HitMiss:
    """Defects of known sizes and whether each was found, with the curve that fits them best.

    A larger defect is taken to be found at least as likely as a smaller one.

    Attributes:
        sizes: (n,) positive, in any unit; sizes that are answered have the same.
        hits: (n,) bool.
        groups: (n,) int, the part that each defect was on. Defects on one part may be found or missed together; then
            the bounds are wider than n defects alone would make them.
        confidence: of the one-sided bounds.
    """

    sizes: Array
    hits: NDArray[np.bool_]
    groups: NDArray[np.int64]
    confidence: float = CONFIDENCE

    @classmethod
    def of(cls, sizes: Sequence[float], hits: Sequence[bool], groups: Sequence[int] | None = None) -> HitMiss:
        """The same from lists; every defect on a part of its own without `groups`.

        Raises:
            ValueError: no defect, or a size that is not positive.
        """
        given = np.asarray(sizes, np.float64)
        if given.size == 0 or not (given > 0).all():
            raise ValueError("a hit/miss curve needs at least one defect, and positive sizes only")
        parts = np.arange(given.size) if groups is None else np.asarray(groups, np.int64)
        return cls(given, np.asarray(hits, np.bool_), parts)

    @property
    def smallest(self) -> float:
        """The smallest size that was tried."""
        return float(self.sizes.min())

    @property
    def largest(self) -> float:
        """The largest size that was tried."""
        return float(self.sizes.max())

    def size_found(self, pod: float = POD) -> float | None:
        """The most likely size that is found with the probability `pod`, within the sizes that were tried.

        The smallest size where even that is found so often; None where the largest is not.
        """
        at_smallest, at_largest = self.curve(np.array([self.smallest, self.largest]))
        if at_largest < pod:
            return None
        if at_smallest >= pod:
            return self.smallest
        height, slope = self._fit
        return math.exp(self._middle + (float(logit(pod)) - height) / slope)

    def size_assured(self, pod: float = POD) -> float | None:
        """The size that is found with the probability `pod` at least, with `confidence`: a90/95.

        The smallest size where even that is; None where the largest one that was tried is not.
        """
        likely, height = self.size_found(pod), float(logit(pod))
        if likely is None:
            return None

        def excess(x: float) -> float:
            return self._worse_by(x, height) - self._allowed

        low, high = math.log(likely), math.log(self.largest)
        if excess(high) <= 0:
            return None
        return self.smallest if excess(low) >= 0 else math.exp(float(brentq(excess, low, high, xtol=1e-4)))

    def curve(self, sizes: Array) -> Array:
        """(m,) the most likely probability of detection at each of `sizes`."""
        height, slope = self._fit
        return np.asarray(expit(height + slope * (np.log(sizes) - self._middle)))

    def lower_bound(self, sizes: Array) -> Array:
        """(m,) the probability of detection at each of `sizes` is at least this, with `confidence` for each alone."""
        return np.array([self._least_at(math.log(size)) for size in sizes])

    def _least_at(self, x: float) -> float:
        height, slope = self._fit
        most_likely = float(np.clip(height + slope * (x - self._middle), -_SUREST, _SUREST))

        def excess(at: float) -> float:
            return self._worse_by(x, at) - self._allowed

        if excess(-_SUREST) <= 0:
            return 0.0
        return float(
            expit(brentq(excess, -_SUREST, most_likely, xtol=1e-3) if excess(most_likely) < 0 else most_likely)
        )

    @cached_property
    def _x(self) -> Array:
        return np.log(self.sizes)

    @cached_property
    def _middle(self) -> float:
        return float(self._x.mean())

    @cached_property
    def _signs(self) -> Array:
        return np.where(self.hits, 1.0, -1.0)

    @cached_property
    def _fit(self) -> tuple[float, float]:
        """Logit at the middle of the log sizes, and slope: those of the greatest likelihood."""
        away = self._x - self._middle

        def loss(given: Array) -> tuple[float, Array]:
            """Minus the log likelihood of a height and the logarithm of a slope, and its gradient."""
            slope = math.exp(given[1])
            towards = self._signs * (given[0] + slope * away)
            each = -self._signs * expit(-towards)
            return -float(log_expit(towards).sum()), np.array([each.sum(), slope * (each * away).sum()])

        bounds = [(-_SUREST, _SUREST), (math.log(_FLATTEST), math.log(_STEEPEST))]
        starts = ([0.0, 0.0], [0.0, 2.0])
        tried = [minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B") for start in starts]
        found = min(tried, key=lambda one: float(one.fun))
        return float(found.x[0]), math.exp(found.x[1])

    @cached_property
    def _best(self) -> float:
        return self._log_likelihood(self._middle, *self._fit)

    @cached_property
    def _allowed(self) -> float:
        """The log likelihood that a curve may lack and not be ruled out: both of its parameters are free.

        A one-sided bound might allow the quantile of 2 · confidence − 1. Few defects lie where a steep curve rises, and
        with 60 of them that is exceeded too often (docs/ACCURACY.md).
        """
        return float(chi2.ppf(self.confidence, 2)) / 2 * self._dispersion

    @cached_property
    def _dispersion(self) -> float:
        """How much more the hits of one part vary together than independent ones would, at least 1.

        Pearson's statistic of the parts' sums (McCullagh and Nelder 1989, Generalized Linear Models, section 4.5).
        """
        p = self.curve(self.sizes)
        _, part = np.unique(self.groups, return_inverse=True)
        surplus = np.bincount(part, self.hits - p)
        return max(1.0, float(np.square(surplus).sum() / max(float((p * (1 - p)).sum()), 1e-9)))

    def _worse_by(self, x: float, height: float) -> float:
        """How much log likelihood the best curve through logit `height` at log size `x` lacks."""

        def loss(log_slope: float) -> float:
            return -self._log_likelihood(x, height, math.exp(log_slope))

        bounds = math.log(_FLATTEST), math.log(_STEEPEST)
        least = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-3}).fun
        return self._best + float(least)

    def _log_likelihood(self, x: float, height: float, slope: float) -> float:
        return float(log_expit(self._signs * (height + slope * (self._x - x))).sum())
