"""What the use cases answer with, and how long their stages took."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

from backend.base.config import Settings
from backend.base.errors import Notice
from backend.base.keys import ModelKey
from backend.extractors.protocol import Extractor, Grid
from backend.infer import Inspection, RoiSize
from backend.memory.variants import Variant
from backend.service.calibration import Applied
from backend.service.fitting import Embeddings
from backend.service.models import FittedModel


@dataclass(frozen=True)
class FitResult:
    """What a fit made: the metadata of its memory, and sizes in rows (embeddings)."""

    coreset_size: int
    token_shape: Grid
    metadata: dict[str, Any]
    timings_ms: dict[str, float]
    warnings: list[Notice]


@dataclass(frozen=True)
class CalibrationResult:
    """The calibration as it was written to calib.json."""

    values: dict[str, Any]
    warnings: list[Notice]


@dataclass(frozen=True)
class InferResult:
    """The verdict on one image. `threshold` and `is_anomaly` are None without a calibration that applies."""

    inspection: Inspection
    threshold: float | None
    is_anomaly: bool | None
    heatmap: bytes
    heatmap_range: tuple[float, float]
    token_shape: Grid
    params: dict[str, Any]
    timings_ms: dict[str, float]
    warnings: list[Notice]


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


def about_origin(key: ModelKey, model: FittedModel) -> list[Notice]:
    """A notice when the memory's file was made for another model and copied here."""
    theirs = model.stored.metadata.get("model", str(key))
    return [] if theirs == str(key) else [Notice("memory_of_other_model", {"theirs": theirs, "key": key})]


def about_frame(frame: RoiSize, mm_per_px: float, model: FittedModel, *, masked: bool) -> list[Notice]:
    """What is to be said of an image's size, scale and shape beside those the memory was fitted with."""
    notices = []
    if frame.scale < 1:
        notices.append(Notice("image_downscaled", {"megapixels": frame.height * frame.width / 1e6}))
    fitted = model.stored.metadata.get("mm_per_px")
    if isinstance(fitted, float) and abs(mm_per_px - fitted) > 0.01 * fitted:
        notices.append(Notice("mm_per_px_differs", {"got": mm_per_px, "expected": fitted}))
    if model.knows_part_only and not masked:
        notices.append(Notice("shape_missing"))
    return notices


def params_of(
    extractor: Extractor, model: FittedModel, applied: Applied, mm_per_px: float, settings: Settings
) -> dict[str, Any]:
    """What /infer says of how it inspected."""
    metadata = model.stored.metadata
    rate = model.stored.number("coreset_rate", settings.coreset_rate)
    return {
        "extractor": extractor.name,
        "input_size": extractor.input_size,
        "patch_size": extractor.patch,
        "coreset_rate": rate,
        "coreset_rate_applied": model.stored.number("coreset_rate_applied", rate),
        "k": applied.scoring.k,
        "score_percentile": applied.scoring.percentile,
        "score_method": applied.scoring.method,
        "blur_sigma": applied.scoring.blur_sigma,
        "mm_per_px": mm_per_px,
        "area_mm2_thr": applied.area_mm2_thr,
        "model_version": str(metadata.get("model_version", "")),
        "device": extractor.device,
        "runtime": extractor.runtime,
    }


def about_coreset(embedded: Embeddings, settings: Settings) -> list[Notice]:
    """What is to be said of how the rows of a memory were chosen."""
    mixed = [Notice("shapes_differ")] * embedded.mixed
    return capped(embedded.n_embeddings, settings) + in_passes(embedded, settings) + mixed


def in_passes(embedded: Embeddings, settings: Settings) -> list[Notice]:
    """That a memory was chosen in passes, if it was, and what could not be done for that reason."""
    limit = {"limit": f"{settings.fit_memory_mb:g}"}
    blind = [Notice("foreground_not_learnt", limit)] * (settings.foreground_mask == "pca" and not any(embedded.shaped))
    return [] if embedded.passes is None else [Notice("fitted_in_passes", limit), *blind]


def capped(n_embeddings: int, settings: Settings) -> list[Notice]:
    """A notice that a memory of so many embeddings has fewer rows than CORESET_RATE asks for, if it has."""
    wanted, limit = round(n_embeddings * settings.coreset_rate), settings.max_coreset
    return [Notice("coreset_capped", {"limit": limit, "wanted": wanted})] * (wanted > limit)


def variant_of(settings: Settings, extractor: Extractor, embedded: Embeddings) -> Variant:
    """The kind of memory that the settings ask for."""
    return Variant(
        distance=settings.patchcore_distance,
        widths=extractor.widths if settings.patchcore_memories == "separate" else (),
        foreground=settings.foreground_mask == "pca" and not any(embedded.shaped) and embedded.passes is None,
    )
