"""The answers of the use cases, the clock of their stages, and the Journal that is told of what they did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.extractors.protocol import Grid
from backend.infer import Criteria, Inspection
from backend.memory.left_out import LeftOut
from backend.service.appearance import Appearance
from backend.service.images import ImageFile


@dataclass(frozen=True)
class FitResult:
    """What a fit or a growth made: rows of the memory, token rows and columns, and the memory's metadata.

    `left_out`: what the images that are new, the last ones of the metadata, are like without themselves; None where
    that says nothing. `appearances`: how images that are new look.
    """

    coreset_size: int
    token_shape: Grid
    metadata: dict[str, Any]
    timings_ms: dict[str, float]
    warnings: list[Notice]
    left_out: LeftOut | None = None
    changed: bool = True
    appearances: Sequence[Appearance] = ()


@dataclass(frozen=True)
class CalibrationResult:
    """The calibration as it was written to calib.json."""

    values: dict[str, Any]
    warnings: list[Notice]


@dataclass(frozen=True)
class Provenance:
    """What an inspection was made with, so that it can be explained and repeated.

    Attributes:
        generation, model_version: of the memory; empty where an older file does not say.
        fingerprint: of the extractor.
        calibration: what calib.json held, its lists aside; None where no threshold applied.
    """

    generation: str
    model_version: str
    fingerprint: str
    criteria: Criteria
    calibration: Mapping[str, Any] | None


@dataclass(frozen=True)
class InferResult:
    """The verdict on one image.

    Attributes:
        criteria: what it was judged by.
        heatmap: a PNG; empty if none was asked for.
        heatmap_range: the distances that 0 and 255 of the heatmap stand for.
        params: how it was inspected, by the names that /infer gives.
        area_resolution_mm2: what covers less is shown as large as this; see Extractor.reach.
        provenance: what it was inspected with.
        appearance: how the image looks.
    """

    inspection: Inspection
    criteria: Criteria
    heatmap: bytes
    heatmap_range: tuple[float, float]
    token_shape: Grid
    params: dict[str, Any]
    area_resolution_mm2: float
    provenance: Provenance
    timings_ms: dict[str, float]
    warnings: list[Notice]
    appearance: Appearance

    @property
    def threshold(self) -> float | None:
        """None without a calibration that applies."""
        return self.criteria.threshold

    @property
    def is_anomaly(self) -> bool | None:
        """The verdict; None without a threshold."""
        return self.criteria.rejects(self.inspection.score)


class Clock:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self._started = self._last = perf_counter()
        self._stages: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        """The stage that began at the last mark is over."""
        now = perf_counter()
        self._stages[stage] = round(1000 * (now - self._last), 3)
        self._last = now

    def report(self) -> dict[str, float]:
        """All stages so far, and `total`."""
        return {**self._stages, "total": round(1000 * (perf_counter() - self._started), 3)}


class Journal(Protocol):
    """Is told of every fit, calibration and inspection. The notices that it gives back join the answer's warnings."""

    def keep(self, key: ModelKey, files: Sequence[ImageFile], mm_per_px: float) -> list[Notice]:
        """The images of a fit that is about to be committed. The caller holds the model's lock."""
        ...

    def fitted(self, key: ModelKey, metadata: Mapping[str, Any]) -> list[Notice]:
        """The metadata of a memory that was just committed. The caller holds the model's lock."""
        ...

    def calibrated(self, key: ModelKey, values: Mapping[str, Any]) -> list[Notice]:
        """The calibration that was just written. The caller holds the model's lock."""
        ...

    def restored(self, key: ModelKey, metadata: Mapping[str, Any], values: Mapping[str, Any] | None) -> list[Notice]:
        """The memory's metadata of a version that was just restored, and its calibration.

        The caller holds the model's lock.
        """
        ...

    def inspected(self, key: ModelKey, name: str, inspection: Inspection, threshold: float | None) -> None:
        """The inspection of an image called `name`, and the threshold that applied."""
        ...


class NoJournal:
    """The Journal of a service that keeps no samples and no records."""

    def keep(self, key: ModelKey, files: Sequence[ImageFile], mm_per_px: float) -> list[Notice]:
        """See Journal."""
        return []

    def fitted(self, key: ModelKey, metadata: Mapping[str, Any]) -> list[Notice]:
        """See Journal."""
        return []

    def calibrated(self, key: ModelKey, values: Mapping[str, Any]) -> list[Notice]:
        """See Journal."""
        return []

    def restored(self, key: ModelKey, metadata: Mapping[str, Any], values: Mapping[str, Any] | None) -> list[Notice]:
        """See Journal."""
        return []

    def inspected(self, key: ModelKey, name: str, inspection: Inspection, threshold: float | None) -> None:
        """See Journal."""
