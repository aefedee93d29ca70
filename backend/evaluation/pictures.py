"""Pictures for people: the part under its anomaly map with a caption below, and contact sheets of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Picture: TypeAlias = NDArray[np.uint8]
Box: TypeAlias = tuple[int, int, int, int]
Colour: TypeAlias = tuple[int, int, int]

MIN_WIDTH, MAX_SIDE, MAX_SHEET_WIDTH = 320, 1600, 4800
MAX_ALPHA = 0.6

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_PAPER, _INK, _BLACK, _WHITE = (28, 28, 28), (235, 235, 235), (0, 0, 0), (255, 255, 255)
_MASK = (190, 140, 50)
_VERDICTS: dict[str, Colour] = {"OK": (60, 140, 30), "NG": (45, 35, 205)}
_LIKENESS = dict(
    zip("øØđĐłŁµμ×·–—−‘’“”«»", "oOdDlLuux----''\"\"\"\"", strict=True)
) | {"æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ß": "ss", "°": " deg", "±": "+/-",
     "≥": ">=", "≤": "<=", "→": "->", "¿": "", "¡": ""}  # fmt: skip


def overlay(  # noqa: PLR0913 - everything that the picture shows, by name
    image_bgr: NDArray[np.uint8],
    heat: NDArray[np.float32],
    *,
    low: float,
    high: float,
    regions: Sequence[Mapping[str, Any]] = (),
    score: float,
    threshold: float | None,
    decision: str | None = None,
    mask: NDArray[np.bool_] | None = None,
    title: str = "",
) -> NDArray[np.uint8]:
    """Lay the anomaly map over its ROI, outline the regions and write the verdict under it.

    image_bgr is (H, W, 3) uint8 BGR; heat (H, W) distances; low and high the distances drawn transparent
    and at full colour (opacity MAX_ALPHA, so that the part stays visible). Each region's ``contour`` is
    [[x, y], …] in ROI pixels; its ``area_mm2``, if any, is written beside it where there is room. mask (H, W)
    bool keeps the heat to the part inspected and is outlined. The verdict is ``decision`` ("ok" or "ng");
    without one, NG when score > threshold; without a threshold either, none. NaN heat is left transparent.

    Returns (H', W', 3) uint8 BGR: the ROI scaled by one factor to at least MIN_WIDTH wide and at most
    MAX_SIDE on its longer side (a narrow, tall ROI keeps to the latter and gets margins), then the caption.
    Raises ValueError where shapes disagree, high < low, or decision is another word.
    """
    _check(image_bgr, heat, mask, low, high)
    height, width = heat.shape
    scale = min(max(MIN_WIDTH / width, 1.0), MAX_SIDE / max(height, width))
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    view = _heated(image_bgr, heat, mask, size, low, high)
    line = max(1, round(max(size) / 420))
    if mask is not None:
        cv2.polylines(view, _drawn(_edges(mask), scale), True, _MASK, 1, cv2.LINE_AA, shift=3)
    contours = [np.asarray(region["contour"], np.float64).reshape(-1, 2) for region in regions]
    for thickness, ink in ((line + 2, _BLACK), (line, _WHITE)):
        cv2.polylines(view, _drawn(contours, scale), True, ink, thickness, cv2.LINE_AA, shift=3)
    _label(view, regions, [contour * scale for contour in contours])
    across = max(view.shape[1], MIN_WIDTH)
    caption = _caption(across, title, score, threshold, decision)
    return np.vstack([_centred(view, across, view.shape[0]), caption])


def sheet(pictures: Sequence[NDArray[np.uint8]], columns: int = 4) -> NDArray[np.uint8]:
    """Arrange (H, W, 3) uint8 pictures in rows of ``columns`` equal cells, each whole and in proportion.

    A cell is as wide as the widest picture and as high as the highest; all are reduced alike where the sheet
    would pass MAX_SHEET_WIDTH. Raises ValueError without pictures or with columns < 1.
    """
    if not pictures or columns < 1:
        raise ValueError("a sheet needs at least one picture and one column")
    columns = min(columns, len(pictures))
    wide, high = max(p.shape[1] for p in pictures), max(p.shape[0] for p in pictures)
    gap = max(4, wide // 60)
    shrink = min(1.0, (MAX_SHEET_WIDTH - gap * (columns + 1)) / (columns * wide))
    wide, high = max(int(wide * shrink), 1), max(int(high * shrink), 1)
    rows = -(-len(pictures) // columns)
    page = np.full((rows * (high + gap) + gap, columns * (wide + gap) + gap, 3), _PAPER, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = gap + number // columns * (high + gap), gap + number % columns * (wide + gap)
        page[top : top + high, left : left + wide] = _centred(_fitted(picture, wide, high), wide, high)
    return page


def _check(image: Picture, heat: NDArray[np.float32], mask: NDArray[np.bool_] | None, low: float, high: float) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"the image must be (H, W, 3) uint8 BGR, not {image.shape} {image.dtype}")
    if heat.shape != image.shape[:2] or heat.size == 0:
        raise ValueError(f"the heat must have the image's size {image.shape[:2]}, not {heat.shape}")
    if mask is not None and mask.shape != heat.shape:
        raise ValueError(f"the mask must have the image's size {heat.shape}, not {mask.shape}")
    if not low <= high:
        raise ValueError(f"low must not be above high: {low}, {high}")


def _resized(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """``plane`` at (width, height) ``size``: averaged when it shrinks, interpolated when it grows."""
    if plane.shape[1] == size[0] and plane.shape[0] == size[1]:
        return plane.copy()
    shrinking = size[0] < plane.shape[1] or size[1] < plane.shape[0]
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC))


def _heated(
    image: Picture, heat: NDArray[np.float32], mask: NDArray[np.bool_] | None,
    size: tuple[int, int], low: float, high: float,
) -> Picture:  # fmt: skip
    """The image at ``size`` with the anomaly map blended in: opacity and colour grow with heat."""
    span = max(high - low, 1e-9)
    level = np.nan_to_num((heat.astype(np.float32) - low) / span, nan=0.0, posinf=1.0, neginf=0.0)
    level = np.clip(level, 0, 1) if mask is None else np.clip(level, 0, 1) * mask
    level = np.clip(_resized(level.astype(np.float32), size), 0, 1)
    colour = cv2.applyColorMap(np.rint(level * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
    alpha = MAX_ALPHA * (level**0.7)[..., None]
    mixed = _resized(image, size) * (1 - alpha) + colour * alpha
    return np.asarray(np.rint(mixed), np.uint8)


def _edges(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [np.asarray(contour, np.float64).reshape(-1, 2) for contour in found]


def _drawn(contours: Sequence[NDArray[np.float64]], scale: float) -> list[NDArray[np.int32]]:
    """Contours of ROI pixel centres on the scaled picture, in eighths of a pixel."""
    centres = [(contour + 0.5) * scale - 0.5 for contour in contours if len(contour)]
    return [np.rint(centre * 8).astype(np.int32) for centre in centres]


def _label(view: Picture, regions: Sequence[Mapping[str, Any]], contours: Sequence[NDArray[np.float64]]) -> None:
    """Write each region's area beside it, the largest first, where it hides no region and no other label."""
    size = 0.85 * _text_size(max(view.shape[1], MIN_WIDTH))
    taken = [_bounds(contour) for contour in contours if len(contour)]
    outlined = [region for region, contour in zip(regions, contours, strict=True) if len(contour)]
    named = [(r["area_mm2"], box) for r, box in zip(outlined, taken, strict=True) if "area_mm2" in r]
    for area, box in sorted(named, reverse=True):
        text = f"{area:.1f} mm2" if area < 100 else f"{area:.0f} mm2"
        wide, high = _extent(text, size)
        place = _free(view.shape, box, wide + 6, high + 6, taken)
        if place is not None:
            taken.append(place)
            cv2.rectangle(view, place[:2], (place[2] - 1, place[3] - 1), _BLACK, cv2.FILLED)
            _write(view, text, place[0] + 3, place[1] + 3, size, _WHITE)


