"""What an evaluation found: figures, costs and pictures of one model on one set."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from backend.evaluation.figures import ImageFigures, Interval, PixelFigures, Rates
from backend.evaluation.sets import LabelledImage


@dataclass(frozen=True)
class ScoredImage:
    """A test image, its score, and the milliseconds that its inspection took."""

    image: LabelledImage
    score: float
    ms: float


@dataclass(frozen=True)
class Shown:
    """An image to look at in a report: why, and a picture of it (JPEG bytes)."""

    why: str
    image: LabelledImage
    score: float
    jpeg: bytes = field(repr=False)


@dataclass(frozen=True)
class FewShot:
    """Figures with `shots` good parts to fit on: (mean, standard deviation) over `draws` draws of them."""

    shots: int
    draws: int
    auroc: tuple[float, float]
    ap: tuple[float, float]
    f1_max: tuple[float, float]
    pixel_auroc: tuple[float, float] | None
    aupro: tuple[float, float] | None


@dataclass(frozen=True)
class UnderChange:
    """Figures of the test images under a change; `change` is one of PERTURBATIONS in words, or `none`.

    `false_reject`, `miss`: see rates_under_change; None with a single good part.
    """

    change: str
    auroc: float
    false_reject: float | None
    miss: float | None


@dataclass(frozen=True)
class Figures:
    """Image figures, and pixel figures where there are masks."""

    image: ImageFigures
    pixels: PixelFigures | None


@dataclass(frozen=True)
class Cost:
    """Seconds of the fit, median milliseconds of an inspection, rows and MB of the memory, MB of the process."""

    fit_s: float
    inspect_ms: float
    memory_rows: int
    memory_mb: float
    process_mb: float


@dataclass(frozen=True)
class SetResult:
    """What one model does on one set.

    `classes`: the figures of each class of defect against the good parts. `rates`: what calibrations would do.
    `changed`: the same test under changes of light, focus and position; empty unless it was asked for.
    `warnings`: sentences on what looks wrong with the set, and what the service said of its images.
    """

    set_name: str
    model: str
    settings: dict[str, Any]
    n_train: int
    counts: dict[str, int]
    figures: Figures
    interval: Interval
    classes: dict[str, Figures]
    rates: list[Rates]
    cost: Cost
    few: list[FewShot]
    changed: list[UnderChange]
    scored: list[ScoredImage] = field(repr=False)
    shown: list[Shown] = field(repr=False)
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON values: everything but the pictures, test images by path and class, and what is empty left out."""
        left_out = {"scored", "shown", *(name for name in ("changed", "warnings") if not getattr(self, name))}
        own = {name: value for name, value in asdict(self).items() if name not in left_out}
        images = [
            {"file": s.image.path.as_posix(), "class": s.image.label, "score": s.score, "ms": s.ms} for s in self.scored
        ]
        return {**own, "images": images}
