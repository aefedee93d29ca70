"""The use cases of the ResNet18 web API: build a memory bank, predict one image."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.base.config import PROJECT_ROOT, Settings
from backend.base.decoding import ImageOptions
from backend.base.errors import (
    BankMismatch,
    EmptyFile,
    EmptyUpload,
    InspectionError,
    InvalidValue,
    RoiUnreadable,
    UndecodableImage,
    UndecodableUpload,
)
from backend.base.images import resize
from backend.base.messages import Notice
from backend.calib import choose_threshold
from backend.extractors.protocol import RGB, Extractor
from backend.extractors.resnet import DOCUMENTED, EMBEDDING_VERSIONS, RECOMMENDED
from backend.patchcore import NothingLeft, PatchCoreMemory
from backend.resnet_api.bank import DEFAULT_THRESHOLD, Bank, BankStore, Stamp
from backend.resnet_api.host import GreyHost
from backend.resnet_api.pictures import (
    OverlayFolder,
    Polygon,
    binarise,
    draw,
    normalised,
    polygons,
    relative_threshold,
    scored_area,
)
from backend.service.images import ImageFile, decoded
from backend.service.jobs import Job
from backend.service.queue import InferenceQueue

logger = logging.getLogger(__name__)

Mode = Literal["sensitive", "normal", "strict"]
CORESET_RATE = 0.01
FACTORS: dict[Mode, float] = {"sensitive": 0.8, "normal": 1.0, "strict": 1.2}


@dataclass(frozen=True)
class Prediction:
    """What the web API says of one image.

    Attributes:
        polygons: outlines in pixels of the image resized to IMG_SIZE, x to the right and y down; none without anomaly.
        files: file name of each picture in the overlays folder, by kind.
        size: (height, width) of the image as it was sent.
        token_map: (rows, columns) float32 distances of the patches to the bank.
        bank: what is known of the bank, as its metadata has it.
    """

    score: float
    threshold: float
    is_anomaly: bool
    polygons: list[Polygon]
    files: dict[str, str]
    size: tuple[int, int]
    token_map: NDArray[np.float32]
    bank: dict[str, Any]
    timings_ms: dict[str, float]
    warnings: list[Notice]


@dataclass(frozen=True)
class Built:
    """A new bank, and the score of each good image against the others' patches: its threshold comes from them.

    `warnings`: what is to be said of how the images were read, each code once.
    """

    bank: Bank
    scores: list[float]
    warnings: list[Notice]


class Predictor:
    """Predicts with the bank in ARTIFACTS_DIR, and builds such a bank. Safe to call from many threads.

    A bank that changes on disk is read again at the next prediction; the network is built when it is first needed.

    Args:
        settings: the service's settings.
        busy: whether inspections are waiting for the machine; see GreyHost.
    """

    def __init__(self, settings: Settings, busy: Callable[[], bool] = lambda: False) -> None:
        self.settings = settings
        self.store = BankStore(settings.artifacts_dir)
        self.overlays = OverlayFolder(settings.static_dir / settings.overlays_subdir, settings.max_overlays)
        self.host = GreyHost(settings, busy)
        self._known: tuple[Stamp, Bank] | None = None

    def start(self, after: Callable[[], object] = lambda: None) -> None:
        """Begin to load bank and network in the background once `after` returns; without a bank nothing is loaded."""
        if self.store.exists():
            threading.Thread(target=self._warm_up, args=(after,), name="resnet18-warm-up", daemon=True).start()

    def close(self) -> None:
        """Stop the network's queues."""
        self.host.close()

    def health(self) -> dict[str, Any]:
        """The fields that /health gains."""
        return {
            "img_size": self.settings.img_size,
            "knn_k": self.settings.knn_k,
            "threshold": self._threshold(self._configured()),
            "ignore_border_pct": _plain(self.settings.ignore_border_pct),
            "roi_path": self.settings.roi_path,
        }

    def about(self) -> dict[str, Any]:
        """What is loaded, for GET /config. Raises DamagedFile."""
        known = self._known[1] if self._known and self._known[0] == self.store.stamp() else None
        config = known.about if known else self._configured()
        version = self._version(config)
        state, device = self.host.state(version)
        return {
            "status": state if self.store.exists() else "absent",
            **self.health(),
            "patch_stride": self.settings.patch_stride,
            "save_vis": self.settings.save_vis,
            "area_min": _plain(self.settings.area_min),
            "model": "resnet18",
            "device": device,
            "embedding_version": version,
            "memory_bank": {
                "path": str(self.store.path),
                "rows": len(known.memory) if known else 0,
                "dim": known.memory.dim if known else 0,
                "n_images": int(config.get("n_images", 0)),
                "created_utc": str(config.get("created_utc", "")),
            },
        }

    def predict(
        self, file: ImageFile, *, thr: float | None = None, mode: Mode | None = None, job: Job | None = None
    ) -> Prediction:
        """Score one image and, with SAVE_VIS, write its pictures into the overlays folder.

        Args:
            thr: threshold used as it is; None: the base one times 0.8 (sensitive), 1 or 1.2 (strict).

        Raises:
            BankNotFound, BankMismatch, ResNetUnavailable, RoiUnreadable, NotReady, EmptyUpload, UndecodableUpload,
            BadImage, QueueFull, Cancelled, DamagedFile, DiskFull, ReadOnlyStore.
        """
        job, started = job or Job(), perf_counter()
        bank = self.bank()
        try:
            grey, size, said = self._grey(file)
        except EmptyFile as err:
            raise EmptyUpload() from err
        except UndecodableImage as err:
            raise UndecodableUpload(why=err.values["reason"]) from err
        area = self._scored_area()
        queue = self.host.queue(self._version(bank.about))
        _check_width(bank, queue.extractor)
        with queue.slot():
            tokens = job.wait(queue.submit(_three(grey)))
            extracted = perf_counter()
            distances = bank.memory.distances(tokens, self.settings.knn_k)
            anomaly_map = self._anomaly_map(distances)
        score = _largest(anomaly_map, area)
        threshold = self._threshold(bank.about) * FACTORS[mode or "normal"] if thr is None else thr
        is_anomaly = score > threshold
        relative = normalised(anomaly_map)
        mask = binarise(relative, relative_threshold(anomaly_map, threshold), area)
        if not is_anomaly:
            mask[:] = False
        outlines = polygons(mask, self.settings.area_min)
        scored = perf_counter()
        files = {}
        if self.settings.save_vis:
            files = self.overlays.save(file.name, draw(grey, relative, mask, outlines, area))
        return Prediction(
            score=score,
            threshold=threshold,
            is_anomaly=is_anomaly,
            polygons=outlines,
            files=files,
            size=size,
            token_map=distances.reshape(round(len(distances) ** 0.5), -1),
            bank=bank.about,
            timings_ms=_milliseconds(started, extract=extracted, score=scored, pictures=perf_counter()),
            warnings=[*bank.notices, *said],
        )

    def build(
        self,
        files: Sequence[ImageFile],
        *,
        coreset_rate: float = CORESET_RATE,
        mirrored: bool = True,
        version: str = RECOMMENDED,
        job: Job | None = None,
    ) -> Built:
        """Build the bank from images of good parts, choose its threshold and write both.

        The threshold is the 99th percentile of the good images' own scores, each against the patches of the others.

        Args:
            coreset_rate: rows of the bank for each patch of the images.
            mirrored: the bank also holds patches of the images mirrored left to right, top to bottom and both ways.
            version: how patches become vectors, one of the extractor's embedding versions.

        Raises:
            InvalidValue: fewer than two images, more than FIT_MEMORY_MB can hold, or rows of one image alone.
            BadImage, ResNetUnavailable, RoiUnreadable, Cancelled, DiskFull, ReadOnlyStore.
        """
        if len(files) < 2:
            raise InvalidValue(field="FOLDER", value=len(files), expected=">= 2 images")
        job = job or Job()
        queue = self.host.queue(version)
        tokens, said = self._embed(files, queue, 4 if mirrored else 1, job)
        memory = PatchCoreMemory.build(
            tokens.reshape(-1, tokens.shape[-1]),
            coreset_rate / tokens.shape[1],
            limit=self.settings.max_coreset,
            rng=np.random.default_rng(self.settings.seed),
            image_ids=np.repeat(np.arange(len(files), dtype=np.int32), tokens.shape[1] * tokens.shape[2]),
            progress=partial(_progress, job, "coreset"),
        )
        try:
            scores = self._own_scores(memory, tokens[:, 0], job)
        except NothingLeft as err:
            few = "enough for rows of more than one image"
            raise InvalidValue(field="--coreset-rate", value=coreset_rate, expected=few) from err
        about = {
            "threshold": choose_threshold(scores).value,
            "embedding_version": version,
            "n_images": len(files),
            "n_embeddings": memory.n_embeddings,
            "coreset_rate": coreset_rate,
            "mirrored": mirrored,
            "radius": memory.radius or 0.0,
            "img_size": self.settings.img_size,
            "patch_stride": self.settings.patch_stride,
            "knn_k": self.settings.knn_k,
            "seed": self.settings.seed,
        }
        return Built(self.store.save(memory, about), scores, said)

    def bank(self) -> Bank:
        """The bank on disk, read again only when its files changed. Raises BankNotFound, DamagedFile."""
        stamp = self.store.stamp()
        known = self._known
        if known is None or known[0] != stamp:
            bank = self.store.load()
            if (given := bank.about.get("embedding_version", DOCUMENTED)) not in EMBEDDING_VERSIONS:
                notice = Notice("bank_of_unknown_make", {"version": given, "assumed": DOCUMENTED})
                bank = Bank(bank.memory, bank.about, (*bank.notices, notice))
            self._known = known = (stamp, bank)
        return known[1]

    def _warm_up(self, after: Callable[[], object]) -> None:
        try:
            after()
            self.host.queue(self._version(self.bank().about))
        except InspectionError as err:
            logger.warning("the ResNet18 API is not ready: %s", err)

    def _configured(self) -> dict[str, Any]:
        known = self._known
        if known is not None and known[0] == self.store.stamp():
            return known[1].about
        return self.store.config()

    def _threshold(self, about: dict[str, Any]) -> float:
        if self.settings.threshold is not None:
            return self.settings.threshold
        return float(about.get("threshold", DEFAULT_THRESHOLD))

    def _version(self, about: dict[str, Any]) -> str:
        given = str(about.get("embedding_version", DOCUMENTED))
        return given if given in EMBEDDING_VERSIONS else DOCUMENTED

    def _grey(self, file: ImageFile) -> tuple[NDArray[np.uint8], tuple[int, int], tuple[Notice, ...]]:
        """The image as (IMG_SIZE, IMG_SIZE) uint8 grey, the (height, width) it came with, and what is to be said of it.

        Raises BadImage.
        """
        side = self.settings.img_size
        with decoded(file, ImageOptions.of(self.settings)) as (_, found):
            image = found.pixels
            return resize(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), side, side), image.shape[:2], found.notices

    def _scored_area(self) -> NDArray[np.bool_] | None:
        """The mask that ROI_PATH and IGNORE_BORDER_PCT describe. Raises RoiUnreadable."""
        picture = None
        if self.settings.roi_path is not None:
            path = PROJECT_ROOT / Path(self.settings.roi_path).expanduser()
            try:
                data = np.frombuffer(path.read_bytes(), np.uint8)
            except OSError as err:
                raise RoiUnreadable(path=self.settings.roi_path) from err
            picture = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
            if picture is None:
                raise RoiUnreadable(path=self.settings.roi_path)
        return scored_area(self.settings.img_size, self.settings.ignore_border_pct, picture)  # type: ignore[arg-type]

    def _anomaly_map(self, distances: NDArray[np.float32]) -> NDArray[np.float32]:
        """The patches' distances (T,) as a square, bilinear at IMG_SIZE: (IMG_SIZE, IMG_SIZE) float32."""
        side, grid = self.settings.img_size, round(len(distances) ** 0.5)
        return cv2.resize(distances.reshape(grid, grid), (side, side), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]

    def _embed(
        self, files: Sequence[ImageFile], queue: InferenceQueue, views: int, job: Job
    ) -> tuple[NDArray[np.float32], list[Notice]]:
        """Embeddings of each file and, of the image mirrored, of `views` - 1 more: (n, views, T, D) float32.

        With them what is to be said of the images, each code once.
        """
        patches = ceil(self.settings.img_size / queue.extractor.patch) ** 2
        tokens = np.empty(self._room(len(files), views, patches, queue.extractor.dim), np.float32)
        said: dict[str, Notice] = {}
        with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
            for number, (grey, _, notices) in enumerate(pool.map(self._grey, files)):
                for notice in notices:
                    said.setdefault(notice.code, notice)
                for view, picture in enumerate((grey, grey[:, ::-1], grey[::-1], grey[::-1, ::-1])[:views]):
                    tokens[number, view] = job.wait(queue.submit(_three(picture), bulk=True))
                _progress(job, "extract", number + 1, len(files))
        return tokens, list(said.values())

    def _room(self, *shape: int) -> tuple[int, ...]:
        needed = 4 * prod(shape) / 2**20
        if needed > self.settings.fit_memory_mb:
            raise InvalidValue(field="FIT_MEMORY_MB", value=self.settings.fit_memory_mb, expected=f">= {needed:.0f}")
        return shape

    def _own_scores(self, memory: PatchCoreMemory, tokens: NDArray[np.float32], job: Job) -> list[float]:
        """The score of each image (n, T, D) against the rows of the others."""
        area, scores = self._scored_area(), []
        for number, rows in enumerate(tokens):
            anomaly_map = self._anomaly_map(memory.distances(rows, self.settings.knn_k, leave_out=number))
            scores.append(_largest(anomaly_map, area))
            _progress(job, "threshold", number + 1, len(tokens))
        return scores


def _largest(anomaly_map: NDArray[np.float32], area: NDArray[np.bool_] | None) -> float:
    return float(anomaly_map.max() if area is None else anomaly_map[area].max())


def _progress(job: Job, stage: str, done: int, total: int) -> None:
    job.check()
    job.report(stage, done, total)


def _check_width(bank: Bank, extractor: Extractor) -> None:
    if bank.memory.dim != extractor.dim:
        raise BankMismatch(theirs=bank.memory.dim, ours=extractor.dim)


def _three(grey: NDArray[np.uint8]) -> RGB:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _plain(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _milliseconds(started: float, **marks: float) -> dict[str, float]:
    spent, last = {}, started
    for stage, mark in marks.items():
        spent[stage], last = round(1000 * (mark - last), 3), mark
    return {**spent, "total": round(1000 * (last - started), 3)}
