"""Control charts: exponentially weighted means of many standardised numbers, with limits for all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

WEIGHT = 0.12
"""Of the newest part (Roberts 1959): a step of one standard deviation shows after some fifteen parts."""
CLIP = 3.5
"""Standard deviations that one part counts at most, so that a single odd part is no drift."""
MARGIN = 1.1
"""How much wider limits are than the past alone says: parts to come differ a little more than those drawn again."""
LEAST = 0.3
"""Standard deviations that a limit is away from the centre at least."""
PARTS_PER_ALARM = 1000
_STREAMS, _LENGTH, _BEGIN = 64, 800, 40


@dataclass(frozen=True)
class Limits:
    """How far the charts go while nothing changes.

    Attributes:
        centre, spread: (K,) of the numbers.
        reach: (K,) of the exponentially weighted means: what one alarm in PARTS_PER_ALARM leaves room for.
    """

    centre: Float
    spread: Float
    reach: Float

    @classmethod
    def of(cls, looks: Float, distances: Float, alike: Sequence[slice], seed: int = 0) -> Limits:
        """Limits from what was measured of good parts, by drawing sequences of parts from it with replacement.

        What n parts leave unknown of the centre is drawn along with each sequence. All charts get an equal share of the
        false alarms.

        Args:
            looks: (n, J) numbers of parts.
            distances: (m, K - J) more numbers, of some of the parts or of others.
            alike: charts whose reach is that of their mean at least, because there are many of them and few parts.
        """
        rng = np.random.default_rng(seed)
        centre = np.concatenate([looks.mean(axis=0), distances.mean(axis=0)])
        spread = np.maximum(np.concatenate([looks.std(axis=0), distances.std(axis=0)]), 1e-6)
        pools = [
            np.clip((pool - pool.mean(axis=0)) / np.maximum(pool.std(axis=0), 1e-6), -CLIP, CLIP)
            for pool in (looks, distances)
        ]
        known = [1 / np.sqrt(len(pool)) for pool in pools for _ in range(pool.shape[1])]
        unknown = rng.normal(size=(_STREAMS, len(centre))) * known
        mean = np.zeros_like(unknown)
        seen = np.empty((_LENGTH - _BEGIN, *unknown.shape), np.float32)
        for step in range(_LENGTH):
            drawn = [pool[rng.integers(len(pool), size=_STREAMS)] for pool in pools]
            mean += WEIGHT * (np.concatenate(drawn, axis=1) + unknown - mean)
            if step >= _BEGIN:
                seen[step - _BEGIN] = np.abs(mean)
        reach = np.quantile(seen[::4].reshape(-1, seen.shape[2]), 0.995, axis=0)
        for charts in alike:
            reach[charts] = np.maximum(reach[charts], reach[charts].mean())
        reach = np.maximum(reach, 1e-6)
        farthest = (seen / reach).max(axis=2)
        low, high = 0.5, 5.0
        for _ in range(24):
            middle = (low + high) / 2
            begun = np.count_nonzero((farthest[1:] > middle) & (farthest[:-1] <= middle)) / farthest[1:].size
            low, high = (middle, high) if begun > 1 / PARTS_PER_ALARM else (low, middle)
        return cls(centre, spread, np.maximum(MARGIN * reach * high, LEAST))

    def standardised(self, numbers: Float) -> Float:
        """Numbers (…, K) in standard deviations from the centre, CLIP at most."""
        return np.clip((numbers - self.centre) / self.spread, -CLIP, CLIP)
