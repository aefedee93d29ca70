"""Evaluations: the service's own code fits on a set's good parts and inspects its test images; figures are taken."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from numpy.typing import NDArray

from backend.base.arrays import reading_arrays
from backend.base.config import Settings
from backend.base.decoding import ImageOptions, decode
from backend.base.images import encode_png
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.base.options import settings_of
from backend.evaluation.figures import (
    Rates,
    auroc_interval,
    calibration_rates,
    image_figures,
    pixel_figures,
    rates_under_change,
)
from backend.evaluation.perturb import PERTURBATIONS, Perturbation
from backend.evaluation.report import side_by_side, worth_showing
from backend.evaluation.results import Cost, FewShot, Figures, ScoredImage, SetResult, Shown, UnderChange
from backend.evaluation.sets import GOOD, InspectionSet, LabelledImage
from backend.extractors.neighbourhood import Wrapped
from backend.extractors.protocol import RGB, Extractor, ExtractorOptions, Mask
from backend.infer import Scoring
from backend.service.fitting import FitOptions, Fitter
from backend.service.host import extractor_for
from backend.service.images import ImageFile
from backend.service.inspection import Inspector
from backend.service.jobs import Job
from backend.service.results import FitResult, InferResult

KEY = ModelKey.of("evaluation", "set")
CALIBRATION_OK = (10, 20, 50)
CALIBRATION_NG = (0, 1, 2, 3)
MAP_PIXELS = 1_000_000
DRAWS_OF_CALIBRATION = 200

SETTINGS_THAT_COUNT = (
    "preset",
    *settings_of(ExtractorOptions),
    *settings_of(ImageOptions),
    *settings_of(FitOptions),
    *settings_of(Scoring),
    "area_mm2_thr",
    "threshold_margin",
)

Progress = Callable[[str, int, int], None]
Map = NDArray[np.float32]


class RememberingExtractor(Wrapped):
    """An Extractor that embeds each image once and keeps its tokens in a folder.

    Draws of few good parts then share the network's work, and so do settings that leave the extractor alone.
    """

    def __init__(self, inner: Extractor, folder: Path) -> None:
        super().__init__(inner, "")
        self.folder = folder

    def extract(self, images: Sequence[RGB]) -> NDArray[np.float32]:
        """See Extractor."""
        return np.stack([self._tokens(image) for image in images])

    def extract_part(self, images: Sequence[RGB], inside: Mask) -> NDArray[np.float32]:
        """See Extractor."""
        return np.stack([self._tokens(image, inside) for image in images])

    def _tokens(self, image: RGB, inside: Mask | None = None) -> NDArray[np.float32]:
        seen = b"" if inside is None else inside.tobytes()
        seal = hashlib.sha256(repr(image.shape).encode() + image.tobytes() + seen).hexdigest()
        path = self.folder / f"{seal}.npy"
        if not path.exists():
            found = self.inner.extract([image]) if inside is None else self.inner.extract_part([image], inside)
            np.save(path, found[0])
        with reading_arrays():
            tokens: NDArray[np.float32] = np.load(path)
        return tokens


class Evaluator:
    """One extractor, many sets. A context manager: models and tokens live in a temporary folder.

    Args:
        settings: as for the service.
        extractor: used instead of the one that the settings name.
        remember: keep the tokens of each image (for few-shot figures).
        progress: called with (what, done, total).
        words: puts what the service says of fits and inspections into a sentence of the results' warnings.

    Raises:
        WeightsUnavailable: nothing falls back to another extractor.
    """

    def __init__(
        self,
        settings: Settings,
        extractor: Extractor | None = None,
        *,
        remember: bool = False,
        progress: Progress = lambda *_: None,
        words: Callable[[Notice], str] = str,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="evaluate-", ignore_cleanup_errors=True)
        root = Path(self._folder.name)
        self.settings = settings.model_copy(update={"models_dir": root / "models", "datasets_dir": root / "datasets"})
        self.progress, self.words = progress, words
        try:
            given = extractor or extractor_for(settings)
            self.inspector = Inspector(self.settings, RememberingExtractor(given, root) if remember else given)
            self.fitter = Fitter(self.inspector)
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> Evaluator:
        self.inspector.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.inspector.close()
        self._folder.cleanup()

    def run(
        self, given: InspectionSet, *, shots: Sequence[int] = (), draws: int = 3, perturb: bool = False
    ) -> SetResult:
        """Everything about one set, fitted on all its good parts, and the figures with few of them.

        `perturb`: also the figures under each of PERTURBATIONS.
        """
        fitted = self._fit(given, "fit")
        of_images: Counter[str] = Counter()
        scored, maps = self._inspect(given, "inspect", of_images)
        shown = [self._picture(why, s) for why, s in worth_showing(scored)]
        cost = self._cost(fitted.timings_ms["total"] / 1000, scored)
        said = [self.words(notice) for notice in fitted.warnings]
        said += [f"{text} ({n} of {len(scored)} test images)" for text, n in of_images.items()]
        rng = np.random.default_rng(self.settings.seed)
        defective, scores = _columns(scored)
        return SetResult(
            set_name=given.name,
            model=self.inspector.health()["model"],
            settings=_settings_of(self.settings),
            n_train=len(given.train),
            counts=given.counts,
            figures=figures_of(scored, maps),
            interval=auroc_interval(defective, scores, rng),
            classes=_by_class(scored, maps),
            rates=_rates(scores[~defective], scores[defective], rng, self.settings),
            cost=cost,
            changed=self._changed(given, scored) if perturb else [],
            few=[self._few(given, n, draws) for n in shots],
            scored=scored,
            shown=shown,
            warnings=(*given.warnings, *said),
        )

    def _fit(self, given: InspectionSet, what: str) -> FitResult:
        job = _Reported(lambda done, total: self.progress(f"{given.name}: {what}", done, total))
        files = [_file(image) for image in given.train]
        mm_per_px = next((image.mm_per_px for image in given.train if image.mm_per_px), 1.0)
        return self.fitter.fit(KEY, files, mm_per_px=mm_per_px, job=job)

    def _inspect(
        self, given: InspectionSet, what: str, said: Counter[str] | None = None
    ) -> tuple[list[ScoredImage], list[Map]]:
        """Scores of the test images, and anomaly maps if there are masks; `said` counts what the service says."""
        masked = any(image.masks for image in given.test)
        scored, maps = [], []
        for number, image in enumerate(given.test, start=1):
            result = self._infer(image)
            scored.append(ScoredImage(image, result.inspection.score, result.timings_ms["total"]))
            if masked:
                maps.append(_small(result.inspection.anomaly_map))
            if said is not None:
                said.update(self.words(notice) for notice in result.warnings if notice.code != "not_calibrated")
            self.progress(f"{given.name}: {what}", number, len(given.test))
        return scored, maps

    def _infer(self, image: LabelledImage, change: Perturbation | None = None) -> InferResult:
        file = _file(image)
        if change is not None:
            pixels = decode(file.read(), name=file.name, options=ImageOptions.of(self.settings)).pixels
            png = encode_png(change(pixels))
            file = replace(file, read=lambda: png)
        return self.inspector.infer(KEY, file, mm_per_px=image.mm_per_px or 1.0, heatmap="none")

    def _few(self, given: InspectionSet, shots: int, draws: int) -> FewShot:
        found = []
        for seed in range(draws):
            few = given.few(shots, np.random.default_rng([self.settings.seed, shots, seed]))
            what = f"{len(few.train)} shots, draw {seed + 1}"
            self._fit(few, what)
            found.append(figures_of(*self._inspect(few, what)))
        pixels = [figures.pixels for figures in found if figures.pixels]
        return FewShot(
            shots=min(shots, len(given.train)),
            draws=draws,
            auroc=_spread([f.image.auroc for f in found]),
            ap=_spread([f.image.ap for f in found]),
            f1_max=_spread([f.image.f1_max for f in found]),
            pixel_auroc=_spread([p.auroc for p in pixels]) if pixels else None,
            aupro=_spread([p.aupro for p in pixels]) if pixels else None,
        )

    def _changed(self, given: InspectionSet, scored: list[ScoredImage]) -> list[UnderChange]:
        defective, plain = _columns(scored)
        found = [self._under_change("none", defective, plain, plain)]
        for number, change in enumerate(PERTURBATIONS, start=1):
            scores = np.array([self._infer(image, change).inspection.score for image in given.test])
            found.append(self._under_change(str(change), defective, plain, scores))
            self.progress(f"{given.name}: perturb", number, len(PERTURBATIONS))
        return found

    def _under_change(
        self, change: str, defective: NDArray[np.bool_], plain: NDArray[np.float64], scores: NDArray[np.float64]
    ) -> UnderChange:
        rejected = missed = None
        if np.count_nonzero(~defective) > 1:
            rejected, missed = rates_under_change(
                plain[~defective],
                scores[~defective],
                scores[defective],
                rng=np.random.default_rng(self.settings.seed),
                percentile=self.settings.score_percentile,
                margin=self.settings.threshold_margin,
            )
        return UnderChange(change, image_figures(defective, scores).auroc, rejected, missed)

    def _cost(self, fit_s: float, scored: list[ScoredImage]) -> Cost:
        memory = self.inspector.cache.model(KEY).memory
        process_mb = psutil.Process().memory_info().rss / 2**20
        return Cost(fit_s, float(np.median([s.ms for s in scored])), len(memory), memory.nbytes / 2**20, process_mb)

    def _picture(self, why: str, scored: ScoredImage) -> Shown:
        found = self._infer(scored.image).inspection
        return Shown(why, scored.image, scored.score, side_by_side(scored.image, found, ImageOptions.of(self.settings)))


class _Reported(Job):
    """Tells how many images of a fit are embedded."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        super().__init__()
        self._tell = tell

    def report(self, stage: str, done: int, total: int) -> None:
        if stage == "extract":
            self._tell(done, total)


