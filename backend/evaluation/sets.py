"""Folders of labelled images: MVTec AD's layout and the station's own, read into one form.

MVTec AD   <set>/train/good · <set>/test/<class> · <set>/ground_truth/<class>/<stem>_mask.*
station    <role>/<roi>/ok · <role>/<roi>/ng

A .json beside an image may know more of it: its `shape` and `mm_per_px`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from backend.base.errors import SetNotUnderstood
from backend.roi_mask import Shape, parse_shape

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
GOOD = "good"
TRAIN_SHARE = 2 / 3


@dataclass(frozen=True)
class LabelledImage:
    """An image, its class (`good` or a defect's name), and what is known of it.

    `mask`: picture of the defect, not 0 inside. `shape`: the part inside the ROI.
    """

    path: Path
    label: str
    mask: Path | None = None
    shape: Shape | None = None
    mm_per_px: float | None = None

    @property
    def defective(self) -> bool:
        """Whether it is anything but good."""
        return self.label != GOOD


@dataclass(frozen=True)
class InspectionSet:
    """Good parts to fit on, and parts of known class to test on."""

    name: str
    train: tuple[LabelledImage, ...]
    test: tuple[LabelledImage, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Test images per class, good ones first."""
        found = Counter(image.label for image in self.test)
        return {GOOD: found.pop(GOOD, 0), **dict(sorted(found.items()))}

    def few(self, shots: int, rng: np.random.Generator) -> InspectionSet:
        """The same set with `shots` good parts to fit on, drawn at random."""
        chosen = rng.choice(len(self.train), size=min(shots, len(self.train)), replace=False)
        return replace(self, train=tuple(self.train[i] for i in sorted(chosen)))


def read_set(folder: Path, *, seed: int = 0) -> InspectionSet:
    """The set in `folder`, in whichever of the two layouts it is.

    The station's layout does not say which good parts are for testing: one third, drawn with `seed`, is.

    Raises:
        SetNotUnderstood: neither layout, or a part of it is empty.
    """
    folder = folder.resolve()
    found = _mvtec(folder) if (folder / "train").is_dir() else _station(folder, seed)
    if not found.train or not any(i.defective for i in found.test) or all(i.defective for i in found.test):
        raise SetNotUnderstood(path=folder.name)
    return found


def images_of(folder: Path) -> list[Path]:
    """Image files right in `folder`, sorted by name; none when there is no such folder."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS) if folder.is_dir() else []


def _mvtec(folder: Path) -> InspectionSet:
    classes = sorted(p for p in (folder / "test").iterdir() if p.is_dir()) if (folder / "test").is_dir() else []
    test = [
        replace(_with_sidecar(path, kind.name), mask=_mask_of(folder / "ground_truth" / kind.name, path.stem))
        for kind in classes
        for path in images_of(kind)
    ]
    train = [_with_sidecar(path, GOOD) for path in images_of(folder / "train" / GOOD)]
    return InspectionSet(folder.name, tuple(train), tuple(test))


def _mask_of(folder: Path, stem: str) -> Path | None:
    return next((p for p in images_of(folder) if p.stem in {f"{stem}_mask", stem}), None)


def _station(folder: Path, seed: int) -> InspectionSet:
    good = [_with_sidecar(path, GOOD) for path in images_of(folder / "ok")]
    bad = [_with_sidecar(path, "ng") for path in images_of(folder / "ng")]
    order = np.random.default_rng(seed).permutation(len(good))
    n_train = max(1, round(len(good) * TRAIN_SHARE)) if good else 0
    train = tuple(good[i] for i in sorted(order[:n_train]))
    test = tuple(good[i] for i in sorted(order[n_train:]))
    return InspectionSet(f"{folder.parent.name}/{folder.name}", train, (*test, *bad))


def _with_sidecar(path: Path, label: str) -> LabelledImage:
    known = _sidecar(path)
    given = known.get("shape", known.get("shape_json"))
    scale = known.get("mm_per_px")
    usable = isinstance(scale, int | float) and scale > 0
    return LabelledImage(path, label, None, parse_shape(given), float(scale) if usable else None)  # type: ignore[arg-type]


def _sidecar(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    try:
        known = json.loads(beside.read_text("utf-8-sig")) if beside.is_file() else {}
    except ValueError as err:
        raise SetNotUnderstood(path=beside.name) from err
    return known if isinstance(known, dict) else {}
