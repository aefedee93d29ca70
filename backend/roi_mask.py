"""Where the part is inside the ROI: a rectangle, circle or annulus, and the mask that it makes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.base.errors import (
    MaskEmpty,
    ShapeBadNumber,
    ShapeInverted,
    ShapeNotJson,
    ShapeUnknownKeys,
    ShapeUnknownKind,
    once_each,
)

FIELDS = {
    "rect": ("x", "y", "w", "h"),
    "circle": ("cx", "cy", "r"),
    "annulus": ("cx", "cy", "r", "r_inner"),
}
_POSITIVE = {"w", "h", "r"}
_NOT_NEGATIVE = {"r_inner"}


@dataclass(frozen=True)
class Shape:
    """A shape in pixels of the ROI: `kind` and its numbers, as FIELDS lists them."""

    kind: str
    numbers: dict[str, float]

    def scaled(self, factor: float) -> Shape:
        """The same shape on an image `factor` times as large."""
        return Shape(self.kind, {name: value * factor for name, value in self.numbers.items()})

    def as_dict(self) -> dict[str, Any]:
        """The JSON object that describes the shape."""
        return {"kind": self.kind, **self.numbers}


def parse_shape(text: str | dict[str, Any] | None) -> Shape | None:
    """The shape that a JSON text (or the object itself) describes; None for None, blank or JSON null.

    Raises:
        ShapeNotJson, ShapeUnknownKind, ShapeUnknownKeys, ShapeBadNumber, ShapeInverted.
        FieldTwice: a key comes twice.
    """
    given = _load(text) if isinstance(text, str) else text
    if given is None:
        return None
    if not isinstance(given, dict):
        raise ShapeNotJson()
    kind = str(given.get("kind", "")).strip().lower()
    if kind not in FIELDS:
        raise ShapeUnknownKind(kind=repr(given.get("kind"))[:40], known=", ".join(FIELDS))
    unknown = [str(name)[:40] for name in given if name != "kind" and name not in FIELDS[kind]]
    if unknown:
        raise ShapeUnknownKeys(kind=kind, keys=", ".join(unknown[:5]), known=", ".join(FIELDS[kind]))
    shape = Shape(kind, {field: _number(given, kind, field) for field in FIELDS[kind]})
    if kind == "annulus" and shape.numbers["r_inner"] >= shape.numbers["r"]:
        raise ShapeInverted(r=shape.numbers["r"], r_inner=shape.numbers["r_inner"])
    return shape


def build_mask(shape: Shape | None, height: int, width: int) -> NDArray[np.bool_] | None:
    """Mask of `shape` on an image of (height, width); what lies outside the image is cut off.

    A pixel (x, y) belongs to a rectangle when x0 ≤ x < x0 + w, and to a circle when its distance to (cx, cy) is ≤ r.

    Returns:
        (height, width) bool, True inside, or None without a shape.

    Raises:
        MaskEmpty: the shape covers no pixel.
    """
    if shape is None:
        return None
    y = np.arange(height, dtype=np.float64)[:, None]
    x = np.arange(width, dtype=np.float64)[None, :]
    n = shape.numbers
    if shape.kind == "rect":
        mask = ((x >= n["x"]) & (x < n["x"] + n["w"])) & ((y >= n["y"]) & (y < n["y"] + n["h"]))
    else:
        across, down = (x - n["cx"]) ** 2, (y - n["cy"]) ** 2
        mask = across <= n["r"] ** 2 - down
        if "r_inner" in n:
            mask &= across >= n["r_inner"] ** 2 - down
    if not mask.any():
        raise MaskEmpty(width=width, height=height)
    return mask


def token_mask(mask: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.bool_]:
    """(rows, columns) bool: whether a cell of the token grid touches the part, of which `mask` is (h, w)."""
    share = cv2.resize(mask.astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA)
    touched: NDArray[np.bool_] = share > 0
    return touched


def nearest_inside(values: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """`values` (h, w) float32, each one outside replaced by that of the nearest place inside.

    `inside`: (h, w) bool, with at least one True.
    """
    _, labels = cv2.distanceTransformWithLabels(
        (~inside).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE, labelType=cv2.DIST_LABEL_PIXEL
    )
    at = np.zeros(int(labels.max()) + 1, np.float32)
    at[labels[inside]] = values[inside]
    spread: NDArray[np.float32] = at[labels]
    return spread


def _load(text: str) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text, object_pairs_hook=once_each)
    except (ValueError, RecursionError) as err:
        raise ShapeNotJson() from err


def _number(given: dict[str, Any], kind: str, field: str) -> float:
    value = given.get(field)
    rule = " > 0" if field in _POSITIVE else " ≥ 0" if field in _NOT_NEGATIVE else ""
    valid = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e9
    if not valid or not math.isfinite(value):  # type: ignore[arg-type]
        raise ShapeBadNumber(kind=kind, field=field, rule=rule)
    number = float(value)  # type: ignore[arg-type]
    if (field in _POSITIVE and number <= 0) or (field in _NOT_NEGATIVE and number < 0):
        raise ShapeBadNumber(kind=kind, field=field, rule=rule)
    return number
