"""The pictures of an evaluation: which images are worth a look, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.base.images import decode_image, resize
from backend.evaluation.pictures import overlay
from backend.evaluation.results import ScoredImage
from backend.evaluation.sets import LabelledImage
from backend.infer import Inspection

WIDTH = 640
QUALITY = 88


def worth_showing(scored: Sequence[ScoredImage], *, each: int = 6) -> list[tuple[str, ScoredImage]]:
    """The images of a report: the bad ones that score lowest, the good ones that score highest, one of each class."""
    good = sorted((s for s in scored if not s.image.defective), key=lambda s: s.score, reverse=True)
    bad = sorted((s for s in scored if s.image.defective), key=lambda s: s.score)
    kinds: dict[str, list[ScoredImage]] = {}
    for s in (*reversed(good), *bad):
        kinds.setdefault(s.image.label, []).append(s)
    typical = [("class", of_kind[len(of_kind) // 2]) for of_kind in kinds.values()]
    return [("miss", s) for s in bad[:each]] + [("false alarm", s) for s in good[:each]] + typical


def beside(image: LabelledImage, found: Inspection) -> bytes:
    """JPEG: the ROI and, to its right, the same under its anomaly map, with the mask of the defect outlined."""
    plain = resize(decode_image(image.path.read_bytes(), name=image.path.name), *found.anomaly_map.shape)
    low, high = (float(v) for v in np.percentile(found.anomaly_map, [1, 99.9]))
    heated = overlay(
        plain, found.anomaly_map, low=low, high=max(high, low), score=found.score, threshold=None, mask=found.roi.mask
    )
    left = plain.copy()
    outline, _ = cv2.findContours(
        mask_of(image, found.anomaly_map.shape).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    cv2.drawContours(left, outline, -1, (255, 255, 255), max(1, left.shape[1] // 200))
    left = resize(left, round(left.shape[0] * heated.shape[1] / left.shape[1]), heated.shape[1])
    left = cv2.copyMakeBorder(left, 0, max(0, heated.shape[0] - left.shape[0]), 0, 4, cv2.BORDER_CONSTANT)
    pair = np.hstack([left[: heated.shape[0]], heated])
    scale = min(1.0, WIDTH / pair.shape[1])
    pair = resize(pair, round(pair.shape[0] * scale), round(pair.shape[1] * scale))
    _, jpeg = cv2.imencode(".jpg", pair, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return jpeg.tobytes()


def mask_of(image: LabelledImage, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """(h, w) bool: where the image's defect is; all False without a mask."""
    if image.mask is None:
        return np.zeros(shape, bool)
    picture = decode_image(image.mask.read_bytes(), name=image.mask.name).max(axis=2)
    return np.asarray(cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_NEAREST) > 0)
