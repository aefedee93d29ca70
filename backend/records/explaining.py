"""Why a verdict was what it was: as messages, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.base.images import encode_jpeg, encode_png, resize
from backend.base.messages import Message, Phrase
from backend.infer import Roi, RoiSize, anomaly_map, level_of
from backend.records.notices import notice_of
from backend.records.queries import Whole
from backend.records.record import token_map_of
from backend.roi_mask import build_mask, parse_shape

Form = Literal["png", "jpeg"]
GROUND = 96  # the grey of a picture whose image was not kept
_REVIEWS = {"good": "review_good", "bad": "review_bad", "unclear": "review_unclear"}
_OUTLINE = (64, 64, 255)
_PART = (255, 200, 0)


def reasons(found: Whole) -> list[Message]:
    """Score and threshold, the share of good parts that score as high, the largest region, warnings, and reviews.

    Warnings are told as they were then; the code of one may be of another version and unknown to this one.
    """
    told: list[Message] = [_verdict(found.item)]
    if (p_value := found.item.get("p_value")) is not None:
        told.append(_rarity(p_value, (found.details.get("calibration") or {}).get("n_ok")))
    if regions := found.details.get("regions"):
        told.append(_largest(regions))
    elif "threshold" in found.item:
        told.append(Phrase("why_no_region"))
    told += [notice_of(one) for one in found.details.get("warnings", [])]
    if found.reviews:
        code = _REVIEWS[found.item["review"]]  # by their times, the last may be another one: clocks go back
        told.append(Phrase("why_reviewed", {"n": len(found.reviews), "verdict": Phrase(code)}))
    return told


def _verdict(item: Mapping[str, Any]) -> Phrase:
    if "decision" not in item:
        return Phrase("why_undecided", {"score": item["score"]})
    if item["decision"] == "ng":
        return Phrase("why_ng", {"score": item["score"], "threshold": item["threshold"]})
    return Phrase("why_ok", {"score": item["score"], "threshold": item["threshold"]})


def _rarity(p_value: float, n_ok: int | None) -> Phrase:
    """How many of the calibration's `n_ok` good parts score as high: a p-value is one more of one part more."""
    if n_ok is None:
        return Phrase("why_p_value", {"share": 100 * p_value})
    return Phrase("why_as_high", {"as_high": round(p_value * (n_ok + 1)) - 1, "n": n_ok})


def _largest(regions: Sequence[Mapping[str, Any]]) -> Phrase:
    largest = max(regions, key=lambda region: region["area_px"])
    x, y, w, h = largest["bbox"]
    if "area_mm2" not in largest:  # nobody said how large a pixel is
        return Phrase("why_regions_px", {"n": len(regions), "area": largest["area_px"], "x": x, "y": y, "w": w, "h": h})
    return Phrase("why_regions", {"n": len(regions), "area": largest["area_mm2"], "x": x, "y": y, "w": w, "h": h})


def overlay(found: Whole, image: NDArray[np.uint8] | None, width: int | None = None, form: Form = "png") -> bytes:
    """PNG or JPEG of the image, or of a plain ground, with the anomaly map over it and the regions outlined.

    The map is drawn again from the token map; where it reaches the threshold it covers half of what is below. A
    picture is no larger than an anomaly map.

    Args:
        image: (H, W, 3) uint8 BGR as it was inspected, or None.
        width: of the picture, in px, at most; None: as wide as the image.
    """
    details = found.details
    sent = RoiSize(int(details["height"]), int(details["width"]))
    scale = min(sent.scale, (width or sent.width) / sent.width)
    height, width = max(1, int(sent.height * scale)), max(1, int(sent.width * scale))
    ground = np.full((height, width, 3), GROUND, np.uint8) if image is None else resize(image, height, width).copy()
    shape = parse_shape(details.get("shape"))
    mask = build_mask(shape.scaled(scale) if shape else None, height, width)
    if found.token_map:
        blur = scale * float(details.get("scoring", {}).get("blur_sigma", 0.0))
        tokens = token_map_of(found.token_map, details["token_shape"])
        heat = anomaly_map(tokens, Roi(RoiSize(height, width), tokens.shape, mask), blur)
        level = level_of(found.item.get("threshold"), float(details.get("scoring", {}).get("weight", 1.0)))
        top = level or float(heat.max()) or 1.0
        ground = _glowing(ground, heat, top)
    scaled = [np.rint(np.array(region["contour"], np.float64) * scale) for region in details.get("regions", [])]
    thick = max(1, round(max(height, width) / 400))
    cv2.polylines(ground, [points.astype(np.int32) for points in scaled if len(points)], True, _OUTLINE, thick)
    if mask is not None:
        edges, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(ground, edges, -1, _PART, 1)
    return encode_png(ground) if form == "png" else encode_jpeg(ground)


def _glowing(ground: NDArray[np.uint8], heat: NDArray[np.float32], top: float) -> NDArray[np.uint8]:
    """The anomaly map in colours: nothing at half of `top` and below, half covering from `top` on."""
    level = np.clip(heat / top, 0.0, 2.0)
    colours = cv2.applyColorMap(np.asarray(level * 127.5, np.uint8), cv2.COLORMAP_JET)
    share = np.clip(level - 0.5, 0.0, 0.5)[:, :, None]
    return np.asarray(ground * (1.0 - share) + colours * share, np.uint8)
