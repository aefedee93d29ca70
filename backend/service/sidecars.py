"""The .json beside an image: what it says of the image, wherever images are read from a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.base.errors import InvalidShape, SidecarNotJson
from backend.base.messages import Notice
from backend.roi_mask import Shape, parse_shape

MOST_MM_PER_PX = 1e6


@dataclass(frozen=True)
class Sidecar:
    """What the metadata beside an image say of it, and what of them is not understood.

    `mm_per_px`, `shape`: None where they are not said, or said in a way that is not understood.
    """

    mm_per_px: float | None
    shape: Shape | None
    notices: tuple[Notice, ...]

    @classmethod
    def read(cls, name: str, meta: Mapping[str, Any]) -> Sidecar:
        """The metadata `meta` of the image `name`; a number may come as text, as stations write it."""
        notices, mm_per_px, shape = [], known_mm_per_px(meta), None
        if mm_per_px is None and meta.get("mm_per_px") not in (None, ""):
            given = str(meta["mm_per_px"])[:40]
            notices.append(Notice("scale_not_understood", {"name": name, "given": given}))
        try:
            shape = known_shape(meta)
        except InvalidShape as err:
            notices.append(Notice("shape_not_understood", {"name": name, "reason": err}))
        return cls(mm_per_px, shape, tuple(notices))

    @classmethod
    def beside(cls, image: Path) -> Sidecar:
        """What the .json beside the image at `image` says of it. Raises SidecarNotJson."""
        return cls.read(image.name, meta_beside(image))


_NUMBER = re.compile(r"\s*\+?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


def known_mm_per_px(meta: Mapping[str, Any]) -> float | None:
    """The sample's millimetres per pixel, if its metadata has a usable number up to 1e6, or one as text."""
    value = meta.get("mm_per_px")
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MOST_MM_PER_PX
    return float(value) if usable else None  # type: ignore[arg-type]


def known_shape(meta: Mapping[str, Any]) -> Shape | None:
    """The sample's shape: `shape`, or `shape_json` as text or object. Raises InvalidShape."""
    given = meta.get("shape") or meta.get("shape_json")
    return parse_shape(given if isinstance(given, str | dict) else None)


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata in the file at `path`, in any of Unicode's encodings, with a byte order mark or without.

    Raises:
        OSError, ValueError, RecursionError: it cannot be read, or is no JSON object.
    """
    meta = json.loads(path.read_bytes())
    if not isinstance(meta, dict):
        raise ValueError("it is no JSON object")
    return meta


def meta_beside(image: Path) -> dict[str, Any]:
    """The metadata beside the image at `image`; empty without any. Raises SidecarNotJson."""
    path = meta_path(image)
    try:
        return {} if path is None else read_meta(path)
    except (OSError, ValueError, RecursionError) as err:
        raise SidecarNotJson(name=path.name if path else image.name) from err


def meta_path(image: Path) -> Path | None:
    """The .json beside an image: a.json, or a.png.json."""
    for path in (image.with_suffix(".json"), image.with_name(f"{image.name}.json")):
        if path.is_file():
            return path
    return None