def figures_of(scored: Sequence[ScoredImage], maps: Sequence[Map]) -> Figures:
    """The figures of scored images; `maps` holds their anomaly maps, or nothing where there are no masks.

    A defective image without a mask counts for the image figures only: nobody said where its defect is.
    """
    known = [(s.image, m) for s, m in zip(scored, maps, strict=False) if s.image.masks or not s.image.defective]
    masks = [image.defect(*found.shape) for image, found in known]
    pixels = pixel_figures(masks, [found for _, found in known]) if masks else None
    return Figures(image_figures(*_columns(scored)), pixels)


def _by_class(scored: list[ScoredImage], maps: list[Map]) -> dict[str, Figures]:
    found = {}
    for kind in sorted({s.image.label for s in scored} - {GOOD}):
        chosen = [i for i, s in enumerate(scored) if s.image.label in {GOOD, kind}]
        found[kind] = figures_of([scored[i] for i in chosen], [maps[i] for i in chosen] if maps else [])
    return found


def _rates(
    ok: NDArray[np.float64], ng: NDArray[np.float64], rng: np.random.Generator, settings: Settings
) -> list[Rates]:
    return [
        calibration_rates(
            ok,
            ng,
            n_ok=n_ok,
            n_ng=n_ng,
            rng=rng,
            draws=DRAWS_OF_CALIBRATION,
            percentile=settings.score_percentile,
            margin=settings.threshold_margin,
        )
        for n_ok in CALIBRATION_OK
        for n_ng in CALIBRATION_NG
        if n_ok < len(ok) and n_ng < len(ng)
    ]


def _columns(scored: Sequence[ScoredImage]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    return np.array([s.image.defective for s in scored]), np.array([s.score for s in scored])


def _spread(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values))


def _small(found: Map) -> Map:
    """The map, averaged down to MAP_PIXELS where it is larger, since pixel figures sort all pixels of all images."""
    scale = (MAP_PIXELS / found.size) ** 0.5
    if scale >= 1:
        return found
    size = max(1, round(found.shape[1] * scale)), max(1, round(found.shape[0] * scale))
    return np.asarray(cv2.resize(found, size, interpolation=cv2.INTER_AREA), np.float32)


def _file(image: LabelledImage) -> ImageFile:
    """The image under the last folders of its path, which an error needs: `003.png` is in every class."""
    return ImageFile("/".join(image.path.parts[-3:]), image.path.read_bytes, image.shape)


def _settings_of(settings: Settings) -> dict[str, Any]:
    """The settings that accuracy depends on, by the names of the environment."""
    return {name.upper(): getattr(settings, name) for name in SETTINGS_THAT_COUNT}