def _bounds(contour: NDArray[np.float64]) -> Box:
    left, top = np.floor(contour.min(axis=0)).astype(int)
    right, bottom = np.ceil(contour.max(axis=0)).astype(int)
    return int(left) - 3, int(top) - 3, int(right) + 4, int(bottom) + 4


def _free(shape: tuple[int, ...], box: Box, wide: int, high: int, taken: Sequence[Box]) -> Box | None:
    """A place for a label above, below, right or left of ``box``, inside the picture, clear of ``taken``."""
    left = min(max(box[0], 0), max(shape[1] - wide, 0))
    top = min(max(box[1], 0), max(shape[0] - high, 0))
    for x, y in ((left, box[1] - high), (left, box[3]), (box[2], top), (box[0] - wide, top)):
        place = (x, y, x + wide, y + high)
        inside = x >= 0 and y >= 0 and place[2] <= shape[1] and place[3] <= shape[0]
        if inside and not any(_overlap(place, other) for other in taken):
            return place
    return None


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _caption(width: int, title: str, score: float, threshold: float | None, decision: str | None) -> Picture:
    """The strip under the picture: the title, then the verdict on its colour beside score and threshold."""
    size = _text_size(width)
    pad = max(5, width // 60)
    word = _verdict(score, threshold, decision)
    badge = _extent(word, size)[0] + 3 * pad if word else 0
    limit = "no threshold" if threshold is None else f"threshold {threshold:.4g}"
    heading = _wrap(_ascii(title), width - 2 * pad, size)
    numbers = _wrap(f"score {score:.4g}, {limit}", width - 2 * pad - badge, size)
    step = _extent("X", size)[1] + pad
    strip = np.full(((len(heading) + len(numbers)) * step + 2 * pad, width, 3), _PAPER, np.uint8)
    for row, text in enumerate(heading + numbers):
        left = pad if row < len(heading) else pad + badge
        _write(strip, text, left, row * step + pad * 3 // 2, size, _INK)
    if word:
        top = len(heading) * step + pad
        cv2.rectangle(strip, (pad, top), (badge - 1, top + step - 1), _VERDICTS[word], cv2.FILLED)
        _write(strip, word, pad + pad // 2, top + pad // 2, size, _WHITE)
    return strip


def _verdict(score: float, threshold: float | None, decision: str | None) -> str:
    if decision is None:
        return "" if threshold is None else "NG" if score > threshold else "OK"
    if decision.upper() not in _VERDICTS:
        raise ValueError(f"decision must be 'ok' or 'ng', not {decision!r}")
    return decision.upper()


def _text_size(width: int) -> float:
    """OpenCV's font scale for a picture of ``width``: legible at MIN_WIDTH, in proportion above it."""
    return min(max(0.45 * width / MIN_WIDTH, 0.45), 1.5)


def _stroke(size: float) -> int:
    return max(1, round(size * 1.4))


def _extent(text: str, size: float) -> tuple[int, int]:
    """Width and height in pixels, descenders included, with a pixel of antialiasing all round."""
    (wide, high), below = cv2.getTextSize(text, _FONT, size, _stroke(size))
    return wide + 2, high + below + 2


def _write(picture: Picture, text: str, x: int, y: int, size: float, ink: Colour) -> None:
    """Write ``text`` with its upper left corner at (x, y)."""
    (_, high), _ = cv2.getTextSize(text, _FONT, size, _stroke(size))
    cv2.putText(picture, text, (x + 1, y + high + 1), _FONT, size, ink, _stroke(size), cv2.LINE_AA)


def _wrap(text: str, width: int, size: float) -> list[str]:
    """Lines no wider than ``width``, broken between words, or within a word that alone is wider."""
    lines: list[str] = []
    for word in (piece for whole in text.split() for piece in _pieces(whole, width, size)):
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and _extent(joined, size)[0] <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def _pieces(word: str, width: int, size: float) -> list[str]:
    """``word`` cut into the longest parts no wider than ``width``, of one letter at least."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and _extent(pieces[-1] + letter, size)[0] > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _ascii(text: str) -> str:
    """``text`` in letters that every OpenCV can draw: accents dropped, '?' for the rest."""
    spelled = "".join(_LIKENESS.get(letter, letter) for letter in unicodedata.normalize("NFC", text))
    plain = "".join(c for c in unicodedata.normalize("NFKD", spelled) if not unicodedata.combining(c))
    return "".join(" " if c.isspace() else c if " " <= c <= "~" else "?" for c in plain)


def _fitted(picture: Picture, width: int, height: int) -> Picture:
    factor = min(width / picture.shape[1], height / picture.shape[0])
    wide, high = round(picture.shape[1] * factor), round(picture.shape[0] * factor)
    return _resized(picture, (min(max(wide, 1), width), min(max(high, 1), height)))


def _centred(picture: Picture, width: int, height: int) -> Picture:
    """``picture`` in the middle of a dark field of (height, width)."""
    field = np.full((height, width, 3), _PAPER, np.uint8)
    top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
    field[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return field
