"""What the first parts of a model looked like, and how another one differs from them in the ways that causes have."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from backend.assurance.control import Limits
from backend.assurance.likeness import (
    BANDS_AT,
    CHANGES,
    N_FEATURES,
    PLACES,
    Float,
    Placing,
    features_of,
    fouled,
    grey_of,
)
from backend.base.arrays import reading_arrays
from backend.base.errors import DriftNewer
from backend.service.appearance import Appearance

VERSION = 1
TRIED = 16
"""Pictures that each cause is tried out on."""
FEWEST = 20
"""Parts that limits are made from at least."""
FLOORS = np.array([0.003, 0.003, 0.3, 0.003, 0.02, 0.02] + [0.01] * (N_FEATURES - 6))
"""Least spread of each feature: a camera's noise, and what compression does."""
DISTANCES_A_SIDE = 4
N_DISTANCES = 1 + DISTANCES_A_SIDE**2
N_CHANGES = sum(map(len, CHANGES.values()))
N_DIRECTIONS = N_CHANGES + 2 + len(PLACES)
DIRT_AT = slice(N_CHANGES + 2, N_DIRECTIONS)
ALL_AT, MEDIAN_AT = N_DIRECTIONS, N_DIRECTIONS + 1
N_NUMBERS = MEDIAN_AT + N_DISTANCES
DISTANCES_AT = slice(MEDIAN_AT, N_NUMBERS)
_SHRINK = 0.2
_FOLDS = 4


