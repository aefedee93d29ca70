"""Why a verdict was what it was: in sentences, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.base.errors import Notice, Phrase
from backend.base.images import encode_png, resize
from backend.base.messages import NOTICES
from backend.infer import InferenceEngine, RoiSize, Scoring
from backend.records.queries import Whole
from backend.records.record import token_map_of
from backend.roi_mask import build_mask, parse_shape

GROUND = 96  # the grey of a picture whose image was not kept
MAX_PIXELS = 4_000_000
_OUTLINE = (64, 64, 255)
_PART = (255, 200, 0)

Text = Phrase | Notice


def sentences(found: Whole) -> list[Text]:
    """Score and threshold, the share of good parts that score as high, the largest region, and what was warned of."""
    told: list[Text] = [_verdict(found.item)]
    if (p_value := found.item.get("p_value")) is not None:
        told.append(
            Phrase(
                "De las piezas buenas de la calibración, el {share} puntúa al menos tanto.",
                "Of the good parts of the calibration, {share} score at least as much.",
                share=f"{100 * p_value:.3g} %",
            )
        )
    regions = found.details.get("regions", [])
    if regions:
        told.append(_largest(regions))
    elif "threshold" in found.item:
        told.append(
            Phrase(
                "Ninguna región llega al umbral con el área mínima.",
                "No region of the least area reaches the threshold.",
            )
        )
    return told + _warned(found.details.get("warnings", [])) + _reviewed(found.reviews)


def _verdict(item: Mapping[str, Any]) -> Phrase:
    values = {"score": f"{item['score']:.4f}", "threshold": f"{item.get('threshold', 0):.4f}"}
    if "decision" not in item:
        return Phrase(
            "Sin veredicto: puntuó {score} y no había calibración, de modo que no había umbral.",
            "No verdict: it scored {score}, and without a calibration there was no threshold.",
            **values,
        )
    if item["decision"] == "ng":
        return Phrase(
            "NG: puntuó {score}, por encima del umbral {threshold}.",
            "NG: it scored {score}, above the threshold {threshold}.",
            **values,
        )
    return Phrase(
        "OK: puntuó {score}, sin superar el umbral {threshold}.",
        "OK: it scored {score}, not above the threshold {threshold}.",
        **values,
    )


def _largest(regions: Sequence[Mapping[str, Any]]) -> Phrase:
    largest = max(regions, key=lambda region: region["area_px"])
    x, y, w, h = largest["bbox"]
    return Phrase(
        "Regiones que llegan al umbral: {n}. La mayor mide {area} mm² ({w}×{h} px en x={x}, y={y}).",
        "Regions that reach the threshold: {n}. The largest is {area} mm² ({w}×{h} px at x={x}, y={y}).",
        n=len(regions),
        area=f"{largest['area_mm2']:.2f}",
        x=x,
        y=y,
        w=w,
        h=h,
    )


def _warned(warnings: Sequence[Mapping[str, Any]]) -> list[Text]:
    """The warnings of the time; one that this version does not know by its code."""
    return [
        Notice(one["code"], one.get("values", {}))
        if one["code"] in NOTICES
        else Phrase("Aviso: {code}.", "Warning: {code}.", code=one["code"])
        for one in warnings
    ]


def _reviewed(reviews: Sequence[Mapping[str, Any]]) -> list[Text]:
    if not reviews:
        return []
    said = {
        "good": ("buena", "good"),
        "bad": ("defectuosa", "bad"),
        "unclear": ("dudosa", "unclear"),
    }[reviews[-1]["verdict"]]
    return [
        Phrase(
            "Revisiones: {n}. La última dice que la pieza es {verdict}.",
            "Reviews: {n}. The last one says that the part is {verdict}.",
            n=len(reviews),
            verdict=Phrase(*said),
        )
    ]


def overlay(found: Whole, image: NDArray[np.uint8] | None) -> bytes:
    """PNG of the image, or of a plain ground, with the anomaly map over it and the regions outlined.

    The map is drawn again from the token map; where it reaches the threshold it covers half of what is below. A
    picture over 4 megapixels is scaled down.

    Args:
        image: (H, W, 3) uint8 BGR as it was inspected, or None.
    """
    details = found.details
    sent = RoiSize(int(details["height"]), int(details["width"]))
    scale = min(1.0, math.sqrt(MAX_PIXELS / (sent.height * sent.width)))
    height, width = max(1, round(sent.height * scale)), max(1, round(sent.width * scale))
    ground = np.full((height, width, 3), GROUND, np.uint8) if image is None else resize(image, height, width).copy()
    shape = parse_shape(details.get("shape"))
    mask = build_mask(shape.scaled(scale) if shape else None, height, width)
    if found.token_map:
        blur = scale * float(details.get("scoring", {}).get("blur_sigma", 0.0))
        engine = InferenceEngine(Scoring(blur_sigma=blur))
        tokens = token_map_of(found.token_map, details["token_shape"])
        heat = engine.anomaly_map(tokens, RoiSize(height, width), mask)
        top = found.item.get("threshold") or float(heat.max()) or 1.0
        ground = _glowing(ground, heat, top)
    scaled = [np.rint(np.array(region["contour"], np.float64) * scale) for region in details.get("regions", [])]
    thick = max(1, round(max(height, width) / 400))
    cv2.polylines(ground, [points.astype(np.int32) for points in scaled if len(points)], True, _OUTLINE, thick)
    if mask is not None:
        edges, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(ground, edges, -1, _PART, 1)
    return encode_png(ground)


def _glowing(ground: NDArray[np.uint8], heat: NDArray[np.float32], top: float) -> NDArray[np.uint8]:
    """The anomaly map in colours: nothing at half of `top` and below, half covering from `top` on."""
    level = np.clip(heat / top, 0.0, 2.0)
    colours = cv2.applyColorMap(np.asarray(level * 127.5, np.uint8), cv2.COLORMAP_JET)
    share = np.clip(level - 0.5, 0.0, 0.5)[:, :, None]
    return np.asarray(ground * (1.0 - share) + colours * share, np.uint8)