@dataclass(frozen=True)
class Reference:
    """The first parts of a model.

    Attributes:
        mean: (SIDE, SIDE) float32 grey, their mean picture.
        features: (n, N_FEATURES) of each.
        distances: (n, N_DISTANCES) logarithms of token distances, see `distances_of`; NaN for parts of the fit, which
            the memory knows.
        signatures: (S, N_FEATURES) how the causes of CHANGES and then dirt at each of PLACES move the features.
    """

    mean: NDArray[np.float32]
    features: Float
    distances: Float
    signatures: Float

    @classmethod
    def of(cls, pictures: Sequence[Appearance]) -> Reference:
        """Of at least two pictures. It takes a second."""
        mean = np.mean([grey_of(one) for one in pictures], axis=0).astype(np.float32)
        placing = Placing(mean)
        features = np.array([features_of(one, placing) for one in pictures])
        tried = range(0, len(pictures), -(-len(pictures) // TRIED))
        few = range(0, len(pictures), -(-len(pictures) // (TRIED // 2)))
        moved = []
        for changes, numbers in [(own, tried) for own in CHANGES.values()] + [(tuple(map(fouled, PLACES)), few)]:
            for change in changes:
                differences = [features_of(change(pictures[n]), placing) - features[n] for n in numbers]
                moved.append(np.median(differences, axis=0))
        signatures = np.array(moved)
        signatures[:, BANDS_AT] = 0.0  # these causes do not blur, and the small pictures could not say so
        nothing = np.full((len(pictures), N_DISTANCES), np.nan)
        return cls(mean, features, nothing, signatures)

    def joined(self, features: Float, distances: Float) -> Reference:
        """With more parts."""
        return Reference(
            self.mean,
            np.concatenate([self.features, features]),
            np.concatenate([self.distances, distances]),
            self.signatures,
        )

    def to_bytes(self, generation: str = "") -> bytes:
        """An npz file, which says that it is of the memory `generation`."""
        file = io.BytesIO()
        np.savez(
            file,
            version=np.int64(VERSION),
            mean=self.mean,
            features=self.features.astype(np.float32),
            distances=self.distances.astype(np.float32),
            signatures=self.signatures.astype(np.float32),
            generation=np.array(generation),
        )
        return file.getvalue()

    @classmethod
    def read(cls, data: bytes) -> Reference:
        """What `to_bytes` wrote. Raises DriftNewer, and ValueError for anything else."""
        with reading_arrays(), np.load(io.BytesIO(data), allow_pickle=False) as npz:
            version = int(npz["version"])
            if version > VERSION:
                raise DriftNewer(version=version, known=VERSION)
            arrays = {name: npz[name].astype(np.float64) for name in ("features", "distances", "signatures")}
            made = cls(npz["mean"].astype(np.float32), **arrays)
        n = len(made.features)
        expected = (n, N_FEATURES), (n, N_DISTANCES), (N_CHANGES + len(PLACES), N_FEATURES)
        if (made.features.shape, made.distances.shape, made.signatures.shape) != expected or n < 2:
            raise ValueError("its arrays do not fit each other")
        return made

    @cached_property
    def placing(self) -> Placing:
        """Finds where a picture lies beside the mean one."""
        return Placing(self.mean)

    @cached_property
    def gauge(self) -> Gauge:
        """What measures parts by this reference."""
        return Gauge(self)


class Whitening:
    """Features as standard deviations that are independent of each other, and the causes in that space.

    The correlation is shrunk towards none (Ledoit and Wolf 2004), by _SHRINK at least, because there are about as many
    parts as features.
    """

    def __init__(self, features: Float, signatures: Float) -> None:
        middle = np.median(features, axis=0)
        spread = np.maximum(1.4826 * np.median(np.abs(features - middle), axis=0), FLOORS)
        self.spread = np.maximum(np.minimum(features.std(axis=0), 2 * spread), FLOORS)
        clipped = np.clip((features - middle) / self.spread, -4, 4)
        self.centre = middle + clipped.mean(axis=0) * self.spread
        own, axes = np.linalg.eigh(_correlation(clipped - clipped.mean(axis=0)))
        self.matrix = (axes * own**-0.5) @ axes.T
        causes = self.matrix @ (signatures / self.spread).T
        blur = np.zeros((N_FEATURES, 2))
        blur[BANDS_AT] = np.eye(2)
        self.directions = np.concatenate(
            [_unit(causes[:, :N_CHANGES]), _unit(self.matrix @ blur), _unit(causes[:, N_CHANGES:])], axis=1
        )

    def of(self, features: Float) -> Float:
        """Features (…, N_FEATURES) from the centre, in independent standard deviations."""
        return np.asarray(((features - self.centre) / self.spread) @ self.matrix)


def _correlation(z: Float) -> Float:
    n, p = z.shape
    sample = z.T @ z / n
    from_none = ((sample - np.eye(p)) ** 2).sum()
    noise = ((z**2).sum(axis=1) ** 2).sum() / n**2 - (sample**2).sum() / n
    shrink = float(np.clip(noise / max(from_none, 1e-9), _SHRINK, 1.0))
    return np.asarray((1 - shrink) * sample + shrink * np.eye(p))


def _unit(columns: Float) -> Float:
    return np.asarray(columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-9))


class Gauge:
    """Measures how parts differ from a reference: numbers for control charts, and their limits.

    The numbers of a part are how far it lies in the direction of each cause, how far it lies in all, and its distances.

    Attributes:
        distances: (N_DISTANCES,) of the parts whose distances are known; 0 where too few are, and then no chart of a
            distance goes beyond its limits.
    """

    def __init__(self, reference: Reference) -> None:
        features, n = reference.features, len(reference.features)
        self.whitening = Whitening(features, reference.signatures)
        looks = np.empty((n, MEDIAN_AT))
        for fold in range(_FOLDS):  # each part is measured by the others, as a new one is
            own = np.arange(n) % _FOLDS == fold
            others = Whitening(features[~own], reference.signatures)
            looks[own] = _looks(others.of(features[own]), others)
        known = np.isfinite(reference.distances).all(axis=1)
        self.knows_distances = bool(np.count_nonzero(known) >= FEWEST)
        distances = reference.distances[known] if self.knows_distances else np.zeros((n, N_DISTANCES))
        self.limits = Limits.of(looks, distances, (DIRT_AT, slice(MEDIAN_AT + 1, N_NUMBERS)))
        self.distances = self.limits.centre[MEDIAN_AT:]

    @cached_property
    def spans(self) -> dict[str, Float]:
        """(N_FEATURES, r) orthonormal columns for each cause: what its changes of all sizes have in common."""
        directions, at, found = self.whitening.directions, 0, {}
        for cause, changes in CHANGES.items():
            columns, sizes, _ = np.linalg.svd(directions[:, at : at + len(changes)], full_matrices=False)
            found[cause] = columns[:, sizes > 0.25 * sizes[0]][:, :4]
            at += len(changes)
        return {**found, "focus": np.linalg.qr(directions[:, at : at + 2])[0]}

    def numbers(self, white: Float, distances: Float) -> Float:
        """(N_NUMBERS,) standardised numbers of a part of whitened features `white`."""
        known = distances if self.knows_distances else np.zeros(N_DISTANCES)
        return self.limits.standardised(np.concatenate([_looks(white[None], self.whitening)[0], known]))


def _looks(white: Float, whitening: Whitening) -> Float:
    """(n, MEDIAN_AT) of whitened features (n, N_FEATURES): what is read off pictures alone."""
    along: Float = white @ whitening.directions
    length = np.log((white**2).mean(axis=1, keepdims=True) + 1e-9)
    return np.concatenate([along, length], axis=1)
